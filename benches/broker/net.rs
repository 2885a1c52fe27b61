//! Sockets behind one epoll, for the relay and the generator: one read a ready socket, one write a socket and round.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::packets::Packet;

/// Bytes of one read.
const READ_BYTES: usize = 256 << 10;

/// As many sockets as the system lets us have, for this process and its children.
pub(super) fn raise_file_limit() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}

struct Conn {
    stream: TcpStream,
    /// The beginning of a packet whose end has not come.
    rest: Vec<u8>,
    output: Vec<u8>,
    is_touched: bool,
    waits_to_write: bool,
}

/// The sockets, each under the number that [`Net::add`] gave it.
pub(super) struct Net {
    epoll: Epoll,
    conns: Vec<Option<Conn>>,
    touched: Vec<usize>,
    chunk: Vec<u8>,
    events: Vec<EpollEvent>,
}

impl Net {
    pub(super) fn new() -> Self {
        Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap(),
            conns: Vec::new(),
            touched: Vec::new(),
            chunk: vec![0; READ_BYTES],
            events: vec![EpollEvent::empty(); 1_024],
        }
    }

    /// Something else than a connection, to be told by this number.
    pub(super) fn watch(&self, what: impl std::os::fd::AsFd, number: u64) {
        self.epoll.add(what, EpollEvent::new(EpollFlags::EPOLLIN, number)).unwrap();
    }

    pub(super) fn add(&mut self, stream: TcpStream) -> usize {
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(true).unwrap();
        let number = self.conns.len();
        self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number as u64)).unwrap();
        self.conns.push(Some(Conn {
            stream,
            rest: Vec::new(),
            output: Vec::new(),
            is_touched: false,
            waits_to_write: false,
        }));
        number
    }

    /// Waits for sockets that are ready; those that only had to write on are seen to here.
    pub(super) fn wait(&mut self, timeout_ms: u8) -> Vec<u64> {
        let count = match self.epoll.wait(&mut self.events, EpollTimeout::from(timeout_ms)) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => panic!("epoll_wait: {error}"),
        };
        let mut ready = Vec::with_capacity(count);
        for event in &self.events[..count] {
            if event.events().contains(EpollFlags::EPOLLOUT) {
                self.touched.push(usize::try_from(event.data()).unwrap());
            }
            if event.events().intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
                ready.push(event.data());
            }
        }
        ready
    }

    /// Reads once from `number` and hands over each whole packet. `false`: the connection is gone.
    pub(super) fn read(&mut self, number: usize, mut each: impl FnMut(&mut Self, Packet<'_>)) -> bool {
        let mut chunk = std::mem::take(&mut self.chunk);
        let Some(conn) = &mut self.conns[number] else { return true };
        let kept = conn.rest.len();
        chunk[..kept].copy_from_slice(&conn.rest);
        let len = match conn.stream.read(&mut chunk[kept..]) {
            Ok(0) => None,
            Ok(bytes) => Some(kept + bytes),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Some(kept),
            Err(_gone) => None,
        };
        if let Some(len) = len {
            let mut at = 0;
            while let Some(packet) = Packet::first(&chunk[at..len]) {
                at += packet.whole.len();
                each(self, packet);
            }
            if let Some(conn) = &mut self.conns[number] {
                conn.rest.clear();
                conn.rest.extend_from_slice(&chunk[at..len]);
            }
        } else {
            self.conns[number] = None;
        }
        self.chunk = chunk;
        len.is_some()
    }

    /// Where to append what `number` is to be sent at the end of the round; `None`: it is gone.
    pub(super) fn output(&mut self, number: usize) -> Option<&mut Vec<u8>> {
        let conn = self.conns[number].as_mut()?;
        if !std::mem::replace(&mut conn.is_touched, true) {
            self.touched.push(number);
        }
        Some(&mut conn.output)
    }

    /// Writes to all that were touched. The end of the round.
    pub(super) fn flush(&mut self) {
        while let Some(number) = self.touched.pop() {
            let Some(conn) = &mut self.conns[number] else { continue };
            conn.is_touched = false;
            match conn.stream.write(&conn.output) {
                Ok(bytes) => drop(conn.output.drain(..bytes)),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_gone) => {
                    self.conns[number] = None;
                    continue;
                }
            }
            let waits = !conn.output.is_empty();
            if waits != conn.waits_to_write {
                conn.waits_to_write = waits;
                let flags = if waits { EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
                self.epoll.modify(&conn.stream, &mut EpollEvent::new(flags, number as u64)).unwrap();
            }
        }
    }
}
