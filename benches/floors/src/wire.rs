//! Messages of PostgreSQL's protocol, as far as the harness speaks it.

pub mod tag {
    pub const BIND: u8 = b'B';
    pub const CLOSE: u8 = b'C';
    pub const COPY_DATA: u8 = b'd';
    pub const COPY_DONE: u8 = b'c';
    pub const COPY_FAIL: u8 = b'f';
    pub const DESCRIBE: u8 = b'D';
    pub const ERROR_RESPONSE: u8 = b'E';
    pub const EXECUTE: u8 = b'E';
    pub const FUNCTION_CALL: u8 = b'F';
    pub const COPY_IN_RESPONSE: u8 = b'G';
    pub const PARAMETER_STATUS: u8 = b'S';
    pub const PARSE: u8 = b'P';
    pub const QUERY: u8 = b'Q';
    pub const READY_FOR_QUERY: u8 = b'Z';
    pub const SYNC: u8 = b'S';
    pub const TERMINATE: u8 = b'X';
}

/// ReadyForQuery's status outside a transaction.
pub const IDLE: u8 = b'I';

const PROTOCOL_3_0: u32 = 3 << 16;
const SSL_REQUEST: u32 = 1234 << 16 | 5679;
const GSSENC_REQUEST: u32 = 1234 << 16 | 5680;

/// What a connection's first packet asks for.
pub enum Opening {
    Startup,
    Encryption,
    Other,
}

pub fn opening(packet: &[u8]) -> Opening {
    let Some(code) = packet.get(4..8) else {
        return Opening::Other;
    };
    match u32::from_be_bytes(code.try_into().expect("four bytes were taken")) {
        SSL_REQUEST | GSSENC_REQUEST => Opening::Encryption,
        code if code >> 16 == PROTOCOL_3_0 >> 16 => Opening::Startup,
        _ => Opening::Other,
    }
}

pub fn startup(user: &str, database: &str) -> Vec<u8> {
    let mut body = PROTOCOL_3_0.to_be_bytes().to_vec();
    for word in ["user", user, "database", database] {
        body.extend_from_slice(word.as_bytes());
        body.push(0);
    }
    body.push(0);
    let mut packet = (body.len() as u32 + 4).to_be_bytes().to_vec();
    packet.extend_from_slice(&body);
    packet
}

pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(5 + body.len());
    message.push(tag);
    message.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    message.extend_from_slice(body);
    message
}

pub fn query(sql: &str) -> Vec<u8> {
    message(tag::QUERY, &terminated(&[sql]))
}

pub fn parse(statement: &str, sql: &str) -> Vec<u8> {
    let mut body = terminated(&[statement, sql]);
    body.extend_from_slice(&0_u16.to_be_bytes());
    message(tag::PARSE, &body)
}

/// Bind of the unnamed portal with one text parameter or none, as libpq writes it; results as text.
pub fn bind(statement: &str, parameter: Option<&[u8]>) -> Vec<u8> {
    let mut body = terminated(&["", statement]);
    body.extend_from_slice(&0_u16.to_be_bytes());
    body.extend_from_slice(&u16::from(parameter.is_some()).to_be_bytes());
    if let Some(text) = parameter {
        body.extend_from_slice(&(text.len() as u32).to_be_bytes());
        body.extend_from_slice(text);
    }
    body.extend_from_slice(&1_u16.to_be_bytes());
    body.extend_from_slice(&0_u16.to_be_bytes());
    message(tag::BIND, &body)
}

/// Describe and Execute of the unnamed portal, which libpq always sends together.
pub fn describe_and_execute() -> Vec<u8> {
    let mut messages = message(tag::DESCRIBE, b"P\0");
    messages.extend(message(tag::EXECUTE, &[0; 5]));
    messages
}

pub fn sync() -> Vec<u8> {
    message(tag::SYNC, &[])
}

/// AuthenticationOk, the server's parameters, a key for cancelling that nobody honours, ReadyForQuery.
pub fn login_reply(parameters: &[u8]) -> Vec<u8> {
    let mut reply = message(b'R', &0_u32.to_be_bytes());
    reply.extend_from_slice(parameters);
    reply.extend(message(b'K', &[0; 8]));
    reply.extend(message(tag::READY_FOR_QUERY, &[IDLE]));
    reply
}

/// The `M` (primary message) field of an ErrorResponse's body.
pub fn error_text(body: &[u8]) -> String {
    let field = body.split(|&byte| byte == 0).find(|field| field.first() == Some(&b'M'));
    String::from_utf8_lossy(field.map_or(&b"no message"[..], |field| &field[1..])).into_owned()
}

fn terminated(words: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in words {
        bytes.extend_from_slice(word.as_bytes());
        bytes.push(0);
    }
    bytes
}
