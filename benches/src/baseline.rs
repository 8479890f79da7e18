//! What the bridge is compared with: hyper on one thread a core, as the bridge runs it, that reads the body and answers
//! 200; and the same with the signature and the JSON checked. Neither publishes anything.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::thread;

use anyhow::Result;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use sha2::Sha256;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::events::SECRET;

/// What a baseline does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Work {
    /// Reads the body.
    Bare,
    /// Checks signature and JSON too.
    Checked,
}

/// The documented payload; other fields are skipped.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payload<'a> {
    #[serde(borrow)]
    cuid: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    event: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    target_type: std::borrow::Cow<'a, str>,
}

/// Serves for ever.
pub fn serve(address: SocketAddr, work: Work) -> Result<()> {
    let keyed =
        Arc::new(Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("HMAC takes keys of every length"));
    let threads: Vec<_> = (0..thread::available_parallelism()?.get())
        .map(|_| {
            let (socket, keyed) = (bind(address)?, keyed.clone());
            Ok(thread::spawn(move || run(socket, work, &keyed)))
        })
        .collect::<Result<_>>()?;
    for thread in threads {
        thread.join().expect("a server thread does not panic")?;
    }
    Ok(())
}

fn bind(address: SocketAddr) -> Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

fn run(socket: StdListener, work: Work, keyed: &Arc<Hmac<Sha256>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::from_std(socket)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let keyed = keyed.clone();
            let service = service_fn(move |request| answer(request, work, keyed.clone()));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A connection that the load closes is no error here.
            tokio::task::spawn_local(async move { drop(connection.await) });
        }
    })
}

async fn answer(
    request: Request<Incoming>,
    work: Work,
    keyed: Arc<Hmac<Sha256>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let status = match body.collect().await.map(http_body_util::Collected::to_bytes) {
        Err(_) => StatusCode::BAD_REQUEST,
        Ok(_) if work == Work::Bare => StatusCode::OK,
        Ok(body) => check(&head.headers, &body, &keyed),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(br#"{"status":"accepted"}"#)));
    *response.status_mut() = status;
    Ok(response)
}

fn check(headers: &hyper::HeaderMap, body: &[u8], keyed: &Hmac<Sha256>) -> StatusCode {
    let mut claimed = [0; 32];
    let is_hex = headers
        .get("x-authorization-hmac-256")
        .is_some_and(|hex| faster_hex::hex_decode(hex.as_bytes(), &mut claimed).is_ok());
    let mut mac = keyed.clone();
    mac.update(body);
    if !is_hex || mac.verify_slice(&claimed).is_err() {
        return StatusCode::UNAUTHORIZED;
    }
    match serde_json::from_slice::<Payload<'_>>(body) {
        Ok(payload) if payload.cuid.len() + payload.event.len() + payload.target_type.len() > 0 => StatusCode::OK,
        _ => StatusCode::BAD_REQUEST,
    }
}
