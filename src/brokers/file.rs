//! The embedded broker: one NDJSON file per address, for trying things out and for tests.
//!
//! A line is `{"key":..,"headers":{..},"body":<the signed bytes as text, or base64>}`; `Stored` follows one
//! fdatasync per batch of verdicts.

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::brokers::{
    Broker, ConnectError, Encoding, ErrorKind, Finding, HeaderStyle, Headers, Router, Sent, Sequence, Session,
    SessionError, TemplateNames, Terms, Verdict,
};
use crate::event::Message;
use crate::process::failpoint;
use crate::process::state_directory::sync_directory;
use crate::settings::Section;

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
        return Err(format!("{name:?} is no legal file name; use letters, digits, `_`, `-` and `.`"));
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
}

impl File {
    /// The broker that these settings describe.
    #[must_use]
    pub(crate) fn new(settings: &Settings, terms: &Terms) -> Self {
        Self { settings: settings.clone(), terms: terms.clone() }
    }

    fn create(&self) -> Result<(), ConnectError> {
        let directory = &self.settings.directory;
        if directory.is_dir() {
            return Ok(());
        }
        let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
        let synced = |()| sync_directory(parent.unwrap_or(Path::new(".")));
        fs::create_dir(directory).and_then(synced).map_err(|error| {
            let text = format!("cannot create the directory {}: {error}", directory.display());
            ConnectError::new(ErrorKind::Connect, text)
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
        self.create()?;
        let session = FileSession {
            directory: self.settings.directory.clone(),
            headers: self.terms.headers.clone(),
            waiting: FileBatch::default(),
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

#[derive(Debug, Default)]
struct FileBatch {
    sequences: Vec<Sequence>,
    lines: Vec<(Arc<str>, Vec<u8>)>,
}

#[derive(Debug)]
struct FileSession {
    directory: PathBuf,
    headers: Headers,
    waiting: FileBatch,
    writing: Option<JoinHandle<io::Result<Vec<Sequence>>>>,
    sent: Notify,
}

#[async_trait]
impl Session for FileSession {
    fn send(&mut self, sequence: Sequence, message: &Message) -> Sent {
        self.waiting.sequences.push(sequence);
        let line = line(&self.headers, message);
        match self.waiting.lines.iter_mut().find(|(address, _)| *address == message.address) {
            Some((_, lines)) => lines.extend_from_slice(&line),
            None => self.waiting.lines.push((message.address.clone(), line)),
        }
        self.sent.notify_one();
        Sent::Taken
    }

    async fn verdicts(&mut self, into: &mut Vec<(Sequence, Verdict)>) -> Result<(), SessionError> {
        loop {
            if let Some(writing) = &mut self.writing {
                let done = writing.await;
                self.writing = None;
                let written = done.map_err(|_| SessionError::lost("the writer of the files panicked"))?;
                let written = written.map_err(|error| SessionError::lost(format!("cannot write: {error}")))?;
                into.extend(written.into_iter().map(|sequence| (sequence, Verdict::Stored)));
                return Ok(());
            }
            if self.waiting.sequences.is_empty() {
                self.sent.notified().await;
                continue;
            }
            let (directory, batch) = (self.directory.clone(), std::mem::take(&mut self.waiting));
            self.writing = Some(tokio::task::spawn_blocking(move || write(&directory, batch)));
        }
    }

    async fn close(mut self: Box<Self>, patience: Duration, into: &mut Vec<(Sequence, Verdict)>) {
        let collect = async {
            while self.writing.is_some() || !self.waiting.sequences.is_empty() {
                if self.verdicts(into).await.is_err() {
                    break;
                }
            }
        };
        // What is not written by then is unsettled: the caller knows.
        let _ = tokio::time::timeout(patience, collect).await;
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

/// Writes a batch. Files are opened anew: one that was removed or moved away meanwhile (log rotation) is made again.
fn write(directory: &Path, batch: FileBatch) -> io::Result<Vec<Sequence>> {
    for (name, lines) in &batch.lines {
        let mut file = open(&directory.join(format!("{name}.ndjson")))?;
        file.write_all(lines)?;
        failpoint::pass("file.sync")?;
        file.sync_data()?;
    }
    Ok(batch.sequences)
}

/// Opens a file for appending and ends a line torn by an earlier crash.
fn open(path: &Path) -> io::Result<fs::File> {
    let mut file = fs::OpenOptions::new().create(true).read(true).append(true).open(path)?;
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
    use std::time::SystemTime;

    use super::*;
    use crate::brokers::Routed;
    use crate::event::{Event, Fields, Origin};
    use crate::settings::testing;

    fn message(broker: &mut File, body: &str) -> Message {
        let origin = Origin {
            source: "main".into(),
            signature: None,
            verified: false,
            traceparent: None,
            received: SystemTime::UNIX_EPOCH,
        };
        let fields = Fields { event: "E", target_type: "t", ..Fields::default() };
        let event = Event::new(origin, body.as_bytes().into(), &fields, &[0; 32]);
        let Routed { address, key, .. } = broker.settings.router.route(&event, || 0).unwrap();
        Message { event: Box::new(event), address, key }
    }

    #[tokio::test]
    async fn stores_one_line_per_event_and_ends_a_torn_one() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("E.t.ndjson"), "{\"torn").unwrap();
        let toml = format!("directory = {:?}", directory.path());
        let (settings, problems) = testing::read(&["broker", "file"], &toml, Settings::read);
        assert!(problems.errors.is_empty(), "{problems:?}");
        let mut broker = File::new(&settings, &Terms::of_tests(Settings::headers));
        let (mut session, _) = broker.connect().await.unwrap();
        for sequence in 0..3 {
            let message = message(&mut broker, &format!("{{\"é\":{sequence}}}"));
            assert!(matches!(session.send(sequence, &message), Sent::Taken));
        }
        let mut verdicts = Vec::new();
        session.verdicts(&mut verdicts).await.unwrap();
        assert_eq!(verdicts, [(0, Verdict::Stored), (1, Verdict::Stored), (2, Verdict::Stored)]);
        let text = fs::read_to_string(directory.path().join("E.t.ndjson")).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        let line: serde_json::Value = serde_json::from_str(lines[3]).unwrap();
        assert_eq!(line["body"], "{\"é\":2}");
    }

    #[test]
    fn refuses_a_name_that_leaves_the_directory() {
        let (_, problems) = testing::read(&["broker", "file"], "name = \"../{event}\"", Settings::read);
        assert_eq!(problems.errors.len(), 1, "{problems:?}");
    }
}
