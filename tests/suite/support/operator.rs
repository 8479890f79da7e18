//! The script `cluster.py` as a child that stays: an operator and a plain client of a cluster, without a start for each order.

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::python::interpreter;
use super::wait::test_file;

/// The limit of an answer: longer than the script waits for anything.
const PATIENCE: Duration = Duration::from_mins(4);

/// The running script; it ends when dropped, and with this process.
#[derive(Debug)]
pub(crate) struct Operator {
    child: Child,
    orders: RefCell<ChildStdin>,
    answers: Receiver<String>,
}

impl Operator {
    /// Starts it with the facts of a cluster.
    pub(crate) fn start(facts: &Value) -> Self {
        let python = interpreter();
        let child = Command::new(&python)
            .arg(test_file("suite/support/cluster.py"))
            .arg(facts.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child =
            child.unwrap_or_else(|error| panic!("{}: {error}; set PYTHON or run `make test`", python.display()));
        let orders = RefCell::new(child.stdin.take().expect("stdin is piped"));
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let (sender, answers) = sync_channel(1);
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, orders, answers }
    }

    /// Gives an order and waits for the answer.
    pub(crate) fn ask(&self, order: &Value) -> Value {
        writeln!(self.orders.borrow_mut(), "{order}").expect("the script reads its input");
        let line = self.answers.recv_timeout(PATIENCE);
        let line = line.unwrap_or_else(|error| panic!("no answer to {order}: {error}"));
        let mut answer: Value = serde_json::from_str(&line).expect("the script answers in JSON");
        assert!(answer["error"].is_null(), "{order}: {}", answer["error"]);
        answer["answer"].take()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // Already ended: nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
