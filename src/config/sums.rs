//! How large every table of a shard is: computed here, once, term by term, and shown by `show memory`.

use crate::control::report::Term;

use super::Config;

/// The sizes of one shard.
pub struct Sums {
    /// Chunks of the arena.
    pub chunks: usize,
    /// Clients; one shard may have to hold all of them, since the kernel spreads them by hash.
    pub clients_max: usize,
    /// Backends of all pools.
    pub backends_max: usize,
    /// Sockets.
    pub connections_max: usize,
    /// Pieces that wait to be sent.
    pub send_nodes: usize,
    /// Pieces of requests that wait.
    pub request_nodes: usize,
    /// Chunks ready for the kernel, for clients and for backends each.
    pub ready_chunks: usize,
    /// Chunks that clients can never take.
    pub backend_chunks: usize,
    /// Connections that may be encrypted: all, or none where TLS is off.
    pub tls_connections: usize,
    /// This shard's share of the table that clients are counted in, which is one for all shards.
    pub tally_slots: usize,
    /// Bytes of clients' settings.
    pub settings_bytes: usize,
    /// Bytes of prepared statements' texts, within the arena.
    pub statement_bytes: usize,
}

/// Backends of one shard; each takes some kilobytes only while it is there.
const BACKENDS_MAX: usize = 1024;
/// Clients that are being told that there are too many.
const REFUSALS: usize = 64;
/// Cancel connections.
const CANCELS: usize = 64;
/// Pieces that one chunk is cut into, before small ones are copied together.
const PIECES_PER_CHUNK: usize = 8;
/// Fewer chunks than this cannot serve a shard: two for messages of our own, two ready for each side, as many in flight, and
/// two for requests that wait.
pub const CHUNKS_MIN: usize = 12;

impl Sums {
    /// Of each of `cores` shards.
    pub fn new(config: &Config, cores: usize) -> Self {
        let chunks = config.arena.chunks_count / cores;
        let clients_max = config.max_clients as usize;
        let connections_max = clients_max // one for each client
            + BACKENDS_MAX // one for each backend
            + CANCELS
            + REFUSALS;
        let send_nodes = connections_max // the last piece for each peer
            + PIECES_PER_CHUNK * chunks;
        let request_nodes = clients_max // a request that waits in its chunk
            + PIECES_PER_CHUNK * chunks;
        Self {
            chunks,
            clients_max,
            backends_max: BACKENDS_MAX,
            connections_max,
            send_nodes,
            request_nodes,
            ready_chunks: (chunks / 16).clamp(2, 64),
            backend_chunks: (chunks / 4).clamp(2, 64),
            tls_connections: if config.has_tls() { connections_max } else { 0 },
            tally_slots: crate::shard::tally::Tally::slots_for(clients_max).div_ceil(cores),
            settings_bytes: 64 * clients_max + (256 << 10),
            statement_bytes: chunks / 4 * config.arena.chunk_size,
        }
    }

    /// The terms of one shard; the arena is reported beside them.
    pub fn terms(&self) -> Vec<Term> {
        let term = |name: &str, count: usize, each: usize, what: &str| Term {
            name: name.to_owned(),
            count: count as u64,
            each_bytes: each as u64,
            bytes: (count * each) as u64,
            what: what.to_owned(),
        };
        let mut terms = crate::shard::table_sizes()
            .into_iter()
            .map(|(name, each, what)| {
                let count = if name == "backends" { self.backends_max } else { self.clients_max };
                term(name, count, each, what)
            })
            .collect::<Vec<_>>();
        for (name, count, each) in crate::io::ring::Ring::table_sizes(self.connections_max, self.send_nodes) {
            terms.push(term(name, count, each, "sockets and what is to be sent"));
        }
        let node = crate::memory::Nodes::node_size();
        if self.tls_connections > 0 {
            for (name, count, each, what) in crate::io::tls::table_sizes(self.tls_connections) {
                terms.push(term(name, count, each, what));
            }
            terms.push(term("TLS pieces", self.send_nodes, node, "what is to be encrypted, or decrypted"));
        }
        terms.push(term("pieces held back", self.request_nodes, node, "requests that wait for a backend"));
        let word = size_of::<u64>();
        terms.push(term(
            "clients' counts",
            self.tally_slots,
            word,
            "of each database, user and address; a share of it",
        ));
        let learned = crate::session::suspects::Learned::size();
        terms.push(term("texts learned", 1, learned, "what is known of queries' texts (session_state)"));
        let classes = crate::session::scanner::Classes::size();
        terms.push(term("texts classified", 1, classes, "what the scanner has found in them (session_state)"));
        let channels = crate::shard::channels_size_max(self.clients_max);
        terms.push(term("channels", 1, channels, "at most; who listens on what, by a shared connection"));
        terms.push(term("settings", 1, self.settings_bytes, "at most; clients' own settings, each value once"));
        terms
    }
}
