//! Reads of the journal on a thread for blocking work, because a disk may be slow.

use std::io;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::process::logs::Throttle;
use crate::queue::journal::{Reader, is_unreadable};
use crate::status::BrokerStatus;

/// The time that delivery waits before it retries a read.
const RETRY: Duration = Duration::from_secs(1);

/// The number of attempts to read a block before it is skipped: some disks recover it after a moment.
const TRIES: u32 = 3;

/// A read that takes longer than this is reported.
const SLOW: Duration = Duration::from_secs(2);

/// The reads of one reader, one after the other. Each is kept from one call to the next: waiting for it may be cancelled,
/// the read itself is not.
#[derive(Debug)]
pub(super) struct DiskReads<T> {
    /// The text that is shown while a read is slow.
    slow: &'static str,
    stage: ReadStage<T>,
    /// The number of failures of the next read.
    failures: u32,
    /// A failure is shown to the operator.
    is_shown: bool,
    throttle: Throttle,
}

#[derive(Debug)]
enum ReadStage<T> {
    /// None is in progress; the next may begin at this time.
    Idle(Box<Reader>, Option<Instant>),
    /// One is in progress.
    Busy(JoinHandle<(Box<Reader>, io::Result<T>)>),
    /// It panicked.
    Broken,
}

impl<T: Send + 'static> DiskReads<T> {
    pub(super) fn new(reader: Reader) -> Self {
        Self::saying(reader, "the disk has not answered a read of the journal for 2 s or longer")
    }

    /// Reads that take long as a rule; `slow` is shown meanwhile.
    pub(super) fn saying(reader: Reader, slow: &'static str) -> Self {
        let throttle = Throttle::new("reading the journal", 10, Duration::from_secs(1));
        Self { slow, stage: ReadStage::Idle(Box::new(reader), None), failures: 0, is_shown: false, throttle }
    }

    /// Reads, and tries again for as long as the disk fails; a block that stays unreadable in a readable file is skipped.
    /// If a read was begun before, it is waited for instead. Cancel-safe.
    pub(super) async fn run<F>(&mut self, view: &BrokerStatus, read: F) -> T
    where
        F: Fn(&mut Reader) -> io::Result<T> + Clone + Send + 'static,
    {
        loop {
            match self.finished(view, read.clone()).await {
                Ok(read) => {
                    self.failures = 0;
                    if std::mem::take(&mut self.is_shown) {
                        view.change(|view| view.unreadable = None);
                    }
                    return read;
                }
                Err(error) => {
                    self.failures += 1;
                    let text = format!("cannot read the journal: {error}");
                    if self.throttle.admits() {
                        tracing::error!("delivery waits: {text}");
                    }
                    self.show(view, text);
                    if let ReadStage::Idle(reader, next) = &mut self.stage {
                        *next = Some(Instant::now() + RETRY);
                        if self.failures >= TRIES && is_unreadable(&error) {
                            reader.skip_unreadable();
                        }
                    }
                }
            }
        }
    }

    /// Logs damage that was found.
    pub(super) fn report(&mut self, finding: &str) {
        if self.throttle.admits() {
            tracing::error!("the journal is damaged: {finding}");
        }
    }

    fn show(&mut self, view: &BrokerStatus, text: String) {
        self.is_shown = true;
        view.change(|view| view.unreadable = Some(text));
    }

    /// Begins a read if none is in progress, and waits for its end.
    async fn finished<F>(&mut self, view: &BrokerStatus, read: F) -> io::Result<T>
    where
        F: FnOnce(&mut Reader) -> io::Result<T> + Send + 'static,
    {
        if let ReadStage::Idle(_, Some(next)) = &self.stage {
            sleep_until(*next).await;
        }
        self.stage = match std::mem::replace(&mut self.stage, ReadStage::Broken) {
            ReadStage::Idle(mut reader, _) => ReadStage::Busy(tokio::task::spawn_blocking(move || {
                let read = read(&mut reader);
                (reader, read)
            })),
            other => other,
        };
        let ReadStage::Busy(handle) = &mut self.stage else { return std::future::pending().await };
        let ended = if let Ok(ended) = timeout(SLOW, &mut *handle).await {
            ended
        } else {
            self.show(view, self.slow.to_owned());
            let ReadStage::Busy(handle) = &mut self.stage else { return std::future::pending().await };
            handle.await
        };
        let Ok((reader, read)) = ended else {
            self.stage = ReadStage::Broken;
            return std::future::pending().await;
        };
        self.stage = ReadStage::Idle(reader, None);
        read
    }
}
