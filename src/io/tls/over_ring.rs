//! TLS over the shard's ring, as `process::shards` pumps it: the ring's turns with TLS's work in them.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use super::super::Event;
use super::super::ring::Ring;
use super::Tls;

impl Tls<Ring> {
    /// See [`Ring::wait`]. Does not wait while a handshake can go on.
    pub fn wait(&mut self, tick: Duration) -> io::Result<()> {
        self.end_turn();
        if self.has_work() {
            self.inner.arm_tick(tick);
            self.inner.submit()?;
            self.inner.wake();
        } else {
            self.inner.wait(tick)?;
        }
        self.begin_turn();
        Ok(())
    }

    /// See [`Ring::submit`].
    pub fn submit(&mut self) -> io::Result<bool> {
        self.end_turn();
        let has_more = self.inner.submit()?;
        self.begin_turn();
        Ok(has_more || self.has_work())
    }

    /// See [`Ring::next_event`].
    #[inline]
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.next_ready() {
                return Some(event);
            }
            match self.inner.next_event() {
                Some(event) => {
                    let event = self.on_event(event);
                    if event.is_some() {
                        return event;
                    }
                }
                None => {
                    if !self.step() {
                        return None;
                    }
                }
            }
        }
    }

    /// See [`Ring::wake`].
    pub fn wake(&mut self) {
        self.inner.wake();
    }

    /// See [`Ring::register_park`].
    pub fn register_park(&mut self, eventfd: RawFd) -> io::Result<()> {
        self.inner.register_park(eventfd)
    }

    /// See [`Ring::signal_park`].
    pub fn signal_park(&mut self, on: bool) {
        self.inner.signal_park(on);
    }

    /// See [`Ring::arm_tick`].
    pub fn arm_tick(&mut self, after: Duration) {
        self.inner.arm_tick(after);
    }

    /// See [`Ring::connection_count`].
    pub fn connection_count(&self) -> usize {
        self.inner.connection_count()
    }
}
