//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677) in both roles, one value for each step.
//!
//! The name in the exchange (`n=`) is ignored, as PostgreSQL does: the startup packet has said who the user is.

mod client;
mod server;

use std::fmt;

use super::secrets::{Key, Keys, decimal, hash, keyed, same};

pub use client::{Answered, Binding, Challenged, Client};
pub use server::{Asked, Offer, Server};

/// The mechanism without channel binding.
pub const MECHANISM: &[u8] = b"SCRAM-SHA-256";
/// The mechanism with it.
pub const MECHANISM_PLUS: &[u8] = b"SCRAM-SHA-256-PLUS";
/// Bytes of randomness behind a nonce; base64 makes 24 characters of them, as PostgreSQL does.
pub const NONCE_SIZE: usize = 18;

/// Longest message of an exchange that is read. The longest honest one has a certificate's hash and a name in it.
pub const MESSAGE_SIZE_MAX: usize = 2048;

const BINDING_TYPE: &[u8] = b"tls-server-end-point";

/// Why an exchange ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// A message that does not follow the grammar, is too long or has an attribute out of place.
    Malformed(&'static str),
    /// What the peer asks for is not to be had.
    Unsupported(&'static str),
    /// Somebody between the two hides mechanisms, or speaks over another channel.
    Binding(&'static str),
    /// The other side's nonce is not what this side sent.
    Nonce,
    /// The proof does not fit: a wrong password, or no such user.
    Proof,
    /// The server wants more rounds than `auth.scram_iterations_max` allows.
    Iterations {
        /// So many.
        asked: u32,
        /// Allowed.
        allowed: u32,
    },
    /// The server does not know the password either: it is not the one it says it is.
    Impostor,
    /// The server says what went wrong (`e=`).
    Server(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Malformed(what) => write!(f, "malformed SCRAM message: {what}"),
            Refusal::Unsupported(what) | Refusal::Binding(what) => f.write_str(what),
            Refusal::Nonce => f.write_str("the nonce of the SCRAM exchange is not the one that was sent"),
            Refusal::Proof => f.write_str("password authentication failed"),
            Refusal::Iterations { asked, allowed } => {
                write!(f, "the server asks for {asked} SCRAM iterations, auth.scram_iterations_max is {allowed}")
            }
            Refusal::Impostor => f.write_str("the server's SCRAM signature is wrong: it does not know the password"),
            Refusal::Server(text) => write!(f, "the server ended the SCRAM exchange: {text}"),
        }
    }
}

/// `AuthMessage`, which both sides sign.
fn auth_message<'a>(first_bare: &'a [u8], server_first: &'a [u8], final_bare: &'a [u8]) -> [&'a [u8]; 5] {
    [first_bare, b",", server_first, b",", final_bare]
}

fn xor(one: &Key, other: &Key) -> Key {
    std::array::from_fn(|at| one[at] ^ other[at])
}

/// A cursor over the attributes of a message, `a=value,b=value`.
struct Attributes<'a>(Option<&'a [u8]>);

impl<'a> Attributes<'a> {
    fn of(message: &'a [u8]) -> Result<Attributes<'a>, Refusal> {
        if message.len() > MESSAGE_SIZE_MAX {
            return Err(Refusal::Malformed("it is too long"));
        }
        if message.contains(&0) {
            return Err(Refusal::Malformed("it has a zero byte"));
        }
        Ok(Attributes(Some(message)))
    }

    /// The next attribute: its letter and value.
    fn any(&mut self) -> Result<Option<(u8, &'a [u8])>, Refusal> {
        let Some(rest) = self.0 else { return Ok(None) };
        let (one, rest) = match rest.iter().position(|byte| *byte == b',') {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        self.0 = rest;
        match one {
            [letter, b'=', value @ ..] if letter.is_ascii_alphabetic() => Ok(Some((*letter, value))),
            _ => Err(Refusal::Malformed("an attribute was expected")),
        }
    }

    /// The value of the attribute that must come now.
    fn expect(&mut self, letter: u8) -> Result<&'a [u8], Refusal> {
        match self.any()? {
            Some((found, value)) if found == letter => Ok(value),
            Some((b'm', _)) => Err(Refusal::Unsupported("the SCRAM exchange requires an extension that qcp lacks")),
            Some(_) => Err(Refusal::Malformed("an attribute is out of place")),
            None => Err(Refusal::Malformed("an attribute is missing")),
        }
    }

    /// Extensions that nobody has asked for are passed over.
    fn skip_extensions(&mut self) -> Result<(), Refusal> {
        while self.any()?.is_some() {}
        Ok(())
    }
}

/// A nonce of printable characters, none of them a comma.
fn nonce(value: &[u8]) -> Result<&[u8], Refusal> {
    let is_printable = |byte: &u8| (0x21..=0x7e).contains(byte) && *byte != b',';
    if value.is_empty() || !value.iter().all(is_printable) {
        return Err(Refusal::Malformed("a nonce has other characters than printable ones"));
    }
    Ok(value)
}

#[cfg(test)]
mod tests;
