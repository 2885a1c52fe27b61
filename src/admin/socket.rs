//! The Unix socket in the data folder: for the gateway's own user alone.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::{Control, pages, serve};

/// Owner only: whoever may ask may also command.
const MODE: u32 = 0o600;

/// A bound admin socket. Its file goes when this is dropped.
#[derive(Debug)]
pub struct UnixSocket {
    listener: Option<UnixListener>,
    path: PathBuf,
}

impl UnixSocket {
    /// Binds `path`. A file left over from a gateway that was killed is replaced; one that a live process answers is not.
    /// Call it within a tokio runtime.
    ///
    /// # Errors
    /// The path is too long for a socket (107 bytes on Linux), the folder cannot be written, or another process serves it.
    pub fn bind(path: &Path) -> io::Result<Self> {
        remove_stale(path)?;
        // Bound under another name, made private, then moved: nobody can connect in between.
        let private = path.with_extension("new");
        match std::fs::remove_file(&private) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&private)?;
        std::fs::set_permissions(&private, Permissions::from_mode(MODE))?;
        std::fs::rename(&private, path)?;
        Ok(Self { listener: Some(listener), path: path.to_owned() })
    }

    /// Serves until `token` is cancelled.
    ///
    /// # Errors
    /// Never for what a client does.
    pub async fn serve(mut self, control: Arc<dyn Control>, token: CancellationToken) -> io::Result<()> {
        match self.listener.take() {
            Some(listener) => serve(listener, pages::with_commands(control), token).await,
            None => Ok(()),
        }
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // A file that stays is harmless: the next start replaces it.
        let _harmless: io::Result<()> = std::fs::remove_file(&self.path);
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another gateway serves this socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::task::JoinSet;

    use super::*;
    use crate::telemetry::board::Status;

    struct Fake(bool);

    impl Control for Fake {
        fn status(&self) -> Status {
            Status { site: "plant-7".to_owned(), ready: self.0, ..Status::default() }
        }
    }

    /// Status line, headers and body of one answer.
    async fn ask(path: &Path, page: &str) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        let request = format!("GET {page} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn serving(path: &Path, ready: bool) -> (JoinSet<io::Result<()>>, CancellationToken) {
        let (mut tasks, token) = (JoinSet::new(), CancellationToken::new());
        let socket = UnixSocket::bind(path).unwrap();
        tasks.spawn(socket.serve(Arc::new(Fake(ready)), token.clone()));
        (tasks, token)
    }

    #[tokio::test]
    async fn each_page_answers_over_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let (_tasks, _token) = serving(&path, true);
        assert!(ask(&path, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(ask(&path, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(ask(&path, "/metrics").await.contains("tidegate_ready 1"));
        assert!(ask(&path, "/v1/status").await.contains("\"site\":\"plant-7\""));
        assert!(ask(&path, "/other").await.starts_with("HTTP/1.1 404"));
    }

    #[tokio::test]
    async fn readiness_is_503_with_the_reason_until_everything_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let (_tasks, _token) = serving(&path, false);
        let answer = ask(&path, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("not all open yet"), "{answer}");
        assert!(ask(&path, "/livez").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn commands_are_taken_over_the_socket_and_not_over_tcp() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let (mut tasks, token) = serving(&path, true);
        let request = "POST /v1/commands/dance HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("knows no command `dance`"), "{answer}");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tasks.spawn(super::super::serve_listener(listener, Arc::new(Fake(true)), token.clone()));
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404") && !answer.contains("dance"), "{answer}");
    }

    #[tokio::test]
    async fn the_socket_is_for_its_owner_alone_and_goes_with_the_gateway() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let (mut tasks, token) = serving(&path, true);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        token.cancel();
        tasks.join_next().await.unwrap().unwrap().unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_left_by_a_killed_gateway_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (_tasks, _token) = serving(&path, true);
        assert_eq!(UnixSocket::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(ask(&path, "/livez").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn stopping_does_not_wait_for_a_client_that_hangs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let (mut tasks, token) = serving(&path, true);
        let mut hanging = UnixStream::connect(&path).await.unwrap();
        hanging.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        token.cancel();
        tasks.join_next().await.unwrap().unwrap().unwrap();
    }
}
