//! A request that the daemon carries out: one HTTP exchange over its control socket, attached until the end.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::handshake;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::dead_letters::{Progress, Request, RequestState};

/// Makes the request and passes on its progress, until the daemon ends the answer. Dropped before, it ends the request.
/// The last progress says how it ended.
pub(super) async fn follow(stream: UnixStream, request: &Request, progress: watch::Sender<Progress>) {
    let followed = exchange(stream, request, &progress).await;
    // Only the end of the answer says that nothing more comes.
    if progress.borrow().state == RequestState::Running {
        let error = followed.err().unwrap_or_else(|| "the daemon has ended".to_owned());
        progress.send_modify(|progress| progress.give_up(error));
    }
}

async fn exchange(stream: UnixStream, request: &Request, progress: &watch::Sender<Progress>) -> Result<(), String> {
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(ended)?;
    // Its errors are those of the exchange; it ends with it.
    tokio::spawn(connection);
    let body = Bytes::from(request.json());
    let head = hyper::Request::post("/dead-letters").header(HOST, "localhost");
    let request = head.body(Full::new(body)).map_err(|error| error.to_string())?;
    let mut answer = sender.send_request(request).await.map_err(ended)?;
    let mut line = Vec::new();
    while let Some(frame) = answer.body_mut().frame().await {
        let Ok(data) = frame.map_err(ended)?.into_data() else { continue };
        for byte in data {
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            let news =
                Progress::parse(&line).ok_or("the daemon's answer cannot be read; is it of another version?")?;
            progress.send_replace(news);
            line.clear();
        }
    }
    Ok(())
}

fn ended(error: impl std::fmt::Display) -> String {
    format!("the daemon has ended ({error}); what was not published is still kept")
}
