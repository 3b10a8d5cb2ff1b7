//! An administrator at work: changes the configuration, gives orders and takes them back, and looks at what there is.

use std::sync::mpsc::{Receiver, TryRecvError, channel};

use qcp::shard::orders::{Order, Scope};
use qcp::shard::reload::Reload;
use qcp::shard::report::ShardReport;

use super::*;

/// What the administrator has done so far.
pub struct Administrator {
    /// The configuration in force, or about to be; and the one before.
    pub served: Dials,
    before: Option<Dials>,
    /// Shards that have not done yet what they were told last, and what they will end that by.
    pending: Vec<(usize, Receiver<()>)>,
    /// Largest size of a pool so far.
    pub size_most: u32,
    /// How often pools were replaced by others of the same name.
    pub replaced: u32,
    /// When a shard last changed anything by order.
    pub changed_at: Option<u64>,
    /// Clients were sent off, or kept out; a database ceased to be served.
    pub has_dismissed: bool,
    pub has_refused: bool,
    pub has_unserved: bool,
    reports: Vec<Receiver<ShardReport>>,
}

impl Administrator {
    pub fn new(dials: &Dials) -> Self {
        Self {
            served: dials.clone(),
            before: None,
            pending: Vec::new(),
            size_most: dials.pool_size,
            replaced: 0,
            changed_at: None,
            has_dismissed: false,
            has_refused: false,
            has_unserved: false,
            reports: Vec::new(),
        }
    }

    /// Whether all shards go by the same configuration.
    pub fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    /// The longest that a client may wait at any shard: where one has just heard of a shorter time, that is in force when it
    /// next looks at its clock.
    pub fn queue_timeout(&self, now: u64) -> Duration {
        let was_there = !self.is_settled() || self.changed_at.is_some_and(|at| now < at + 110 * MILLI);
        let before = self.before.as_ref().filter(|_| was_there);
        before.into_iter().chain([&self.served]).map(Dials::queue_timeout).max().expect("there is one")
    }
}

impl World {
    /// Tells every shard, and waits for all before the next change.
    fn tell(&mut self, mail: impl Fn(std::sync::mpsc::Sender<()>) -> Mail) {
        for (core, address) in self.addresses.iter().enumerate() {
            let (done, pending) = channel();
            if !self.cores[core].stopped && address.send(mail(done)) {
                self.administrator.pending.push((core, pending));
            }
        }
        self.look_for_mail();
    }

    /// Whether the shards have done what they were told.
    pub(super) fn look_at_pending(&mut self) {
        let Self { administrator, cores, now, .. } = self;
        let count = administrator.pending.len();
        administrator
            .pending
            .retain(|(core, done)| !cores[*core].stopped && done.try_recv() == Err(TryRecvError::Empty));
        if administrator.pending.len() < count {
            administrator.changed_at = Some(*now);
        }
    }

    pub(super) fn administrate(&mut self) {
        if self.quitting.is_some() {
            return;
        }
        let after = self.random.between(5 * MILLI, 500 * MILLI);
        self.plan(after, Action::Administrate);
        self.look_at_pending();
        if !self.administrator.pending.is_empty() {
            return;
        }
        if self.random.in_thousand(self.dials.reloads) {
            self.reload();
        } else if self.random.in_thousand(self.dials.orders) {
            self.give_order();
        } else if self.random.below(20) == 0 {
            let (answer, report) = channel();
            let core = self.random.below(self.addresses.len());
            self.addresses[core].send(Mail::Report(answer));
            self.addresses[core].send(Mail::Metrics(channel().0));
            self.administrator.reports.push(report);
            self.look_for_mail();
        }
    }

    fn reload(&mut self) {
        let before = self.administrator.served.clone();
        let mut dials = before.clone();
        let random = &mut self.random;
        // Most often few keys change.
        let mut some = |one_of: usize| random.below(one_of) == 0;
        let (size, times, fates) = (some(2), some(3), [some(8), some(8), some(8), some(8)]);
        let recycle = some(6);
        if size {
            dials.pool_size = 1 + self.random.below(6) as u32;
            dials.min_size = self.random.below(3) as u32;
        }
        if times {
            dials.queue_timeout_ms = *self.random.one_of(&[50, 300, 2000, 10_000]);
            dials.max_queue = *self.random.one_of(&[0, 6]);
            dials.idle_timeout_ms = self.random.below(300) as u64;
            dials.lifetime_ms = self.random.below(500) as u64;
        }
        let [mode, servers, databases, failures] = fates;
        if mode {
            dials.mode = *self.random.one_of(&[RelayMode::Smart, RelayMode::Session]);
        }
        if servers {
            dials.servers = 1 + self.random.below(2);
        }
        if databases {
            dials.databases = 1 + self.random.below(self.dials.databases);
        }
        if failures {
            dials.failures_max = 1 + self.random.below(8) as u32;
        }
        let noted = [
            (dials.pool_size > before.pool_size, "larger"),
            (dials.pool_size < before.pool_size, "smaller"),
            (dials.mode != before.mode, "another mode"),
            (dials.servers < before.servers, "fewer servers"),
            (dials.databases < before.databases, "fewer databases"),
            (recycle, "recycle"),
        ];
        for (_, what) in noted.iter().filter(|(is_so, _)| *is_so) {
            self.coverage.note(&format!("reload: {what}"));
        }
        trace!(
            self,
            "RELOAD: size {}, {:?}, {} servers, {} databases, recycle {recycle}",
            dials.pool_size,
            dials.mode,
            dials.servers,
            dials.databases
        );
        let administrator = &mut self.administrator;
        administrator.size_most = administrator.size_most.max(dials.pool_size);
        administrator.has_unserved |= dials.databases < before.databases;
        let replaced = dials.mode != before.mode
            || dials.servers < before.servers
            || dials.databases < before.databases
            || recycle;
        administrator.replaced += u32::from(replaced);
        administrator.before = Some(before);
        administrator.served = dials.clone();
        self.tell(|done| {
            let reload = Reload {
                catalogue: Box::new(Everything(dials.clone())),
                tls: Default::default(),
                auth: Arc::new(dials.auth()),
                clients_max: CLIENTS_MAX,
                login_timeout: LOGIN_TIMEOUT,
                client_stall_timeout: CLIENT_STALL_TIMEOUT,
                connect_timeout: CONNECT_TIMEOUT,
                cancel_timeout: CANCEL_TIMEOUT,
                dns_ttl: DNS_TTL,
                role_check_interval: ROLE_CHECK_INTERVAL,
                backoff: BACKOFF,
                check_connections: CHECKS,
                recycle,
            };
            Mail::Reload(Box::new(reload), done)
        });
    }

    fn give_order(&mut self) {
        let scope = match self.random.below(self.dials.databases + 1) {
            0 => Scope::All,
            number => Scope::Database(format!("db{}", number - 1).into()),
        };
        // Nothing is held for ever, but many orders may hold at a time.
        let (order, back) = match self.random.below(8) {
            0..3 => (Order::Pause(scope.clone()), Some(Order::Resume(scope))),
            3 => (Order::Kill(scope.clone()), Some(Order::Resume(scope))),
            4 => (Order::Disable(scope.clone()), Some(Order::Enable(scope))),
            5 => (Order::Drain(scope.clone()), Some(Order::Enable(scope))),
            _ => (Order::Reconnect(scope), None),
        };
        if let Some(back) = back {
            let after = self.random.between(MILLI, SECOND);
            self.plan(after, Action::Order(back));
        }
        self.order(order);
    }

    pub(super) fn order(&mut self, order: Order) {
        trace!(self, "ORDER: {order:?}");
        let name = format!("{order:?}");
        self.coverage.note(&format!("order: {}", name.split('(').next().unwrap_or_default()));
        let administrator = &mut self.administrator;
        match order {
            Order::Kill(_) => administrator.has_dismissed = true,
            Order::Drain(_) => {
                administrator.has_dismissed = true;
                administrator.has_refused = true;
            }
            Order::Disable(_) => administrator.has_refused = true,
            Order::Reconnect(_) => administrator.replaced += 1,
            Order::Pause(_) | Order::Resume(_) | Order::Enable(_) => {}
        }
        self.tell(|done| Mail::Order(order.clone(), done));
    }

    /// A report agrees with itself.
    pub(super) fn look_at_reports(&mut self) {
        self.administrator.reports.retain(|report| match report.try_recv() {
            Ok(report) => {
                let counted = (report.counters.clients, report.counters.backends);
                assert_eq!(counted, (report.clients.len() as u64, report.backends.len() as u64));
                for pool in &report.pools {
                    assert!(pool.size > 0 && pool.idle <= pool.permits, "{pool:?}");
                }
                false
            }
            Err(error) => error == TryRecvError::Empty,
        });
    }
}
