//! The PROXY protocol, versions 1 and 2 (HAProxy's `doc/proxy-protocol.txt`): what a proxy says before the client's first byte. The
//! parser is pure. A listener that asks for the header takes no connection without it: who could leave it out could choose an address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BytesMut};

use super::peer::PeerCertificate;
use super::socket::Socket;

/// The twelve bytes that version 2 begins with.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// What version 1 begins with.
const WORD: &[u8] = b"PROXY ";

/// A line of version 1 at most, its end included (section 2.1).
const LINE_BYTES_MAX: usize = 107;

/// What follows the fixed part of version 2 at most. The addresses are 216 bytes at most; the rest is for what a proxy tells of TLS,
/// where the largest is a client's certificate.
const TAIL_BYTES_MAX: usize = 16 << 10;

/// A first read: any header but one with a certificate.
const READ_BYTES: usize = 1 << 10;

/// What a header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Proxied {
    pub(super) source: Source,
    /// The client spoke TLS to the proxy.
    pub(super) is_secure: bool,
    /// The client's certificate, if the proxy has verified one and says its common name.
    pub(super) certificate: Option<PeerCertificate>,
}

/// Whom a connection is made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Source {
    /// For the proxy itself (its health checks), or the proxy does not know.
    #[default]
    Own,
    /// For this client.
    Client(SocketAddr),
    /// For a client on a Unix socket of the proxy's machine.
    Unix,
}

/// What is no header. Text for the log.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct HeaderError(&'static str);

/// Reads the header. `input` then holds what came behind it.
pub(super) async fn read_header(socket: &Socket, input: &mut BytesMut) -> Result<Proxied, String> {
    loop {
        if let Some((bytes, proxied)) = parse(input).map_err(|error| error.to_string())? {
            input.advance(bytes);
            return Ok(proxied);
        }
        socket.readable().await.map_err(|error| error.to_string())?;
        input.reserve(READ_BYTES);
        match socket.try_read_buf(input) {
            Ok(0) => return Err("the connection ended before the header did".to_owned()),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.to_string()),
            Ok(_) | Err(_) => {}
        }
    }
}

/// The header at the beginning of `bytes` and its length; `None`: it goes on.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<(usize, Proxied)>, HeaderError> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(a, b)| a == b);
    if begins(SIGNATURE) {
        return if bytes.len() < 16 { Ok(None) } else { parse_binary(bytes) };
    }
    if !begins(WORD) {
        return Err(HeaderError("no PROXY header"));
    }
    let line = bytes.get(..LINE_BYTES_MAX).unwrap_or(bytes);
    match line.windows(2).position(|end| end == b"\r\n") {
        Some(end) => {
            let text = line.get(..end).and_then(|line| std::str::from_utf8(line).ok());
            let source = text.and_then(parse_line).ok_or(HeaderError("a PROXY line that is malformed"))?;
            Ok(Some((end + 2, Proxied { source, ..Proxied::default() })))
        }
        None if line.len() == LINE_BYTES_MAX => Err(HeaderError("a PROXY line that is too long")),
        None => Ok(None),
    }
}

/// Version 1: `PROXY TCP4 SOURCE DESTINATION SOURCE-PORT DESTINATION-PORT`.
fn parse_line(line: &str) -> Option<Source> {
    let mut words = line.split(' ');
    let (_proxy, family) = (words.next()?, words.next()?);
    if family == "UNKNOWN" {
        return Some(Source::Own);
    }
    let address = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| port.to_string() == text);
    let (source, _destination) = (address(words.next()?)?, address(words.next()?)?);
    let (source_port, _destination_port) = (port(words.next()?)?, port(words.next()?)?);
    words.next().is_none().then(|| Source::Client(SocketAddr::new(source, source_port)))
}

/// Version 2, of which the fixed part is there.
fn parse_binary(bytes: &[u8]) -> Result<Option<(usize, Proxied)>, HeaderError> {
    let mut rest = bytes.get(SIGNATURE.len()..).unwrap_or_default();
    let (kind, family) = (take_u8(&mut rest)?, take_u8(&mut rest)?);
    let length = usize::from(take_u16(&mut rest)?);
    if kind >> 4 != 2 {
        return Err(HeaderError("a PROXY header of an unknown version"));
    }
    if length > TAIL_BYTES_MAX {
        return Err(HeaderError("a PROXY header that is too long"));
    }
    let whole = SIGNATURE.len() + 4 + length;
    let Some(mut tail) = rest.get(..length) else { return Ok(None) };
    let is_local = match kind & 0x0F {
        0 => true,
        1 => false,
        _ => return Err(HeaderError("a PROXY header with an unknown command")),
    };
    // Families and transports that are not known have to be taken as unspecified (section 2.2); a datagram is never the case here.
    let source = match family {
        0x11 => Source::Client(take_v4(&mut tail)?),
        0x21 => Source::Client(take_v6(&mut tail)?),
        0x31 => {
            take(&mut tail, 216)?;
            Source::Unix
        }
        _ => return Ok(Some((whole, Proxied::default()))),
    };
    let header = bytes.get(..whole).unwrap_or_default();
    let mut proxied = parse_extensions(tail, header)?;
    if is_local {
        proxied = Proxied::default();
    } else {
        proxied.source = source;
    }
    Ok(Some((whole, proxied)))
}

/// Type, length, value, over and over.
fn parse_extensions(mut tail: &[u8], header: &[u8]) -> Result<Proxied, HeaderError> {
    const CRC32C: u8 = 0x03;
    const SSL: u8 = 0x20;
    let mut proxied = Proxied::default();
    while !tail.is_empty() {
        let before = tail.len();
        let (kind, value) = take_extension(&mut tail)?;
        match kind {
            CRC32C => {
                let at = header.len() - before + 3;
                check_sum(header, at, value)?;
            }
            SSL => (proxied.is_secure, proxied.certificate) = parse_tls(value)?,
            _ => {}
        }
    }
    Ok(proxied)
}

/// The checksum over the whole header, itself taken as zero (section 2.2.3).
fn check_sum(header: &[u8], at: usize, value: &[u8]) -> Result<(), HeaderError> {
    const WRONG: HeaderError = HeaderError("a PROXY header whose checksum is wrong");
    let given = u32::from_be_bytes(value.try_into().map_err(|_length| WRONG)?);
    let mut bare = header.to_vec();
    bare.get_mut(at..at + 4).ok_or(WRONG)?.fill(0);
    if crc32c::crc32c(&bare) == given { Ok(()) } else { Err(WRONG) }
}

/// What the proxy tells of TLS (section 2.2.6).
fn parse_tls(mut value: &[u8]) -> Result<(bool, Option<PeerCertificate>), HeaderError> {
    const CLIENT_SSL: u8 = 0x01;
    const CLIENT_CERT: u8 = 0x02 | 0x04;
    const COMMON_NAME: u8 = 0x22;
    let client = take_u8(&mut value)?;
    let verify = take(&mut value, 4)?;
    let mut common_name = None;
    while !value.is_empty() {
        let (kind, text) = take_extension(&mut value)?;
        if kind == COMMON_NAME {
            common_name = std::str::from_utf8(text).ok().filter(|name| !name.contains(char::is_control));
        }
    }
    let is_verified = client & CLIENT_CERT != 0 && verify == [0; 4];
    let certificate = common_name
        .filter(|name| is_verified && !name.is_empty())
        .map(|name| PeerCertificate { common_name: Some(name.into()), ..PeerCertificate::default() });
    Ok((client & CLIENT_SSL != 0, certificate))
}

fn take_v4(tail: &mut &[u8]) -> Result<SocketAddr, HeaderError> {
    let source: [u8; 4] = take_array(tail)?;
    take(tail, 4)?;
    let port = take_u16(tail)?;
    take(tail, 2)?;
    Ok(SocketAddr::from((source, port)))
}

fn take_v6(tail: &mut &[u8]) -> Result<SocketAddr, HeaderError> {
    let source: [u8; 16] = take_array(tail)?;
    take(tail, 16)?;
    let port = take_u16(tail)?;
    take(tail, 2)?;
    Ok(SocketAddr::from((source, port)))
}

fn take_extension<'a>(tail: &mut &'a [u8]) -> Result<(u8, &'a [u8]), HeaderError> {
    let kind = take_u8(tail)?;
    let length = take_u16(tail)?;
    Ok((kind, take(tail, usize::from(length))?))
}

fn take_u8(tail: &mut &[u8]) -> Result<u8, HeaderError> {
    take_array::<1>(tail).map(|[byte]| byte)
}

fn take_u16(tail: &mut &[u8]) -> Result<u16, HeaderError> {
    take_array(tail).map(u16::from_be_bytes)
}

fn take_array<const N: usize>(tail: &mut &[u8]) -> Result<[u8; N], HeaderError> {
    let (array, rest) = tail.split_first_chunk().ok_or(CUT)?;
    *tail = rest;
    Ok(*array)
}

fn take<'a>(tail: &mut &'a [u8], bytes: usize) -> Result<&'a [u8], HeaderError> {
    let (taken, rest) = tail.split_at_checked(bytes).ok_or(CUT)?;
    *tail = rest;
    Ok(taken)
}

const CUT: HeaderError = HeaderError("a PROXY header whose parts are longer than itself");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(address: &str) -> Source {
        Source::Client(address.parse().unwrap())
    }

    /// A header of version 2.
    fn binary(kind: u8, family: u8, tail: &[u8]) -> Vec<u8> {
        let length = u16::try_from(tail.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[kind, family], &length, tail].concat()
    }

    const V4: &[u8] = &[192, 0, 2, 7, 10, 0, 0, 1, 0xC0, 0x00, 0x07, 0x5B];

    fn extension(kind: u8, value: &[u8]) -> Vec<u8> {
        [&[kind][..], &u16::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
    }

    fn tls(client: u8, verify: u32, parts: &[u8]) -> Vec<u8> {
        extension(0x20, &[&[client][..], &verify.to_be_bytes(), parts].concat())
    }

    fn parsed(bytes: &[u8]) -> Proxied {
        let with_more = [bytes, b"\x10\x0C\0\x04MQTT"].concat();
        let (length, proxied) = parse(&with_more).unwrap().expect("it is whole");
        assert_eq!(length, bytes.len());
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), Ok(None), "cut at {cut}");
        }
        proxied
    }

    #[test]
    fn lines_of_version_1() {
        for (line, source) in [
            ("PROXY TCP4 192.0.2.7 10.0.0.1 49152 1883\r\n", client("192.0.2.7:49152")),
            ("PROXY TCP6 2001:db8::7 ::1 1 65535\r\n", client("[2001:db8::7]:1")),
            ("PROXY UNKNOWN\r\n", Source::Own),
            ("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Source::Own),
        ] {
            assert_eq!(parsed(line.as_bytes()), Proxied { source, ..Proxied::default() }, "{line}");
        }
    }

    #[test]
    fn what_is_no_header_is_refused_at_its_first_wrong_byte() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LINE_BYTES_MAX));
        for wrong in [
            "\x10\x0C\0\x04MQTT\x05",
            "PROXX",
            "GET / HTTP/1.1\r\n",
            "\r\n\r\n\0\r\nQUIX",
            "PROXY TCP4 192.0.2.7 10.0.0.1 49152\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 49152 1883 1\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 049152 1883\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 +1 1883\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 65536 1883\r\n",
            "PROXY TCP4 2001:db8::7 ::1 1 2\r\n",
            "PROXY TCP5 192.0.2.7 10.0.0.1 1 2\r\n",
            "PROXY  TCP4 192.0.2.7 10.0.0.1 1 2\r\n",
            "PROXY \r\n",
            "PROXY \u{7f}\r\n",
            long.as_str(),
        ] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn headers_of_version_2() {
        let v6 = [&[0x20, 1, 0x0d, 0xb8][..], &[0; 11], &[7], &[0; 16], &[0, 1, 0, 2]].concat();
        for (kind, family, tail, source) in [
            (0x21, 0x11, V4, client("192.0.2.7:49152")),
            (0x21, 0x21, &v6, client("[2001:db8::7]:1")),
            (0x21, 0x31, &[0; 216], Source::Unix),
            (0x21, 0x00, &[], Source::Own),
            (0x21, 0x12, V4, Source::Own),
            (0x20, 0x11, V4, Source::Own),
            (0x20, 0x00, &[], Source::Own),
        ] {
            assert_eq!(parsed(&binary(kind, family, tail)).source, source, "{kind:#x} {family:#x}");
        }
    }

    #[test]
    fn wrong_headers_of_version_2() {
        for (kind, family, tail) in [
            (0x11, 0x11, V4),
            (0x22, 0x11, V4),
            (0x21, 0x11, &V4[..11]),
            (0x21, 0x21, V4),
            (0x21, 0x31, V4),
            (0x21, 0x11, &[V4, &[0x20, 0, 9]].concat()),
            (0x21, 0x11, &[V4, &[0x20]].concat()),
            (0x21, 0x11, &[V4, &extension(0x20, &[1, 0, 0, 0])].concat()),
            (0x21, 0x11, &[V4, &extension(0x20, &[1, 0, 0, 0, 0, 0x22, 0, 9])].concat()),
            (0x21, 0x11, &[V4, &extension(0x03, &[1, 2, 3, 4])].concat()),
            (0x21, 0x11, &[V4, &extension(0x03, &[1, 2])].concat()),
        ] {
            let header = binary(kind, family, tail);
            assert!(parse(&header).is_err(), "{header:02X?}");
        }
        let announced = [SIGNATURE, &[0x21, 0x11, 0xFF, 0xFF]].concat();
        assert_eq!(parse(&announced), Err(HeaderError("a PROXY header that is too long")));
    }

    #[test]
    fn a_certificate_counts_only_if_the_proxy_has_verified_it() {
        let name = extension(0x22, b"press-7");
        let version = extension(0x21, b"TLSv1.3");
        for (client, verify, parts, is_secure, common_name) in [
            (0x07, 0, [version.clone(), name.clone()].concat(), true, Some("press-7")),
            (0x05, 0, name.clone(), true, Some("press-7")),
            (0x01, 0, name.clone(), true, None),
            (0x07, 1, name.clone(), true, None),
            (0x07, 0, version, true, None),
            (0x00, 0, Vec::new(), false, None),
            (0x07, 0, extension(0x22, b"\xFF"), true, None),
            (0x07, 0, extension(0x22, b"press\0-7"), true, None),
            (0x07, 0, extension(0x22, b""), true, None),
        ] {
            let header = binary(0x21, 0x11, &[V4, &tls(client, verify, &parts)].concat());
            let proxied = parsed(&header);
            let shown = proxied.certificate.and_then(|certificate| certificate.common_name);
            assert_eq!((proxied.is_secure, shown.as_deref()), (is_secure, common_name), "{client:#x} {verify}");
        }
        // The proxy speaks for itself, whatever else it says.
        let header = binary(0x20, 0x11, &[V4, &tls(0x07, 0, &name)].concat());
        assert_eq!(parsed(&header), Proxied::default());
    }

    #[test]
    fn the_checksum_is_checked() {
        let mut header = binary(0x21, 0x11, &[V4, &extension(0x04, &[0; 3]), &extension(0x03, &[0; 4])].concat());
        let sum = crc32c::crc32c(&header).to_be_bytes();
        let at = header.len() - 4;
        header[at..].copy_from_slice(&sum);
        assert_eq!(parsed(&header).source, client("192.0.2.7:49152"));
        // All but its own type, without which there is none.
        for bit in (16 * 8..header.len() * 8).filter(|bit| bit / 8 != at - 3) {
            let mut damaged = header.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&damaged).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_not_and_never_more_than_was_read(
            start in prop_oneof![Just(&b""[..]), Just(WORD), Just(SIGNATURE), Just(&b"PROXY TCP4 1.2.3.4 "[..])],
            rest in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let bytes = [start, &rest].concat();
            if let Ok(Some((length, _))) = parse(&bytes) {
                prop_assert!(length <= bytes.len());
            }
        }

        #[test]
        fn any_extensions_are_parsed_or_refused(kind in 0x20_u8..0x22, tail in prop::collection::vec(any::<u8>(), 0..300)) {
            let header = binary(kind, 0x11, &[V4, &tail].concat());
            prop_assert!(!matches!(parse(&header), Ok(None)));
        }
    }
}
