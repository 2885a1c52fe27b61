//! Talks to a running gateway: HTTP/1.1 over its admin socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::exit::Exit;
use crate::telemetry::board::Status;

/// The socket's name in the data folder.
pub(crate) const SOCKET: &str = "admin.sock";

/// How long an answer may take. The gateway answers from memory; a slower one hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The same for a command, which may read all that a buffer holds.
const COMMAND_WITHIN: Duration = Duration::from_secs(3_600);

/// Why a gateway did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// There is no socket.
    #[error("no gateway is running: there is no {0} (is it another data folder? -c FILE names the configuration)")]
    NotThere(PathBuf),
    /// There is a socket, and nobody behind it.
    #[error("no gateway is running: {0} is left over from one that was killed")]
    Stale(PathBuf),
    /// Not ours to open.
    #[error("{0}: permission denied; ask as the user that the gateway runs as, or as root")]
    NotPermitted(PathBuf),
    /// It took the connection and gave no answer.
    #[error("the gateway behind {socket} does not answer: {error}")]
    NoAnswer {
        /// Where.
        socket: PathBuf,
        /// Why.
        error: String,
    },
    /// It says no, in its own words.
    #[error("{0}")]
    Denied(String),
    /// An answer that this program does not understand.
    #[error("the gateway behind {socket} gave an answer that this version does not understand: {error}")]
    Strange {
        /// Where.
        socket: PathBuf,
        /// What is wrong with it.
        error: String,
    },
}

/// The status of the gateway whose data folder this is.
pub(crate) async fn status(data_dir: &Path) -> Result<Status, AskError> {
    let socket = data_dir.join(SOCKET);
    let body = fetch(&socket, "/v1/status").await?;
    serde_json::from_slice(&body).map_err(|error| AskError::Strange { socket, error: error.to_string() })
}

/// What the gateway whose data folder this is answers to a command.
pub(crate) async fn command(data_dir: &Path, name: &str, arguments: &Value) -> Result<Value, AskError> {
    let socket = data_dir.join(SOCKET);
    let (path, body) = (format!("/v1/commands/{name}"), Bytes::from(arguments.to_string()));
    let (status, body) = exchange_within(&socket, Method::POST, &path, body, COMMAND_WITHIN).await?;
    let answer: Value = serde_json::from_slice(&body)
        .map_err(|error| AskError::Strange { socket: socket.clone(), error: format!("{status}: {error}") })?;
    match answer.get("error").and_then(Value::as_str) {
        Some(error) if status != StatusCode::OK => Err(AskError::Denied(error.to_owned())),
        _ if status == StatusCode::OK => Ok(answer),
        _ => Err(AskError::Strange { socket, error: status.to_string() }),
    }
}

async fn fetch(socket: &Path, path: &str) -> Result<Bytes, AskError> {
    match exchange_within(socket, Method::GET, path, Bytes::new(), ANSWER_WITHIN).await? {
        (StatusCode::OK, body) => Ok(body),
        (status, _) => Err(AskError::Strange { socket: socket.to_owned(), error: status.to_string() }),
    }
}

async fn exchange_within(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
    limit: Duration,
) -> Result<(StatusCode, Bytes), AskError> {
    let stream = UnixStream::connect(socket).await.map_err(|error| refused(socket, &error))?;
    let no_answer = |error: String| AskError::NoAnswer { socket: socket.to_owned(), error };
    match tokio::time::timeout(limit, exchange(stream, method, path, body)).await {
        Ok(answer) => answer.map_err(|error| no_answer(error.to_string())),
        Err(_) => Err(no_answer(format!("nothing within {} s", limit.as_secs()))),
    }
}

async fn exchange(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), hyper::Error> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    if let Ok(uri) = path.parse() {
        *request.uri_mut() = uri;
    }
    let header = hyper::header::HeaderValue::from_static;
    request.headers_mut().insert(hyper::header::HOST, header("localhost"));
    request.headers_mut().insert(hyper::header::CONTENT_TYPE, header("application/json"));
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Ok((status, body))
    };
    // The connection moves only while it is polled. When it ends first, the answer has come or never will.
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    }
}

impl AskError {
    /// The exit code for it.
    pub(crate) const fn exit(&self) -> Exit {
        match self {
            Self::NotThere(_) | Self::Stale(_) | Self::NoAnswer { .. } => Exit::Unavailable,
            Self::NotPermitted(_) => Exit::NotPermitted,
            Self::Denied(_) => Exit::No,
            Self::Strange { .. } => Exit::Io,
        }
    }
}

fn refused(socket: &Path, error: &io::Error) -> AskError {
    let socket = socket.to_owned();
    let kind = error.kind();
    if kind == io::ErrorKind::NotFound {
        AskError::NotThere(socket)
    } else if kind == io::ErrorKind::ConnectionRefused {
        AskError::Stale(socket)
    } else if kind == io::ErrorKind::PermissionDenied {
        AskError::NotPermitted(socket)
    } else {
        AskError::NoAnswer { socket, error: error.to_string() }
    }
}
