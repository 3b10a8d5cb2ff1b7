//! What authentication is told by the configuration.

use std::net::IpAddr;
use std::sync::Arc;

use super::hba::{Hba, IdentMaps, Network};
use super::incoming::Kinds;
use super::limiter;
use super::query::Query;
use super::secrets::{Secret, Users};

/// Who decides whether a client may come in.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Method {
    /// The server, in an exchange that QCP relays.
    #[default]
    Server,
    /// Nobody: each client is who it says it is.
    Trust,
    /// None may.
    Reject,
    /// QCP, by a password in plain text.
    Password,
    /// QCP, by md5, or by SCRAM where that is what it knows of the user.
    Md5,
    /// QCP, by SCRAM-SHA-256, with channel binding where both can.
    Scram,
    /// QCP, by SCRAM-SHA-256-PLUS.
    ScramPlus,
    /// The kernel, which says who runs the client; Unix sockets only.
    Peer,
    /// The CA that signed the client's certificate; TLS only.
    Cert,
    /// The rules of `hba_file`.
    Hba,
}

/// What applies to the logins of one database and user, on both sides of QCP.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Rules {
    /// Who checks the client.
    pub method: Method,
    /// How QCP logs in to the server. `None`: as the client's user, where the server asks for nothing or the keys of a
    /// client's login fit.
    pub credentials: Option<Arc<Credentials>>,
}

impl Eq for Rules {}

/// How QCP logs in to a server.
#[derive(Debug)]
pub struct Credentials {
    /// `None`: as the client's user.
    pub user: Option<String>,
    /// `None`: the server asks for nothing.
    pub secret: Option<Arc<Secret>>,
}

impl PartialEq for Credentials {
    fn eq(&self, other: &Credentials) -> bool {
        let same = match (&self.secret, &other.secret) {
            (Some(one), Some(other)) => one.is_same(other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        same && self.user == other.user
    }
}

/// What is the same for all databases and users.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// Whose secrets are known.
    pub users: Users,
    /// Which kinds of secrets these are.
    pub kinds: Kinds,
    /// Asks a server for the secrets of users that are not listed.
    pub query: Option<Query>,
    /// The rules of access, for [`Method::Hba`].
    pub hba: Option<Hba>,
    /// Addresses of this machine at the start, each with its network, for the rules' samehost and samenet.
    pub own_addresses: Vec<(IpAddr, Network)>,
    /// Names of the system and of certificates.
    pub ident: IdentMaps,
    /// Most rounds that a server can make QCP do.
    pub scram_iterations_max: u32,
    /// Failed logins by address.
    pub limiter: limiter::Settings,
    /// Who may do everything at the console; see [`super::console`].
    pub admin_users: Vec<String>,
    /// Who may look at everything there.
    pub stats_users: Vec<String>,
    /// Whose connections begin with a PROXY header, which says whom they speak for.
    pub proxies: Vec<Network>,
    /// Clients of one address over all shards (of IPv6: of one /64); 0: no limit.
    pub clients_of_address_max: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            users: Users::default(),
            kinds: Kinds::default(),
            query: None,
            hba: None,
            own_addresses: Vec::new(),
            ident: IdentMaps::default(),
            scram_iterations_max: SCRAM_ITERATIONS_MAX,
            limiter: LIMITER,
            admin_users: Vec::new(),
            stats_users: Vec::new(),
            proxies: Vec::new(),
            clients_of_address_max: 0,
        }
    }
}

/// Default of `auth.scram_iterations_max`.
pub const SCRAM_ITERATIONS_MAX: u32 = 1_000_000;
/// Defaults of the limiter.
pub const LIMITER: limiter::Settings = limiter::Settings {
    failures_max: 60,
    window: std::time::Duration::from_secs(60),
    // 4096 addresses are some hundred kilobytes.
    addresses_max: 4096,
};
