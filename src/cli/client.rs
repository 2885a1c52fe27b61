//! Talks to a running gateway: HTTP/1.1 over its admin socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::telemetry::board::Status;

/// The socket's name in the data folder.
pub(crate) const SOCKET: &str = "admin.sock";

/// How long an answer may take. The gateway answers from memory; a slower one hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

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

async fn fetch(socket: &Path, path: &str) -> Result<Bytes, AskError> {
    let stream = UnixStream::connect(socket).await.map_err(|error| refused(socket, &error))?;
    let no_answer = |error: String| AskError::NoAnswer { socket: socket.to_owned(), error };
    match tokio::time::timeout(ANSWER_WITHIN, exchange(stream, path)).await {
        Ok(Ok((StatusCode::OK, body))) => Ok(body),
        Ok(Ok((status, _))) => Err(AskError::Strange { socket: socket.to_owned(), error: status.to_string() }),
        Ok(Err(error)) => Err(no_answer(error.to_string())),
        Err(_) => Err(no_answer(format!("nothing within {} s", ANSWER_WITHIN.as_secs()))),
    }
}

async fn exchange(stream: UnixStream, path: &str) -> Result<(StatusCode, Bytes), hyper::Error> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::new(Empty::<Bytes>::new());
    if let Ok(uri) = path.parse() {
        *request.uri_mut() = uri;
    }
    request.headers_mut().insert(hyper::header::HOST, hyper::header::HeaderValue::from_static("localhost"));
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
