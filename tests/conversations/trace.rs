//! What a backend says: its messages as lines of a trace, without what differs from run to run.
//!
//! Left out or shown as `*`: process ids, secrets, OIDs of what users made, versions, and the file, line and routine of
//! errors. Reports of parameters that come together are sorted, because their order means nothing.

use std::fmt::Write;

use super::support::raw::Message;

/// OIDs from here on are of objects that somebody created.
const USER_OID_MIN: u32 = 16_384;
/// Values longer than this are shown by their size and a checksum.
const VALUE_SHOWN_MAX: usize = 120;
/// Parameters that servers of some versions only report at login.
const REPORTED_BY_SOME: [&str; 4] =
    ["scram_iterations", "search_path", "in_hot_standby", "default_transaction_read_only"];

/// The line of one message; `None` for one that depends on the version of the server.
pub fn line(message: &Message) -> Option<String> {
    let mut fields = Fields(&message.body);
    let line = match message.tag {
        b'R' => authentication(&mut fields),
        b'S' => return parameter_status(&mut fields),
        b'K' => backend_key(&mut fields),
        b'Z' => format!("ReadyForQuery {}", fields.byte() as char),
        b'T' => row_description(&mut fields),
        b'D' => format!("DataRow{}", values(&mut fields)),
        b'C' => format!("CommandComplete {}", quoted(fields.string())),
        b'I' => "EmptyQueryResponse".to_owned(),
        b'E' => format!("ErrorResponse{}", report(&mut fields)),
        b'N' => format!("NoticeResponse{}", report(&mut fields)),
        b'A' => {
            fields.int32();
            format!("NotificationResponse * {} {}", quoted(fields.string()), quoted(fields.string()))
        }
        b'1' => "ParseComplete".to_owned(),
        b'2' => "BindComplete".to_owned(),
        b'3' => "CloseComplete".to_owned(),
        b'n' => "NoData".to_owned(),
        b's' => "PortalSuspended".to_owned(),
        b't' => parameter_description(&mut fields),
        b'G' => format!("CopyInResponse{}", copy_formats(&mut fields)),
        b'H' => format!("CopyOutResponse{}", copy_formats(&mut fields)),
        b'W' => format!("CopyBothResponse{}", copy_formats(&mut fields)),
        b'd' => format!("CopyData {}", quoted(fields.rest())),
        b'c' => "CopyDone".to_owned(),
        b'V' => format!("FunctionCallResponse {}", value(&mut fields)),
        b'v' => negotiate(&mut fields),
        other => format!("Unknown {:?} {}", other as char, quoted(fields.rest())),
    };
    let leftover = fields.rest();
    assert!(leftover.is_empty(), "{line}: bytes after its end: {leftover:?}");
    Some(line)
}

/// Puts the reports of parameters that follow one another in order, and folds what repeats itself often.
pub fn normalise(mut lines: Vec<String>) -> Vec<String> {
    let is_report = |line: &String| line.starts_with("ParameterStatus");
    for run in lines.chunk_by_mut(|before, after| is_report(before) && is_report(after)) {
        if run.len() > 1 {
            run.sort();
        }
    }
    fold(&lines)
}

/// `a b a b a b ...` becomes `N times: a; b`.
fn fold(lines: &[String]) -> Vec<String> {
    const PERIOD_MAX: usize = 5;
    const COUNT_MIN: usize = 8;
    let mut folded = Vec::new();
    let mut rest = lines;
    while let Some(first) = rest.first() {
        let repeats = |period: usize| {
            let pattern = &rest[..period];
            rest.chunks_exact(period).take_while(|block| *block == pattern).count()
        };
        let found = (1..=PERIOD_MAX.min(rest.len())).find(|period| repeats(*period) >= COUNT_MIN);
        match found {
            Some(period) => {
                folded.push(format!("{} times: {}", repeats(period), rest[..period].join("; ")));
                rest = &rest[period * repeats(period)..];
            }
            None => {
                folded.push(first.clone());
                rest = &rest[1..];
            }
        }
    }
    folded
}

fn authentication(fields: &mut Fields) -> String {
    const SALT_SIZE: usize = 4;
    match fields.int32() {
        0 => "AuthenticationOk".to_owned(),
        3 => "AuthenticationCleartextPassword".to_owned(),
        5 => {
            fields.take(SALT_SIZE);
            "AuthenticationMD5Password *".to_owned()
        }
        10 => format!("AuthenticationSASL {}", quoted(fields.rest())),
        other => format!("Authentication {other} {}", quoted(fields.rest())),
    }
}

/// Keys of protocol 3.0 are four bytes, those of 3.2 may be longer.
fn backend_key(fields: &mut Fields) -> String {
    fields.int32();
    let key = fields.rest();
    if key.len() == 4 { "BackendKeyData * *".to_owned() } else { "BackendKeyData * * (long)".to_owned() }
}

fn parameter_status(fields: &mut Fields) -> Option<String> {
    let name = String::from_utf8_lossy(fields.string()).into_owned();
    let value = quoted(fields.string());
    match name.as_str() {
        name if REPORTED_BY_SOME.contains(&name) => None,
        "server_version" => Some("ParameterStatus server_version *".to_owned()),
        name => Some(format!("ParameterStatus {name} {value}")),
    }
}

fn row_description(fields: &mut Fields) -> String {
    let mut line = "RowDescription".to_owned();
    for _ in 0..fields.int16() {
        let name = quoted(fields.string());
        let table = fields.int32();
        fields.int16();
        let oid = type_name(fields.int32());
        fields.int16();
        fields.int32();
        let format = fields.int16();
        let _ = write!(line, " [{name} {oid}");
        line += if table == 0 { "" } else { " of-table" };
        line += if format == 0 { "]" } else { " binary]" };
    }
    line
}

fn parameter_description(fields: &mut Fields) -> String {
    let mut line = "ParameterDescription".to_owned();
    for _ in 0..fields.int16() {
        let _ = write!(line, " {}", type_name(fields.int32()));
    }
    line
}

fn type_name(oid: i32) -> String {
    if oid as u32 >= USER_OID_MIN { "*".to_owned() } else { oid.to_string() }
}

fn values(fields: &mut Fields) -> String {
    let mut line = String::new();
    for _ in 0..fields.int16() {
        let _ = write!(line, " {}", value(fields));
    }
    line
}

fn value(fields: &mut Fields) -> String {
    match usize::try_from(fields.int32()) {
        Ok(size) => quoted(fields.take(size)),
        Err(_) => "null".to_owned(),
    }
}

/// Severity, SQLSTATE and text of an error or notice, then its other fields by their letters.
fn report(fields: &mut Fields) -> String {
    let mut line = String::new();
    loop {
        let name = fields.byte();
        if name == 0 {
            return line;
        }
        let text = fields.string();
        match name {
            b'S' | b'F' | b'L' | b'R' => {}
            b'V' | b'C' => {
                let _ = write!(line, " {}", String::from_utf8_lossy(text));
            }
            b'M' => {
                let _ = write!(line, " {}", escaped(text));
            }
            other => {
                let _ = write!(line, " {}={}", other as char, escaped(text));
            }
        }
    }
}

fn copy_formats(fields: &mut Fields) -> String {
    let mut line = if fields.byte() == 0 { " text" } else { " binary" }.to_owned();
    for _ in 0..fields.int16() {
        let _ = write!(line, " {}", fields.int16());
    }
    line
}

fn negotiate(fields: &mut Fields) -> String {
    let version = fields.int32();
    let mut line = format!("NegotiateProtocolVersion {}.{}", version >> 16, version & 0xffff);
    for _ in 0..fields.int32() {
        let _ = write!(line, " {}", quoted(fields.string()));
    }
    line
}

/// Bytes as a string in a trace.
fn quoted(bytes: &[u8]) -> String {
    if bytes.len() <= VALUE_SHOWN_MAX {
        escaped(bytes)
    } else {
        // FNV-1a: enough to see that two long values differ.
        let sum = bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
        format!("({} bytes, {sum:016x})", bytes.len())
    }
}

fn escaped(bytes: &[u8]) -> String {
    let mut line = "\"".to_owned();
    match std::str::from_utf8(bytes) {
        Ok(text) => text.chars().for_each(|character| match character {
            '\n' => line += "\\n",
            '\t' => line += "\\t",
            '"' => line += "\\\"",
            '\\' => line += "\\\\",
            control if control.is_control() => line += &format!("\\x{:02x}", control as u32),
            plain => line.push(plain),
        }),
        Err(_) => bytes.iter().for_each(|byte| line += &format!("\\x{byte:02x}")),
    }
    line + "\""
}

/// A message's body, taken from its front. A body that is too short is a broken server: the test fails.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, size: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at_checked(size).expect("the message is as long as it says");
        self.0 = rest;
        taken
    }

    fn rest(&mut self) -> &'a [u8] {
        self.take(self.0.len())
    }

    fn byte(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn int16(&mut self) -> i16 {
        let bytes = self.take(2);
        i16::from_be_bytes([bytes[0], bytes[1]])
    }

    fn int32(&mut self) -> i32 {
        let bytes = self.take(4);
        i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn string(&mut self) -> &'a [u8] {
        let size = self.0.iter().position(|byte| *byte == 0).expect("a string ends with a zero");
        let text = self.take(size);
        self.take(1);
        text
    }
}
