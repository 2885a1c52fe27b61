//! Whether the bytes of a connection move, as the peer's TCP says (R23): so a slow line that carries one large message is told from a
//! dead one, which carries nothing, and from a mute peer, which has everything and answers nothing.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How often a line that something waits on is looked at.
const LOOK_EACH: Duration = Duration::from_millis(250);

/// Bytes that are progress: more than a keep-alive (MQTT 2, AMQP 8, and TLS around it), which a mute peer's TCP acknowledges too.
const PROGRESS_BYTES_MIN: u64 = 64;

/// One connection's socket, once it is there. Clones are the same line. It holds the socket open: it has to go with the connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Line(Arc<Mutex<Option<Watched>>>);

#[derive(Debug)]
struct Watched {
    socket: OwnedFd,
    seen: Queue,
    next_look: Instant,
}

/// A socket's send queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Queue {
    /// Bytes that the peer's TCP has acknowledged since the connection was made.
    acknowledged: u64,
    /// Some are not yet.
    waits: bool,
}

impl Queue {
    /// What had to wait has moved on. Bytes that a queue with room takes and the peer's buffer swallows are no progress.
    const fn has_moved_since(self, before: Self) -> bool {
        before.waits && self.acknowledged >= before.acknowledged + PROGRESS_BYTES_MIN
    }
}

impl Line {
    /// Looks at this socket from now on.
    pub(super) fn watch(&self, socket: &impl AsFd) -> std::io::Result<()> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        let seen = queue(&socket).unwrap_or_default();
        *self.0.lock() = Some(Watched { socket, seen, next_look: now() + LOOK_EACH });
        Ok(())
    }

    /// Returns when bytes that had waited were acknowledged by the peer's TCP. Cancel safe.
    pub(super) async fn moved(&self) {
        loop {
            // Kept over calls: one who asks anew with every record would never come to a look.
            let next = self.0.lock().as_ref().map_or_else(|| now() + LOOK_EACH, |watched| watched.next_look);
            tokio::time::sleep_until(next).await;
            if self.look() {
                return;
            }
        }
    }

    fn look(&self) -> bool {
        let mut line = self.0.lock();
        let Some(watched) = line.as_mut() else { return false };
        watched.next_look = now() + LOOK_EACH;
        let Some(queue) = queue(&watched.socket) else { return false };
        queue.has_moved_since(std::mem::replace(&mut watched.seen, queue))
    }
}

fn now() -> Instant {
    Instant::from_std(crate::clock::now())
}

/// `TCP_INFO` of tcp(7), as far as it is needed. The kernel writes as much of its own struct as is asked for.
#[cfg(target_os = "linux")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct TcpInfo {
    _state: [u8; 8],
    _timers_and_sizes: [u32; 4],
    /// Segments.
    unacknowledged: u32,
    _losses_times_and_windows: [u32; 19],
    _pacing: [u64; 2],
    bytes_acknowledged: u64,
    _bytes_received: u64,
    _segments: [u32; 2],
    bytes_not_sent: u32,
    _round_trip_min: u32,
}

#[cfg(target_os = "linux")]
#[derive(Clone, Copy, Debug)]
struct ReadTcpInfo;

#[cfg(target_os = "linux")]
nix::getsockopt_impl!(
    ReadTcpInfo,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    TcpInfo,
    nix::sys::socket::sockopt::GetStruct<TcpInfo>
);

#[cfg(target_os = "linux")]
fn queue(socket: &OwnedFd) -> Option<Queue> {
    static KNOWS: std::sync::LazyLock<bool> = std::sync::LazyLock::new(kernel_knows);
    let info = KNOWS.then(|| nix::sys::socket::getsockopt(socket, ReadTcpInfo).ok())??;
    let waits = info.unacknowledged > 0 || info.bytes_not_sent > 0;
    Some(Queue { acknowledged: info.bytes_acknowledged, waits })
}

/// The last of these fields came with Linux 4.6; an older kernel would answer with less than is asked for.
#[cfg(target_os = "linux")]
fn kernel_knows() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(4), Some(6))
}

/// Elsewhere only acknowledgements of the protocol are progress.
#[cfg(not(target_os = "linux"))]
fn queue(_socket: &OwnedFd) -> Option<Queue> {
    None
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpSocket, TcpStream};
    use tokio::time::timeout;

    use super::*;

    /// A connection whose receiving end takes little ahead.
    async fn pair() -> (TcpStream, TcpStream) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(1024).unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn r23_what_a_slow_peer_takes_is_progress_and_what_a_mute_one_has_is_none() {
        let (mut near, mut far) = pair().await;
        let line = Line::default();
        line.watch(&near).unwrap();
        // All of it fits the peer's buffer: acknowledged at once, and nothing waits.
        near.write_all(&[0; 100]).await.unwrap();
        assert!(timeout(LOOK_EACH * 4, line.moved()).await.is_err(), "a mute peer");
        // Much more than fits: the peer's TCP takes as much as its program reads.
        near.write_all(&vec![0; 64 * 1024]).await.unwrap();
        let mut read = 0;
        let reading = async {
            let mut buffer = [0; 1024];
            while read < 32 * 1024 {
                read += far.read(&mut buffer).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let (moved, ()) = tokio::join!(timeout(LONG, line.moved()), reading);
        moved.expect("a slow peer");
        // It stops reading with much on the way: open, and dead.
        while timeout(LOOK_EACH * 4, line.moved()).await.is_ok() {}
    }

    #[tokio::test]
    async fn asking_anew_all_the_time_finds_what_moved_all_the_same() {
        let (mut near, mut far) = pair().await;
        let line = Line::default();
        line.watch(&near).unwrap();
        near.write_all(&vec![0; 64 * 1024]).await.unwrap();
        let reading = async {
            let mut buffer = [0; 1024];
            while far.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let asking = async { while timeout(Duration::from_millis(5), line.moved()).await.is_err() {} };
        tokio::select! {
            asked = timeout(LONG, asking) => asked.expect("seen"),
            () = reading => panic!("it is read while the other asks"),
        }
    }

    #[test]
    fn a_keep_alive_is_no_progress() {
        let before = Queue { acknowledged: 1_000, waits: true };
        assert!(!Queue { acknowledged: 1_037, waits: false }.has_moved_since(before));
        assert!(Queue { acknowledged: 1_200, waits: true }.has_moved_since(before));
        assert!(!Queue { acknowledged: 9_000, waits: true }.has_moved_since(Queue { waits: false, ..before }));
    }
}
