//! Starts the shards, each a glommio executor on a core of its own, and pumps their rings.
//!
//! While there is traffic the pump waits in the shard's ring; when it has been quiet for a while it parks in glommio,
//! which wakes it by an eventfd that the ring signals.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender};
use std::time::{Duration, Instant};

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};

use crate::auth::secrets::Salts;
use crate::auth::settings::Method;
use crate::config::sums::Sums;
use crate::config::{Config, ServerAddress};
use crate::ids::{ConnectionId, ShardId};
use crate::io::doorbell::Doorbell;
use crate::io::park::Park;
use crate::io::ring::{self, Ring};
use crate::io::tls::Tls;
use crate::io::{Event, Transport};
use crate::memory::Arena;
use crate::shard::doors::Stray;
use crate::shard::mailbox::Listener;
use crate::shard::{
    self, Catalogue, ClientsMax, Mailbox, PoolSettings, Population, Server, Shard, TlsSettings, Upkeep,
};

/// While there is traffic: how long the pump may stay in its ring before glommio and the deadlines get a turn.
const BUSY_TICK: Duration = Duration::from_millis(5);
/// While it is quiet.
const QUIET_TICK: Duration = Duration::from_millis(100);
/// Without traffic for so long, a shard parks.
const QUIET_AFTER: Duration = Duration::from_millis(20);

/// What a shard's thread gets.
pub(super) struct Start {
    pub id: ShardId,
    pub cores: usize,
    pub config: Arc<Config>,
    pub tls: Arc<TlsSettings>,
    pub listeners: Vec<Listener>,
    pub doorbell: Doorbell,
    pub mailbox: Mailbox,
    /// Of this process, for the users that nobody knows.
    pub salts: Salts,
    pub population: Arc<Population>,
    /// Where clients of the console are answered.
    pub console: shard::console::Desk,
    /// Where cancel requests go that are for clients of a process that this one has taken over from.
    pub strays: Option<SyncSender<Stray>>,
    /// Told once, when the shard has ended, however that came about.
    pub ended: Sender<io::Result<()>>,
}

/// Tells the end of a shard, also when its thread unwinds.
struct Obituary {
    ended: Sender<io::Result<()>>,
    outcome: Option<io::Result<()>>,
}

impl Drop for Obituary {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or_else(|| Err(io::Error::other("its thread panicked")));
        // Nobody listens any more only when the process ends anyway.
        let _ = self.ended.send(outcome);
    }
}

/// The configuration, as the shard asks for it.
pub(super) struct Settings(pub Arc<Config>);

/// How many logins one shard checks at once beyond its pools' places.
pub(super) fn check_connections(config: &Config, cores: usize) -> u32 {
    (config.auth.check_connections / cores as u32).max(1)
}

impl Catalogue for Settings {
    fn console(&self, user: &str) -> Option<Method> {
        self.0.console_method(user)
    }

    fn pool(&self, database: &str, user: &str) -> Option<PoolSettings> {
        let found = self.0.pool(database, user)?;
        let server = |address: &ServerAddress| match address {
            ServerAddress::Tcp { host, port } => Server::Tcp(host.clone(), *port),
            ServerAddress::Unix { path } => Server::Unix(path.clone()),
        };
        Some(PoolSettings {
            servers: found.servers.iter().map(server).collect(),
            weights: found.weights,
            route: found.route,
            server_database: found.server_database,
            mode: found.relay_mode,
            preserve: found.preserve,
            dedicated: found.dedicated,
            tls: found.tls,
            pool: found.pool,
            timeouts: found.timeouts,
            upkeep: Upkeep {
                reset_query: Some(found.upkeep.reset_query.as_str().into()),
                statements_max: Some(found.upkeep.max_statements as usize),
                slow_query: found.upkeep.slow_query,
                queue_notice: found.upkeep.queue_notice,
            },
            rules: found.rules,
            clients_max: ClientsMax { database: found.clients_max.0, user: found.clients_max.1 },
        })
    }
}

/// Starts one shard. The handle ends when it has drained.
pub(super) fn start(start: Start) -> io::Result<ExecutorJoinHandle<()>> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let placement = match cores.get(start.id.0 as usize) {
        Some(core) => Placement::Fixed(core.id),
        None => Placement::Unbound,
    };
    let executor = LocalExecutorBuilder::new(placement)
        .name(&format!("qcp-shard-{}", start.id.0))
        .io_memory(0)
        .ring_depth(256)
        // Together with the tick task below: glommio 0.9 can park with runnable tasks when this is short.
        .preempt_timer(Duration::from_secs(10))
        .spawn(move || async move {
            let mut obituary = Obituary { ended: start.ended.clone(), outcome: None };
            obituary.outcome = Some(run(start).await);
        });
    executor.map_err(|error| io::Error::other(error.to_string()))
}

async fn run(start: Start) -> io::Result<()> {
    // A wrong park ends at the next tick at the latest.
    glommio::spawn_local(async {
        loop {
            glommio::timer::sleep(Duration::from_millis(100)).await;
        }
    })
    .detach();
    let doorbell = start.doorbell.clone();
    let mut shard = build(start)?;
    let park = Park::new(&doorbell)?;
    shard.io.register_park(park.descriptor())?;
    let mut busy_at = Instant::now();
    loop {
        // Somebody's password goes through its rounds: some of them after each turn.
        if shard.has_work() {
            shard.io.arm_tick(BUSY_TICK);
            shard.io.submit()?;
            shard.io.wake();
            busy_at = shard.io.now();
            let (_, tick) = turn(&mut shard);
            shard.work();
            if tick {
                glommio::timer::sleep(Duration::ZERO).await;
            }
            continue;
        }
        let quiet = shard.io.now().duration_since(busy_at) >= QUIET_AFTER;
        if quiet {
            shard.io.signal_park(true);
            shard.io.arm_tick(QUIET_TICK);
            if !shard.io.submit()? {
                park.wait().await;
            }
            shard.io.signal_park(false);
            shard.io.wake();
        } else {
            shard.io.wait(BUSY_TICK)?;
        }
        let (busy, tick) = turn(&mut shard);
        if busy {
            busy_at = shard.io.now();
        }
        if shard.is_stopped() {
            break;
        }
        if tick && !quiet {
            // Lets glommio look at its own rings: timers, and host names that were looked up.
            glommio::timer::sleep(Duration::ZERO).await;
        }
    }
    // What was queued last (farewells, Terminates) still leaves.
    let until = Instant::now() + Duration::from_secs(1);
    while shard.io.connection_count() > 0 && Instant::now() < until {
        shard.io.wait(BUSY_TICK)?;
        while shard.io.next_event().is_some() {}
    }
    Ok(())
}

/// Handles all that has happened; whether there was traffic, and whether a tick.
fn turn(shard: &mut Shard<Tls<Ring>>) -> (bool, bool) {
    let (mut busy, mut ticked) = (false, false);
    while let Some(event) = shard.io.next_event() {
        let tick = matches!(event, Event::Tick);
        busy |= !tick;
        ticked |= tick;
        let connection = connection_of(&event);
        if catch_unwind(AssertUnwindSafe(|| shard.on_event(event))).is_err() {
            log::error!("a panic was caught; the link that it happened on is closed");
            if catch_unwind(AssertUnwindSafe(|| shard.on_panic(connection))).is_err() {
                log::error!("closing it panicked too");
            }
        }
    }
    (busy, ticked)
}

fn connection_of(event: &Event) -> Option<ConnectionId> {
    match event {
        Event::Accepted { connection, .. }
        | Event::Connected { connection, .. }
        | Event::Received { connection, .. }
        | Event::Ended { connection, .. }
        | Event::Secured { connection, .. }
        | Event::Drained { connection } => Some(*connection),
        // Its slot is free already: dropping the event has closed it.
        Event::Detached { .. } | Event::Resolved { .. } | Event::Rung | Event::Tick => None,
    }
}

fn build(start: Start) -> io::Result<Shard<Tls<Ring>>> {
    let Start { id, cores, config, tls, listeners, doorbell, mailbox, population, salts, console, strays, ended: _ } =
        start;
    let sums = Sums::new(&config, cores);
    let settings = ring::Settings {
        arena: Arena::new(config.arena.chunk_size, sums.chunks)?,
        connections_max: sums.connections_max,
        nodes_count: sums.send_nodes,
        backend_reserve: sums.backend_chunks,
        ready_max: sums.ready_chunks,
    };
    let mut ring = Ring::new(settings, doorbell)?;
    ring.set_tcp(config.tcp.keepalive, config.tcp.user_timeout);
    let mut ring = Tls::new(ring, sums.tls_connections, sums.send_nodes);
    for Listener { socket, local, door } in listeners {
        ring.listen(socket, local, door);
    }
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|error| io::Error::other(error.to_string()))?;
    let settings = shard::Settings {
        id,
        shard_count: cores as u16,
        clients_max: config.max_clients,
        backends_max: sums.backends_max,
        nodes_count: sums.request_nodes,
        login_timeout: config.login_timeout,
        client_stall_timeout: config.client_stall_timeout,
        connect_timeout: config.reconnect.connect_timeout,
        cancel_timeout: config.cancel_timeout,
        dns_ttl: config.dns_ttl,
        role_check_interval: config.role_check_interval,
        backoff: (config.reconnect.min_backoff, config.reconnect.max_backoff),
        auth: config.auth.settings.clone(),
        salts,
        check_connections: check_connections(&config, cores),
        settings_bytes: sums.settings_bytes,
        statement_bytes: sums.statement_bytes,
        statements_max: STATEMENTS_MAX,
        seed: u64::from_le_bytes(seed),
        tls,
        memory_terms: sums.terms(),
    };
    let mut shard = Shard::new(ring, settings, Rc::new(Settings(config)), mailbox, population);
    shard.set_console(console);
    if let Some(strays) = strays {
        shard.set_strays(strays);
    }
    Ok(shard)
}

/// Prepared statements kept on one backend.
const STATEMENTS_MAX: usize = 200;
