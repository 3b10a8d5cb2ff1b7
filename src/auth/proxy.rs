//! The PROXY protocol, versions 1 and 2: whom a load balancer in front of QCP speaks for. Strict, and bounded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// "The maximum line lengths the receiver must support including the CRLF": 107 bytes.
const LINE_SIZE_MAX: usize = 107;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const BINARY_HEAD_SIZE: usize = 16;
/// Addresses and all the extras (TLV) that a balancer may add; they are passed over.
const BINARY_SIZE_MAX: usize = BINARY_HEAD_SIZE + 2048;

/// A header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The client's address. `None`: the balancer speaks for itself (a health check), or over something else than TCP.
    pub source: Option<SocketAddr>,
    /// The bytes that it takes.
    pub size: usize,
}

/// There is no header where one must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotProxy(pub &'static str);

/// Reads the header that a connection begins with. `None`: more bytes are needed.
pub fn header(bytes: &[u8]) -> Result<Option<Header>, NotProxy> {
    let looks_like = |start: &[u8]| bytes.iter().zip(start).all(|(one, other)| one == other);
    if looks_like(SIGNATURE) {
        return binary(bytes);
    }
    if looks_like(b"PROXY ") {
        return line(bytes);
    }
    Err(NotProxy("the connection does not begin with a PROXY header"))
}

fn line(bytes: &[u8]) -> Result<Option<Header>, NotProxy> {
    let seen = &bytes[..bytes.len().min(LINE_SIZE_MAX)];
    let Some(end) = seen.windows(2).position(|two| two == b"\r\n") else {
        return if bytes.len() < LINE_SIZE_MAX { Ok(None) } else { Err(NotProxy("the PROXY line has no end")) };
    };
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| NotProxy("the PROXY line is not ASCII"))?;
    let size = end + 2;
    let mut words = text.split(' ').skip(1);
    let wrong = NotProxy("the PROXY line is malformed");
    let family = words.next().ok_or(wrong)?;
    if family == "UNKNOWN" {
        // "The receiver must ignore anything presented before the CRLF is found."
        return Ok(Some(Header { source: None, size }));
    }
    let source: IpAddr = words.next().and_then(|word| word.parse().ok()).ok_or(wrong)?;
    let destination: IpAddr = words.next().and_then(|word| word.parse().ok()).ok_or(wrong)?;
    let port = words.next().and_then(port).ok_or(wrong)?;
    words.next().and_then(self::port).ok_or(wrong)?;
    let fits = match family {
        "TCP4" => source.is_ipv4() && destination.is_ipv4(),
        "TCP6" => source.is_ipv6() && destination.is_ipv6(),
        _ => false,
    };
    if !fits || words.next().is_some() {
        return Err(wrong);
    }
    Ok(Some(Header { source: Some(SocketAddr::new(source, port)), size }))
}

/// A port without sign, spaces or zeros ahead.
fn port(word: &str) -> Option<u16> {
    let is_plain = word == "0" || !word.starts_with('0') && word.bytes().all(|byte| byte.is_ascii_digit());
    word.parse().ok().filter(|_| is_plain)
}

fn binary(bytes: &[u8]) -> Result<Option<Header>, NotProxy> {
    let Some(head) = bytes.first_chunk::<BINARY_HEAD_SIZE>() else { return Ok(None) };
    let size = BINARY_HEAD_SIZE + usize::from(u16::from_be_bytes([head[14], head[15]]));
    if size > BINARY_SIZE_MAX {
        return Err(NotProxy("the PROXY header is too long"));
    }
    let (version, command) = (head[12] >> 4, head[12] & 15);
    if version != 2 || command > 1 {
        return Err(NotProxy("the PROXY header is of an unknown version or command"));
    }
    let Some(addresses) = bytes.get(BINARY_HEAD_SIZE..size) else { return Ok(None) };
    const LOCAL: u8 = 0;
    let source = match head[13] {
        _ if command == LOCAL => None,
        // TCP over IPv4: source, destination, then the two ports.
        0x11 => Some(socket_address::<4>(addresses, 8, |octets| Ipv4Addr::from(octets).into())?),
        0x21 => Some(socket_address::<16>(addresses, 32, |octets| Ipv6Addr::from(octets).into())?),
        // Nothing, or a Unix socket: no address.
        0x00 | 0x31 => None,
        _ => return Err(NotProxy("the PROXY header names a transport that is no stream")),
    };
    Ok(Some(Header { source, size }))
}

fn socket_address<const SIZE: usize>(
    addresses: &[u8],
    port_at: usize,
    read: impl Fn([u8; SIZE]) -> IpAddr,
) -> Result<SocketAddr, NotProxy> {
    let octets = addresses.first_chunk::<SIZE>();
    // Both addresses and both ports must be there.
    let port = addresses.get(port_at..port_at + 4).and_then(|ports| ports.first_chunk::<2>());
    match (octets, port) {
        (Some(octets), Some(port)) => Ok(SocketAddr::new(read(*octets), u16::from_be_bytes(*port))),
        _ => Err(NotProxy("the PROXY header is too short for its addresses")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expected: Result<Option<(Option<&str>, usize)>, ()>) {
        let expected = expected.map(|header| {
            header.map(|(source, size)| Header { source: source.map(|text| text.parse().expect("valid")), size })
        });
        assert_eq!(header(bytes).map_err(|_| ()), expected, "{}", bytes.escape_ascii());
    }

    fn binary(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = (addresses.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[0x20 | command, family], &length, addresses].concat()
    }

    #[test]
    fn lines() {
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\nrest";
        check(line, Ok(Some((Some("192.0.2.1:56324"), line.len() - 4))));
        for size in 0..line.len() - 4 {
            check(&line[..size], Ok(None));
        }
        check(b"PROXY TCP6 2001:db8::1 2001:db8::2 0 65535\r\n", Ok(Some((Some("[2001:db8::1]:0"), 44))));
        check(b"PROXY UNKNOWN\r\n", Ok(Some((None, 15))));
        check(b"PROXY UNKNOWN ffff::f 1 2 3 whatever\r\n", Ok(Some((None, 38))));
        for wrong in [
            &b"PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n"[..],
            b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 1\r\n",
            b"PROXY TCP4 192.0.2.1  198.51.100.2 56324 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.2 01 443\r\n",
            b"PROXY TCP4 192.0.2.256 198.51.100.2 1 443\r\n",
            b"PROXY TCP4 2001:db8::1 2001:db8::2 1 443\r\n",
            b"PROXY TCP6 192.0.2.1 198.51.100.2 1 443\r\n",
            b"PROXY UDP4 192.0.2.1 198.51.100.2 1 443\r\n",
            b"PROXY \r\n",
            b"PROXY\r\n",
            b"proxy TCP4 192.0.2.1 198.51.100.2 1 443\r\n",
            b"\0\0\0\x08\x04\xd2\x16\x2f",
        ] {
            check(wrong, Err(()));
        }
        check(&[&b"PROXY TCP4 "[..], &[b'1'; 200]].concat(), Err(()));
    }

    #[test]
    fn binary_headers() {
        let v4 = binary(1, 0x11, b"\xc0\x00\x02\x01\xc6\x33\x64\x02\xdc\x04\x01\xbb");
        check(&v4, Ok(Some((Some("192.0.2.1:56324"), 28))));
        for size in 0..v4.len() {
            check(&v4[..size], Ok(None));
        }
        let v6 = [[0x20; 16], [0x21; 16]].concat();
        let address = Some("[2020:2020:2020:2020:2020:2020:2020:2020]:258");
        check(&binary(1, 0x21, &[&v6[..], &[1, 2, 3, 4]].concat()), Ok(Some((address, 52))));
        // Extras behind the addresses.
        check(&binary(1, 0x11, &[1; 100]), Ok(Some((Some("1.1.1.1:257"), 116))));
        check(&binary(0, 0x11, &[]), Ok(Some((None, 16))));
        check(&binary(1, 0x00, &[1; 5]), Ok(Some((None, 21))));
        check(&binary(1, 0x31, &[1; 216]), Ok(Some((None, 232))));
        check(&binary(2, 0x11, &[1; 12]), Err(()));
        check(&binary(1, 0x12, &[1; 12]), Err(()));
        check(&binary(1, 0x11, &[1; 11]), Err(()));
        check(&binary(1, 0x21, &[1; 35]), Err(()));
        check(&binary(1, 0x11, &[1; 2049]), Err(()));
        let mut first = binary(1, 0x11, &[1; 12]);
        first[12] = 0x11;
        check(&first, Err(()));
    }
}
