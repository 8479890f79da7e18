//! The program as a command that runs to its end, in an environment that is empty but for what a test adds.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

/// A command to run.
#[derive(Debug)]
pub(crate) struct Program {
    command: Command,
    input: Vec<u8>,
}

/// The result of a run: status and output.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit status; none if a signal ended it.
    pub(crate) code: Option<i32>,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

impl Program {
    /// The bridge with these arguments.
    pub(crate) fn new<I: IntoIterator<Item = A>, A: AsRef<OsStr>>(arguments: I) -> Self {
        Self::other(env!("CARGO_BIN_EXE_plextrac-bridge"), arguments)
    }

    /// Another program.
    pub(crate) fn other<I: IntoIterator<Item = A>, A: AsRef<OsStr>>(name: impl AsRef<OsStr>, arguments: I) -> Self {
        let mut command = Command::new(name);
        command.env_clear().args(arguments);
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        Self { command, input: Vec::new() }
    }

    /// The bridge with these arguments, none of which has a blank, on a terminal of 120 columns: all it writes is
    /// standard output.
    pub(crate) fn on_terminal(arguments: &[&str]) -> Self {
        let line = format!("stty cols 120; exec {} {}", env!("CARGO_BIN_EXE_plextrac-bridge"), arguments.join(" "));
        Self::other("script", ["-q", "-e", "-c", &line, "/dev/null"]).variable("TERM", "xterm")
    }

    /// One more variable of the environment.
    pub(crate) fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// The directory it runs in.
    pub(crate) fn within(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Sets the standard input.
    pub(crate) fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// The command, for a test that does not wait for its end.
    pub(crate) fn into_command(self) -> Command {
        self.command
    }

    /// Runs it to its end.
    pub(crate) fn run(mut self) -> Ended {
        let name = format!("{:?}", self.command);
        let command = self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {name}: {error}"));
        let mut stdin = child.stdin.take().expect("standard input is piped");
        let input = self.input;
        // A program that does not read its input is not an error here.
        let writer = thread::spawn(move || stdin.write_all(&input).is_ok());
        let output = child.wait_with_output().unwrap_or_else(|error| panic!("cannot wait for {name}: {error}"));
        let _ = writer.join();
        Ended {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ended {
    /// Checks the status; both outputs are in the message.
    #[track_caller]
    pub(crate) fn assert_code(&self, code: i32) {
        assert_eq!(
            self.code,
            Some(code),
            "exit status; standard output:\n{}\nstandard error:\n{}",
            self.out,
            self.err
        );
    }
}
