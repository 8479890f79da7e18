//! A real browser on one page, controlled through `tests/page/browser.js`, line by line.

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use serde_json::{Value, json};

use super::wait::test_file;
use super::{Program, cache};

/// A browser without a window.
#[derive(Debug)]
pub(crate) struct Browser {
    child: Child,
    /// None at the end.
    pipes: RefCell<Option<(ChildStdin, BufReader<ChildStdout>)>>,
}

impl Browser {
    /// Opens this page in a browser.
    pub(crate) fn open(url: &str) -> Self {
        let mut command = Program::other("node", [test_file("page/browser.js")])
            .variable("NODE_PATH", cache().join("node/page/node_modules"))
            .variable("TMPDIR", std::env::temp_dir())
            .into_command();
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.expect("Node can be run; `make test` installs it");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (stdin, stdout) = (stdin.expect("it is piped"), stdout.expect("it is piped"));
        let browser = Self { child, pipes: RefCell::new(Some((stdin, BufReader::new(stdout)))) };
        assert_eq!(browser.ask(&json!({"open": url})), 200, "{url}");
        browser
    }

    /// Waits until something that is shown there has this text.
    #[track_caller]
    pub(crate) fn wait(&self, selector: &str, text: &str) {
        self.ask(&json!({"wait": selector, "text": text}));
    }

    /// The texts of all that is shown there.
    #[track_caller]
    pub(crate) fn read(&self, selector: &str) -> Vec<String> {
        let texts = self.ask(&json!({"read": selector}));
        let texts = texts.as_array().into_iter().flatten().filter_map(Value::as_str);
        texts.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    /// The values of an attribute, of each element.
    #[track_caller]
    pub(crate) fn attribute(&self, selector: &str, name: &str) -> Vec<String> {
        let values = self.ask(&json!({"attribute": selector, "name": name}));
        values.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// The faults of a page: lines on the console, requests to other hosts or failed ones.
    pub(crate) fn complaints(&self) -> Value {
        self.ask(&json!({"complaints": true}))
    }

    /// Whether the page fits a window of this width, in light or dark; a picture of it, if `PAGE_PICTURES` names a
    /// directory for such.
    #[track_caller]
    pub(crate) fn fits(&self, width: u32, scheme: &str) -> bool {
        let picture = std::env::var("PAGE_PICTURES").ok().map(|to| format!("{to}/page-{scheme}-{width}.png"));
        self.ask(&json!({"width": width, "scheme": scheme, "picture": picture})) == true
    }

    #[track_caller]
    fn ask(&self, order: &Value) -> Value {
        let mut pipes = self.pipes.borrow_mut();
        let (stdin, stdout) = pipes.as_mut().expect("it is not the end");
        writeln!(stdin, "{order}").expect("the browser runs");
        let mut line = String::new();
        stdout.read_line(&mut line).expect("the browser runs");
        let mut answer: Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("the browser does not answer; tests/setup.sh installs what it needs"));
        assert!(answer.get("error").is_none(), "{order}: {}", answer["error"].as_str().unwrap_or_default());
        answer["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // At the end of its input Node ends its browser, and itself.
        self.pipes.take();
        let _ = self.child.wait();
    }
}
