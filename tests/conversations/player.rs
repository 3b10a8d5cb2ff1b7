//! Plays a script against an address and writes down what came back.

use std::collections::HashMap;
use std::time::Duration;

use super::script::{Act, End, Script};
use super::support::Address;
use super::support::postgres::SUPERUSER;
use super::support::raw::{CANCEL_REQUEST, PATIENCE, RawClient, Received, untagged};
use super::trace;

/// So long nothing comes before it counts as nothing.
const QUIET: Duration = Duration::from_millis(200);

/// What came back at an `until`, and the line that it stands on.
pub struct Heard {
    pub line: usize,
    pub trace: Vec<String>,
}

/// The clients of a conversation.
struct Player<'a> {
    address: &'a Address,
    database: &'a str,
    clients: HashMap<String, RawClient>,
    current: String,
    /// Said, and not yet written.
    unsent: Vec<u8>,
    /// Size of the pieces that the next write goes out in.
    piece_size: Option<usize>,
}

pub fn play(script: &Script, address: &Address, database: &str) -> Vec<Heard> {
    let mut player = Player {
        address,
        database,
        clients: HashMap::new(),
        current: "A".to_owned(),
        unsent: Vec::new(),
        piece_size: None,
    };
    let mut heard = Vec::new();
    for step in &script.steps {
        match &step.act {
            Act::Client(name) => player.current.clone_from(name),
            Act::Say { bytes, untagged } => player.say(bytes, *untagged),
            Act::Split(size) => player.piece_size = Some(*size),
            Act::Send => player.send(),
            Act::Until { end, .. } => {
                player.send();
                let lines = player.listen(*end);
                let lines = lines.into_iter().map(|line| line.replace(database, "$database"));
                heard.push(Heard { line: step.line, trace: lines.collect() });
            }
            Act::HangUp => drop(player.clients.remove(&player.current)),
            Act::Cancel => player.cancel(),
            Act::Pause(milliseconds) => std::thread::sleep(Duration::from_millis(*milliseconds)),
        }
    }
    heard
}

impl Player<'_> {
    /// A client that first says a packet without a tag does its own login.
    fn say(&mut self, bytes: &[u8], untagged: bool) {
        if untagged && !self.clients.contains_key(&self.current) {
            self.clients.insert(self.current.clone(), RawClient::connect(self.address));
        }
        self.unsent.extend_from_slice(bytes);
    }

    fn client(&mut self) -> &mut RawClient {
        self.clients
            .entry(self.current.clone())
            .or_insert_with(|| RawClient::login(self.address, SUPERUSER, self.database))
    }

    fn send(&mut self) {
        let bytes = std::mem::take(&mut self.unsent);
        let piece_size = self.piece_size.take().unwrap_or(bytes.len());
        let client = self.client();
        for piece in bytes.chunks(piece_size.max(1)) {
            client.send(piece);
        }
    }

    fn listen(&mut self, end: End) -> Vec<String> {
        let client = self.client();
        if let End::Byte = end {
            return match client.receive_byte() {
                Some(byte) => vec![format!("byte {:?}", byte as char)],
                None => vec!["(nothing)".to_owned()],
            };
        }
        let patience = match end {
            End::Quiet => QUIET,
            _ => PATIENCE,
        };
        let mut lines = Vec::new();
        let mut readies = 0;
        let mut count = 0;
        loop {
            let is_enough = match end {
                End::Ready(wanted) => readies >= wanted,
                End::Messages(wanted) => count >= wanted,
                End::Quiet | End::Closed | End::Byte => false,
            };
            if is_enough {
                break;
            }
            match (client.receive(patience), end) {
                (Received::Message(message), _) => {
                    readies += usize::from(message.tag == b'Z');
                    count += 1;
                    lines.extend(trace::line(&message));
                }
                (Received::Quiet, End::Quiet) => break,
                (Received::Quiet, _) => {
                    lines.push(format!("(nothing for {PATIENCE:?})"));
                    break;
                }
                (Received::Closed, End::Closed) => {
                    lines.push("closed".to_owned());
                    break;
                }
                (Received::Closed, _) => {
                    lines.push("closed (not expected)".to_owned());
                    break;
                }
            }
        }
        trace::normalise(lines)
    }

    fn cancel(&mut self) {
        let request = untagged(CANCEL_REQUEST, &self.client().key.clone());
        let mut connection = RawClient::connect(self.address);
        connection.send(&request);
        // The server's hang-up says that the cancel has been dealt with.
        assert_eq!(connection.receive(PATIENCE), Received::Closed, "a cancel is answered by hanging up");
    }
}
