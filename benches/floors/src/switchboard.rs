//! Who is linked with whom: transaction pooling by message headers only, the same for both floors.
//!
//! Invariant: a backend is in `idle`, or linked with one client, or neither because it is about to be closed.

use crate::scanner::Scanner;
use crate::wire::{self, tag};
use std::collections::VecDeque;

/// What a client has asked for and not yet got.
#[derive(Default)]
pub struct Requests {
    scanner: Scanner,
    readies_due: u32,
    /// Parse, Bind, ... were sent and their Sync was not.
    unsynced: bool,
}

impl Requests {
    #[inline]
    pub fn on_frontend(&mut self, bytes: &[u8]) {
        let (readies_due, unsynced) = (&mut self.readies_due, &mut self.unsynced);
        self.scanner.scan(bytes, |tag, _| match tag {
            tag::QUERY | tag::SYNC | tag::FUNCTION_CALL => {
                *readies_due += 1;
                *unsynced = false;
            }
            tag::COPY_DATA | tag::COPY_DONE | tag::COPY_FAIL => {}
            _ => *unsynced = true,
        });
    }

    #[inline]
    pub fn is_settled(&self) -> bool {
        self.readies_due == 0 && !self.unsynced && !self.scanner.is_inside_message()
    }
}

/// Follows a backend's answers to the client that is linked with it.
#[derive(Default)]
pub struct Replies {
    scanner: Scanner,
    idle: bool,
}

impl Replies {
    #[inline]
    pub fn on_backend(&mut self, bytes: &[u8], requests: &mut Requests) {
        let idle = &mut self.idle;
        self.scanner.scan(bytes, |tag, last| {
            if tag == tag::READY_FOR_QUERY {
                requests.readies_due = requests.readies_due.saturating_sub(1);
                *idle = last == wire::IDLE;
            }
        });
    }

    #[inline]
    pub fn releases(&self, requests: &Requests) -> bool {
        self.idle && requests.is_settled() && !self.scanner.is_inside_message()
    }
}

pub enum Checkout {
    Ready(u32),
    Dial,
    Wait,
}

pub struct Switchboard {
    idle: Vec<u32>,
    waiters: VecDeque<u32>,
    open: usize,
    size: usize,
}

impl Switchboard {
    pub fn new(size: usize) -> Switchboard {
        Switchboard { idle: Vec::with_capacity(size), waiters: VecDeque::new(), open: 0, size }
    }

    /// A client that has to wait is remembered, the longest waiting first.
    #[inline]
    pub fn checkout(&mut self, client: u32) -> Checkout {
        if let Some(backend) = self.idle.pop() {
            return Checkout::Ready(backend);
        }
        if self.open < self.size {
            self.open += 1;
            return Checkout::Dial;
        }
        self.waiters.push_back(client);
        Checkout::Wait
    }

    /// The client which gets the backend now, if one waits.
    #[inline]
    pub fn checkin(&mut self, backend: u32) -> Option<u32> {
        let waiter = self.waiters.pop_front();
        if waiter.is_none() {
            self.idle.push(backend);
        }
        waiter
    }

    #[cold]
    pub fn forget_waiter(&mut self, client: u32) {
        self.waiters.retain(|&waiter| waiter != client);
    }

    /// A backend is gone; the client, if one waits, for which another may be dialled in its place.
    #[cold]
    pub fn forget_backend(&mut self, backend: u32) -> Option<u32> {
        self.idle.retain(|&idle| idle != backend);
        let waiter = self.waiters.pop_front();
        if waiter.is_none() {
            self.open -= 1;
        }
        waiter
    }
}
