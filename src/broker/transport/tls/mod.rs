//! TLS by rustls, driven by the socket's readiness: one system call reads up to 64 KiB of records, one writes all records of a round.
//!
//! - [`files`]: the files of a listener, what is wrong with them, and the server's side that they make.
//! - [`Certificates`]: that side as it is now; files that change are read again for the next connection.
//! - [`leaf`]: what a client's certificate says.

mod certificates;
mod files;
mod leaf;

use std::cell::RefCell;
use std::io::{self, BufRead, IoSlice, Read, Write};

use bytes::{Buf, BytesMut};
use rustls::ServerConnection;
use rustls::server::{Acceptor, ClientHello};

pub(in crate::broker) use self::certificates::Certificates;
pub use self::files::{ClientSources, Finding, Material, Part, Sources, examine, examine_client};
use super::Refused;
use super::peer::PeerCertificate;
use super::socket::Socket;

/// Records that are read at a time: four of the largest.
const READ_BYTES: usize = 64 << 10;

/// Plaintext that is taken at a time, and so what may wait for a socket in encrypted form.
const WRITE_BYTES: usize = 256 << 10;

/// A client's whole handshake at most. Its certificates are most of it.
const HANDSHAKE_BYTES_MAX: usize = 128 << 10;

thread_local! {
    /// Records on their way from the socket to the session: no connection holds such a buffer for itself.
    static RECORDS: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// A connection after its handshake.
#[derive(Debug)]
pub(in crate::broker) struct Tls {
    socket: Socket,
    session: ServerConnection,
    /// The client has said that nothing follows, or its socket has.
    has_ended: bool,
}

/// The handshake. `early` is what was read before. Answers the connection, the client's certificate, and the plaintext that came
/// with the handshake's end.
pub(super) async fn accept(
    socket: Socket,
    early: BytesMut,
    certificates: &Certificates,
) -> Result<(Tls, Option<PeerCertificate>, BytesMut), (Refused, Socket)> {
    let mut records = Records { socket: &socket, early, bytes: 0 };
    let session = match shake_hands(&mut records, certificates).await {
        Ok(session) => session,
        Err(text) => return Err((Refused { reason: "tls_handshake", text }, socket)),
    };
    let early = records.early;
    let mut tls = Tls { socket, session, has_ended: false };
    let mut input = BytesMut::new();
    let fed = tls.take_plaintext(&mut input).and_then(|()| tls.feed(&early, &mut input));
    let certificate = tls.session.peer_certificates().and_then(<[_]>::first).map(|der| leaf::parse(der)).transpose();
    let words = match (fed, certificate) {
        (Ok(()), Ok(certificate)) => return Ok((tls, certificate, input)),
        (Err(error), _) => error.to_string(),
        (_, Err(text)) => text,
    };
    Err((Refused { reason: "tls_handshake", text: words }, tls.socket))
}

/// What a client sends, counted.
struct Records<'a> {
    socket: &'a Socket,
    early: BytesMut,
    bytes: usize,
}

impl Read for Records<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.bytes > HANDSHAKE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the handshake is too long"));
        }
        let read = match self.early.is_empty() {
            true => self.socket.try_read(room)?,
            false => (&mut self.early).reader().read(room)?,
        };
        self.bytes += read;
        Ok(read)
    }
}

/// Writes to the socket what it takes now.
struct Direct<'a>(&'a Socket);

impl Write for Direct<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `Err`: why it failed; the client has been told by an alert where it could be.
async fn shake_hands(records: &mut Records<'_>, certificates: &Certificates) -> Result<ServerConnection, String> {
    let mut acceptor = Acceptor::default();
    let accepted = loop {
        match acceptor.accept() {
            Ok(Some(accepted)) => break accepted,
            Ok(None) => {}
            Err((error, mut alert)) => {
                // Best effort: the client may be gone.
                drop(alert.write_all(&mut Direct(records.socket)));
                return Err(error.to_string());
            }
        }
        match acceptor.read_tls(records) {
            Ok(0) => return Err("the connection ended within the handshake".to_owned()),
            Ok(_) => {}
            Err(error) => wait(records.socket, error).await?,
        }
    };
    let config = certificates.server_config(offered(&accepted.client_hello()));
    let mut session = match accepted.into_connection(config) {
        Ok(session) => session,
        Err((error, mut alert)) => {
            drop(alert.write_all(&mut Direct(records.socket)));
            return Err(error.to_string());
        }
    };
    session.set_buffer_limit(None);
    loop {
        write_out(records.socket, &mut session).await?;
        if !session.is_handshaking() {
            return Ok(session);
        }
        match session.read_tls(records) {
            Ok(0) => return Err("the connection ended within the handshake".to_owned()),
            Ok(_) => {}
            Err(error) => wait(records.socket, error).await?,
        }
        if let Err(error) = session.process_new_packets() {
            drop(session.write_tls(&mut Direct(records.socket)));
            return Err(error.to_string());
        }
    }
}

fn offered<'a>(hello: &'a ClientHello<'_>) -> impl Iterator<Item = &'a [u8]> {
    hello.alpn().into_iter().flatten()
}

async fn write_out(socket: &Socket, session: &mut ServerConnection) -> Result<(), String> {
    while session.wants_write() {
        if let Err(error) = session.write_tls(&mut Direct(socket)) {
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(error.to_string());
            }
            socket.writable().await.map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

/// Until there is more to read, if that is what `error` asks for.
async fn wait(socket: &Socket, error: io::Error) -> Result<(), String> {
    if error.kind() != io::ErrorKind::WouldBlock {
        return Err(error.to_string());
    }
    socket.readable().await.map_err(|error| error.to_string())
}

impl Tls {
    pub(super) const fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Whether there is no need to wait for the socket to know that nothing follows.
    pub(super) const fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Reads records, and appends what they hold to `input`. 0: the end.
    pub(super) fn try_read_buf(&mut self, input: &mut BytesMut) -> io::Result<usize> {
        if self.has_ended {
            return Ok(0);
        }
        let before = input.len();
        RECORDS.with_borrow_mut(|records| match self.socket.try_read(records)? {
            0 => {
                self.has_ended = true;
                Ok(())
            }
            bytes => self.feed(records.get(..bytes).unwrap_or_default(), input),
        })?;
        match input.len() - before {
            // A handshake's message, or a part of a record.
            0 if !self.has_ended => Err(io::ErrorKind::WouldBlock.into()),
            bytes => Ok(bytes),
        }
    }

    fn feed(&mut self, mut records: &[u8], input: &mut BytesMut) -> io::Result<()> {
        while !records.is_empty() && !self.has_ended {
            if self.session.read_tls(&mut records)? == 0 {
                return Ok(());
            }
            let state = match self.session.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    // An alert; best effort.
                    drop(self.try_flush());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            };
            self.take_plaintext(input)?;
            self.has_ended |= state.peer_has_closed();
        }
        Ok(())
    }

    fn take_plaintext(&mut self, input: &mut BytesMut) -> io::Result<()> {
        let mut reader = self.session.reader();
        loop {
            let bytes = match reader.fill_buf() {
                Ok(plaintext) => {
                    input.extend_from_slice(plaintext);
                    plaintext.len()
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            if bytes == 0 {
                return Ok(());
            }
            reader.consume(bytes);
        }
    }

    /// Encrypts what it takes. Nothing is taken while earlier records wait for the socket.
    pub(super) fn try_write(&mut self, output: &[u8]) -> io::Result<usize> {
        self.try_flush()?;
        let bytes = self.session.writer().write(output.get(..WRITE_BYTES).unwrap_or(output))?;
        match self.try_flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Ok(()) | Err(_) => Ok(bytes),
        }
    }

    pub(super) fn holds_output(&self) -> bool {
        self.session.wants_write()
    }

    pub(super) fn try_flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(&mut Direct(&self.socket))?;
        }
        Ok(())
    }

    /// close_notify, as far as the socket takes it now.
    pub(super) fn part(&mut self) {
        self.session.send_close_notify();
        drop(self.try_flush());
    }

    /// close_notify, and the end of the socket's output.
    pub(super) async fn close(&mut self) -> io::Result<()> {
        self.session.send_close_notify();
        write_out(&self.socket, &mut self.session).await.map_err(io::Error::other)?;
        self.socket.shutdown().await
    }
}
