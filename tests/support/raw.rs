//! A client that speaks the protocol by hand: it sends any bytes, and says what came back, message by message.
//!
//! It shares no code with what it tests.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket as sys;

use super::Address;

pub const PROTOCOL_3_0: u32 = 3 << 16;
pub const CANCEL_REQUEST: u32 = 80_877_102;

/// How long to wait for what must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A message from the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub tag: u8,
    pub body: Vec<u8>,
}

/// What waiting for a message came to.
#[derive(PartialEq, Eq, Debug)]
pub enum Received {
    Message(Message),
    /// Nothing whole came in time.
    Quiet,
    Closed,
}

pub struct RawClient {
    stream: Stream,
    /// Received and not yet taken, from `taken` on.
    received: Vec<u8>,
    taken: usize,
    /// The body of BackendKeyData: what a cancel request repeats.
    pub key: Vec<u8>,
    /// Why nothing came the last time that nothing came, for the report of a test that failed.
    silence: Option<ErrorKind>,
}

impl RawClient {
    pub fn connect(address: &Address) -> RawClient {
        let stream = if address.host.starts_with('/') {
            UnixStream::connect(format!("{}/.s.PGSQL.{}", address.host, address.port)).map(Stream::Unix)
        } else {
            TcpStream::connect((address.host.as_str(), address.port)).map(Stream::Tcp)
        };
        let stream = stream.unwrap_or_else(|error| panic!("{address:?}: {error}"));
        if let Stream::Tcp(tcp) = &stream {
            tcp.set_nodelay(true).expect("a fresh socket");
        }
        RawClient { stream, received: Vec::new(), taken: 0, key: Vec::new(), silence: None }
    }

    /// As `connect`, by TCP, but as from afar: small segments, and room for little that is not read.
    pub fn connect_narrow(address: &Address) -> RawClient {
        let at: std::net::SocketAddrV4 =
            format!("{}:{}", address.host, address.port).parse().expect("a loopback address");
        let socket = sys::socket(sys::AddressFamily::Inet, sys::SockType::Stream, sys::SockFlag::SOCK_CLOEXEC, None)
            .expect("a descriptor is left");
        sys::setsockopt(&socket, sys::sockopt::RcvBuf, &4096).expect("a fresh socket");
        sys::setsockopt(&socket, sys::sockopt::TcpMaxSeg, &1400).expect("a fresh socket");
        sys::connect(socket.as_raw_fd(), &sys::SockaddrIn::from(at)).unwrap_or_else(|error| panic!("{at}: {error}"));
        RawClient { stream: Stream::Tcp(socket.into()), received: Vec::new(), taken: 0, key: Vec::new(), silence: None }
    }

    /// Sends as much as there is room for, without waiting; how much that was.
    pub fn send_some(&mut self, bytes: &[u8]) -> usize {
        let Stream::Tcp(stream) = &mut self.stream else { panic!("only by TCP") };
        stream.set_nonblocking(true).expect("our socket");
        let mut sent = 0;
        while sent < bytes.len() {
            match stream.write(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Who has hung up is noticed by the reader.
                Err(_) => break,
            }
        }
        stream.set_nonblocking(false).expect("our socket");
        sent
    }

    /// Connects and logs in where no password is asked for.
    pub fn login(address: &Address, user: &str, database: &str) -> RawClient {
        RawClient::connect(address).logged_in(user, database)
    }

    /// As `login`; `None` where nobody accepts, or it is closed before the login is over.
    pub fn try_login(address: &Address, user: &str, database: &str) -> Option<RawClient> {
        let stream = if address.host.starts_with('/') {
            UnixStream::connect(format!("{}/.s.PGSQL.{}", address.host, address.port)).map(Stream::Unix)
        } else {
            TcpStream::connect((address.host.as_str(), address.port)).map(Stream::Tcp)
        };
        let mut client =
            RawClient { stream: stream.ok()?, received: Vec::new(), taken: 0, key: Vec::new(), silence: None };
        client.send(&startup(PROTOCOL_3_0, &[("user", user), ("database", database)]));
        client.receive_until_ready().last().is_some_and(|last| last.tag == b'Z').then_some(client)
    }

    /// Logs in where no password is asked for.
    pub fn logged_in(self, user: &str, database: &str) -> RawClient {
        let mut client = self;
        client.send(&startup(PROTOCOL_3_0, &[("user", user), ("database", database)]));
        let begun = Instant::now();
        let replies = client.receive_until_ready();
        let (done, silence) = (replies.last().is_some_and(|last| last.tag == b'Z'), client.silence);
        assert!(done, "login as {user}: {replies:?}, then {silence:?}, after {:?}", begun.elapsed());
        client
    }

    /// Sends all of it. A peer that has hung up is noticed by the reader, not here.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(bytes),
            Stream::Unix(stream) => stream.write_all(bytes),
        };
    }

    /// What `poll` takes to say whether something has come.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }

    /// Reads up to so many bytes at once and forgets them; how many there were. 0: closed, or nothing came.
    pub fn read_raw(&mut self, most: usize) -> usize {
        let mut piece = vec![0; most];
        self.read_before(Instant::now() + Duration::from_secs(1), &mut piece).unwrap_or(0)
    }

    /// The next message, if it comes whole within `limit`.
    pub fn receive(&mut self, limit: Duration) -> Received {
        const HEADER: usize = 5;
        let deadline = Instant::now() + limit;
        loop {
            let unread = &self.received[self.taken..];
            if unread.len() >= HEADER {
                let length = u32::from_be_bytes([unread[1], unread[2], unread[3], unread[4]]) as usize;
                if unread.len() > length {
                    let message = Message { tag: unread[0], body: unread[HEADER..=length].to_vec() };
                    self.taken += 1 + length;
                    if message.tag == b'K' {
                        self.key = message.body.clone();
                    }
                    return Received::Message(message);
                }
            }
            match self.read_more(deadline) {
                Ok(0) => {
                    self.silence = Some(ErrorKind::UnexpectedEof);
                    return Received::Closed;
                }
                Ok(_) => {}
                Err(error) => {
                    self.silence = Some(error);
                    let quiet = matches!(error, ErrorKind::WouldBlock | ErrorKind::TimedOut);
                    return if quiet { Received::Quiet } else { Received::Closed };
                }
            }
        }
    }

    /// One byte that is no message: the reply to SSLRequest and GSSENCRequest. `None`: nothing came.
    pub fn receive_byte(&mut self) -> Option<u8> {
        if self.taken == self.received.len() && self.read_more(Instant::now() + PATIENCE) == Ok(0) {
            return None;
        }
        let byte = self.received.get(self.taken).copied();
        self.taken += usize::from(byte.is_some());
        byte
    }

    /// Messages up to and with the next ReadyForQuery, or as many as came before silence or the end.
    pub fn receive_until_ready(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Received::Message(message) = self.receive(PATIENCE) {
            let last = message.tag == b'Z';
            messages.push(message);
            if last {
                break;
            }
        }
        messages
    }

    /// Runs a simple query and gives the first column of its rows; `Err` has the SQLSTATE and text of its error.
    pub fn query(&mut self, statement: &str) -> Result<Vec<String>, (String, String)> {
        self.send(&message(b'Q', &zero_ended(statement)));
        let begun = Instant::now();
        let replies = self.receive_until_ready();
        let (done, silence) = (replies.last().is_some_and(|last| last.tag == b'Z'), self.silence);
        assert!(done, "{statement}: {replies:?}, then {silence:?}, after {:?}", begun.elapsed());
        if let Some(error) = replies.iter().find(|reply| reply.tag == b'E') {
            return Err((error_field(&error.body, b'C'), error_field(&error.body, b'M')));
        }
        let rows = replies.iter().filter(|reply| reply.tag == b'D');
        Ok(rows.map(|row| first_column(&row.body)).collect())
    }

    /// Receives and drops messages up to ReadyForQuery; gives the bytes of all DataRow bodies. Keeps none of them.
    pub fn drain_rows(&mut self) -> u64 {
        let mut row_bytes = 0;
        loop {
            match self.receive(PATIENCE) {
                Received::Message(message) if message.tag == b'Z' => return row_bytes,
                Received::Message(message) if message.tag == b'D' => row_bytes += message.body.len() as u64,
                Received::Message(message) => {
                    assert_ne!(message.tag, b'E', "{}", error_field(&message.body, b'M'));
                }
                end => panic!("after {row_bytes} bytes of rows: {end:?}"),
            }
        }
    }

    fn read_more(&mut self, deadline: Instant) -> Result<usize, ErrorKind> {
        if self.taken > 0 {
            self.received.drain(..self.taken);
            self.taken = 0;
        }
        let mut piece = [0; 65_536];
        let count = self.read_before(deadline, &mut piece)?;
        self.received.extend_from_slice(&piece[..count]);
        Ok(count)
    }

    fn read_before(&mut self, deadline: Instant, piece: &mut [u8]) -> Result<usize, ErrorKind> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let count = match &mut self.stream {
                Stream::Tcp(stream) => stream.set_read_timeout(Some(left)).and_then(|()| stream.read(piece)),
                Stream::Unix(stream) => stream.set_read_timeout(Some(left)).and_then(|()| stream.read(piece)),
            };
            match count.map_err(|error| error.kind()) {
                // This process was stopped meanwhile: a wait with a limit ends with that.
                Err(ErrorKind::Interrupted) => {}
                count => return count,
            }
        }
    }
}

/// A tagged message: its tag, its length and its body.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// A packet without a tag, as connections begin: its length, a code and the rest.
pub fn untagged(code: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as u32 + 8).to_be_bytes().to_vec();
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

pub fn startup(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in parameters {
        body.extend_from_slice(&zero_ended(name));
        body.extend_from_slice(&zero_ended(value));
    }
    body.push(0);
    untagged(version, &body)
}

pub fn zero_ended(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// A field of an ErrorResponse or NoticeResponse; empty if it has none.
pub fn error_field(body: &[u8], wanted: u8) -> String {
    body.split(|byte| *byte == 0)
        .find(|field| field.first() == Some(&wanted))
        .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
        .unwrap_or_default()
}

/// The first value of a DataRow: after the count of columns, a length and as many bytes.
fn first_column(body: &[u8]) -> String {
    let length = i32::from_be_bytes([body[2], body[3], body[4], body[5]]);
    let Ok(length) = usize::try_from(length) else { return "null".to_owned() };
    String::from_utf8_lossy(&body[6..6 + length]).into_owned()
}
