//! A small HTTP/1.1 server that answers as a test says, over TCP or TLS, and keeps an account of what it was asked. It shares no code with the
//! client that it is there for.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// `GET /keys.json`.
    pub(crate) line: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

/// What is answered: code and body. `None`: nothing, the connection stays open and silent.
pub(crate) type Answer = Option<(u16, String)>;

type Answering = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

/// A running server; dropped, it ends.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    account: Arc<Mutex<Account>>,
    _task: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Account {
    requests: Vec<Request>,
    connections: usize,
}

impl Server {
    pub(crate) fn start(
        tls: Option<Arc<ServerConfig>>,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), tls, answer)
    }

    /// At an address that clients know already.
    pub(crate) fn start_at(
        address: SocketAddr,
        tls: Option<Arc<ServerConfig>>,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let account = Arc::<Mutex<Account>>::default();
        let mut task = JoinSet::new();
        task.spawn(serve(listener, tls.map(TlsAcceptor::from), Arc::new(answer), Arc::clone(&account)));
        Self { address, account, _task: task }
    }

    /// What it was asked, in order.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.account.lock().requests.clone()
    }

    /// How many connections it has taken.
    pub(crate) fn connections(&self) -> usize {
        self.account.lock().connections
    }
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, answer: Answering, account: Arc<Mutex<Account>>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        account.lock().connections += 1;
        let (tls, answer, account) = (tls.clone(), Arc::clone(&answer), Arc::clone(&account));
        connections.spawn(async move {
            match tls {
                None => converse(stream, &answer, &account).await,
                // A client that does not trust us ends here.
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => converse(stream, &answer, &account).await,
                    Err(_) => None,
                },
            }
        });
    }
}

/// One request after the other; `None`: the connection has ended.
async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: &Answering,
    account: &Mutex<Account>,
) -> Option<()> {
    let mut input = Vec::new();
    loop {
        let request = take(&mut stream, &mut input).await?;
        account.lock().requests.push(request.clone());
        let Some((code, body)) = answer(&request) else {
            return std::future::pending().await;
        };
        let head = format!(
            "HTTP/1.1 {code} Answer\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await.ok()?;
    }
}

async fn take(stream: &mut (impl AsyncRead + Unpin), input: &mut Vec<u8>) -> Option<Request> {
    let find = |input: &[u8]| input.windows(4).position(|four| four == b"\r\n\r\n");
    while find(input).is_none() {
        if stream.read_buf(input).await.ok()? == 0 {
            return None;
        }
    }
    let end = find(input)? + 4;
    let head = String::from_utf8_lossy(&input[..end]).into_owned();
    let mut lines = head.lines();
    let line = lines.next()?.trim_end_matches(" HTTP/1.1").to_owned();
    let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    let headers: Vec<_> = lines.filter_map(header).collect();
    let length =
        headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, value)| value.parse().unwrap());
    while input.len() < end + length {
        if stream.read_buf(input).await.ok()? == 0 {
            return None;
        }
    }
    let body = String::from_utf8_lossy(&input[end..end + length]).into_owned();
    input.drain(..end + length);
    Some(Request { line, headers, body })
}
