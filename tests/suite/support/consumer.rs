//! An example as a child: its output while it runs, and its end.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use super::{Ended, LIMIT, Program, wait_for};

/// One output, read line by line as it comes.
#[derive(Debug)]
struct Output {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Output {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let reader = pipe.map(|pipe| {
            let text = text.clone();
            thread::spawn(move || {
                for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                    let mut text = text.lock();
                    text.push_str(&String::from_utf8_lossy(&line));
                    text.push('\n');
                }
            })
        });
        Self { text, reader }
    }

    fn so_far(&self) -> String {
        self.text.lock().clone()
    }

    fn end(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader does not panic");
        }
        self.so_far()
    }
}

/// A running consumer; killed when dropped.
#[derive(Debug)]
pub(crate) struct Consumer {
    child: Child,
    out: Output,
    err: Output,
}

impl Consumer {
    /// Starts it.
    pub(crate) fn start(program: Program) -> Self {
        Self::spawn(program, Stdio::piped())
    }

    /// Starts it with a standard output that accepts nothing, as of a disk that is full.
    pub(crate) fn start_with_full_output(program: Program) -> Self {
        let full = File::options().write(true).open("/dev/full").expect("Linux has it");
        Self::spawn(program, full.into())
    }

    fn spawn(program: Program, out: Stdio) -> Self {
        let mut command = program.into_command();
        command.stdin(Stdio::null()).stdout(out).stderr(Stdio::piped());
        let child = command.spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}; tests/setup.sh makes it"));
        let (out, err) = (Output::of(child.stdout.take()), Output::of(child.stderr.take()));
        Self { child, out, err }
    }

    /// Waits until it has printed this many lines.
    pub(crate) fn wait_for_events(&self, count: usize) {
        wait_for(&format!("{count} events"), LIMIT, || (self.out.so_far().lines().count() >= count).then_some(()));
    }

    /// Sends SIGTERM and waits for the end.
    pub(crate) fn stop(self) -> Ended {
        let pid = self.child.id().to_string();
        let done = Command::new("kill").args(["-s", "TERM", &pid]).status();
        assert!(done.expect("kill can be run").success(), "it has ended before: {}", self.err.so_far());
        self.wait()
    }

    /// Waits for the end.
    pub(crate) fn wait(mut self) -> Ended {
        let child = &mut self.child;
        let status = wait_for("the end of the consumer", LIMIT, || child.try_wait().expect("it is our child"));
        Ended { code: status.code(), out: self.out.end(), err: self.err.end() }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // Already ended: nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let (out, err) = (self.out.end(), self.err.end());
        if thread::panicking() {
            eprintln!("the consumer printed:\n{out}{err}");
        }
    }
}
