//! The client's role: QCP proves to a server that it knows a password, or has the keys.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::*;
use crate::auth::channel::Channel;

/// Longest salt that is taken from a server, in base64.
const SALT_SIZE_MAX: usize = 1024;

/// Whether a login is bound to its TLS channel; libpq's `channel_binding`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Binding {
    /// Never.
    Disable,
    /// Where both sides can.
    #[default]
    Prefer,
    /// Or there is no login.
    Require,
}

/// The first message is on its way.
pub struct Client {
    header: Vec<u8>,
    end_point: Vec<u8>,
    first_bare: Vec<u8>,
    nonce: String,
}

/// The server has said salt and count.
pub struct Challenged {
    header: Vec<u8>,
    end_point: Vec<u8>,
    first_bare: Vec<u8>,
    server_first: Vec<u8>,
    nonce: Vec<u8>,
    /// The salt of the password.
    pub salt: Vec<u8>,
    /// The rounds to do.
    pub iterations: u32,
}

/// The proof is on its way; what the server must sign.
pub struct Answered {
    signature: Key,
}

impl Client {
    /// Chooses the mechanism and writes the first message: `(state, mechanism, message)`. `offers` says whether the
    /// server has offered a mechanism, `random` is new for each exchange.
    pub fn begin(
        offers: impl Fn(&[u8]) -> bool,
        channel: &Channel,
        binding: Binding,
        random: &[u8; NONCE_SIZE],
    ) -> Result<(Client, &'static [u8], Vec<u8>), Refusal> {
        // The startup packet has said the user's name; PostgreSQL ignores this one.
        Client::begin_with(offers, channel, binding, "", &BASE64_STANDARD.encode(random))
    }

    /// The same with the name and the nonce as they will be written.
    pub(super) fn begin_with(
        offers: impl Fn(&[u8]) -> bool,
        channel: &Channel,
        binding: Binding,
        name: &str,
        nonce: &str,
    ) -> Result<(Client, &'static [u8], Vec<u8>), Refusal> {
        let end_point = channel.end_point.as_deref().filter(|_| channel.tls && binding != Binding::Disable);
        let (mechanism, header) = match end_point {
            Some(_) if offers(MECHANISM_PLUS) => (MECHANISM_PLUS, [b"p=", BINDING_TYPE, b",,"].concat()),
            _ if binding == Binding::Require => {
                return Err(Refusal::Binding("channel binding is required, and the server does not offer it"));
            }
            // A server that does offer PLUS learns by the y that somebody hid it.
            Some(_) => (MECHANISM, b"y,,".to_vec()),
            None => (MECHANISM, b"n,,".to_vec()),
        };
        if !offers(mechanism) {
            return Err(Refusal::Unsupported("the server offers no SASL mechanism that qcp knows"));
        }
        let end_point = if mechanism == MECHANISM_PLUS { end_point.unwrap_or_default().to_vec() } else { Vec::new() };
        let first_bare = format!("n={name},r={nonce}").into_bytes();
        let nonce = nonce.to_owned();
        let message = [&header[..], &first_bare].concat();
        Ok((Client { header, end_point, first_bare, nonce }, mechanism, message))
    }

    /// The server's first message.
    pub fn on_server_first(self, message: &[u8], iterations_max: u32) -> Result<Challenged, Refusal> {
        let mut attributes = Attributes::of(message)?;
        let nonce = nonce(attributes.expect(b'r')?)?;
        // The server adds to the client's nonce at least something.
        if !nonce.starts_with(self.nonce.as_bytes()) || nonce.len() == self.nonce.len() {
            return Err(Refusal::Nonce);
        }
        let salt = attributes.expect(b's')?;
        if salt.len() > SALT_SIZE_MAX {
            return Err(Refusal::Malformed("the salt is too long"));
        }
        let salt = BASE64_STANDARD.decode(salt).ok().filter(|salt| !salt.is_empty());
        let salt = salt.ok_or(Refusal::Malformed("the salt is not base64"))?;
        let iterations = decimal(attributes.expect(b'i')?).filter(|count| *count > 0);
        let iterations = iterations.ok_or(Refusal::Malformed("the iteration count is not a number"))?;
        attributes.skip_extensions()?;
        if iterations > iterations_max {
            return Err(Refusal::Iterations { asked: iterations, allowed: iterations_max });
        }
        let Client { header, end_point, first_bare, .. } = self;
        let (server_first, nonce) = (message.to_vec(), nonce.to_vec());
        Ok(Challenged { header, end_point, first_bare, server_first, nonce, salt, iterations })
    }
}

impl Challenged {
    /// The proof.
    pub fn answer(self, keys: &Keys) -> (Answered, Vec<u8>) {
        let bound_to = BASE64_STANDARD.encode([&self.header[..], &self.end_point].concat());
        let final_bare = [b"c=", bound_to.as_bytes(), b",r=", &self.nonce].concat();
        let signed = auth_message(&self.first_bare, &self.server_first, &final_bare);
        let proof = xor(&keys.client_key, &keyed(&hash(&keys.client_key), &signed));
        let signature = keyed(&keys.server_key, &signed);
        let message = [&final_bare[..], b",p=", BASE64_STANDARD.encode(proof).as_bytes()].concat();
        (Answered { signature }, message)
    }
}

impl Answered {
    /// The server's signature: it knows the password as well.
    pub fn on_server_final(self, message: &[u8]) -> Result<(), Refusal> {
        let mut attributes = Attributes::of(message)?;
        let signature = match attributes.any()? {
            Some((b'v', signature)) => BASE64_STANDARD.decode(signature).unwrap_or_default(),
            Some((b'e', text)) => {
                // It goes into logs and errors: printable, and not a screenful.
                let text = text.iter().filter(|byte| (0x20..0x7f).contains(*byte)).take(100);
                return Err(Refusal::Server(text.map(|byte| char::from(*byte)).collect()));
            }
            _ => return Err(Refusal::Malformed("the server's signature is missing")),
        };
        attributes.skip_extensions()?;
        if same(&signature, &self.signature) { Ok(()) } else { Err(Refusal::Impostor) }
    }
}
