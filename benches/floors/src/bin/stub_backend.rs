//! A PostgreSQL that answers at once, so that the pooler in front of it is the bottleneck.
//!
//! It trusts everybody, answers any query with one row `1`, knows every prepared statement without having been told,
//! takes any COPY in, and answers a query on `generate_series(1, N)` with N rows of 1,000 bytes.

use floors::arguments::Arguments;
use floors::dial;
use floors::ring::{Completion, Received, Ring, Socket, Token};
use floors::scanner::Scanner;
use floors::wire::{self, Opening, tag};
use std::net::TcpListener;

const ACCEPT: u8 = 0;
const RECEIVE: u8 = 1;
const SEND: u8 = 2;
const IGNORED: u8 = 3;

const ROW_SIZE: usize = 1_000;
const ROWS_IN_BLOCK: u64 = 64;

fn main() {
    let arguments = Arguments::from_command_line();
    let answers = Answers::new();
    let listener = dial::listen(arguments.required("listen"));
    let ring = Ring::new(arguments.value("buffers", 512), arguments.value("buffer-size", 65_536));
    Stub { ring, listener, answers, connections: Vec::new(), free: Vec::new(), starved: Vec::new() }.run();
}

/// The answers, written once.
struct Answers {
    login: Vec<u8>,
    query: Vec<u8>,
    description: Vec<u8>,
    execution: Vec<u8>,
    rows: Vec<u8>,
    row: Vec<u8>,
    ready: Vec<u8>,
}

impl Answers {
    fn new() -> Answers {
        let parameters = [
            ("server_version", "15.0 (stub)"),
            ("server_encoding", "UTF8"),
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO, MDY"),
            ("IntervalStyle", "postgres"),
            ("TimeZone", "UTC"),
            ("integer_datetimes", "on"),
            ("standard_conforming_strings", "on"),
            ("application_name", ""),
            ("is_superuser", "off"),
            ("session_authorization", "bench"),
            ("default_transaction_read_only", "off"),
            ("in_hot_standby", "off"),
        ];
        let status = |(name, value): &(&str, &str)| {
            wire::message(tag::PARAMETER_STATUS, format!("{name}\0{value}\0").as_bytes())
        };
        let statuses: Vec<u8> = parameters.iter().flat_map(status).collect();
        let description = row_description("?column?");
        let mut execution = data_row(b"1");
        execution.extend(wire::message(b'C', b"SELECT 1\0"));
        let ready = wire::message(tag::READY_FOR_QUERY, &[wire::IDLE]);
        let row = data_row(&[b'x'; ROW_SIZE]);
        Answers {
            login: wire::login_reply(&statuses),
            query: [description.as_slice(), &execution, &ready].concat(),
            description,
            execution,
            rows: row.repeat(ROWS_IN_BLOCK as usize),
            row,
            ready,
        }
    }
}

fn row_description(column: &str) -> Vec<u8> {
    const TEXT: u32 = 25;
    let mut body = 1_u16.to_be_bytes().to_vec();
    body.extend_from_slice(column.as_bytes());
    body.push(0);
    body.extend_from_slice(&[0; 6]); // Of no table.
    body.extend_from_slice(&TEXT.to_be_bytes());
    body.extend_from_slice(&(-1_i16).to_be_bytes());
    body.extend_from_slice(&(-1_i32).to_be_bytes());
    body.extend_from_slice(&0_u16.to_be_bytes());
    wire::message(b'T', &body)
}

fn data_row(value: &[u8]) -> Vec<u8> {
    let mut body = 1_u16.to_be_bytes().to_vec();
    body.extend_from_slice(&(value.len() as u32).to_be_bytes());
    body.extend_from_slice(value);
    wire::message(b'D', &body)
}

struct Connection {
    socket: Socket,
    scanner: Scanner,
    greeted: bool,
    ended: bool,
    /// Leaves with the next send, while `sending` is under way.
    pending: Vec<u8>,
    sending: Vec<u8>,
    is_sending: bool,
    /// Rows of a large result that are still to be written.
    rows_left: u64,
    copying: bool,
}

struct Stub {
    ring: Ring,
    listener: TcpListener,
    answers: Answers,
    connections: Vec<Connection>,
    free: Vec<u32>,
    starved: Vec<Token>,
}

impl Stub {
    fn run(&mut self) -> ! {
        let mut batch = Vec::new();
        self.ring.accept(&self.listener, Token::new(ACCEPT, 0));
        loop {
            self.ring.turn(&mut batch);
            for completion in &batch {
                self.on_completion(completion);
            }
            for token in std::mem::take(&mut self.starved) {
                self.ring.receive(self.connections[token.slot as usize].socket, token);
            }
        }
    }

    fn on_completion(&mut self, completion: &Completion) {
        let slot = completion.token.slot;
        match completion.token.kind {
            ACCEPT => self.on_accept(completion),
            RECEIVE => match self.ring.received(completion) {
                Received::Bytes(buffer) => {
                    let connection = &mut self.connections[slot as usize];
                    connection.answer(self.ring.bytes(buffer), &self.answers);
                    self.ring.give(buffer);
                    self.send(slot);
                    if !completion.more() {
                        self.ring.receive(self.connections[slot as usize].socket, completion.token);
                    }
                }
                Received::Starved | Received::Cancelled => self.starved.push(completion.token),
                Received::End => {
                    self.connections[slot as usize].ended = true;
                    self.close_if_quiet(slot);
                }
            },
            SEND => {
                let connection = &mut self.connections[slot as usize];
                connection.is_sending = false;
                if connection.ended {
                    self.close_if_quiet(slot);
                } else {
                    self.send(slot);
                }
            }
            _ => {}
        }
    }

    fn on_accept(&mut self, completion: &Completion) {
        let connection = Connection {
            socket: Socket::from_completion(completion),
            scanner: Scanner::default(),
            greeted: false,
            ended: false,
            pending: Vec::new(),
            sending: Vec::new(),
            is_sending: false,
            rows_left: 0,
            copying: false,
        };
        let socket = connection.socket;
        let slot = self.free.pop().unwrap_or(self.connections.len() as u32);
        match self.connections.get_mut(slot as usize) {
            Some(place) => *place = connection,
            None => self.connections.push(connection),
        }
        self.ring.receive(socket, Token::new(RECEIVE, slot));
        if !completion.more() {
            self.ring.accept(&self.listener, completion.token);
        }
    }

    fn send(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        if connection.is_sending {
            return;
        }
        connection.write_rows(&self.answers);
        if connection.pending.is_empty() {
            return;
        }
        connection.sending.clear();
        std::mem::swap(&mut connection.pending, &mut connection.sending);
        connection.is_sending = true;
        let (pointer, size) = (connection.sending.as_ptr(), connection.sending.len());
        // SAFETY: `sending` is not touched, and its connection not freed, before the completion.
        unsafe { self.ring.send(connection.socket, pointer, size, Token::new(SEND, slot)) }
    }

    fn close_if_quiet(&mut self, slot: u32) {
        let connection = &self.connections[slot as usize];
        if !connection.is_sending {
            self.ring.close(connection.socket, Token::new(IGNORED, 0));
            self.free.push(slot);
        }
    }
}

impl Connection {
    fn answer(&mut self, bytes: &[u8], answers: &Answers) {
        if !self.greeted {
            match wire::opening(bytes) {
                Opening::Encryption => self.pending.push(b'N'),
                Opening::Startup | Opening::Other => {
                    self.greeted = true;
                    self.pending.extend_from_slice(&answers.login);
                }
            }
            return;
        }
        // A query whose answer is not one row is short and alone in its chunk.
        if bytes[0] == tag::QUERY {
            if let Some(count) = rows_asked_for(bytes) {
                self.scanner.scan(bytes, |_, _| {});
                self.pending.extend_from_slice(&answers.description);
                self.rows_left = count;
                return;
            }
            if bytes[5..].starts_with(b"copy ") {
                self.scanner.scan(bytes, |_, _| {});
                self.copying = true;
                self.pending.extend(wire::message(tag::COPY_IN_RESPONSE, &[0, 0, 1, 0, 0]));
                return;
            }
        }
        let (pending, copying) = (&mut self.pending, &mut self.copying);
        self.scanner.scan(bytes, |tag, _| match tag {
            tag::QUERY => pending.extend_from_slice(&answers.query),
            tag::PARSE => pending.extend_from_slice(b"1\0\0\0\x04"),
            tag::BIND => pending.extend_from_slice(b"2\0\0\0\x04"),
            tag::DESCRIBE => pending.extend_from_slice(&answers.description),
            tag::EXECUTE => pending.extend_from_slice(&answers.execution),
            tag::CLOSE => pending.extend_from_slice(b"3\0\0\0\x04"),
            tag::SYNC if !*copying => pending.extend_from_slice(&answers.ready),
            tag::COPY_DONE | tag::COPY_FAIL => {
                *copying = false;
                pending.extend(wire::message(b'C', b"COPY 0\0"));
                pending.extend_from_slice(&answers.ready);
            }
            _ => {}
        });
    }

    /// One block of a large result, or what is left of it.
    fn write_rows(&mut self, answers: &Answers) {
        if self.rows_left == 0 {
            return;
        }
        if self.rows_left >= ROWS_IN_BLOCK {
            self.pending.extend_from_slice(&answers.rows);
            self.rows_left -= ROWS_IN_BLOCK;
        } else {
            self.pending.extend_from_slice(&answers.row.repeat(self.rows_left as usize));
            self.rows_left = 0;
        }
        if self.rows_left == 0 {
            self.pending.extend(wire::message(b'C', b"SELECT\0"));
            self.pending.extend_from_slice(&answers.ready);
        }
    }
}

fn rows_asked_for(query: &[u8]) -> Option<u64> {
    const SERIES: &str = "generate_series(1, ";
    let text = std::str::from_utf8(query.get(5..)?).ok()?;
    let count = &text[text.find(SERIES)? + SERIES.len()..];
    count[..count.find(')')?].parse().ok()
}
