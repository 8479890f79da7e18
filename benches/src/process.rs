//! One program that is measured: its processor time to the nanosecond, its memory, its end.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a start or a stop may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A child process; killed when dropped.
pub struct Process {
    child: Child,
    pid: Pid,
}

impl Process {
    /// Starts it; what it prints goes to a file.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let output = fs::File::create(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        Ok(Self { child, pid })
    }

    /// Processor time used until now, all threads, user and system.
    pub fn cpu(&self) -> Result<Duration> {
        let clock = nix::time::clock_getcpuclockid(self.pid)?;
        Ok(Duration::from(nix::time::clock_gettime(clock)?))
    }

    /// Resident memory now, and its peak; bytes.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let kilobytes = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line in status")?;
            Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
        };
        Ok((kilobytes("VmRSS:")?, kilobytes("VmHWM:")?))
    }

    /// Ends it in order.
    pub fn stop(mut self) -> Result<()> {
        kill(self.pid, Signal::SIGTERM)?;
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("it does not end");
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended, or it is ours to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something answers there: to a connection, or with 200 to this path.
pub fn wait_until_up(address: SocketAddr, path: Option<&str>) -> Result<Duration> {
    let began = Instant::now();
    loop {
        let is_up = match path {
            None => TcpStream::connect(address).is_ok(),
            Some(path) => get(address, path).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")),
        };
        if is_up {
            return Ok(began.elapsed());
        }
        if began.elapsed() > PATIENCE {
            bail!("nothing answers at {address}{}", path.unwrap_or_default());
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// One request, the whole answer.
pub fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Stops a process of another owner for a while.
pub struct Paused(Pid);

impl Paused {
    /// SIGSTOP until dropped.
    pub fn new(pid: i32) -> Result<Self> {
        kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
        Ok(Self(Pid::from_raw(pid)))
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        // Where it is gone there is nothing to continue.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// A port that was free a moment ago, below the range that the kernel gives to clients.
pub fn port() -> Result<u16> {
    for port in (21_000 + std::process::id() % 8_000..32_000).map_while(|port| u16::try_from(port).ok()) {
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port")
}
