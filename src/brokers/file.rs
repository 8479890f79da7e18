//! The embedded broker: one NDJSON file per address, for trying things out and for tests.
//!
//! A line is `{"key":..,"headers":{..},"body":<the signed bytes as text, or base64>}`; `Stored` follows one
//! fdatasync per batch of verdicts.
//!
//! Length: two fifths are its tests.

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use crate::brokers::{
    Broker, ConnectError, Encoding, ErrorKind, Finding, HeaderStyle, Headers, Refusal, RefusalReason, Router, Sent,
    Sequence, Session, SessionError, TemplateNames, Terms, Verdict,
};
use crate::event::Message;
use crate::process::failpoint;
use crate::process::state_directory::{create_directory, sync_directory};
use crate::settings::Section;

/// The longest wait for the directory.
const PATIENCE: Duration = Duration::from_secs(5);

/// The settings of `[broker.file]`.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    directory: PathBuf,
    pub(super) router: Router,
}

const SHAPE: TemplateNames =
    TemplateNames { address: "name", key: None, address_legal: legal_name, key_legal: |_| Ok(()) };

impl Settings {
    /// Reads `[broker.file]`.
    pub(crate) fn read(section: &mut Section<'_>) -> Self {
        let directory = section.path("directory").unwrap_or_else(|| {
            section.problem("directory", "empty; name the directory that the files go to");
            PathBuf::new()
        });
        Self { directory, router: Router::read(section, SHAPE) }
    }

    /// The names of its headers.
    pub(crate) fn headers(style: HeaderStyle) -> Headers {
        Headers::new(style, "ce_", "content-type", Encoding::Plain)
    }
}

fn legal_name(name: &str) -> Result<(), String> {
    if name.contains(['/', '\0']) || name.starts_with('.') {
        return Err(format!("{name:?} is not a legal file name; use letters, digits, `_`, `-` and `.`"));
    }
    // 255 is Linux's NAME_MAX, less ".ndjson".
    if name.len() > 248 {
        return Err(format!("the file name would be {} bytes, more than 248", name.len()));
    }
    Ok(())
}

/// The embedded broker.
#[derive(Debug)]
pub(crate) struct File {
    settings: Settings,
    terms: Terms,
    /// The directory is being made; its disk may not answer.
    creating: Option<JoinHandle<io::Result<()>>>,
}

impl File {
    /// The broker that these settings describe.
    #[must_use]
    pub(crate) fn new(settings: &Settings, terms: &Terms) -> Self {
        Self { settings: settings.clone(), terms: terms.clone(), creating: None }
    }

    async fn create(&mut self) -> Result<(), ConnectError> {
        let directory = self.settings.directory.clone();
        let create = || spawn_blocking(move || create_directory(&directory));
        let created = timeout(PATIENCE, self.creating.get_or_insert_with(create)).await;
        let problem = match created {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(error.to_string()),
            Ok(Err(_)) => Some("it failed unexpectedly".to_owned()),
            Err(_) => {
                let text =
                    format!("no answer from the disk of the directory {}", self.settings.directory.display());
                return Err(ConnectError::new(ErrorKind::Connect, text));
            }
        };
        self.creating = None;
        problem.map_or(Ok(()), |problem| {
            let text = format!("cannot create the directory {}: {problem}", self.settings.directory.display());
            Err(ConnectError::new(ErrorKind::Connect, text))
        })
    }
}

#[async_trait]
impl Broker for File {
    fn name(&self) -> &'static str {
        "file"
    }

    fn location(&self) -> String {
        self.settings.directory.display().to_string()
    }

    async fn connect(&mut self) -> Result<(Box<dyn Session>, Vec<Finding>), ConnectError> {
        self.create().await?;
        let session = FileSession {
            directory: self.settings.directory.clone(),
            headers: self.terms.headers.clone(),
            waiting: Vec::new(),
            writing: None,
            sent: Notify::new(),
        };
        Ok((Box::new(session), Vec::new()))
    }

    async fn inspect(&mut self) -> Result<Vec<Finding>, ConnectError> {
        let directory = self.settings.directory.display();
        let parent = match self.settings.directory.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let failed = |text: String| Err(ConnectError::new(ErrorKind::Connect, text));
        match fs::metadata(&self.settings.directory) {
            Ok(metadata) if metadata.is_dir() => {
                Ok(vec![Finding::Good(format!("the directory {directory} exists"))])
            }
            Ok(_) => failed(format!("{directory} is not a directory")),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                failed(format!("cannot use the directory {directory}: {error}"))
            }
            Err(_) if parent.is_dir() || self.terms.state_directory.as_deref() == Some(parent) => {
                Ok(vec![Finding::Good(format!("the directory {directory} will be created at start"))])
            }
            Err(_) => failed(format!("neither {directory} nor its parent exists; create {}", parent.display())),
        }
    }
}

/// The lines for one file.
#[derive(Debug)]
struct AddressLines {
    address: Arc<str>,
    sequences: Vec<Sequence>,
    bytes: Vec<u8>,
}

/// The lines of a batch, with what became of each file.
type Written = Vec<(AddressLines, Result<(), Refusal>)>;

#[derive(Debug)]
struct FileSession {
    directory: PathBuf,
    headers: Headers,
    waiting: Vec<AddressLines>,
    writing: Option<JoinHandle<Result<Written, SessionError>>>,
    sent: Notify,
}

impl FileSession {
    fn waiting(&mut self, address: &str) -> Option<usize> {
        self.waiting.iter().position(|lines| *lines.address == *address)
    }
}

#[async_trait]
impl Session for FileSession {
    fn send(&mut self, sequence: Sequence, message: &Message) -> Sent {
        let line = line(&self.headers, message);
        if let Some(at) = self.waiting(&message.address) {
            self.waiting[at].sequences.push(sequence);
            self.waiting[at].bytes.extend_from_slice(&line);
        } else {
            let address = message.address.clone();
            self.waiting.push(AddressLines { address, sequences: vec![sequence], bytes: line });
        }
        self.sent.notify_one();
        Sent::Taken
    }

    async fn verdicts(&mut self, into: &mut Vec<(Sequence, Verdict)>) -> Result<(), SessionError> {
        loop {
            if let Some(writing) = &mut self.writing {
                let done = writing.await;
                self.writing = None;
                let written = done.unwrap_or_else(|_| Err(SessionError::lost("the writer of the files panicked")));
                let written = written.inspect_err(|_| self.waiting.clear())?;
                for (mut lines, outcome) in written {
                    // What was sent behind a refusal must not be written before it.
                    if outcome.is_err()
                        && let Some(at) = self.waiting(&lines.address)
                    {
                        lines.sequences.append(&mut self.waiting.remove(at).sequences);
                    }
                    let verdict = outcome.map_or_else(Verdict::Refused, |()| Verdict::Stored);
                    into.extend(lines.sequences.into_iter().map(|sequence| (sequence, verdict.clone())));
                }
                return Ok(());
            }
            if self.waiting.is_empty() {
                self.sent.notified().await;
                continue;
            }
            let (directory, batch) = (self.directory.clone(), std::mem::take(&mut self.waiting));
            self.writing = Some(spawn_blocking(move || write(&directory, batch)));
        }
    }

    async fn close(mut self: Box<Self>, patience: Duration, into: &mut Vec<(Sequence, Verdict)>) {
        let collect = async {
            while self.writing.is_some() || !self.waiting.is_empty() {
                if self.verdicts(into).await.is_err() {
                    break;
                }
            }
        };
        // What is not written by then is unsettled: the caller knows.
        let _ = timeout(patience, collect).await;
    }
}

fn line(headers: &Headers, message: &Message) -> Vec<u8> {
    let mut fields = serde_json::Map::new();
    fields.insert("id".into(), message.event.id().into());
    let list = headers.list(&message.event).into_iter().map(|(name, value)| (name, value.into()));
    fields.insert("headers".into(), serde_json::Value::Object(list.collect()));
    match std::str::from_utf8(&message.event.body) {
        Ok(text) => fields.insert("body".into(), text.into()),
        Err(_) => fields.insert("body_base64".into(), BASE64_STANDARD.encode(&message.event.body).into()),
    };
    let mut line = serde_json::Value::Object(fields).to_string().into_bytes();
    line.push(b'\n');
    line
}

/// Writes a batch. A file that cannot be written stops no other; without the directory there is no broker.
fn write(directory: &Path, batch: Vec<AddressLines>) -> Result<Written, SessionError> {
    if !directory.is_dir() {
        return Err(SessionError::lost(format!("there is no directory {}", directory.display())));
    }
    let append = |lines: AddressLines| {
        let path = directory.join(format!("{}.ndjson", lines.address));
        let outcome = append(&path, &lines.bytes).map_err(|error| refusal(&path, &error));
        (lines, outcome)
    };
    Ok(batch.into_iter().map(append).collect())
}

/// Appends lines: all of them, or none. Files are opened anew: one that was removed or moved away meanwhile (log rotation)
/// is made again.
fn append(path: &Path, lines: &[u8]) -> io::Result<()> {
    let mut file = open(path)?;
    let before = file.metadata()?.len();
    let written = file.write_all(lines).and_then(|()| failpoint::pass("file.sync")).and_then(|()| file.sync_data());
    // Otherwise each attempt would add lines.
    written.inspect_err(|_| drop(file.set_len(before)))
}

fn refusal(path: &Path, error: &io::Error) -> Refusal {
    let text = format!("cannot write {}: {error}", path.display());
    match error.kind() {
        // Too long for this file system.
        io::ErrorKind::InvalidFilename => Refusal::wrong(RefusalReason::Unroutable, text),
        _ => Refusal::unable(text),
    }
}

/// Opens a file for appending and ends a line torn by an earlier crash.
fn open(path: &Path) -> io::Result<fs::File> {
    let mut file = fs::OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path)?;
    if file.metadata()?.len() > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    } else if let Some(directory) = path.parent() {
        sync_directory(directory)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::mpsc;
    use std::time::SystemTime;

    use futures_util::FutureExt as _;
    use rustix::io::Errno;

    use super::*;
    use crate::brokers::{Refused, Routed};
    use crate::event::{Event, Fields, Origin};
    use crate::process::failpoint::set_here;
    use crate::settings::testing;

    fn message(broker: &mut File, event: &str, body: &str) -> Message {
        let origin = Origin {
            source: "main".into(),
            signature: None,
            verified: false,
            traceparent: None,
            received: SystemTime::UNIX_EPOCH,
        };
        let fields = Fields { event, target_type: "t", ..Fields::default() };
        let event = Event::new(origin, body.as_bytes().into(), &fields, &[0; 32]);
        let Routed { address, key, .. } = broker.settings.router.route(&event, || 0).unwrap();
        Message { event: Box::new(event), address, key }
    }

    #[tokio::test]
    async fn stores_one_line_per_event_and_ends_a_torn_one() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("E.ndjson"), "{\"torn").unwrap();
        let mut broker = broker(directory.path());
        let (mut session, _) = broker.connect().await.unwrap();
        for sequence in 0..3 {
            let message = message(&mut broker, "E", &format!("{{\"é\":{sequence}}}"));
            assert!(matches!(session.send(sequence, &message), Sent::Taken));
        }
        let mut verdicts = Vec::new();
        session.verdicts(&mut verdicts).await.unwrap();
        assert_eq!(verdicts, [(0, Verdict::Stored), (1, Verdict::Stored), (2, Verdict::Stored)]);
        let text = fs::read_to_string(directory.path().join("E.ndjson")).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        let line: serde_json::Value = serde_json::from_str(lines[3]).unwrap();
        assert_eq!(line["body"], "{\"é\":2}");
    }

    /// A broker with a file for each name of an event.
    fn broker(directory: &Path) -> File {
        let toml = format!("directory = {directory:?}\nname = \"{{event}}\"");
        let (settings, problems) = testing::read(&["broker", "file"], &toml, Settings::read);
        assert!(problems.errors.is_empty(), "{problems:?}");
        File::new(&settings, &Terms::of_tests(Settings::headers))
    }

    fn lines_of(directory: &Path, name: &str) -> usize {
        fs::read_to_string(directory.join(format!("{name}.ndjson"))).unwrap().lines().count()
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_stops_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let obstacle = directory.path().join("b.ndjson");
        fs::create_dir(&obstacle).unwrap();
        let mut broker = broker(directory.path());
        let (mut session, _) = broker.connect().await.unwrap();
        for (sequence, event) in (0..).zip(["a", "b", "c", "b"]) {
            let message = message(&mut broker, event, "{}");
            assert!(matches!(session.send(sequence, &message), Sent::Taken));
        }
        let mut verdicts = Vec::new();
        session.verdicts(&mut verdicts).await.unwrap();
        verdicts.sort_by_key(|(sequence, _)| *sequence);
        let is_unable = |verdict: &Verdict| match verdict {
            Verdict::Refused(Refusal { kind: Refused::AddressUnable, text }) => text.contains("b.ndjson: Is a dir"),
            _ => false,
        };
        assert!(is_unable(&verdicts[1].1) && is_unable(&verdicts[3].1), "{verdicts:?}");
        assert_eq!((&verdicts[0].1, &verdicts[2].1), (&Verdict::Stored, &Verdict::Stored));
        fs::remove_dir(&obstacle).unwrap();
        session.send(4, &message(&mut broker, "b", "{}"));
        verdicts.clear();
        session.verdicts(&mut verdicts).await.unwrap();
        assert_eq!(verdicts, [(4, Verdict::Stored)]);
        assert_eq!(["a", "b", "c"].map(|name| lines_of(directory.path(), name)), [1, 1, 1]);
    }

    #[test]
    fn what_could_not_be_synced_leaves_no_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.ndjson");
        fs::write(&path, "{}\n").unwrap();
        set_here(&[("file.sync", io::ErrorKind::StorageFull)]);
        assert_eq!(append(&path, b"{}\n{}\n").unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(lines_of(directory.path(), "a"), 1);
        set_here(&[]);
        append(&path, b"{}\n{}\n").unwrap();
        assert_eq!(lines_of(directory.path(), "a"), 3);
    }

    #[test]
    fn only_a_name_that_the_disk_can_never_take_is_wrong() {
        let kind = |errno: Errno| refusal(Path::new("a"), &errno.into()).kind;
        for errno in
            [Errno::ACCESS, Errno::PERM, Errno::ISDIR, Errno::NOSPC, Errno::DQUOT, Errno::FBIG, Errno::ROFS]
        {
            assert_eq!(kind(errno), Refused::AddressUnable, "{errno:?}");
        }
        assert_eq!(kind(Errno::NAMETOOLONG), Refused::AddressWrong(RefusalReason::Unroutable));
    }

    /// Runs this on a runtime with one thread for disks.
    fn run(test: impl Future) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().max_blocking_threads(1).build().unwrap().block_on(test);
    }

    /// The disk does not answer until this is dropped.
    fn hang() -> mpsc::SyncSender<()> {
        let (until, wait) = mpsc::sync_channel(1);
        spawn_blocking(move || wait.recv());
        until
    }

    #[test]
    fn a_directory_that_hangs_stops_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("events");
        run(async {
            let mut broker = broker(&directory);
            let hang = hang();
            assert!(broker.connect().now_or_never().is_none());
            assert!(!directory.exists());
            drop(hang);
            broker.connect().await.unwrap();
            assert!(directory.exists());
        });
    }

    #[test]
    fn what_was_handed_over_behind_a_refusal_is_not_written_before_it() {
        let directory = tempfile::tempdir().unwrap();
        let obstacle = directory.path().join("b.ndjson");
        fs::create_dir(&obstacle).unwrap();
        run(async {
            let mut broker = broker(directory.path());
            let (mut session, _) = broker.connect().await.unwrap();
            let mut verdicts = Vec::new();
            let hang = hang();
            session.send(0, &message(&mut broker, "b", "{}"));
            assert!(session.verdicts(&mut verdicts).now_or_never().is_none(), "it is being written");
            session.send(1, &message(&mut broker, "b", "{}"));
            session.send(2, &message(&mut broker, "c", "{}"));
            drop(hang);
            session.verdicts(&mut verdicts).await.unwrap();
            fs::remove_dir(&obstacle).unwrap();
            session.verdicts(&mut verdicts).await.unwrap();
            let sequences: Vec<Sequence> = verdicts.iter().map(|(sequence, _)| *sequence).collect();
            assert_eq!((sequences, &verdicts[2].1), (vec![0, 1, 2], &Verdict::Stored), "{verdicts:?}");
            assert!(!obstacle.exists(), "the second waits for the first");
        });
    }

    #[tokio::test]
    async fn nobody_else_reads_what_it_makes_and_what_exists_keeps_its_mode() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("events");
        let mut broker = broker(&directory);
        broker.connect().await.unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        let [new, existing] = ["a.ndjson", "b.ndjson"].map(|name| directory.join(name));
        fs::write(&existing, "").unwrap();
        for path in [&directory, &existing] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o750)).unwrap();
        }
        broker.connect().await.unwrap();
        append(&new, b"{}\n").unwrap();
        append(&existing, b"{}\n").unwrap();
        assert_eq!([&new, &existing, &directory].map(|path| mode(path)), [0o600, 0o750, 0o750]);
    }

    #[test]
    fn refuses_a_name_that_leaves_the_directory() {
        let (_, problems) = testing::read(&["broker", "file"], "name = \"../{event}\"", Settings::read);
        assert_eq!(problems.errors.len(), 1, "{problems:?}");
    }
}
