//! Messages as bytes, written and cut without the code under test.

/// A message with its tag.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len() + 5);
    put(&mut bytes, tag, body);
    bytes
}

/// As [`message`], behind what is there.
pub fn put(bytes: &mut Vec<u8>, tag: u8, body: &[u8]) {
    bytes.push(tag);
    bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
}

/// Takes the first whole message off the front.
pub fn take(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let size = 1 + u32::from_be_bytes(bytes.get(1..5)?.try_into().unwrap()) as usize;
    assert!(size >= 5, "a message has a length of at least four: {:02x?}", &bytes[..bytes.len().min(16)]);
    (bytes.len() >= size).then(|| bytes.drain(..size).collect())
}

/// The first packet of a connection, which has no tag.
pub fn take_packet(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let size = u32::from_be_bytes(bytes.get(..4)?.try_into().unwrap()) as usize;
    (bytes.len() >= size).then(|| bytes.drain(..size).collect())
}

/// A zero-terminated string at `at`, which moves behind it.
pub fn string<'a>(body: &'a [u8], at: &mut usize) -> &'a str {
    let end = *at + body[*at..].iter().position(|&byte| byte == 0).expect("strings end with zero");
    let text = std::str::from_utf8(&body[*at..end]).expect("the simulation writes text only");
    *at = end + 1;
    text
}

/// What is looked at of an error or a notice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fields {
    pub severity: String,
    pub code: String,
    pub text: String,
}

pub fn fields(message: &[u8]) -> Fields {
    let mut fields = Fields { severity: String::new(), code: String::new(), text: String::new() };
    let body = &message[5..];
    let mut at = 0;
    while body[at] != 0 {
        let kind = body[at];
        at += 1;
        let value = string(body, &mut at).to_owned();
        match kind {
            b'V' => fields.severity = value,
            b'C' => fields.code = value,
            b'M' => fields.text = value,
            _ => {}
        }
    }
    fields
}

pub fn put_fields(bytes: &mut Vec<u8>, tag: u8, severity: &str, code: &str, text: &str) {
    let mut body = Vec::new();
    for (kind, value) in [(b'S', severity), (b'V', severity), (b'C', code), (b'M', text)] {
        body.push(kind);
        body.extend_from_slice(value.as_bytes());
        body.push(0);
    }
    body.push(0);
    put(bytes, tag, &body);
}

/// Who a request is of and its number, as `c7.42` in its text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Mark {
    pub client: u32,
    pub request: u32,
}

impl std::fmt::Display for Mark {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "c{}.{}", self.client, self.request)
    }
}

/// The first mark in some bytes.
pub fn mark(bytes: &[u8]) -> Option<Mark> {
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|&byte| byte == b'c') {
        from += at + 1;
        if let Some(found) = mark_at(&bytes[from..]) {
            return Some(found);
        }
    }
    None
}

fn mark_at(bytes: &[u8]) -> Option<Mark> {
    let number = |bytes: &[u8]| {
        let length = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let number = std::str::from_utf8(&bytes[..length]).ok()?.parse().ok()?;
        Some((number, length))
    };
    let (client, length) = number(bytes)?;
    if bytes.get(length) != Some(&b'.') {
        return None;
    }
    let (request, _) = number(&bytes[length + 1..])?;
    Some(Mark { client, request })
}

/// A message for people.
pub fn show(message: &[u8]) -> String {
    let body = &message[5.min(message.len())..];
    let text: String = body
        .iter()
        .take(70)
        .map(|&byte| if byte.is_ascii_graphic() || byte == b' ' { char::from(byte) } else { '~' })
        .collect();
    format!("{}[{}]{}", char::from(message[0]), message.len(), text)
}
