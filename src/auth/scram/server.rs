//! The server's role: a client proves that it knows the password.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::*;
use crate::auth::secrets::Verifier;

/// What was offered to the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offer<'a> {
    /// SCRAM-SHA-256 alone: no TLS, or no certificate whose hash is known.
    Plain,
    /// SCRAM-SHA-256-PLUS and SCRAM-SHA-256; with the channel's `tls-server-end-point`.
    Both(&'a [u8]),
    /// SCRAM-SHA-256-PLUS alone.
    PlusOnly(&'a [u8]),
}

impl<'a> Offer<'a> {
    /// The names, in the order of preference.
    pub fn mechanisms(self) -> &'static [&'static [u8]] {
        match self {
            Offer::Plain => &[MECHANISM],
            Offer::Both(_) => &[MECHANISM_PLUS, MECHANISM],
            Offer::PlusOnly(_) => &[MECHANISM_PLUS],
        }
    }

    fn end_point(self) -> Option<&'a [u8]> {
        match self {
            Offer::Plain => None,
            Offer::Both(end_point) | Offer::PlusOnly(end_point) => Some(end_point),
        }
    }
}

/// Nothing received yet. The beginning of an exchange.
pub struct Server;

/// The client has been given salt and count, and owes its proof.
pub struct Asked {
    first_bare: Vec<u8>,
    server_first: Vec<u8>,
    nonce: Vec<u8>,
    /// What the client must say it was bound to: the gs2 header, and the channel's data where it is bound.
    bound_to: Vec<u8>,
}

impl Server {
    /// The client's first message. `random` is new for each exchange; salt and count are the user's. Returns what is
    /// sent back with what is kept.
    pub fn first(
        mechanism: &[u8],
        message: &[u8],
        offer: Offer<'_>,
        random: &[u8; NONCE_SIZE],
        salted: (&[u8], u32),
    ) -> Result<(Asked, Vec<u8>), Refusal> {
        Server::first_with(mechanism, message, offer, &BASE64_STANDARD.encode(random), salted)
    }

    /// The same with the nonce's own part as it will be written.
    pub(super) fn first_with(
        mechanism: &[u8],
        message: &[u8],
        offer: Offer<'_>,
        own_nonce: &str,
        (salt, iterations): (&[u8], u32),
    ) -> Result<(Asked, Vec<u8>), Refusal> {
        let plus = mechanism == MECHANISM_PLUS;
        if !offer.mechanisms().contains(&mechanism) {
            return Err(Refusal::Malformed("the client selected a SASL mechanism that was not offered"));
        }
        if message.len() > MESSAGE_SIZE_MAX {
            return Err(Refusal::Malformed("it is too long"));
        }
        // gs2-header: how it is bound, then the name to act as, each with its comma.
        let mut parts = message.splitn(3, |byte| *byte == b',');
        let (Some(flag), Some(acts_as), Some(first_bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Refusal::Malformed("the header is not whole"));
        };
        let mut bound_to = message[..message.len() - first_bare.len()].to_vec();
        match flag {
            b"n" | b"y" if plus => {
                return Err(Refusal::Malformed(
                    "the client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data",
                ));
            }
            b"n" => {}
            // "If the flag is set to y and the server supports channel binding, the server MUST fail authentication"
            // (RFC 5802, section 6): somebody in between took PLUS off the list.
            b"y" if offer.end_point().is_some() => {
                return Err(Refusal::Binding(
                    "SCRAM channel binding negotiation error: the client supports SCRAM channel binding but thinks the \
                     server does not; however, this server does support channel binding",
                ));
            }
            b"y" => {}
            [b'p', b'=', kind @ ..] => {
                let Some(end_point) = offer.end_point().filter(|_| plus) else {
                    return Err(Refusal::Malformed(
                        "the client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes \
                         channel binding data",
                    ));
                };
                if kind != BINDING_TYPE {
                    return Err(Refusal::Unsupported("unsupported SCRAM channel-binding type"));
                }
                bound_to.extend_from_slice(end_point);
            }
            _ => return Err(Refusal::Malformed("unexpected channel-binding flag")),
        }
        if !acts_as.is_empty() {
            return Err(Refusal::Unsupported("client uses authorization identity, but it is not supported"));
        }
        let mut attributes = Attributes::of(first_bare)?;
        attributes.expect(b'n')?;
        let nonce = nonce(attributes.expect(b'r')?)?;
        attributes.skip_extensions()?;

        let nonce = [nonce, own_nonce.as_bytes()].concat();
        let salt = BASE64_STANDARD.encode(salt);
        let count = iterations.to_string();
        let server_first = [b"r=", &nonce[..], b",s=", salt.as_bytes(), b",i=", count.as_bytes()].concat();
        let asked = Asked { first_bare: first_bare.to_vec(), server_first: server_first.clone(), nonce, bound_to };
        Ok((asked, server_first))
    }
}

impl Asked {
    /// The client's proof. Returns what is sent back, and the client's key, by which QCP can log in as this user at a
    /// server that has the same verifier.
    ///
    /// The state is used up: the same proof does not fit another exchange, whose nonce is another.
    pub fn proof(self, message: &[u8], verifier: &Verifier) -> Result<(Vec<u8>, Keys), Refusal> {
        let mut attributes = Attributes::of(message)?;
        let bound_to = BASE64_STANDARD.decode(attributes.expect(b'c')?);
        let bound_to = bound_to.map_err(|_| Refusal::Malformed("the channel binding is not base64"))?;
        let nonce = attributes.expect(b'r')?;
        // "The proof is the last attribute" (RFC 5802, section 7); extensions may stand before it.
        let proof = loop {
            match attributes.any()? {
                Some((b'p', proof)) => break proof,
                Some(_) => {}
                None => return Err(Refusal::Malformed("the proof is missing")),
            }
        };
        if attributes.0.is_some() {
            return Err(Refusal::Malformed("there is something behind the proof"));
        }
        let proof: Key = BASE64_STANDARD
            .decode(proof)
            .ok()
            .and_then(|proof| proof.try_into().ok())
            .ok_or(Refusal::Malformed("the proof is not 32 bytes of base64"))?;
        if !same(nonce, &self.nonce) {
            return Err(Refusal::Nonce);
        }
        if !same(&bound_to, &self.bound_to) {
            return Err(Refusal::Binding("SCRAM channel binding check failed"));
        }

        let proof_size = ",p=".len() + BASE64_STANDARD.encode(proof).len();
        let final_bare = &message[..message.len() - proof_size];
        let signed = auth_message(&self.first_bare, &self.server_first, final_bare);
        let client_key = xor(&proof, &keyed(&verifier.stored_key, &signed));
        if !same(&hash(&client_key), &verifier.stored_key) {
            return Err(Refusal::Proof);
        }
        let signature = BASE64_STANDARD.encode(keyed(&verifier.server_key, &signed));
        Ok(([b"v=", signature.as_bytes()].concat(), Keys { client_key, server_key: verifier.server_key }))
    }
}
