//! The load generator: a closed loop over many connections from one thread; prints one line of JSON.
//!
//! A *transaction* is what one ReadyForQuery ends: a query, a pipeline of queries under one Sync, a result, a COPY; in
//! `churn` it is connecting, one query and closing. The window opens when all connections are logged in and warm; the
//! costs of the watched processes are read at its two ends.

use floors::arguments::Arguments;
use floors::ring::{self, BufferId, Completion, Received, Ring, Socket, Token};
use floors::watch::{Reading, SystemCalls, Watched};
use floors::wire::{self, tag};
use hdrhistogram::Histogram;
use io_uring::types::Timespec;
use std::time::{Duration, Instant};

const OPENED: u8 = 0;
const CONNECTED: u8 = 1;
const RECEIVE: u8 = 2;
const SEND: u8 = 3;
const CLOSED: u8 = 4;
const CLOCK: u8 = 5;
const IGNORED: u8 = 6;

static CLOCK_PERIOD: Timespec = Timespec::new().nsec(5_000_000);
/// Connections that may be logging in at once, so that no listener's backlog overflows.
const LOGINS_MAX: usize = 64;
const STATEMENT: &str = "load";
const ACCOUNT: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = ";
const ACCOUNTS_COUNT: u64 = 100_000;
const ACCOUNT_DIGITS: usize = 6;
const COPY_CHUNK_SIZE: usize = 65_536;
const COPY_LINE_SIZE: usize = 1_000;

fn main() {
    let arguments = Arguments::from_command_line();
    let plan = Plan::from_arguments(&arguments);
    let mut load = Load::new(plan);
    println!("{}", load.run());
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Simple,
    Extended,
    Prepared,
    Pipeline,
    Churn,
    Result,
    CopyIn,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    SelectOne,
    Account,
}

struct Plan {
    port: u16,
    mode: Mode,
    clients: usize,
    idle: usize,
    warmup: Duration,
    window: Duration,
    /// Of `result` and `copy-in`, which run once each instead of for a time.
    size: u64,
    /// The statement is there already (a floor prepares it on its backends): do not send Parse.
    skip_parse: bool,
    count_system_calls: bool,
    watched: Watched,
    /// The server behind, with all its processes; none: nobody asks what it costs.
    server: Watched,
    /// How many kinds of clients there are, by a setting that each makes for its session; none: they set nothing.
    settings: Vec<&'static [u8]>,
    startup: &'static [u8],
    request: Request,
}

/// What is sent for one transaction; a random account number, if there is one, is written over `account_at`.
struct Request {
    bytes: Vec<u8>,
    account_at: Option<usize>,
    preparation: &'static [u8],
}

impl Plan {
    fn from_arguments(arguments: &Arguments) -> Plan {
        let mode = match arguments.text("mode").unwrap_or("simple") {
            "simple" => Mode::Simple,
            "extended" => Mode::Extended,
            "prepared" => Mode::Prepared,
            "pipeline" => Mode::Pipeline,
            "churn" => Mode::Churn,
            "result" => Mode::Result,
            "copy-in" => Mode::CopyIn,
            other => panic!("--mode {other}"),
        };
        let work = match arguments.text("work").unwrap_or("select-1") {
            "select-1" => Work::SelectOne,
            "account" => Work::Account,
            other => panic!("--work {other}"),
        };
        let size = arguments.value("size", 1_000_000_000);
        let user = arguments.text("user").unwrap_or("bench");
        Plan {
            port: arguments.required("port"),
            mode,
            clients: arguments.value("clients", 1),
            idle: arguments.value("idle", 0),
            warmup: Duration::from_millis(arguments.value("warmup-ms", 200)),
            window: Duration::from_millis(arguments.value("milliseconds", 1_000)),
            size,
            skip_parse: arguments.value("skip-parse", false),
            count_system_calls: arguments.value("count-system-calls", false),
            watched: Watched::new(arguments.all("watch").map(|id| id.parse().expect("--watch PID")).collect()),
            server: Watched::new(arguments.all("server").map(|id| id.parse().expect("--server PID")).collect()),
            settings: (0..arguments.value("kinds", 0))
                .map(|kind| &*wire::query(&format!("set work_mem = '{}MB'", 5 + kind)).leak())
                .collect(),
            startup: wire::startup(user, arguments.text("database").unwrap_or("bench")).leak(),
            request: Request::new(mode, work, size),
        }
    }

    /// One transaction per connection, however long it takes.
    fn runs_once(&self) -> bool {
        matches!(self.mode, Mode::Result | Mode::CopyIn)
    }
}

impl Request {
    fn new(mode: Mode, work: Work, size: u64) -> Request {
        const QUERIES_IN_PIPELINE: usize = 100;
        let digits = "0".repeat(ACCOUNT_DIGITS);
        let (literal, parametric, parameter) = match work {
            Work::SelectOne => ("select 1".to_owned(), "select 1".to_owned(), None),
            Work::Account => (format!("{ACCOUNT}{digits}"), format!("{ACCOUNT}$1"), Some(digits.as_bytes())),
        };
        let execution = |statement| [wire::bind(statement, parameter), wire::describe_and_execute()].concat();
        let unnamed = || [wire::parse("", &parametric), execution("")].concat();
        let mut preparation = Vec::new();
        let bytes = match mode {
            Mode::Simple | Mode::Churn => wire::query(&literal),
            Mode::Extended => [unnamed(), wire::sync()].concat(),
            Mode::Prepared => {
                preparation = [wire::parse(STATEMENT, &parametric), wire::sync()].concat();
                [execution(STATEMENT), wire::sync()].concat()
            }
            Mode::Pipeline => [unnamed().repeat(QUERIES_IN_PIPELINE), wire::sync()].concat(),
            Mode::Result => {
                let rows = size / COPY_LINE_SIZE as u64;
                wire::query(&format!("select repeat('x', 1000) from generate_series(1, {rows})"))
            }
            Mode::CopyIn => wire::query("copy sink from stdin where false"),
        };
        let account_at = bytes.windows(ACCOUNT_DIGITS).position(|window| window == digits.as_bytes());
        let account_at = account_at.filter(|_| work == Work::Account && mode != Mode::Pipeline);
        Request { bytes, account_at, preparation: preparation.leak() }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Login,
    Setting,
    Preparing,
    Busy,
    /// Asked for COPY, or sending it.
    Copying {
        left: u64,
    },
    Idle,
    /// Closing, after its one transaction of churn.
    Leaving,
}

struct Connection {
    socket: Option<Socket>,
    stage: Stage,
    begun: Instant,
    request: Vec<u8>,
    /// A message of which only the beginning has come.
    body_left: usize,
    partial: Vec<u8>,
    message: u8,
}

struct Load {
    plan: Plan,
    ring: Ring,
    connections: Vec<Connection>,
    opened: usize,
    logging_in: usize,
    ready: usize,
    random: u64,
    phase: Phase,
    latencies: Histogram<u64>,
    transactions: u64,
    bytes: u64,
    copy_chunk: &'static [u8],
    copy_end: &'static [u8],
}

enum Phase {
    /// Not everybody is logged in.
    Connecting,
    Warming {
        until: Instant,
    },
    Measuring {
        window: Window,
    },
    /// Nothing new is sent; what is under way is waited for, or poolers would have to drop its backends.
    Draining {
        report: String,
        busy: usize,
    },
    Done {
        report: String,
    },
}

struct Window {
    begun: Instant,
    reading: Reading,
    reading_of_server: Reading,
    system_calls: Result<SystemCalls, String>,
}

impl Load {
    fn new(plan: Plan) -> Load {
        let line = [vec![b'x'; COPY_LINE_SIZE - 1], vec![b'\n']].concat();
        let message = wire::message(tag::COPY_DATA, &line);
        let copy_chunk = message.repeat(COPY_CHUNK_SIZE / message.len()).leak();
        Load {
            ring: Ring::new(512, 65_536),
            connections: Vec::new(),
            opened: 0,
            logging_in: 0,
            ready: 0,
            random: 0x9E37_79B9_7F4A_7C15,
            phase: Phase::Connecting,
            latencies: Histogram::new_with_bounds(1, 600_000_000, 3).expect("bounds of a histogram"),
            transactions: 0,
            bytes: 0,
            copy_chunk,
            copy_end: wire::message(tag::COPY_DONE, &[]).leak(),
            plan,
        }
    }

    fn run(&mut self) -> String {
        let mut batch = Vec::new();
        self.open_more();
        self.ring.timeout(&CLOCK_PERIOD, Token::new(CLOCK, 0));
        loop {
            self.ring.turn(&mut batch);
            for completion in &batch {
                self.on_completion(completion);
            }
            if let Phase::Done { report } = &mut self.phase {
                return std::mem::take(report);
            }
        }
    }

    #[inline]
    fn on_completion(&mut self, completion: &Completion) {
        let slot = completion.token.slot;
        match completion.token.kind {
            RECEIVE => match self.ring.received(completion) {
                Received::Bytes(buffer) => {
                    self.on_bytes(slot, buffer);
                    self.receive_again(slot, completion);
                }
                Received::Starved => self.receive_again(slot, completion),
                Received::Cancelled | Received::End => self.on_end(slot),
            },
            SEND => {
                if let Stage::Copying { left } = self.connections[slot as usize].stage {
                    self.send_copy(slot, left);
                }
            }
            OPENED => self.on_opened(slot, Socket::from_completion(completion)),
            CONNECTED => self.on_connected(slot, completion),
            CLOSED => self.open(slot),
            CLOCK => self.on_clock(),
            _ => {}
        }
    }

    fn receive_again(&mut self, slot: u32, completion: &Completion) {
        if let (false, Some(socket)) = (completion.more(), self.connections[slot as usize].socket) {
            self.ring.receive(socket, completion.token);
        }
    }

    fn open_more(&mut self) {
        let total = self.plan.idle + self.plan.clients;
        while self.opened < total && self.logging_in < LOGINS_MAX {
            self.connections.push(Connection {
                socket: None,
                stage: Stage::Login,
                begun: Instant::now(),
                request: self.plan.request.bytes.clone(),
                body_left: 0,
                partial: Vec::new(),
                message: 0,
            });
            self.open(self.opened as u32);
            self.opened += 1;
            self.logging_in += 1;
        }
    }

    fn open(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        connection.begun = Instant::now();
        connection.stage = Stage::Login;
        self.ring.open(Token::new(OPENED, slot));
    }

    fn on_opened(&mut self, slot: u32, socket: Socket) {
        self.connections[slot as usize].socket = Some(socket);
        self.ring.connect(socket, self.plan.port, Token::new(CONNECTED, slot));
    }

    fn on_connected(&mut self, slot: u32, completion: &Completion) {
        assert!(completion.result == 0, "connect: {}", ring::error(completion.result));
        let socket = self.connections[slot as usize].socket.expect("connected, so opened");
        self.ring.set_nodelay(socket, Token::new(IGNORED, 0));
        self.ring.send_static(socket, self.plan.startup, Token::new(SEND, slot));
        self.ring.receive(socket, Token::new(RECEIVE, slot));
    }

    fn on_end(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        let socket = connection.socket.take().expect("received from, so open");
        if connection.stage != Stage::Leaving {
            fail("the connection was closed");
        }
        self.ring.close(socket, Token::new(CLOSED, slot));
    }

    /// Finds what matters in the answers: ReadyForQuery, errors, and the server's wish for COPY data.
    #[inline]
    fn on_bytes(&mut self, slot: u32, buffer: BufferId) {
        let connection = &mut self.connections[slot as usize];
        let mut bytes = self.ring.bytes(buffer);
        if matches!(self.phase, Phase::Measuring { .. }) {
            self.bytes += bytes.len() as u64;
        }
        let (mut ready, mut copy) = (false, false);
        let joined;
        if !connection.partial.is_empty() {
            connection.partial.extend_from_slice(bytes);
            joined = std::mem::take(&mut connection.partial);
            bytes = &joined;
        }
        let skipped = connection.body_left.min(bytes.len());
        connection.body_left -= skipped;
        bytes = &bytes[skipped..];
        ready |= skipped > 0 && connection.body_left == 0 && connection.message == tag::READY_FOR_QUERY;
        while let Some(header) = bytes.first_chunk::<5>() {
            let size = 1 + u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
            let body = &bytes[5..size.min(bytes.len())];
            match header[0] {
                tag::ERROR_RESPONSE => fail(&wire::error_text(body)),
                tag::COPY_IN_RESPONSE => copy = true,
                tag::READY_FOR_QUERY => ready = size <= bytes.len(),
                _ => {}
            }
            if size > bytes.len() {
                connection.message = header[0];
                connection.body_left = size - bytes.len();
                bytes = &[];
                break;
            }
            bytes = &bytes[size..];
        }
        connection.partial.extend_from_slice(bytes);
        self.ring.give(buffer);
        if copy {
            self.send_copy(slot, self.plan.size);
        }
        if ready {
            self.on_ready(slot);
        }
    }

    #[inline]
    fn on_ready(&mut self, slot: u32) {
        let is_running = !matches!(self.phase, Phase::Connecting);
        let connection = &mut self.connections[slot as usize];
        match connection.stage {
            Stage::Login if self.plan.mode == Mode::Churn && is_running => self.send_request(slot),
            Stage::Login if !self.plan.settings.is_empty() => {
                connection.stage = Stage::Setting;
                let socket = connection.socket.expect("logged in, so open");
                let setting = self.plan.settings[slot as usize % self.plan.settings.len()];
                self.ring.send_static(socket, setting, Token::new(SEND, slot));
            }
            Stage::Login | Stage::Setting if self.plan.preparation().is_some() && slot as usize >= self.plan.idle => {
                connection.stage = Stage::Preparing;
                let socket = connection.socket.expect("logged in, so open");
                self.ring.send_static(socket, self.plan.request.preparation, Token::new(SEND, slot));
            }
            Stage::Login | Stage::Setting | Stage::Preparing => {
                connection.stage = Stage::Idle;
                self.ready += 1;
                self.logging_in -= 1;
                self.open_more();
                if self.ready == self.plan.idle + self.plan.clients {
                    self.start();
                }
            }
            Stage::Busy | Stage::Copying { .. } => self.on_transaction(slot),
            Stage::Idle | Stage::Leaving => fail("ReadyForQuery that nobody asked for"),
        }
    }

    fn start(&mut self) {
        if self.plan.runs_once() {
            self.open_window();
        } else {
            self.phase = Phase::Warming { until: Instant::now() + self.plan.warmup };
        }
        for slot in self.plan.idle..self.connections.len() {
            self.connections[slot].begun = Instant::now();
            self.send_request(slot as u32);
        }
    }

    #[inline]
    fn on_transaction(&mut self, slot: u32) {
        let begun = self.connections[slot as usize].begun;
        if let Phase::Measuring { window } = &self.phase {
            self.transactions += 1;
            // A transaction begun in the warm-up counts for what it cost, and its latency is as good as any.
            let took = begun.elapsed().as_micros() as u64;
            self.latencies.saturating_record(took.max(1));
            if self.plan.runs_once() {
                if self.transactions == self.plan.clients as u64 {
                    let report = self.report(window);
                    self.phase = Phase::Done { report };
                }
                return;
            }
        }
        if let Phase::Draining { report, busy } = &mut self.phase {
            *busy -= 1;
            self.connections[slot as usize].stage = Stage::Idle;
            if *busy == 0 {
                self.phase = Phase::Done { report: std::mem::take(report) };
            }
            return;
        }
        if self.plan.mode == Mode::Churn {
            let connection = &mut self.connections[slot as usize];
            let socket = connection.socket.expect("answered, so open");
            connection.stage = Stage::Leaving;
            static TERMINATE: [u8; 5] = [tag::TERMINATE, 0, 0, 0, 4];
            self.ring.send_static(socket, &TERMINATE, Token::new(IGNORED, 0));
            // Not a shutdown entry: the kernel runs it on a helper thread, perhaps only when the place in the table of
            // sockets is already another connection's.
            self.ring.cancel_receive(Token::new(RECEIVE, slot), Token::new(IGNORED, 0));
        } else {
            self.connections[slot as usize].begun = Instant::now();
            self.send_request(slot);
        }
    }

    #[inline]
    fn send_request(&mut self, slot: u32) {
        let account = self.plan.request.account_at.map(|at| (at, self.random_account()));
        let connection = &mut self.connections[slot as usize];
        if let Some((at, mut account)) = account {
            for digit in connection.request[at..][..ACCOUNT_DIGITS].iter_mut().rev() {
                *digit = b'0' + (account % 10) as u8;
                account /= 10;
            }
        }
        connection.stage = Stage::Busy;
        let socket = connection.socket.expect("a request only on an open connection");
        let (pointer, size) = (connection.request.as_ptr(), connection.request.len());
        // SAFETY: the request is written again only after its answer, and connections are never freed.
        unsafe { self.ring.send(socket, pointer, size, Token::new(SEND, slot)) }
    }

    fn send_copy(&mut self, slot: u32, left: u64) {
        let connection = &mut self.connections[slot as usize];
        let socket = connection.socket.expect("copying, so open");
        if left == 0 {
            connection.stage = Stage::Busy;
            self.ring.send_static(socket, self.copy_end, Token::new(SEND, slot));
            return;
        }
        connection.stage = Stage::Copying { left: left.saturating_sub(self.copy_chunk.len() as u64) };
        self.bytes += self.copy_chunk.len() as u64;
        self.ring.send_static(socket, self.copy_chunk, Token::new(SEND, slot));
    }

    /// Xorshift: which account hardly matters, that it costs nothing does.
    fn random_account(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        1 + self.random % ACCOUNTS_COUNT
    }

    fn on_clock(&mut self) {
        self.ring.timeout(&CLOCK_PERIOD, Token::new(CLOCK, 0));
        match &self.phase {
            Phase::Warming { until } if Instant::now() >= *until => self.open_window(),
            Phase::Measuring { window } if !self.plan.runs_once() && window.begun.elapsed() >= self.plan.window => {
                let report = self.report(window);
                self.phase = Phase::Draining { report, busy: self.plan.clients };
            }
            _ => {}
        }
    }

    fn open_window(&mut self) {
        let system_calls = if self.plan.count_system_calls {
            SystemCalls::count(&self.plan.watched).map_err(|error| error.to_string())
        } else {
            Err("not asked for".to_owned())
        };
        let (reading, reading_of_server) = (self.plan.watched.read(), self.plan.server.read());
        self.phase =
            Phase::Measuring { window: Window { begun: Instant::now(), reading, reading_of_server, system_calls } };
    }

    fn report(&self, window: &Window) -> String {
        let seconds = window.begun.elapsed().as_secs_f64();
        let cpu_ns = self.plan.watched.cpu_ns_since(&window.reading);
        let server_cpu_ns = self.plan.server.cpu_ns_since(&window.reading_of_server);
        let system_calls = match &window.system_calls {
            Ok(counters) => counters.total().to_string(),
            Err(_) => "null".to_owned(),
        };
        let quantile = |quantile| self.latencies.value_at_quantile(quantile);
        format!(
            "{{\"seconds\": {seconds:.6}, \"transactions\": {}, \"bytes\": {}, \"p50_us\": {}, \"p99_us\": {}, \
             \"p999_us\": {}, \"max_us\": {}, \"cpu_ns\": {cpu_ns}, \"server_cpu_ns\": {server_cpu_ns}, \"system_calls\": {system_calls}, \
             \"rss_kb\": {}}}",
            self.transactions,
            self.bytes,
            quantile(0.5),
            quantile(0.99),
            quantile(0.999),
            self.latencies.max(),
            self.plan.watched.rss_kb(),
        )
    }
}

impl Plan {
    fn preparation(&self) -> Option<&'static [u8]> {
        let preparation = self.request.preparation;
        (!preparation.is_empty() && !self.skip_parse).then_some(preparation)
    }
}

/// A measurement with errors in it is none.
fn fail(why: &str) -> ! {
    eprintln!("load: {why}");
    std::process::exit(1);
}
