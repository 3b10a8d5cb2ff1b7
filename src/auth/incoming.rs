//! A client's login that QCP checks itself: what it is asked, and what its answers are worth.
//!
//! The caller writes what comes out and hands in what the client sends. Where a password has to go through thousands of
//! rounds, that is done in steps ([`Incoming::work`]), between which the caller serves others.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::channel::Channel;
use super::md5;
use super::scram::{self, Asked, NONCE_SIZE, Offer, Refusal};
use super::secrets::{Derivation, ITERATIONS, Keys, Salts, Secret, Users, Verifier};
use crate::protocol::reader;
use crate::protocol::writer::{Full, Writer};

/// Longest password that is taken, as PostgreSQL's own bound on the message.
const PASSWORD_SIZE_MAX: usize = 8192;

/// How a client proves itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// It sends its password.
    Password,
    /// By md5; by SCRAM where what is known of the user is a verifier, as PostgreSQL does.
    Md5,
    /// By SCRAM, with channel binding where both can.
    Scram,
    /// By SCRAM with channel binding.
    ScramPlus,
}

/// Why a client is not let in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Denied {
    /// A wrong password, no such user, or nothing to check it by: the client hears the same of all of these. What it
    /// was goes to the log.
    Password(&'static str),
    /// The exchange itself went wrong.
    Exchange(Refusal),
    /// The message is not one of the exchange's.
    Malformed,
    /// `scram-sha-256-plus` without TLS.
    NoChannel,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denied::Password(why) => f.write_str(why),
            Denied::Exchange(refusal) => refusal.fmt(f),
            Denied::Malformed => f.write_str("the message has no place in this exchange"),
            Denied::NoChannel => f.write_str("channel binding is required, and the connection is not TLS"),
        }
    }
}

/// What comes of a message.
#[derive(Debug)]
pub enum Step {
    /// The client has been asked for more.
    Asked,
    /// Call [`Incoming::work`] until something else comes.
    Work,
    /// It is who it says it is.
    Accepted(Proven),
    /// It is not.
    Denied(Denied),
}

/// What is known after a login that went well.
#[derive(Debug, Default)]
pub struct Proven {
    /// The keys of a login by SCRAM, with the salt and count that they belong to: QCP can log in with them as this
    /// user at a server that has the same verifier.
    pub keys: Option<Derived>,
}

/// Keys, and what they were derived with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Derived {
    /// The salt.
    pub salt: Vec<u8>,
    /// The rounds.
    pub iterations: u32,
    /// The keys.
    pub keys: Keys,
}

/// Everything that a login begins with.
pub struct Login<'a> {
    /// How it is checked.
    pub method: Method,
    /// Who the client says it is.
    pub user: &'a str,
    /// What is known of that user.
    pub secret: Option<Arc<Secret>>,
    /// Everybody whose secrets are known: an unknown user is treated as they are.
    pub users: Kinds,
    /// From an earlier login of this user, where the secret is plain text.
    pub verifier: Option<Verifier>,
    /// Over which it comes.
    pub channel: &'a Channel,
    /// Salts for those that have none.
    pub salts: &'a Salts,
    /// New for each login.
    pub random: &'a [u8; NONCE_SIZE],
}

/// Which kinds of secrets there are among the users, so that one that does not exist looks like them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Kinds {
    /// Some are plain text.
    pub plain: bool,
    /// Some are verifiers.
    pub scram: bool,
}

impl Kinds {
    /// Of a list.
    pub fn of(users: &Users) -> Kinds {
        let any = |is: fn(&Secret) -> bool| users.iter().any(|(_, secret)| is(secret));
        Kinds { plain: any(|one| matches!(one, Secret::Plain(_))), scram: any(|one| matches!(one, Secret::Scram(_))) }
    }
}

/// A login under check.
pub struct Incoming {
    user: String,
    secret: Option<Arc<Secret>>,
    stage: Stage,
    made: Option<Verifier>,
}

enum Stage {
    Password {
        /// For a user that nobody knows, where the others have verifiers.
        unknown: Option<Verifier>,
    },
    Md5 {
        salt: [u8; 4],
    },
    /// The mechanisms have been offered.
    Offered(Box<Offered>),
    /// The proof is due.
    Asked {
        asked: Asked,
        known: Known,
    },
    /// A password in plain text goes through its rounds, to be compared with the verifier.
    Comparing {
        derivation: Derivation,
        verifier: Verifier,
    },
    /// The stored password goes through its rounds, to be compared with the proof.
    Deriving {
        derivation: Derivation,
        asked: Asked,
        message: Zeroizing<Vec<u8>>,
        salt: Vec<u8>,
    },
    /// All has been said.
    Over,
}

struct Offered {
    plus_only: bool,
    end_point: Option<Vec<u8>>,
    random: [u8; NONCE_SIZE],
    known: Known,
}

/// What a proof is compared with.
enum Known {
    Verifier(Verifier),
    /// To be derived, from the user's password or, for one that nobody knows, from anything.
    Plain {
        salt: [u8; 16],
        verifier: Option<Verifier>,
    },
}

impl Incoming {
    /// Begins: the first question is written. `Err`: there is no room for it.
    pub fn begin(login: Login<'_>, replies: &mut Writer<'_>) -> Result<(Incoming, Step), Full> {
        let Login { method, user, secret, users, verifier, channel, salts, random } = login;
        // PostgreSQL does not take an empty password either.
        let secret = secret.filter(|secret| secret.password().is_none_or(|password| !password.is_empty()));
        let scram_instead = match secret.as_deref() {
            Some(secret) => matches!(secret, Secret::Scram(_)),
            None => users.scram,
        };
        let mut incoming = Incoming { user: user.to_owned(), secret, stage: Stage::Over, made: None };
        match method {
            Method::Password => {
                replies.authentication_cleartext_password()?;
                incoming.stage = Stage::Password { unknown: users.scram.then(|| salts.mock(user)) };
            }
            Method::Md5 if !scram_instead => {
                let salt = *random.first_chunk().expect("it is longer");
                replies.authentication_md5_password(salt)?;
                incoming.stage = Stage::Md5 { salt };
            }
            Method::Md5 | Method::Scram | Method::ScramPlus => {
                let plus_only = method == Method::ScramPlus;
                let end_point = channel.end_point.clone().filter(|_| channel.tls);
                let known = match incoming.secret.as_deref() {
                    Some(Secret::Scram(verifier)) => Known::Verifier(verifier.clone()),
                    Some(Secret::Plain(_)) => Known::Plain { salt: salts.of(user), verifier },
                    // No proof fits a mock: md5 hashes are of no use here.
                    Some(Secret::Md5(_)) => Known::Verifier(salts.mock(user)),
                    None if users.plain => Known::Plain { salt: salts.of(user), verifier },
                    None => Known::Verifier(salts.mock(user)),
                };
                let offered = Offered { plus_only, end_point, random: *random, known };
                let Some(offer) = offered.offer() else {
                    return Ok((incoming, Step::Denied(Denied::NoChannel)));
                };
                replies.authentication_sasl(offer.mechanisms())?;
                incoming.stage = Stage::Offered(Box::new(offered));
            }
        }
        Ok((incoming, Step::Asked))
    }

    /// Takes a whole message of the client's, of the type that all answers have (`p`).
    pub fn on_answer(&mut self, message: &[u8], replies: &mut Writer<'_>) -> Result<Step, Full> {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Password { unknown } => {
                let Ok(password) = reader::password(message) else { return Ok(Step::Denied(Denied::Malformed)) };
                if password.is_empty() || password.len() > PASSWORD_SIZE_MAX {
                    return Ok(Step::Denied(Denied::Password("the password is empty or too long")));
                }
                let verifier = match self.secret.as_deref() {
                    Some(Secret::Scram(verifier)) => verifier.clone(),
                    Some(secret) => {
                        let right = md5::is_password(password, secret, &self.user) == Some(true);
                        return Ok(self.verdict(right));
                    }
                    None => match unknown {
                        Some(verifier) => verifier,
                        None => return Ok(self.verdict(false)),
                    },
                };
                let derivation = Derivation::new(password, &verifier.salt, verifier.iterations);
                self.stage = Stage::Comparing { derivation, verifier };
                Ok(Step::Work)
            }
            Stage::Md5 { salt } => {
                let Ok(answer) = reader::password(message) else { return Ok(Step::Denied(Denied::Malformed)) };
                let right = md5::is_right(answer, self.secret.as_deref(), &self.user, salt);
                Ok(self.verdict(right))
            }
            Stage::Offered(offered) => {
                let Ok(initial) = reader::sasl_initial_response(message) else {
                    return Ok(Step::Denied(Denied::Malformed));
                };
                let data = initial.data.unwrap_or_default();
                let offer = offered.offer().expect("it has been made");
                let first =
                    scram::Server::first(initial.mechanism, data, offer, &offered.random, offered.known.salted());
                match first {
                    Ok((asked, answer)) => {
                        replies.authentication_sasl_continue(&answer)?;
                        self.stage = Stage::Asked { asked, known: offered.known };
                        Ok(Step::Asked)
                    }
                    Err(refusal) => Ok(Step::Denied(Denied::Exchange(refusal))),
                }
            }
            Stage::Asked { asked, known } => {
                let proof = reader::sasl_response(message);
                match known {
                    Known::Verifier(verifier) | Known::Plain { verifier: Some(verifier), .. } => {
                        self.on_proof(asked, proof, &verifier, replies)
                    }
                    Known::Plain { salt, verifier: None } => {
                        let nobody = b"anything takes as long";
                        let password = self.secret.as_deref().and_then(Secret::password).unwrap_or(nobody);
                        let derivation = Derivation::new(password, &salt, ITERATIONS);
                        let message = Zeroizing::new(proof.to_vec());
                        self.stage = Stage::Deriving { derivation, asked, message, salt: salt.to_vec() };
                        Ok(Step::Work)
                    }
                }
            }
            // The caller lets nothing in while there is work to do.
            Stage::Comparing { .. } | Stage::Deriving { .. } | Stage::Over => Ok(Step::Denied(Denied::Malformed)),
        }
    }

    /// Does so many rounds of what takes long.
    pub fn work(&mut self, rounds_max: u32, replies: &mut Writer<'_>) -> Result<Step, Full> {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Comparing { mut derivation, verifier } => match derivation.step(rounds_max) {
                Some(salted) => {
                    let made = Verifier::of(&salted, &verifier.salt, verifier.iterations);
                    let (salt, iterations) = (verifier.salt.clone(), verifier.iterations);
                    let keys = Some(Derived { salt, iterations, keys: salted.keys() });
                    Ok(match self.verdict(made == verifier) {
                        Step::Accepted(_) => Step::Accepted(Proven { keys }),
                        other => other,
                    })
                }
                None => {
                    self.stage = Stage::Comparing { derivation, verifier };
                    Ok(Step::Work)
                }
            },
            Stage::Deriving { mut derivation, asked, message, salt } => match derivation.step(rounds_max) {
                Some(salted) => {
                    let verifier = Verifier::of(&salted, &salt, ITERATIONS);
                    self.made = Some(verifier.clone());
                    self.on_proof(asked, &message, &verifier, replies)
                }
                None => {
                    self.stage = Stage::Deriving { derivation, asked, message, salt };
                    Ok(Step::Work)
                }
            },
            stage @ (Stage::Password { .. } | Stage::Md5 { .. } | Stage::Offered(_) | Stage::Asked { .. }) => {
                self.stage = stage;
                Ok(Step::Asked)
            }
            Stage::Over => Ok(Step::Denied(Denied::Malformed)),
        }
    }

    /// The verifier that it took many rounds to make, whatever came of the login: for the next of this user, be there
    /// one of that name or not.
    pub fn take_made(&mut self) -> Option<Verifier> {
        self.made.take()
    }

    fn on_proof(
        &mut self,
        asked: Asked,
        message: &[u8],
        verifier: &Verifier,
        replies: &mut Writer<'_>,
    ) -> Result<Step, Full> {
        match asked.proof(message, verifier) {
            Ok((answer, keys)) => {
                // A mock has no password; that nobody finds one is not left to luck.
                if !matches!(self.secret.as_deref(), Some(Secret::Plain(_) | Secret::Scram(_))) {
                    return Ok(self.verdict(false));
                }
                replies.authentication_sasl_final(&answer)?;
                let derived = Derived { salt: verifier.salt.clone(), iterations: verifier.iterations, keys };
                Ok(Step::Accepted(Proven { keys: Some(derived) }))
            }
            Err(Refusal::Proof) => Ok(self.verdict(false)),
            Err(refusal) => Ok(Step::Denied(Denied::Exchange(refusal))),
        }
    }

    fn verdict(&self, right: bool) -> Step {
        match self.secret.as_deref() {
            Some(Secret::Plain(_) | Secret::Md5(_) | Secret::Scram(_)) if right => Step::Accepted(Proven::default()),
            Some(Secret::Md5(_)) => {
                Step::Denied(Denied::Password("wrong password, or an md5 secret where SCRAM is asked"))
            }
            Some(Secret::Plain(_) | Secret::Scram(_)) => Step::Denied(Denied::Password("wrong password")),
            None => Step::Denied(Denied::Password("qcp knows no password of this user")),
        }
    }
}

impl Offered {
    /// `None`: there must be a channel to bind to, and there is none.
    fn offer(&self) -> Option<Offer<'_>> {
        match &self.end_point {
            Some(end_point) if self.plus_only => Some(Offer::PlusOnly(end_point)),
            Some(end_point) => Some(Offer::Both(end_point)),
            None if self.plus_only => None,
            None => Some(Offer::Plain),
        }
    }
}

impl Known {
    fn salted(&self) -> (&[u8], u32) {
        match self {
            Known::Verifier(verifier) => (&verifier.salt, verifier.iterations),
            Known::Plain { salt, .. } => (salt, ITERATIONS),
        }
    }
}
