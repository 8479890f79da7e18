//! Threads with a runtime of their own.

use std::future::Future;
use std::io;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

use crate::status::Heartbeat;

/// The runtimes for several threads, not yet given to them.
pub(super) struct Runtimes(Vec<Runtime>);

impl Runtimes {
    pub(super) fn new(count: usize) -> io::Result<Self> {
        let mut made = Self(Vec::with_capacity(count));
        for _ in 0..count {
            made.0.push(Self::one()?);
        }
        Ok(made)
    }

    fn one() -> io::Result<Runtime> {
        Builder::new_current_thread().enable_all().build()
    }

    pub(super) fn next(&mut self) -> io::Result<Runtime> {
        self.0.pop().map_or_else(Self::one, Ok)
    }
}

impl Drop for Runtimes {
    fn drop(&mut self) {
        // After a failed start: tokio panics when a runtime is dropped inside another in any other way.
        self.0.drain(..).for_each(Runtime::shutdown_background);
    }
}

/// Waits for threads to end.
pub(super) async fn joined<T: Send + 'static>(threads: Vec<JoinHandle<T>>) {
    for thread in threads {
        // A panic ends the process (`panic = "abort"`) or is in the log already.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
}

/// Starts a thread with a runtime of its own, for one future and what it spawns there.
pub(super) fn thread<F, T>(
    name: &str,
    runtime: Runtime,
    heartbeat: Option<Heartbeat>,
    make: impl FnOnce() -> F + Send + 'static,
) -> io::Result<JoinHandle<T>>
where
    F: Future<Output = T>,
    T: Send + 'static,
{
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let local = LocalSet::new();
        if let Some(heartbeat) = heartbeat.clone() {
            local.spawn_local(heartbeat.run());
        }
        let output = local.block_on(&runtime, async { make().await });
        // A thread that has ended is not stalled.
        heartbeat.iter().for_each(Heartbeat::pause);
        // Blocking work still in progress (a client library closing) must not delay the end.
        runtime.shutdown_background();
        output
    })
}
