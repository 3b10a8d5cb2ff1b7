//! What is done to the server while clients talk.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::client::Shared;
use super::random::Random;
use super::support::raw::{PROTOCOL_3_0, RawClient, Received, startup};
use super::support::server::Server;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    KillBackend,
    KillPostmaster,
    StopBackend,
    StopAll,
    Restart,
    TerminateAll,
    Exhaust,
}

pub const ALL: [Disturbance; 7] = [
    Disturbance::KillBackend,
    Disturbance::KillPostmaster,
    Disturbance::StopBackend,
    Disturbance::StopAll,
    Disturbance::Restart,
    Disturbance::TerminateAll,
    Disturbance::Exhaust,
];

/// How long a connection may still be lost when a disturbance is over: the pooler's longest pause between attempts, and
/// what waits in its queue by then.
pub const AFTERMATH: Duration = Duration::from_secs(8);

/// Within this time after the server is back clients are served again: `reconnect.max_backoff`, and a login.
const RECOVERY: Duration = Duration::from_secs(6);

/// Does it, and waits until the server accepts again. An error is a failure of the run.
pub fn disturb(server: &Server, shared: &Shared, random: &mut Random, what: Disturbance) -> Result<(), String> {
    shared.disturbed_until.store(u64::MAX, Ordering::Relaxed);
    let backends = || -> Vec<u32> {
        let text =
            server.execute("postgres", &format!("SELECT pid FROM pg_stat_activity WHERE usename = '{}'", shared.user));
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    let pause = Duration::from_millis(random.between(500, 4000));
    match what {
        Disturbance::KillBackend => {
            let backends = backends();
            if !backends.is_empty() {
                server.signal(*random.one_of(&backends), Signal::SIGKILL);
            }
        }
        Disturbance::KillPostmaster => {
            server.kill();
            std::thread::sleep(pause / 2);
            server.launch();
        }
        Disturbance::StopBackend => {
            let backends = backends();
            if !backends.is_empty() {
                let backend = *random.one_of(&backends);
                server.signal(backend, Signal::SIGSTOP);
                std::thread::sleep(pause);
                server.signal(backend, Signal::SIGCONT);
            }
        }
        Disturbance::StopAll => {
            let processes = server.processes();
            for &process in &processes {
                server.signal(process, Signal::SIGSTOP);
            }
            std::thread::sleep(pause);
            for &process in processes.iter().rev() {
                server.signal(process, Signal::SIGCONT);
            }
        }
        Disturbance::Restart => {
            server.stop("fast");
            std::thread::sleep(pause / 4);
            server.launch();
        }
        Disturbance::TerminateAll => {
            let condition = format!("usename = '{}'", shared.user);
            server.execute(
                "postgres",
                &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {condition}"),
            );
        }
        Disturbance::Exhaust => {
            // Strangers take all connections, of which some become free when the pooler's are ended.
            let mut strangers = Vec::new();
            let mut fill = || {
                while let Some(stranger) = stranger(server) {
                    strangers.push(stranger);
                }
            };
            fill();
            let condition = format!("usename = '{}'", shared.user);
            server.execute(
                "postgres",
                &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {condition}"),
            );
            let until = Instant::now() + pause;
            while Instant::now() < until {
                fill();
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    server.wait_ready();
    let answered = shared.counts.answered.load(Ordering::Relaxed);
    let ready = Instant::now();
    while shared.counts.answered.load(Ordering::Relaxed) < answered + 20 {
        if ready.elapsed() > RECOVERY {
            return Err(format!(
                "at {} ms: after {what:?} the server is back for {RECOVERY:?}, and nobody is served",
                shared.now_ms()
            ));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    eprintln!("{:>8} ms {what:?}: served again after {} ms", shared.now_ms(), ready.elapsed().as_millis());
    shared.disturbed_until.store(shared.now_ms() + AFTERMATH.as_millis() as u64, Ordering::Relaxed);
    Ok(())
}

/// Another connection to the server; `None` when it has no more.
fn stranger(server: &Server) -> Option<RawClient> {
    let mut client = RawClient::connect(&server.tcp());
    client.send(&startup(PROTOCOL_3_0, &[("user", "stranger"), ("database", "postgres")]));
    loop {
        match client.receive(Duration::from_secs(5)) {
            Received::Message(message) if message.tag == b'Z' => return Some(client),
            Received::Message(message) if message.tag == b'E' => return None,
            Received::Message(_) => {}
            Received::Quiet | Received::Closed => return None,
        }
    }
}
