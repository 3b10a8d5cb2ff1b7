//! The process around the shards: what it needs from the kernel, its log, its listening sockets, its start and end.
#![forbid(unsafe_code)]

pub mod limits;
pub mod listeners;
pub mod log;
mod metrics;

mod check;
mod console;
mod notify;
mod reload;
mod shards;
mod takeover;
mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::log::{error, info};
use nix::sys::signal::{SigSet, Signal};

use crate::config::{Config, control_sockets, sums};
use crate::control::command::{Act, Command, Topic};
use crate::control::report::metrics::{ProcessMetrics, ShardMetrics, has_server, page};
use crate::control::report::{self, Draining, Reopened, RunState, ShardReport, Status};
use crate::control::socket::{BindFault, Bound};
use crate::control::top::Top;
use crate::control::wire::{Answer, Reply};
use crate::ids::{DoorId, ShardId};
use crate::io::descriptors;
use crate::io::doorbell::Doorbell;
use crate::shard::Population;
use crate::shard::doors::Stray;
use crate::shard::mailbox::{Address, Mail, mailboxes};

pub use check::check;
use listeners::Listening;
use notify::Tell;
use reload::InForce;
pub use reload::Loader;

/// Why the pooler did not start, or stopped.
#[derive(Debug)]
pub enum Error {
    /// The log could not be opened.
    Log(log::Error),
    /// The kernel does not have or does not give what is needed.
    Refusal(limits::Refusal),
    /// The running process cannot be taken over from.
    Takeover(takeover::Error),
    /// An address cannot be listened on.
    Listen(listeners::Error),
    /// The control socket cannot be had.
    Control(BindFault),
    /// The address of the metrics cannot be had.
    Metrics(SocketAddr, io::Error),
    /// The arena is too small for this number of cores.
    ArenaTooSmall {
        /// As configured.
        chunks: usize,
        /// As needed.
        needed: usize,
    },
    /// A shard could not be started, or ended by itself.
    Shard(io::Error),
    /// A file that the configuration names does not do.
    Config(crate::config::Error),
    /// Anything else that the kernel refused.
    Io(&'static str, io::Error),
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Log(error) => error.fmt(f),
            Error::Refusal(refusal) => refusal.fmt(f),
            Error::Takeover(error) => error.fmt(f),
            Error::Listen(error) => error.fmt(f),
            Error::Control(fault) => fault.fmt(f),
            Error::Metrics(address, error) => write!(f, "metrics.address: {address}: {error}"),
            Error::ArenaTooSmall { chunks, needed } => {
                write!(f, "the arena has {chunks} chunks, and these cores need {needed} at least: raise ")?;
                write!(f, "arena.chunks_count or arena.total_size, lower arena.chunk_size, or use fewer cores")
            }
            Error::Config(error) => error.fmt(f),
            Error::Shard(error) => write!(f, "a shard could not run: {error}"),
            Error::Io(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

/// The number of shards: what the command line says, or else the configuration, or else the cores this process may run
/// on.
pub fn cores(command_line: Option<usize>, config: &Config) -> usize {
    let available = || core_affinity::get_core_ids().map_or(1, |cores| cores.len().max(1));
    command_line.or(config.cores).unwrap_or_else(available)
}

/// How the pooler comes by what it listens on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beginning {
    /// By itself, or from systemd.
    Fresh,
    /// From a running one, which ends when its clients have gone.
    Takeover,
}

/// Runs the pooler until it is told to stop. `loader` reads the configuration again.
pub fn run(config: Config, cores: usize, loader: Loader, beginning: Beginning) -> Result<(), Error> {
    // Before anything else is opened: these descriptors have numbers, not names.
    let mut given = listeners::by_address(descriptors::inherited());
    given.iter_mut().for_each(|given| given.borrowed = true);
    let log = log::start(&config.log).map_err(Error::Log)?;
    limits::check_io_uring().map_err(Error::Refusal)?;
    limits::check_locked_memory(cores).map_err(Error::Refusal)?;
    // Pools are made as clients ask for them; the default database and user stand for what a pool needs.
    let backends = config.pool("", "").map_or(0, |pool| u64::from(pool.pool.size));
    limits::check_open_files(cores, u64::from(config.max_clients), backends).map_err(Error::Refusal)?;
    let tls = Arc::new(tls::load(&config, None).map_err(Error::Config)?);
    let needed = sums::CHUNKS_MIN * cores;
    if config.arena.chunks_count < needed {
        return Err(Error::ArenaTooSmall { chunks: config.arena.chunks_count, needed });
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR");
    let candidates = control_sockets(config.control_socket.as_deref(), runtime.as_deref());
    let mut heritage = match beginning {
        Beginning::Takeover => Some(takeover::ask(&candidates).map_err(Error::Takeover)?),
        Beginning::Fresh => None,
    };
    let bound = match &heritage {
        Some(_) => None,
        None => Some(Bound::bind(&candidates, Instant::now).map_err(Error::Control)?),
    };
    let inherited = config.metrics.and_then(|at| heritage.as_mut()?.metrics(at));
    let scraped = match (inherited, config.metrics) {
        (None, Some(at)) => Some(metrics::bind(at).map_err(|error| Error::Metrics(at, error))?),
        (inherited, _) => inherited,
    };
    given.extend(heritage.iter_mut().flat_map(|heritage| std::mem::take(&mut heritage.sockets)));
    let listening = Listening::open(&config.listen, cores, config.tcp, given).map_err(Error::Listen)?;
    let first_doors = listening.ids();

    // All threads are started with these signals blocked; one of them waits for them.
    let signals = handled_signals();
    signals.thread_block().map_err(|error| Error::Io("signals cannot be blocked", error.into()))?;

    let doorbells: Result<Vec<_>, _> = (0..cores).map(|_| Doorbell::new()).collect();
    let doorbells = doorbells.map_err(|error| Error::Io("an eventfd cannot be made", error))?;
    let (addresses, boxes) = mailboxes(&doorbells);
    let config = Arc::new(config);
    let mut secret = [0; crate::auth::secrets::KEY_SIZE];
    getrandom::fill(&mut secret).map_err(|error| Error::Io("random numbers", io::Error::other(error.to_string())))?;
    let salts = crate::auth::secrets::Salts::new(secret);
    let population = Arc::new(Population::new(cores, config.max_clients as usize));
    let mut handles = Vec::new();
    let (ended, ends) = mpsc::channel();
    let (at_console, visitors) = mpsc::channel();
    let strays = heritage.as_ref().map(|_| takeover::strays());
    for (at, (doorbell, mailbox)) in doorbells.into_iter().zip(boxes).enumerate() {
        // What another process accepts on is not accepted on here, yet.
        let listeners = match &heritage {
            Some(_) => Vec::new(),
            None => {
                let listeners = listening.of_shard(at, &first_doors);
                listeners.map_err(|error| Error::Io("a descriptor cannot be had", error))?
            }
        };
        let start = shards::Start {
            id: ShardId(at as u16),
            cores,
            config: config.clone(),
            tls: tls.clone(),
            listeners,
            doorbell,
            mailbox,
            salts: salts.clone(),
            population: population.clone(),
            console: at_console.clone(),
            strays: strays.as_ref().map(|(strays, _)| strays.clone()),
            ended: ended.clone(),
        };
        handles.push(shards::start(start).map_err(Error::Shard)?);
    }
    let program = takeover::Program::of_this_process();
    let desk = Desk {
        program: Arc::new(program),
        succeeded: Arc::default(),
        started_with: config.clone(),
        in_force: Arc::new(Mutex::new(InForce { config: config.clone(), tls })),
        loader: Arc::new(loader),
        addresses: addresses.clone(),
        population,
        started: Instant::now(),
        draining: Arc::default(),
        log,
        counted: Arc::default(),
        listening: Arc::new(Mutex::new(listening)),
        scraped: Arc::default(),
        elders: Arc::default(),
        in_succession: Arc::default(),
    };
    wait_for_signals(signals, desk.clone())?;
    drop(at_console);
    console::start(desk.clone(), visitors).map_err(|error| Error::Io("the console thread cannot be started", error))?;
    let bound = match (heritage, bound) {
        (Some(heritage), _) => desk.come_into(heritage, &ends, strays.map(|(_, strays)| strays))?,
        (None, bound) => bound.expect("bound above, as nobody was to be taken over from"),
    };
    if let Some(listener) = scraped {
        let served = metrics::serve(listener, desk.clone());
        *desk.scraped() = Some(served.map_err(|error| Error::Io("the metrics thread cannot be started", error))?);
    }
    let place = bound.place();
    let (answering, succeeded) = (desk.clone(), desk.clone());
    let server = bound.serve(
        Box::new(move |command| answering.answer(&command)),
        Box::new(move |stream| succeeded.begin_succession(stream, &place)),
    );
    let server = server.map_err(|error| Error::Io("the control thread cannot be started", error))?;
    Tell::Ready.say();
    let where_to: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
    info!("qcp {} listens on {} with {cores} cores", env!("CARGO_PKG_VERSION"), where_to.join(", "));

    let mut outcome = Ok(());
    drop(ended);
    for outcome_of_one in ends {
        if let Err(error) = outcome_of_one {
            error!("a shard ended: {error}");
            // The others cannot serve its clients: the process ends, so that whoever watches it starts it anew.
            for address in &addresses {
                address.send(Mail::Quit(Duration::ZERO));
            }
            outcome = Err(Error::Shard(error));
        }
    }
    for handle in handles {
        // How it ended has been told.
        let _ = handle.join();
    }
    desk.listening().end();
    info!("qcp has stopped");
    server.close().until_exit();
    outcome
}

fn handled_signals() -> SigSet {
    let all = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];
    all.into_iter().collect()
}

fn wait_for_signals(signals: SigSet, desk: Desk) -> Result<(), Error> {
    let wait = move || {
        while let Ok(signal) = signals.wait() {
            match signal {
                Signal::SIGTERM => desk.quit(false),
                Signal::SIGHUP => {
                    match desk.log.reopen() {
                        Ok(_) => info!("the log was opened anew"),
                        Err(error) => error!("the log cannot be opened anew: {error}"),
                    }
                    // It logs what came of it.
                    let _ = desk.reload(false);
                }
                // As PgBouncer has them.
                Signal::SIGUSR1 | Signal::SIGUSR2 => {
                    let act = if signal == Signal::SIGUSR1 { Act::Pause } else { Act::Resume };
                    if let Err(error) = desk.order(act, None) {
                        error!("{}: {error}", act.name());
                    }
                }
                _ => desk.quit(true),
            }
        }
    };
    let thread = std::thread::Builder::new().name("qcp-signals".to_owned()).spawn(wait);
    thread.map(drop).map_err(|error| Error::Io("the signal thread cannot be started", error))
}

type Counted = Option<(Instant, Vec<ShardMetrics>)>;

/// Who answers the control socket and the signals: asks the shards by mailbox.
#[derive(Clone)]
struct Desk {
    /// What was taken at the start holds until the end.
    started_with: Arc<Config>,
    in_force: Arc<Mutex<InForce>>,
    loader: Arc<Loader>,
    addresses: Vec<Address>,
    population: Arc<Population>,
    started: Instant,
    draining: Arc<std::sync::atomic::AtomicBool>,
    log: log::Reopener,
    /// What the shards have counted, and when.
    counted: Arc<Mutex<Counted>>,
    /// What clients come by.
    listening: Arc<Mutex<Listening>>,
    scraped: Arc<Mutex<Option<metrics::Scraped>>>,
    /// Control sockets of processes that this one has taken over from.
    elders: Arc<Mutex<Vec<PathBuf>>>,
    /// What was started, and how.
    program: Arc<takeover::Program>,
    /// Another process has taken over.
    succeeded: Arc<std::sync::atomic::AtomicBool>,
    /// Another process is about to take over.
    in_succession: Arc<std::sync::atomic::AtomicBool>,
}

/// For the shards of a process to come up: the arena is made by then.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A shard that does not answer within this is hung.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Whoever asks by HTTP again within this gets the same: shards are not to be kept busy with being asked.
const COUNTED_FRESH: Duration = Duration::from_millis(100);

impl Desk {
    fn quit(&self, now: bool) {
        self.draining.store(true, Ordering::Relaxed);
        let within = if now { Duration::ZERO } else { self.config().shutdown_timeout };
        info!("stopping{}", if now { " now" } else { ": transactions may finish" });
        self.tell_systemd(Tell::Stopping);
        for address in &self.addresses {
            address.send(Mail::Quit(within));
        }
        // The shards close theirs: who connects is refused.
        self.listening().close();
    }

    /// Who has been taken over from is no business of systemd's any more.
    fn tell_systemd(&self, tell: Tell) {
        if !self.succeeded.load(Ordering::Relaxed) {
            tell.say();
        }
    }

    fn listening(&self) -> MutexGuard<'_, Listening> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn scraped(&self) -> MutexGuard<'_, Option<metrics::Scraped>> {
        self.scraped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the shards accept clients by these doors.
    fn accept_at(&self, doors: &[DoorId]) -> io::Result<()> {
        let listening = self.listening();
        let all = 0..self.addresses.len();
        // All of them before the first is sent: descriptors may run out.
        let mut listeners =
            all.map(|shard| listening.of_shard(shard, doors)).collect::<io::Result<Vec<_>>>()?.into_iter();
        self.tell(|done| Mail::Listen(listeners.next().unwrap_or_default(), done));
        Ok(())
    }

    /// Takes the place of the process that this one has taken over from, when all shards are up.
    fn come_into(
        &self,
        heritage: takeover::Heritage,
        ends: &mpsc::Receiver<io::Result<()>>,
        strays: Option<mpsc::Receiver<Stray>>,
    ) -> Result<Bound, Error> {
        let until = Instant::now() + START_TIMEOUT;
        while let Err(reason) = self.reports() {
            match ends.try_recv() {
                Ok(ended) => return Err(Error::Shard(ended.err().unwrap_or_else(|| io::Error::other("it has ended")))),
                Err(_) if Instant::now() >= until => return Err(Error::Shard(io::Error::other(reason))),
                Err(_) => {}
            }
        }
        let (control, pid) = (heritage.control.clone(), heritage.pid);
        let promised = heritage.hand_over().map_err(Error::Takeover)?;
        let bound = Bound::replace(&control, Instant::now).map_err(Error::Control)?;
        let doors = {
            let mut listening = self.listening();
            listening.widen();
            listening.settle();
            listening.ids()
        };
        self.accept_at(&doors).map_err(|error| Error::Io("a descriptor cannot be had", error))?;
        *self.elders.lock().unwrap_or_else(PoisonError::into_inner) = promised.elders.clone();
        if let Some(strays) = strays {
            let passing = takeover::pass_on(strays, promised.elders.clone());
            passing.map_err(|error| Error::Io("a thread cannot be started", error))?;
        }
        promised.keep();
        info!("has taken over from process {pid}");
        Ok(bound)
    }

    fn config(&self) -> Arc<Config> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner).config.clone()
    }

    fn answer(&self, command: &Command) -> Answer {
        match command {
            Command::Quit { now } => {
                self.quit(*now);
                let timeout = if *now { Duration::ZERO } else { self.config().shutdown_timeout };
                let draining = Draining { pid: std::process::id(), shutdown_timeout_ms: timeout.as_millis() as u64 };
                Ok(draining.reply())
            }
            Command::Status => Ok(self.status()?.reply()),
            Command::Top => {
                let mut reports = self.reports()?;
                if let Some(first) = reports.first_mut() {
                    first.memory.rss_bytes = resident_bytes();
                }
                let top = Top::new(self.status()?, &reports, &self.counted()?, &shards_cpu());
                Ok(Reply::new(&top, String::new()))
            }
            Command::Reopen => {
                let reopened = self.log.reopen().map_err(|error| error.to_string())?;
                info!("the log was opened anew");
                Ok(Reopened { file: reopened.map(|path| path.display().to_string()) }.reply())
            }
            Command::Upgrade => self.upgrade(),
            // The control thread does not ask for it here.
            Command::Takeover => Err("a takeover is a conversation of two poolers".to_owned()),
            Command::Cancel { process_id, key } => {
                let slot = (process_id & 0xff_ffff).wrapping_sub(1);
                let shard = self.addresses.get((process_id >> 24) as usize);
                let sent = shard.is_some_and(|shard| shard.send(Mail::Cancel { slot, secret: key.clone() }));
                if sent { Ok(Reply::new(&(), String::new())) } else { Err("there is no such shard".to_owned()) }
            }
            Command::Reload { recycle } => Ok(self.reload(*recycle)?.reply()),
            Command::Order(act, database) => self.order(*act, database.as_deref()),
            Command::Get(key) => self.get(key.as_deref()),
            Command::Set { key, value } => Ok(self.set(key, value)?.reply()),
            Command::CheckLogin { database, user, password } => {
                let (config, tls) = {
                    let in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
                    (in_force.config.clone(), in_force.tls.clone())
                };
                let password = password.as_ref().map(|password| password.0.as_str());
                let rows = check::check_login(&config, &tls, database, user, password)?;
                Ok(report::show_logins(&rows))
            }
            Command::Show(topic @ (Topic::Stats | Topic::Errors)) => Ok(report::show_counted(*topic, &self.counted()?)),
            Command::Show(topic) => {
                let mut reports = self.reports()?;
                if *topic == Topic::Memory
                    && let Some(first) = reports.first_mut()
                {
                    first.memory.rss_bytes = resident_bytes();
                }
                Ok(report::show(*topic, reports))
            }
        }
    }

    fn status(&self) -> Result<Status, String> {
        let backends = self.reports()?.iter().map(|report| report.counters.backends).sum();
        let draining = self.draining.load(Ordering::Relaxed);
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            state: if draining { RunState::Draining } else { RunState::Running },
            cores: self.addresses.len() as u64,
            clients: u64::from(self.population.count()),
            backends,
            listening: self.listening().addresses().map(ToString::to_string).collect(),
            config: self.started_with.file().to_owned(),
        })
    }

    fn reports(&self) -> Result<Vec<ShardReport>, String> {
        let mut reports = self.ask(Mail::Report)?;
        reports.sort_by_key(|report: &ShardReport| report.shard);
        Ok(reports)
    }

    fn counted(&self) -> Result<Vec<ShardMetrics>, String> {
        let mut counted = self.ask(Mail::Metrics)?;
        counted.sort_by_key(|shard: &ShardMetrics| shard.shard);
        Ok(counted)
    }

    /// What each shard answers. One that has ended is not asked.
    fn ask<A>(&self, mail: impl Fn(mpsc::Sender<A>) -> Mail) -> Result<Vec<A>, String> {
        let (sender, receiver) = mpsc::channel();
        let asked = self.addresses.iter().filter(|address| address.send(mail(sender.clone()))).count();
        drop(sender);
        let mut answers = Vec::new();
        while answers.len() < asked {
            match receiver.recv_timeout(REPORT_TIMEOUT) {
                Ok(answer) => answers.push(answer),
                Err(_) => return Err(format!("only {} of {asked} shards answered", answers.len())),
            }
        }
        Ok(answers)
    }
}

impl Desk {
    /// As [`Desk::counted`], for those who may ask at any rate: who comes while the shards are asked waits for that answer.
    fn counted_lately<A>(&self, read: impl FnOnce(&[ShardMetrics]) -> A) -> Result<A, String> {
        let mut kept = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = match &mut *kept {
            Some((at, counted)) if at.elapsed() < COUNTED_FRESH => counted,
            kept => &mut kept.insert((Instant::now(), self.counted()?)).1,
        };
        Ok(read(kept))
    }
}

impl metrics::Pages for Desk {
    fn metrics(&self) -> Result<String, String> {
        let started = SystemTime::now().checked_sub(self.started.elapsed());
        let since_epoch = started.and_then(|started| started.duration_since(UNIX_EPOCH).ok());
        let process = ProcessMetrics {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_s: since_epoch.unwrap_or_default().as_millis() as f64 / 1000.0,
            draining: self.draining.load(Ordering::Relaxed),
            resident_bytes: resident_bytes(),
            clients_max: u64::from(self.config().max_clients),
            cpu_s: shards_cpu(),
        };
        self.counted_lately(|counted| page(counted, &process))
    }

    fn health(&self) -> Result<(), String> {
        self.counted_lately(|_| ())
    }

    fn readiness(&self) -> Result<(), String> {
        if self.draining.load(Ordering::Relaxed) {
            return Err("draining".to_owned());
        }
        if self.counted_lately(has_server)? { Ok(()) } else { Err("no server can be reached".to_owned()) }
    }
}

/// CPU seconds of each shard's threads (its own, and the one that glommio gives it for what blocks), from the kernel:
/// nothing that a shard would have to count.
fn shards_cpu() -> Vec<(u16, f64)> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let seconds = tasks.filter_map(|task| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        // glommio adds a number of its own behind ours.
        let shard: u16 = name.trim_ascii().strip_prefix("qcp-shard-")?.split('-').next()?.parse().ok()?;
        // Nanoseconds on a core, waiting for one, and how often.
        let times = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        let ns: u64 = times.split_ascii_whitespace().next()?.parse().ok()?;
        Some((shard, ns as f64 / 1e9))
    });
    let mut of_shards = BTreeMap::new();
    for (shard, seconds) in seconds {
        *of_shards.entry(shard).or_insert(0.0) += seconds;
    }
    of_shards.into_iter().collect()
}

fn resident_bytes() -> Option<u64> {
    let statistics = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = statistics.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes << 10)
}
