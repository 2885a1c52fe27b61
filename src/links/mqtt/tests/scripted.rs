//! A remote that says and hears what a test wants, packet by packet.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::wire::{Connack, ConnackProperties, Connect, Decoder, Packet, ReasonCode, encode};

pub(super) const SOON: Duration = Duration::from_secs(10);

/// One connection's end at the remote.
pub(super) struct Far {
    stream: TcpStream,
    decoder: Decoder,
    input: BytesMut,
}

impl Far {
    /// Lets the client in.
    pub(super) async fn accept(listener: &TcpListener, session_present: bool) -> (Self, Connect) {
        let (stream, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
        let mut far = Self { stream, decoder: Decoder::server(1 << 20), input: BytesMut::new() };
        let Packet::Connect(connect) = far.next().await else { panic!("no CONNECT") };
        let properties = ConnackProperties::default();
        far.say(&Packet::Connack(Box::new(Connack { session_present, code: ReasonCode::Success, properties }))).await;
        (far, *connect)
    }

    pub(super) async fn next(&mut self) -> Packet {
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.input).unwrap() {
                return packet;
            }
            let read = timeout(SOON, self.stream.read_buf(&mut self.input)).await.unwrap().unwrap();
            assert!(read > 0, "the client is gone");
        }
    }

    pub(super) async fn say(&mut self, packet: &Packet) {
        self.say_at_once(&[packet]).await;
    }

    /// In one write.
    pub(super) async fn say_at_once(&mut self, packets: &[&Packet]) {
        let mut output = BytesMut::new();
        for packet in packets {
            encode(packet, self.decoder.version().unwrap(), &mut output).unwrap();
        }
        self.stream.write_all(&output).await.unwrap();
    }
}
