//! The load generator over TLS: the closed loop of `load` with rustls's own connections, from one thread and epoll. What it
//! costs itself is not measured. Prints the same line of JSON.
//!
//! In `churn` each connection makes a full handshake: nothing is resumed. `--direct true` begins with TLS at once, for
//! those that do not know an SSLRequest.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use floors::arguments::Arguments;
use floors::epoll::{Epoll, Watch};
use floors::watch::{Reading, Watched};
use floors::wire::{self, tag};
use hdrhistogram::Histogram;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Simple,
    Churn,
    Result,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The answer to the SSLRequest is awaited.
    Asking,
    Login,
    Busy,
}

struct Connection {
    socket: TcpStream,
    tls: ClientConnection,
    stage: Stage,
    begun: Instant,
    /// Bytes of the message under way that are still to come, and its tag.
    left: usize,
    tag: u8,
    head: Vec<u8>,
    watched_for_writing: bool,
}

struct Load {
    mode: Mode,
    port: u16,
    direct: bool,
    startup: Vec<u8>,
    request: Vec<u8>,
    config: Arc<ClientConfig>,
    epoll: Epoll,
    connections: Vec<Connection>,
    latencies: Histogram<u64>,
    transactions: u64,
    bytes: u64,
    ready: usize,
    measuring: bool,
}

fn main() {
    let arguments = Arguments::from_command_line();
    let mode = match arguments.text("mode").unwrap_or("simple") {
        "simple" => Mode::Simple,
        "churn" => Mode::Churn,
        "result" => Mode::Result,
        other => panic!("--mode {other}"),
    };
    let size: u64 = arguments.value("size", 1_000_000_000);
    let request = match mode {
        Mode::Simple | Mode::Churn => wire::query("select 1"),
        Mode::Result => wire::query(&format!("select repeat('x', 1000) from generate_series(1, {})", size / 1000)),
    };
    let watched = Watched::new(arguments.all("watch").map(|id| id.parse().expect("--watch PID")).collect());
    let mut load = Load {
        mode,
        port: arguments.required("port"),
        direct: arguments.value("direct", false),
        startup: wire::startup("bench", "bench"),
        request,
        config: config(),
        epoll: Epoll::create(),
        connections: Vec::new(),
        latencies: Histogram::new_with_bounds(1, 600_000_000, 3).expect("bounds of a histogram"),
        transactions: 0,
        bytes: 0,
        ready: 0,
        measuring: false,
    };
    let clients: usize = arguments.value("clients", 1);
    let warmup = Duration::from_millis(arguments.value("warmup-ms", 200));
    let window = Duration::from_millis(arguments.value("milliseconds", 1_000));
    println!("{}", load.run(clients, warmup, window, &watched));
}

/// Believes every certificate: what is measured is the other side. One version, one cipher, so that all are measured with
/// the same.
fn config() -> Arc<ClientConfig> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites = vec![rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384];
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let config = ClientConfig::builder_with_provider(Arc::new(provider));
    let config = config.with_protocol_versions(&[&rustls::version::TLS13]).expect("1.3 is there");
    let mut config = config.dangerous().with_custom_certificate_verifier(Arc::new(Believer)).with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Arc::new(config)
}

#[derive(Debug)]
struct Believer;

impl ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        use SignatureScheme as S;
        vec![S::ECDSA_NISTP256_SHA256, S::RSA_PSS_SHA256, S::RSA_PKCS1_SHA256, S::ED25519]
    }
}

impl Load {
    fn run(&mut self, clients: usize, warmup: Duration, window: Duration, watched: &Watched) -> String {
        for slot in 0..clients {
            let connection = self.open();
            self.epoll.add(connection.socket.as_raw_fd(), Watch::Read, slot as u64);
            self.connections.push(connection);
        }
        while self.ready < clients && self.mode != Mode::Churn {
            self.turn();
        }
        let mut begun = Instant::now();
        if self.mode == Mode::Result {
            self.measuring = true;
            let reading = watched.read();
            begun = Instant::now();
            (0..clients).for_each(|slot| self.ask(slot));
            while (self.transactions as usize) < clients {
                self.turn();
            }
            return self.report(begun, &reading, watched);
        }
        if self.mode == Mode::Simple {
            (0..clients).for_each(|slot| self.ask(slot));
        }
        while begun.elapsed() < warmup {
            self.turn();
        }
        self.measuring = true;
        let reading = watched.read();
        begun = Instant::now();
        while begun.elapsed() < window {
            self.turn();
        }
        self.report(begun, &reading, watched)
    }

    fn report(&self, begun: Instant, reading: &Reading, watched: &Watched) -> String {
        let quantile = |quantile| self.latencies.value_at_quantile(quantile);
        format!(
            "{{\"seconds\": {:.6}, \"transactions\": {}, \"bytes\": {}, \"p50_us\": {}, \"p99_us\": {}, \
             \"p999_us\": {}, \"max_us\": {}, \"cpu_ns\": {}, \"system_calls\": null, \"rss_kb\": {}}}",
            begun.elapsed().as_secs_f64(),
            self.transactions,
            self.bytes,
            quantile(0.5),
            quantile(0.99),
            quantile(0.999),
            self.latencies.max(),
            watched.cpu_ns_since(reading),
            watched.rss_kb(),
        )
    }

    fn open(&self) -> Connection {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).unwrap_or_else(|error| fail(&error.to_string()));
        socket.set_nodelay(true).expect("a TCP socket");
        let name = ServerName::try_from("localhost").expect("a name");
        let tls = ClientConnection::new(self.config.clone(), name).expect("a right configuration");
        let stage = if self.direct { Stage::Login } else { Stage::Asking };
        let mut connection = Connection {
            socket: socket.try_clone().expect("a descriptor is left"),
            tls,
            stage,
            begun: Instant::now(),
            left: 0,
            tag: 0,
            head: Vec::new(),
            watched_for_writing: false,
        };
        connection.tls.writer().write_all(&self.startup).expect("into memory");
        if !self.direct {
            socket.write_all(&SSL_REQUEST).unwrap_or_else(|error| fail(&error.to_string()));
        }
        connection.socket = socket;
        connection.socket.set_nonblocking(true).expect("a socket");
        if self.direct {
            connection.flush();
        }
        connection
    }

    fn turn(&mut self) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        let count = self.epoll.wait(&mut events);
        for event in &events[..count] {
            self.on_readiness(event.u64 as usize);
        }
    }

    fn on_readiness(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        if connection.stage == Stage::Asking {
            let mut answer = [0];
            match connection.socket.read(&mut answer) {
                Ok(1) if answer == *b"S" => connection.stage = Stage::Login,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                other => fail(&format!("the answer to the SSLRequest: {other:?} {answer:?}")),
            }
        }
        let mut buffer = [0; 65536];
        let mut readies = 0;
        loop {
            match connection.tls.read_tls(&mut connection.socket) {
                Ok(0) => fail("the connection was closed"),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => fail(&error.to_string()),
            }
            if let Err(error) = connection.tls.process_new_packets() {
                fail(&error.to_string());
            }
            while let Ok(count @ 1..) = connection.tls.reader().read(&mut buffer) {
                if self.measuring {
                    self.bytes += count as u64;
                }
                readies += connection.scan(&buffer[..count]);
            }
            if self.mode == Mode::Result {
                break;
            }
        }
        connection.flush();
        self.watch(slot);
        for _ in 0..readies {
            self.on_ready(slot);
        }
    }

    /// Also when it can write, as long as something is left to be written.
    fn watch(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        let wants = connection.tls.wants_write() && connection.stage != Stage::Asking;
        if wants != connection.watched_for_writing {
            connection.watched_for_writing = wants;
            let watch = if wants { Watch::ReadWrite } else { Watch::Read };
            self.epoll.change(connection.socket.as_raw_fd(), watch, slot as u64);
        }
    }

    fn on_ready(&mut self, slot: usize) {
        match self.connections[slot].stage {
            Stage::Asking => unreachable!("nothing is said before the handshake"),
            Stage::Login if self.mode == Mode::Churn => self.ask(slot),
            Stage::Login => {
                self.connections[slot].stage = Stage::Busy;
                self.ready += 1;
            }
            Stage::Busy => {
                if self.measuring {
                    self.transactions += 1;
                    let took = self.connections[slot].begun.elapsed().as_micros() as u64;
                    self.latencies.saturating_record(took.max(1));
                }
                match self.mode {
                    Mode::Simple => self.ask(slot),
                    Mode::Result => {}
                    Mode::Churn => {
                        let connection = &mut self.connections[slot];
                        let _ = connection.tls.writer().write_all(&[tag::TERMINATE, 0, 0, 0, 4]);
                        connection.flush();
                        let next = self.open();
                        self.epoll.add(next.socket.as_raw_fd(), Watch::Read, slot as u64);
                        self.connections[slot] = next;
                    }
                }
            }
        }
    }

    fn ask(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        if self.mode != Mode::Churn {
            connection.begun = Instant::now();
        }
        connection.stage = Stage::Busy;
        connection.tls.writer().write_all(&self.request).expect("into memory");
        connection.flush();
        self.watch(slot);
    }
}

impl Connection {
    fn flush(&mut self) {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => fail(&error.to_string()),
            }
        }
    }

    /// ReadyForQuery messages that end in these bytes.
    fn scan(&mut self, mut bytes: &[u8]) -> usize {
        let mut readies = 0;
        while !bytes.is_empty() {
            if self.left == 0 {
                let missing = (5 - self.head.len()).min(bytes.len());
                self.head.extend_from_slice(&bytes[..missing]);
                bytes = &bytes[missing..];
                let Some(head) = self.head.first_chunk::<5>() else { return readies };
                self.tag = head[0];
                self.left = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4;
                self.head.clear();
                if self.tag == tag::ERROR_RESPONSE {
                    fail(&wire::error_text(bytes));
                }
            }
            let passed = self.left.min(bytes.len());
            self.left -= passed;
            bytes = &bytes[passed..];
            readies += usize::from(self.left == 0 && self.tag == tag::READY_FOR_QUERY);
        }
        readies
    }
}

/// A measurement with errors in it is none.
fn fail(why: &str) -> ! {
    eprintln!("load: {why}");
    std::process::exit(1);
}
