//! One line a message, in the manner of libpq's `PQtrace`: for logs, for tests and to compare conversations.
//!
//! ```text
//! F  26  Query          "BEGIN; SELECT 1 / 0;"
//! B  5   ReadyForQuery  E
//! ```
//!
//! Direction, length, name and fields, after a tab each. Unlike libpq's, a line is always one line of printable
//! ASCII and holds no secret: keys, passwords and what proves them are not shown. A body that is not what its type
//! says is shown as far as it is, the rest as quoted bytes.

use super::HEAD_SIZE;
use super::reader::Body;
use super::startup::{self, Packet};
use super::tag::{Direction, backend, frontend};
use super::writer::authentication;
use std::fmt::Write;

/// The trace of a whole message.
pub fn line(direction: Direction, message: &[u8]) -> String {
    Trace::of(direction, message, false)
}

/// The same, without what differs from one run or server to the next: ids of tables and of types, and where in the
/// server's source an error comes from. libpq calls it regression mode.
pub fn stable_line(direction: Direction, message: &[u8]) -> String {
    Trace::of(direction, message, true)
}

/// The trace of a first packet.
pub fn packet_line(packet: &Packet<'_>, size: usize) -> String {
    let mut trace = Trace { text: format!("F\t{size}\t"), stable: false };
    match packet {
        Packet::SslRequest => trace.text.push_str("SSLRequest"),
        Packet::GssEncRequest => trace.text.push_str("GSSENCRequest"),
        Packet::CancelRequest(_) => trace.text.push_str("CancelRequest\t NNNN 'BBBB'"),
        Packet::StartupMessage(startup::StartupMessage { version, parameters, .. }) => {
            trace.text.push_str("StartupMessage\t");
            trace.number(version.major);
            trace.number(version.minor);
            for (name, value) in *parameters {
                trace.string(name);
                trace.string(value);
            }
        }
    }
    trace.text
}

struct Trace {
    text: String,
    stable: bool,
}

/// What a body is made of. `[..]` is a count of two bytes and as many times what is inside.
///
/// ```text
/// s string   h 2 bytes   i 4 bytes   o 4 bytes, an id   c character   v value with its size
/// f fields of an error   l strings up to the end   b bytes up to the end   x secret bytes up to the end
/// ```
fn layout(direction: Direction, tag: u8) -> &'static str {
    match direction {
        Direction::Frontend => match tag {
            frontend::QUERY | frontend::COPY_FAIL => "s",
            frontend::PARSE => "ss[o]",
            frontend::BIND => "ss[h][v][h]",
            frontend::DESCRIBE | frontend::CLOSE => "cs",
            frontend::EXECUTE => "si",
            frontend::FUNCTION_CALL => "o[h][v]h",
            frontend::PASSWORD => "x",
            _ => "b",
        },
        Direction::Backend => match tag {
            backend::BACKEND_KEY_DATA => "x",
            backend::READY_FOR_QUERY => "c",
            backend::ROW_DESCRIPTION => "[sohohih]",
            backend::DATA_ROW => "[v]",
            backend::COMMAND_COMPLETE => "s",
            backend::ERROR_RESPONSE | backend::NOTICE_RESPONSE => "f",
            backend::NOTIFICATION_RESPONSE => "oss",
            backend::PARAMETER_STATUS => "ss",
            backend::PARAMETER_DESCRIPTION => "[o]",
            backend::COPY_IN_RESPONSE | backend::COPY_OUT_RESPONSE | backend::COPY_BOTH_RESPONSE => "c[h]",
            backend::FUNCTION_CALL_RESPONSE => "v",
            backend::NEGOTIATE_PROTOCOL_VERSION => "iil",
            _ => "b",
        },
    }
}

impl Trace {
    fn of(direction: Direction, message: &[u8], stable: bool) -> String {
        let sender = match direction {
            Direction::Frontend => 'F',
            Direction::Backend => 'B',
        };
        let tag = message.first().copied().unwrap_or(0);
        let mut trace = Trace { text: format!("{sender}\t"), stable };
        let is_error = matches!(tag, backend::ERROR_RESPONSE | backend::NOTICE_RESPONSE);
        if stable && direction == Direction::Backend && is_error {
            trace.text.push_str("NN\t"); // as long as what is hidden in it
        } else {
            let _ = write!(trace.text, "{}\t", message.len().saturating_sub(1));
        }
        let mut body = Body::of(message);
        if direction == Direction::Backend && tag == backend::AUTHENTICATION {
            trace.authentication(&mut body);
        } else {
            match direction.message_name(tag) {
                Some(name) => trace.text.push_str(name),
                None => trace.character(tag),
            }
            if message.len() > HEAD_SIZE {
                trace.text.push('\t');
                // A body that ends early leaves nothing more to show.
                let _ = trace.items(layout(direction, tag).as_bytes(), &mut body);
            }
        }
        if !body.is_empty() {
            trace.bytes(body.rest());
        }
        trace.text
    }

    fn authentication(&mut self, body: &mut Body<'_>) {
        let code = body.u32().ok();
        let (name, layout) = match code {
            Some(authentication::OK) => ("AuthenticationOk", ""),
            Some(authentication::CLEARTEXT_PASSWORD) => ("AuthenticationCleartextPassword", ""),
            Some(authentication::MD5_PASSWORD) => ("AuthenticationMD5Password", "x"),
            Some(authentication::GSS) => ("AuthenticationGSS", ""),
            Some(authentication::GSS_CONTINUE) => ("AuthenticationGSSContinue", "x"),
            Some(authentication::SSPI) => ("AuthenticationSSPI", ""),
            Some(authentication::SASL) => ("AuthenticationSASL", "l"),
            Some(authentication::SASL_CONTINUE) => ("AuthenticationSASLContinue", "x"),
            Some(authentication::SASL_FINAL) => ("AuthenticationSASLFinal", "x"),
            _ => ("Authentication", "x"),
        };
        self.text.push_str(name);
        if !layout.is_empty() {
            self.text.push('\t');
            let _ = self.items(layout.as_bytes(), body);
        }
    }

    /// `None` where the body ended before the layout did.
    fn items(&mut self, layout: &[u8], body: &mut Body<'_>) -> Option<()> {
        let mut layout = layout;
        while let Some((&item, rest)) = layout.split_first() {
            layout = rest;
            match item {
                b'[' => {
                    let end = layout.iter().position(|byte| *byte == b']').expect("a group is closed");
                    let count = body.u16().ok()?;
                    self.number(count);
                    for _ in 0..count {
                        self.items(&layout[..end], body)?;
                    }
                    layout = &layout[end + 1..];
                }
                b's' => self.string(body.string().ok()?),
                b'h' => self.number(body.u16().ok()?),
                b'i' => self.number(body.u32().ok()? as i32),
                b'o' => self.id(body.u32().ok()?),
                b'c' => self.character(body.array::<1>().ok()?[0]),
                b'v' => self.value(body)?,
                b'f' => self.fields(body)?,
                b'l' => {
                    while let Ok(string) = body.string() {
                        self.string(string);
                    }
                }
                b'b' => self.bytes(body.rest()),
                b'x' => {
                    body.rest();
                    self.text.push_str(" 'BBBB'");
                }
                _ => unreachable!("the layouts are written above"),
            }
        }
        Some(())
    }

    fn value(&mut self, body: &mut Body<'_>) -> Option<()> {
        match body.value().ok()? {
            None => self.number(-1),
            Some(value) => {
                self.number(value.len());
                self.bytes(value);
            }
        }
        Some(())
    }

    fn fields(&mut self, body: &mut Body<'_>) -> Option<()> {
        loop {
            let [kind] = body.array().ok()?;
            self.character(kind);
            if kind == 0 {
                return Some(());
            }
            let text = body.string().ok()?;
            match kind {
                b'F' | b'L' | b'R' if self.stable => self.text.push_str(" \"SSSS\""),
                _ => self.string(text),
            }
        }
    }

    fn id(&mut self, id: u32) {
        if self.stable && id != 0 {
            self.text.push_str(" NNNN");
        } else {
            self.number(id);
        }
    }

    fn number(&mut self, number: impl std::fmt::Display) {
        let _ = write!(self.text, " {number}"); // a String takes everything
    }

    fn character(&mut self, byte: u8) {
        self.text.push(' ');
        self.printable(&[byte]);
    }

    fn string(&mut self, string: &[u8]) {
        self.text.push_str(" \"");
        self.printable(string);
        self.text.push('"');
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.text.push_str(" '");
        self.printable(bytes);
        self.text.push('\'');
    }

    fn printable(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b' '..=b'~' => self.text.push(char::from(byte)),
                _ => {
                    let _ = write!(self.text, "\\x{byte:02x}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::{ErrorFields, SqlState};
    use super::super::startup::Version;
    use super::super::tag::{TargetKind, TransactionStatus};
    use super::super::writer::{Full, NO_PARAMETER_TYPES, NO_PARAMETERS, Writer};
    use super::*;

    fn check(direction: Direction, write: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>, expected: &str) {
        let mut buffer = [0; 1000];
        let mut writer = Writer::new(&mut buffer);
        write(&mut writer).expect("the buffer is large enough");
        assert_eq!(line(direction, writer.written()), expected);
    }

    #[test]
    fn traces_as_libpq_does() {
        use Direction::{Backend, Frontend};
        check(Frontend, |w| w.query(b"SELECT 1;\n"), "F\t15\tQuery\t \"SELECT 1;\\x0a\"");
        check(Frontend, |w| w.parse(b"a", b"SELECT 1", NO_PARAMETER_TYPES), "F\t17\tParse\t \"a\" \"SELECT 1\" 0");
        check(Frontend, |w| w.bind(b"", b"a", NO_PARAMETERS), "F\t13\tBind\t \"\" \"a\" 0 0 0");
        let values: [Option<&[u8]>; 2] = [Some(b"\xffx"), None];
        check(Frontend, |w| w.bind_text(b"", b"", &values), "F\t22\tBind\t \"\" \"\" 0 2 2 '\\xffx' -1 0");
        check(Frontend, |w| w.describe(TargetKind::Portal, b""), "F\t6\tDescribe\t P \"\"");
        check(Frontend, |w| w.execute(b"", 0), "F\t9\tExecute\t \"\" 0");
        check(Frontend, |w| w.sync(), "F\t4\tSync");
        check(Frontend, |w| w.copy_data(b"1\t2\n"), "F\t8\tCopyData\t '1\\x092\\x0a'");
        check(Frontend, |w| w.password(b"secret"), "F\t11\tPasswordMessage\t 'BBBB'");
        check(Backend, |w| w.authentication_ok(), "B\t8\tAuthenticationOk");
        check(Backend, |w| w.backend_key_data(1, b"secret"), "B\t14\tBackendKeyData\t 'BBBB'");
        check(Backend, |w| w.ready_for_query(TransactionStatus::Failed), "B\t5\tReadyForQuery\t E");
        check(
            Backend,
            |w| w.row_description(&[b"?column?"]),
            "B\t33\tRowDescription\t 1 \"?column?\" 0 0 25 65535 -1 0",
        );
        check(Backend, |w| w.data_row(&values), "B\t16\tDataRow\t 2 2 '\\xffx' -1");
        check(Backend, |w| w.command_complete(b"SELECT 1"), "B\t13\tCommandComplete\t \"SELECT 1\"");
        check(
            Backend,
            |w| w.error_response(&ErrorFields::error(SqlState::INTERNAL_ERROR, "no")),
            "B\t30\tErrorResponse\t S \"ERROR\" V \"ERROR\" C \"XX000\" M \"no\" \\x00",
        );
    }

    #[test]
    fn shows_what_is_malformed_as_far_as_it_is() {
        assert_eq!(line(Direction::Backend, b"S\0\0\0\x07a\0b"), "B\t7\tParameterStatus\t \"a\" 'b'");
        assert_eq!(line(Direction::Backend, b"S\0\0\0\x09a\0b\0c"), "B\t9\tParameterStatus\t \"a\" \"b\" 'c'");
        assert_eq!(line(Direction::Frontend, b"!\0\0\0\x05z"), "F\t5\t !\t 'z'");
        assert_eq!(line(Direction::Frontend, b""), "F\t0\t \\x00");
    }

    #[test]
    fn a_stable_line_hides_what_differs() {
        let bytes = b"E\0\0\0\x10CXX000\0L77\0\0";
        assert_eq!(line(Direction::Backend, bytes), "B\t16\tErrorResponse\t C \"XX000\" L \"77\" \\x00");
        assert_eq!(stable_line(Direction::Backend, bytes), "B\tNN\tErrorResponse\t C \"XX000\" L \"SSSS\" \\x00");
    }

    #[test]
    fn traces_the_first_packet() {
        let mut buffer = [0; 100];
        let mut writer = Writer::new(&mut buffer);
        let parameters = [(&b"user"[..], &b"ann"[..])];
        writer.startup_message(Version::V3_0, parameters).expect("the buffer is large enough");
        let (packet, size) = startup::packet(writer.written()).expect("valid").expect("whole");
        assert_eq!(packet_line(&packet, size), "F\t18\tStartupMessage\t 3 0 \"user\" \"ann\"");
    }
}
