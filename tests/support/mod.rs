//! What the test crates share: a private PostgreSQL, a qcp in front of it, and clients of both.
//!
//! Nothing started here outlives the process that started it, however that process ends.

// Each test crate uses its own part of this.
#![allow(dead_code)]

pub mod certificates;
pub mod door;
pub mod pooler;
pub mod postgres;
pub mod proc;
pub mod programs;
pub mod raw;
pub mod server;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Where something that speaks PostgreSQL listens: a host and port, or a folder with a `.s.PGSQL.<port>` in it.
#[derive(Clone, Debug)]
pub struct Address {
    pub host: String,
    pub port: u16,
}

impl Address {
    pub fn loopback(port: u16) -> Address {
        Address { host: "127.0.0.1".to_owned(), port }
    }

    /// A libpq connection string, without a password.
    pub fn conninfo(&self, user: &str, database: &str) -> String {
        format!("host={} port={} user={user} dbname={database}", self.host, self.port)
    }
}

/// A port that nobody listens on. Taken below the ephemeral range, where no outgoing connection can sit on it.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset = (std::process::id() as u16).wrapping_mul(131).wrapping_add(step) % COUNT;
        // Asked rather than tried: another thread's child would have a socket that listens there until it is the program it is to be.
        let answer = TcpStream::connect((Ipv4Addr::LOCALHOST, FIRST + offset));
        if answer.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
            return FIRST + offset;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}

/// Asks `condition` until it holds; fails the test with `what` when `limit` has passed.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
