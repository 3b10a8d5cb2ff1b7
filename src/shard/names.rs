//! Servers that are named rather than numbered: what a name means is remembered for `dns_ttl`, looked up again by then and
//! whenever nobody answers there, and backends at an address that the name no longer has are replaced, each when it is free.
//!
//! Invariant: one look-up of a name is under way at most, beside those of backends that found nothing remembered.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::ids::BackendId;
use crate::io::{Close, SocketAddress, Transport};

use super::{BackendState, Purpose, Running, Server, Shard};
use crate::control::report::NameRow;

/// What a name meant when it was last looked up.
struct Name {
    /// Never another's.
    number: u32,
    server: Server,
    addresses: Vec<SocketAddr>,
    /// When that was. `None`: it is not believed any more.
    at: Option<Instant>,
    /// A look-up is under way, since then.
    asked: Option<Instant>,
}

/// The names of this shard's servers. What is not used any more is forgotten when it is old.
#[derive(Default)]
pub(super) struct Names {
    known: Vec<Name>,
    looked_at: Option<Instant>,
    last_number: u32,
}

/// Marks a look-up that is for no backend in particular; [`super::Owner`] packs none like it.
const TICKET: u64 = 0xff << 56;
/// How often names are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// An answer that does not come is not waited for longer.
const ASKED_FOR: Duration = Duration::from_secs(30);

impl Names {
    fn find(&mut self, server: &Server) -> Option<&mut Name> {
        self.known.iter_mut().find(|name| name.server == *server)
    }
}

/// Host and port of a server that has a name.
fn named(server: &Server) -> Option<(&str, u16)> {
    match server {
        Server::Tcp(host, port) if host.parse::<std::net::IpAddr>().is_err() => Some((host, *port)),
        Server::Tcp(..) | Server::Unix(_) => None,
    }
}

impl<T: Transport> Shard<T> {
    /// The addresses of a server, where they are remembered.
    pub(super) fn remembered_addresses(&mut self, server: &Server) -> Option<Vec<SocketAddr>> {
        let (now, ttl) = (self.io.now(), self.settings.dns_ttl);
        let name = self.names.find(server)?;
        let is_fresh = name.at.is_some_and(|at| now.duration_since(at) < ttl);
        (is_fresh && !name.addresses.is_empty()).then(|| name.addresses.clone())
    }

    /// What is remembered, for people.
    pub(super) fn names_known(&self) -> Vec<NameRow> {
        let (now, ttl) = (self.io.now(), self.settings.dns_ttl);
        let row = |name: &Name| {
            let (host, port) = named(&name.server)?;
            let age = name.at.map_or(ttl, |at| now.duration_since(at));
            Some(NameRow {
                host: host.to_owned(),
                port,
                ttl_s: ttl.saturating_sub(age).as_secs(),
                addresses: name.addresses.iter().map(ToString::to_string).collect(),
            })
        };
        self.names.known.iter().filter_map(row).collect()
    }

    /// A name has been looked up, for whomever.
    pub(super) fn learn_addresses(&mut self, server: &Server, addresses: &[SocketAddr]) {
        let now = self.io.now();
        if self.settings.dns_ttl.is_zero() || named(server).is_none() || addresses.is_empty() {
            return;
        }
        let Some(name) = self.names.find(server) else {
            let (server, addresses) = (server.clone(), addresses.to_vec());
            self.names.last_number = self.names.last_number.wrapping_add(1);
            let number = self.names.last_number;
            self.names.known.push(Name { number, server, addresses, at: Some(now), asked: None });
            return;
        };
        name.at = Some(now);
        let sorted = |addresses: &[SocketAddr]| {
            let mut sorted = addresses.to_vec();
            sorted.sort_unstable();
            sorted
        };
        // Name servers turn the order around.
        let same = sorted(&name.addresses) == sorted(addresses);
        name.addresses = addresses.to_vec();
        if !same {
            let listed: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            log::info!("server {server} is at {} now", listed.join(", "));
            self.leave_addresses(server, addresses);
        }
    }

    /// Nobody answers where a name leads: it is looked up again before the next attempt.
    pub(super) fn doubt_addresses(&mut self, server: &Server) {
        if let Some(name) = self.names.find(server) {
            name.at = None;
        }
    }

    /// Backends at other addresses than these are replaced.
    fn leave_addresses(&mut self, server: &Server, addresses: &[SocketAddr]) {
        let mut from = 0;
        while let Some((index, generation)) = self.backends.next_used(from) {
            from = index + 1;
            let id = BackendId { index, generation };
            let backend = self.backends.get(index, generation).expect("just found");
            let Some(SocketAddress::Tcp(address)) = backend.address else { continue };
            if self.pools.get(backend.pool).key.server != *server || addresses.contains(&address) {
                continue;
            }
            // A pool that cannot be filled again keeps what it has.
            let replaceable = self.can_replace(backend.pool);
            match (&backend.state, backend.purpose) {
                (BackendState::Idle, Purpose::Watch) => self.close_backend(id, Close::Flushed),
                (BackendState::Idle, Purpose::Pool) if replaceable => self.close_backend(id, Close::Flushed),
                (BackendState::Linked(_) | BackendState::Cleaning(_), Purpose::Pool) if replaceable => {
                    self.backend(id).expect("just found").tainted = true;
                }
                _ => {}
            }
        }
    }

    /// Looks names up again whose time is over, while there are backends at them.
    pub(super) fn look_names_up(&mut self) {
        let (now, ttl) = (self.io.now(), self.settings.dns_ttl);
        if ttl.is_zero() || self.running != Running::Yes || self.names.looked_at.is_some_and(|at| now < at + LOOK_EVERY)
        {
            return;
        }
        self.names.looked_at = Some(now);
        let mut at = 0;
        while let Some(name) = self.names.known.get(at) {
            let server = &name.server;
            let is_used = self.pools.ids().any(|id| {
                let pool = self.pools.get(id);
                pool.backends > 0 && pool.key.server == *server
            });
            let is_old = name.at.is_none_or(|at| now.duration_since(at) >= ttl);
            let is_asked = name.asked.is_some_and(|asked| now.duration_since(asked) < ASKED_FOR);
            if !is_used && is_old && !is_asked {
                self.names.known.swap_remove(at);
                continue;
            }
            if is_used
                && is_old
                && !is_asked
                && let Some((host, port)) = named(server)
            {
                let host = host.to_owned();
                self.names.known[at].asked = Some(now);
                let number = self.names.known[at].number;
                self.io.resolve(&host, port, TICKET | u64::from(number));
            }
            at += 1;
        }
    }

    /// The answer to a look-up of [`Self::look_names_up`]. `false`: it is somebody else's.
    pub(super) fn on_name_resolved(&mut self, ticket: u64, addresses: &Result<Vec<SocketAddr>, String>) -> bool {
        if ticket & TICKET != TICKET {
            return false;
        }
        let mut known = self.names.known.iter_mut();
        let Some(name) = known.find(|name| TICKET | u64::from(name.number) == ticket) else { return true };
        name.asked = None;
        let server = name.server.clone();
        match addresses {
            Ok(addresses) if !addresses.is_empty() => self.learn_addresses(&server, addresses),
            // What is there goes on; who opens a connection asks again.
            Ok(_) | Err(_) => log::debug!("server {server}: its name could not be looked up"),
        }
        true
    }
}
