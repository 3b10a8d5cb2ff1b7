//! QCP's own login to a server: what it answers to each method, with a password or with keys.

use std::fmt;

use super::channel::Channel;
use super::incoming::Derived;
use super::md5;
use super::scram::{self, Answered, Binding, Challenged, NONCE_SIZE, Refusal};
use super::secrets::{Derivation, Secret};
use crate::protocol::reader::Authentication;
use crate::protocol::writer::{Full, Writer};

/// Why QCP does not go on with a login.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failed {
    /// The server asks for something that QCP lacks.
    NoSecret(&'static str),
    /// A method that QCP does not have.
    Method(&'static str),
    /// The exchange went wrong.
    Exchange(Refusal),
    /// A message out of its order.
    OutOfPlace,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::NoSecret(what) => f.write_str(what),
            Failed::Method(what) => write!(f, "the server asks for {what}, which qcp does not have"),
            Failed::Exchange(refusal) => refusal.fmt(f),
            Failed::OutOfPlace => f.write_str("the server sent a message that has no place in a login"),
        }
    }
}

/// What comes of a message of the server's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// An answer is written, or none is due.
    Going,
    /// Call [`Outgoing::work`] until something else comes.
    Work,
    /// The server has let QCP in. With the keys that it took to derive, for the next login.
    In(Option<Derived>),
    /// There is no way.
    Failed(Failed),
}

/// What QCP can log in with.
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    /// The user's name at the server.
    pub user: &'a str,
    /// A password, its md5 hash, or nothing.
    pub secret: Option<&'a Secret>,
    /// Keys of an earlier login, or of a client's.
    pub derived: Option<&'a Derived>,
}

/// A login that is under way.
pub struct Outgoing {
    stage: Stage,
    binding: Binding,
    iterations_max: u32,
    derived: Option<Derived>,
}

enum Stage {
    /// Nothing asked yet.
    Begun,
    /// A password is on its way.
    Sent,
    Scram(scram::Client),
    Deriving(Box<(Challenged, Derivation)>),
    Answered(Answered),
    /// The server has signed.
    Signed,
}

impl Outgoing {
    /// Nothing has been said yet.
    pub fn new(binding: Binding, iterations_max: u32) -> Outgoing {
        Outgoing { stage: Stage::Begun, binding, iterations_max, derived: None }
    }

    /// Whether the server has asked for anything.
    pub fn was_asked(&self) -> bool {
        !matches!(self.stage, Stage::Begun)
    }

    /// The server asks, goes on, or lets QCP in.
    pub fn on_message(
        &mut self,
        what: &Authentication<'_>,
        credentials: Credentials<'_>,
        channel: &Channel,
        random: &[u8; NONCE_SIZE],
        answer: &mut Writer<'_>,
    ) -> Result<Step, Full> {
        let Credentials { user, secret, derived } = credentials;
        let stage = std::mem::replace(&mut self.stage, Stage::Sent);
        // A server that does not know the password could stop half-way and let QCP in as if it did.
        let binds = self.binding == Binding::Require;
        Ok(match (what, stage) {
            (Authentication::Ok, Stage::Begun | Stage::Sent) if binds => {
                let what = "channel binding is required, and the server did not ask for it";
                Step::Failed(Failed::Exchange(Refusal::Binding(what)))
            }
            (Authentication::Ok, Stage::Begun | Stage::Sent | Stage::Signed) => Step::In(self.derived.take()),
            (Authentication::CleartextPassword, Stage::Begun) => match secret.and_then(Secret::password) {
                _ if binds => Step::Failed(Failed::Method("a password without channel binding")),
                Some(password) => {
                    answer.password(password)?;
                    Step::Going
                }
                None => Step::Failed(Failed::NoSecret("the server asks for the password in plain text")),
            },
            (Authentication::Md5Password { .. }, Stage::Begun) if binds => {
                Step::Failed(Failed::Method("a password without channel binding"))
            }
            (Authentication::Md5Password { salt }, Stage::Begun) => {
                match secret.and_then(|secret| md5::answer(secret, user, *salt)) {
                    Some(text) => {
                        answer.password(&text[..])?;
                        Step::Going
                    }
                    None => Step::Failed(Failed::NoSecret("the server asks for the password by md5")),
                }
            }
            (Authentication::Sasl { mechanisms }, Stage::Begun) => {
                let offers = |name: &[u8]| mechanisms.offers(name);
                match scram::Client::begin(offers, channel, self.binding, random) {
                    Ok((client, mechanism, message)) => {
                        answer.sasl_initial_response(mechanism, Some(&message))?;
                        self.stage = Stage::Scram(client);
                        Step::Going
                    }
                    Err(refusal) => Step::Failed(Failed::Exchange(refusal)),
                }
            }
            (Authentication::SaslContinue { data }, Stage::Scram(client)) => {
                match client.on_server_first(data, self.iterations_max) {
                    Ok(challenged) => self.on_challenged(challenged, secret, derived, answer)?,
                    Err(refusal) => Step::Failed(Failed::Exchange(refusal)),
                }
            }
            (Authentication::SaslFinal { data }, Stage::Answered(answered)) => match answered.on_server_final(data) {
                Ok(()) => {
                    self.stage = Stage::Signed;
                    Step::Going
                }
                Err(refusal) => Step::Failed(Failed::Exchange(refusal)),
            },
            (Authentication::Gss | Authentication::GssContinue { .. }, _) => Step::Failed(Failed::Method("GSSAPI")),
            (Authentication::Sspi, _) => Step::Failed(Failed::Method("SSPI")),
            (Authentication::Other { .. }, _) => Step::Failed(Failed::Method("a method unknown")),
            (
                Authentication::Ok
                | Authentication::CleartextPassword
                | Authentication::Md5Password { .. }
                | Authentication::Sasl { .. }
                | Authentication::SaslContinue { .. }
                | Authentication::SaslFinal { .. },
                _,
            ) => Step::Failed(Failed::OutOfPlace),
        })
    }

    fn on_challenged(
        &mut self,
        challenged: Challenged,
        secret: Option<&Secret>,
        derived: Option<&Derived>,
        answer: &mut Writer<'_>,
    ) -> Result<Step, Full> {
        let fits = |derived: &&Derived| derived.salt == challenged.salt && derived.iterations == challenged.iterations;
        if let Some(derived) = derived.filter(fits) {
            let (answered, message) = challenged.answer(&derived.keys);
            answer.sasl_response(&message)?;
            self.stage = Stage::Answered(answered);
            return Ok(Step::Going);
        }
        match secret.and_then(Secret::password) {
            Some(password) => {
                let derivation = Derivation::new(password, &challenged.salt, challenged.iterations);
                self.stage = Stage::Deriving(Box::new((challenged, derivation)));
                Ok(Step::Work)
            }
            None if derived.is_some() => Ok(Step::Failed(Failed::NoSecret(
                "the server's SCRAM secret of this user has another salt or count than qcp's: the keys of the client's \
                 login do not fit",
            ))),
            None => Ok(Step::Failed(Failed::NoSecret("the server asks for the password by SCRAM"))),
        }
    }

    /// Does so many rounds of what takes long.
    pub fn work(&mut self, rounds_max: u32, answer: &mut Writer<'_>) -> Result<Step, Full> {
        match std::mem::replace(&mut self.stage, Stage::Sent) {
            Stage::Deriving(mut boxed) => {
                let Some(salted) = boxed.1.step(rounds_max) else {
                    self.stage = Stage::Deriving(boxed);
                    return Ok(Step::Work);
                };
                let (challenged, _) = *boxed;
                let (salt, iterations) = (challenged.salt.clone(), challenged.iterations);
                let keys = salted.keys();
                let (answered, message) = challenged.answer(&keys);
                answer.sasl_response(&message)?;
                self.derived = Some(Derived { salt, iterations, keys });
                self.stage = Stage::Answered(answered);
                Ok(Step::Going)
            }
            other => {
                self.stage = other;
                Ok(Step::Going)
            }
        }
    }
}

/// Whether a server's count of rounds is below what RFC 7677 asks for, which is worth a warning.
pub fn is_weak(derived: &Derived) -> bool {
    derived.iterations < super::secrets::ITERATIONS
}
