//! What a frontend says: an `F` line of a script as bytes.

use super::script::{Argument, number};
use super::support::raw::{CANCEL_REQUEST, PROTOCOL_3_0, message, startup, untagged};

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;

/// The bytes of a message, and whether it is one without a tag.
pub fn encode(line: &[Argument]) -> Result<(Vec<u8>, bool), String> {
    let (name, arguments) = line.split_first().ok_or("which message")?;
    let given = Given(arguments);
    if let Some(bytes) = encode_untagged(name.word(), &given)? {
        return Ok((bytes, true));
    }
    // These very bytes, after the login.
    if name.word() == "Bytes" {
        return Ok((given.text(0)?.to_vec(), false));
    }
    let body = Body::default();
    let (tag, body) = match name.word() {
        "Query" => (b'Q', body.string(given.text(0)?)),
        "Parse" => (b'P', body.string(given.text(0)?).string(given.text(1)?).int32_list(given.list(2)?)?),
        "Bind" => {
            let names = body.string(given.text(0)?).string(given.text(1)?);
            (b'B', names.formats(given.list(3)?)?.values(given.list(2)?)?.formats(given.list(4)?)?)
        }
        "Describe" => (b'D', body.bytes(given.text(0)?).string(given.text(1)?)),
        "Close" => (b'C', body.bytes(given.text(0)?).string(given.text(1)?)),
        "Execute" => (b'E', body.string(given.text(0)?).int32(given.number(1)?)),
        "Sync" => (b'S', body),
        "Flush" => (b'H', body),
        "Terminate" => (b'X', body),
        "Password" => (b'p', body.string(given.text(0)?)),
        "CopyData" => (b'd', body.bytes(given.text(0)?)),
        "CopyDone" => (b'c', body),
        "CopyFail" => (b'f', body.string(given.text(0)?)),
        "FunctionCall" => {
            let call = body.int32(given.number(0)?).formats(&[Argument::Word("0".to_owned())])?;
            (b'F', call.values(given.list(1)?)?.int16(0))
        }
        // Any tag with any body.
        "Message" => (given.text(0)?.first().copied().ok_or("which tag")?, body.bytes(given.text(1)?)),
        other => return Err(format!("unknown message {other}")),
    };
    Ok((message(tag, &body.0), false))
}

fn encode_untagged(name: &str, given: &Given) -> Result<Option<Vec<u8>>, String> {
    Ok(Some(match name {
        "Startup" => {
            let (major, minor) = given.word(0)?.split_once('.').ok_or("a version is like 3.0")?;
            let version = (number(major)? as u32) << 16 | number(minor)? as u32;
            let mut pairs = Vec::new();
            for index in (1..given.0.len()).step_by(2) {
                pairs.push((given.utf8(index)?, given.utf8(index + 1)?));
            }
            let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            startup(version, &pairs)
        }
        "SSLRequest" => untagged(SSL_REQUEST, &[]),
        "GSSENCRequest" => untagged(GSSENC_REQUEST, &[]),
        "CancelRequest" => untagged(CANCEL_REQUEST, given.text(0)?),
        // A startup packet whose parameters are these very bytes.
        "StartupBody" => untagged(PROTOCOL_3_0, given.text(0)?),
        // These very bytes, before or instead of a login.
        "FirstBytes" => given.text(0)?.to_vec(),
        _ => return Ok(None),
    }))
}

/// Arguments of a line, asked for by place and kind.
struct Given<'a>(&'a [Argument]);

impl Given<'_> {
    fn text(&self, index: usize) -> Result<&[u8], String> {
        match self.0.get(index) {
            Some(Argument::Text(bytes)) => Ok(bytes),
            Some(Argument::Word(word)) => Ok(word.as_bytes()),
            _ => Err(format!("argument {} should be a string", index + 1)),
        }
    }

    fn utf8(&self, index: usize) -> Result<String, String> {
        String::from_utf8(self.text(index)?.to_vec()).map_err(|error| error.to_string())
    }

    fn word(&self, index: usize) -> Result<&str, String> {
        self.0.get(index).map(Argument::word).ok_or(format!("argument {} is missing", index + 1))
    }

    fn number(&self, index: usize) -> Result<i32, String> {
        number(self.word(index)?).map(|number| number as i32)
    }

    /// A list, empty where the line has ended before it.
    fn list(&self, index: usize) -> Result<&[Argument], String> {
        match self.0.get(index) {
            Some(Argument::List(arguments)) => Ok(arguments),
            None => Ok(&[]),
            Some(_) => Err(format!("argument {} should be a list", index + 1)),
        }
    }
}

/// The body of a message as it grows.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn bytes(mut self, bytes: &[u8]) -> Body {
        self.0.extend_from_slice(bytes);
        self
    }

    fn string(self, text: &[u8]) -> Body {
        self.bytes(text).bytes(&[0])
    }

    fn int16(self, value: i16) -> Body {
        self.bytes(&value.to_be_bytes())
    }

    fn int32(self, value: i32) -> Body {
        self.bytes(&value.to_be_bytes())
    }

    fn formats(self, formats: &[Argument]) -> Result<Body, String> {
        let mut body = self.int16(formats.len() as i16);
        for format in formats {
            body = body.int16(number(format.word())? as i16);
        }
        Ok(body)
    }

    fn int32_list(self, values: &[Argument]) -> Result<Body, String> {
        let mut body = self.int16(values.len() as i16);
        for value in values {
            body = body.int32(number(value.word())? as i32);
        }
        Ok(body)
    }

    /// A count, then each value as its length and its bytes; null is a length of -1.
    fn values(self, values: &[Argument]) -> Result<Body, String> {
        let mut body = self.int16(values.len() as i16);
        for value in values {
            body = match value {
                Argument::Text(bytes) => body.int32(bytes.len() as i32).bytes(bytes),
                Argument::Word(word) if word == "null" => body.int32(-1),
                other => return Err(format!("not a value: {other:?}")),
            };
        }
        Ok(body)
    }
}
