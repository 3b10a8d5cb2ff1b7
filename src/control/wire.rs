//! The two lines of a control conversation: the client sends one line of JSON, the pooler answers with one.
//!
//! ```text
//! {"version":1,"command":{"show":"memory"}}\n
//! {"version":1,"answer":{"Ok":{"value":{..},"text":".."}}}\n    or    {"version":1,"answer":{"Err":"the reason"}}\n
//! ```
//!
//! A line has a greatest length and a conversation a last moment, on both sides: a peer that sends without end, or a
//! byte now and then, holds nobody up. Either program may be older than the other, so each line says its version.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::command::Command;

/// Raised when a line of one version would be misread by a program of the other.
pub const VERSION: u32 = 1;
pub const REQUEST_SIZE_MAX: usize = 64 << 10;
/// Room for more than 100,000 rows of `show clients`.
pub const ANSWER_SIZE_MAX: usize = 64 << 20;

/// What the pooler says to a command, or the reason why not.
pub type Answer = Result<Reply, String>;

/// One answer in both its forms, made from the same rows, so that a human and a script read the same.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Reply {
    pub value: Value,
    pub text: String,
}

/// Why a line that arrived cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MessageFault {
    Malformed(String),
    Version(u32),
    /// Of our version, and yet not a command or an answer.
    Content(String),
}

/// Why no line arrived, or could be sent.
#[derive(Debug)]
pub enum LineFault {
    /// The peer closed before the end of its line.
    Closed,
    TooLong {
        size_max: usize,
    },
    TimedOut,
    Io(io::Error),
}

/// How the time is asked for: sockets that wait must know how much of it is left, and this layer reads no clock of its own.
pub type Clock = fn() -> Instant;

/// The last moment of a conversation.
#[derive(Clone, Copy)]
pub struct Deadline {
    at: Instant,
    clock: Clock,
}

#[derive(Serialize, Deserialize)]
struct Request<T> {
    version: u32,
    command: T,
}

#[derive(Serialize, Deserialize)]
struct Response<T> {
    version: u32,
    answer: T,
}

impl Reply {
    pub fn new(value: &impl Serialize, text: String) -> Reply {
        // Rows are numbers, strings and lists under field names, which JSON can always hold.
        let value = serde_json::to_value(value).expect("a report is plain data");
        Reply { value, text }
    }
}

pub fn encode_request(command: Command) -> Vec<u8> {
    encode(&Request { version: VERSION, command })
}

pub fn decode_request(line: &[u8]) -> Result<Command, MessageFault> {
    let request: Request<Value> = parse(line)?;
    if request.version != VERSION {
        return Err(MessageFault::Version(request.version));
    }
    Command::deserialize(request.command).map_err(|error| MessageFault::Content(error.to_string()))
}

/// An answer too long for the wire becomes a refusal that says so.
pub fn encode_answer(answer: &Answer) -> Vec<u8> {
    let line = encode(&Response { version: VERSION, answer });
    if line.len() <= ANSWER_SIZE_MAX {
        return line;
    }
    let answer: Answer = Err(format!("the answer of {} bytes is longer than {ANSWER_SIZE_MAX}", line.len()));
    encode(&Response { version: VERSION, answer })
}

pub fn decode_answer(line: &[u8]) -> Result<Answer, MessageFault> {
    let response: Response<Value> = parse(line)?;
    if response.version != VERSION {
        return Err(MessageFault::Version(response.version));
    }
    Answer::deserialize(response.answer).map_err(|error| MessageFault::Content(error.to_string()))
}

/// Reads up to the first line feed, which is not part of the result; nothing may follow it in a conversation.
pub fn receive_line(mut stream: &UnixStream, size_max: usize, deadline: Deadline) -> Result<Vec<u8>, LineFault> {
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    loop {
        stream.set_read_timeout(Some(deadline.left()?))?;
        let count = match stream.read(&mut piece) {
            Ok(0) => return Err(LineFault::Closed),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        let end = memchr::memchr(b'\n', &piece[..count]);
        line.extend_from_slice(&piece[..end.unwrap_or(count)]);
        if line.len() > size_max {
            return Err(LineFault::TooLong { size_max });
        }
        if end.is_some() {
            return Ok(line);
        }
    }
}

/// Sends a line that already ends in a line feed.
pub fn send_line(mut stream: &UnixStream, line: &[u8], deadline: Deadline) -> Result<(), LineFault> {
    let mut rest = line;
    while !rest.is_empty() {
        stream.set_write_timeout(Some(deadline.left()?))?;
        match stream.write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl Deadline {
    pub fn after(duration: Duration, clock: Clock) -> Deadline {
        Deadline { at: clock() + duration, clock }
    }

    /// How long there is; an error when there is nothing left.
    pub fn left(self) -> Result<Duration, LineFault> {
        let left = self.at.saturating_duration_since((self.clock)());
        // A timeout of zero would mean none at all to the socket.
        if left.is_zero() { Err(LineFault::TimedOut) } else { Ok(left) }
    }
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("a message is plain data");
    line.push(b'\n');
    line
}

fn parse<'line, T: Deserialize<'line>>(line: &'line [u8]) -> Result<T, MessageFault> {
    serde_json::from_slice(line).map_err(|error| MessageFault::Malformed(error.to_string()))
}

impl From<io::Error> for LineFault {
    fn from(error: io::Error) -> LineFault {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => LineFault::TimedOut,
            // A Unix socket says this when the peer closed before it read all that we sent.
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => LineFault::Closed,
            _ => LineFault::Io(error),
        }
    }
}

impl fmt::Display for LineFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LineFault::Closed => f.write_str("the connection closed in the middle of a line"),
            LineFault::TooLong { size_max } => write!(f, "a line may have at most {size_max} bytes"),
            LineFault::TimedOut => f.write_str("no whole line in time"),
            LineFault::Io(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for MessageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MessageFault::Malformed(reason) => write!(f, "not a message of the control protocol: {reason}"),
            MessageFault::Version(version) => {
                write!(f, "control protocol {version} meets {VERSION}: use the qcp-ctrl that came with this qcp")
            }
            MessageFault::Content(reason) => f.write_str(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::command::Topic;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_millis(100), Instant::now)
    }

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().expect("two descriptors")
    }

    #[test]
    fn a_request_and_back() {
        let line = encode_request(Command::Show(Topic::Pools));
        assert_eq!(line, b"{\"version\":1,\"command\":{\"show\":\"pools\"}}\n");
        assert_eq!(decode_request(&line), Ok(Command::Show(Topic::Pools)));
    }

    #[test]
    fn an_answer_and_back() {
        let reply = Reply::new(&[1, 2], "one\ntwo\n".to_string());
        let check = |answer: Answer| assert_eq!(decode_answer(&encode_answer(&answer)), Ok(answer));
        check(Ok(reply));
        check(Err("no".to_string()));
    }

    #[test]
    fn a_request_that_is_none_is_told_why() {
        let check = |line: &str, reason: &str| {
            let fault = decode_request(line.as_bytes()).expect_err(line).to_string();
            assert!(fault.contains(reason), "{line}: {fault}");
        };
        check("quit", "not a message of the control protocol");
        check("{}", "missing field `version`");
        check(r#"{"version":2,"command":{"dance":1}}"#, "control protocol 2 meets 1");
        check(
            r#"{"version":1,"command":"dance"}"#,
            "unknown variant `dance`, expected one of `quit`, `status`, `top`, `reopen`, `show`, `reload`",
        );
        check(r#"{"version":1,"command":{"show":"tea"}}"#, "expected one of `memory`, `pools`, `clients`");
    }

    #[test]
    fn a_line_arrives_in_any_pieces() {
        let (near, far) = pair();
        for piece in [&b"ab"[..], b"c", b"\n"] {
            send_line(&far, piece, soon()).expect("room in the socket");
        }
        assert_eq!(receive_line(&near, 3, soon()).expect("a line"), b"abc");
    }

    #[test]
    fn a_line_has_a_greatest_length() {
        let (near, far) = pair();
        send_line(&far, b"abcd\n", soon()).expect("room in the socket");
        assert!(matches!(receive_line(&near, 3, soon()), Err(LineFault::TooLong { size_max: 3 })));
    }

    #[test]
    fn a_peer_that_stops_halfway_is_not_waited_for() {
        let (near, far) = pair();
        send_line(&far, b"ab", soon()).expect("room in the socket");
        assert!(matches!(receive_line(&near, 3, soon()), Err(LineFault::TimedOut)));
        drop(far);
        assert!(matches!(receive_line(&near, 3, soon()), Err(LineFault::Closed)));
    }

    #[test]
    fn a_peer_that_does_not_read_is_not_waited_for() {
        let (near, _far) = pair();
        let endless = vec![b'a'; 16 << 20];
        assert!(matches!(send_line(&near, &endless, soon()), Err(LineFault::TimedOut)));
    }
}
