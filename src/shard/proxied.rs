//! Whom a client speaks for: itself, or, where it comes from a network of `proxy_protocol_from`, whomever its PROXY header
//! names. Rules of access, limits and logs go by that; nobody else is believed such a header.

use std::net::{IpAddr, SocketAddr};

use crate::auth::proxy;
use crate::ids::{ClientId, ConnectionId};
use crate::io::Transport;
use crate::memory::Slice;
use crate::session::fault::Fault;

use super::{Owner, Shard};

/// Where a client comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// Its connection says it.
    Own,
    /// Its header says it, and has yet to come.
    HeaderDue,
    /// Its header has said it.
    Header(Box<SocketAddr>),
}

impl<T: Transport> Shard<T> {
    /// Whether a connection that has just been made must begin with a header.
    pub(super) fn comes_from_proxy(&self, connection: ConnectionId) -> bool {
        let proxies = &self.settings.auth.proxies;
        if proxies.is_empty() {
            return false;
        }
        self.io.address(connection).is_some_and(|address| proxies.iter().any(|network| network.contains(address)))
    }

    /// The first bytes of a connection that must begin with a header; what is behind that goes on as ever.
    pub(super) fn on_proxy_bytes(&mut self, id: ClientId, bytes: Slice) {
        let Some(bytes) = self.whole_so_far(id, bytes) else {
            self.fail(id, &Fault::NoMemory);
            return;
        };
        match proxy::header(&bytes) {
            Ok(None) => {
                let arena = self.io.arena().clone();
                let kept = self.client(id).is_some_and(|client| client.stash.add_spare(&arena, &bytes).is_ok());
                if !kept {
                    self.fail(id, &Fault::NoMemory);
                }
            }
            Ok(Some(header)) => {
                let Some(client) = self.client(id) else { return };
                // A balancer that asks for itself, for its health checks, is its own client.
                client.origin = header.source.map_or(Origin::Own, |source| Origin::Header(Box::new(source)));
                if self.count_address(id) && bytes.len() > header.size {
                    self.on_startup_bytes(id, bytes.part(header.size, bytes.len()));
                }
            }
            Err(wrong) => self.fail(id, &Fault::NotProxy(wrong.0)),
        }
    }

    fn header_of(&self, connection: ConnectionId) -> Option<SocketAddr> {
        let Some(Owner::Client(id)) = self.owner(connection) else { return None };
        match &self.clients.get(id.index, id.generation)?.origin {
            Origin::Own | Origin::HeaderDue => None,
            Origin::Header(source) => Some(**source),
        }
    }

    /// Who is at the other end, for people.
    pub(super) fn peer(&self, connection: ConnectionId) -> String {
        let source = self.header_of(connection);
        source.map_or_else(|| self.io.peer(connection), |source| source.to_string())
    }

    /// The address of who is at the other end. `None`: a Unix socket, or it is gone.
    pub(super) fn address(&self, connection: ConnectionId) -> Option<IpAddr> {
        let source = self.header_of(connection);
        source.map(|source| source.ip().to_canonical()).or_else(|| self.io.address(connection))
    }

    /// Whether who is at the other end is on this machine: the loopback address of a balancer elsewhere is not ours.
    pub(super) fn is_local(&self, connection: ConnectionId) -> bool {
        let is_loopback = |source: SocketAddr| source.ip().to_canonical().is_loopback();
        self.io.is_local(connection) && self.header_of(connection).is_none_or(is_loopback)
    }
}
