//! No heap allocation per query: a shard between clients and a played server, and an allocator that counts.
//!
//! Counted is what happens inside the shard on the thread of the test, once everything has been there before.
//! One test, in a process of its own: the allocator is the process's.

#[path = "support/played.rs"]
mod played;

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::{Mutex, PoisonError};

use played::{Kind, Part, Sizes, World};
use qcp::session::Transparency;

const CLIENTS: usize = 8;
const SIZES: Sizes = Sizes {
    clients: CLIENTS,
    // Fewer, so that clients wait and backends go round.
    backends: 3,
    texts: CLIENTS / 2,
    // Fewer than there are, so that a backend has to close one for another.
    statements_max: CLIENTS / 2 - 1,
    preserve: None,
};
const WARM_UP: usize = 500;
const MEASURED: usize = 1000;

#[test]
fn a_query_allocates_nothing() {
    for preserve in [None, Some(Transparency::Fast)] {
        check(Sizes { preserve, ..SIZES });
    }
}

fn check(sizes: Sizes) {
    let mut world = World::new(sizes, || IS_COUNTING.set(true), || IS_COUNTING.set(false));
    for kind in Kind::ALL {
        world.transact(kind, Part::Prepare);
        for _ in 0..WARM_UP / CLIENTS {
            world.transact(kind, Part::Transaction);
        }
        COUNTED.set(0);
        for _ in 0..MEASURED / CLIENTS {
            world.transact(kind, Part::Transaction);
        }
        let first = FIRST.lock().unwrap_or_else(PoisonError::into_inner).take();
        let first = first.map(|trace| trace.to_string()).unwrap_or_default();
        assert_eq!(
            COUNTED.get(),
            0,
            "allocations of {MEASURED} transactions, {kind:?}, {:?}; the first:\n{first}",
            sizes.preserve
        );
    }
    assert_eq!(world.backend_count(), SIZES.backends);
}

// The allocator.

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Where the first allocation came from that should not be.
static FIRST: Mutex<Option<Backtrace>> = Mutex::new(None);

thread_local! {
    static IS_COUNTING: Cell<bool> = const { Cell::new(false) };
    static COUNTED: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: all is left to the system's allocator; what is done besides allocates only while nothing is counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the promises of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the promises of `dealloc`, and `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the promises of `realloc`, and `pointer` came from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn count() {
    if !IS_COUNTING.replace(false) {
        return;
    }
    COUNTED.set(COUNTED.get() + 1);
    if COUNTED.get() == 1 {
        *FIRST.lock().unwrap_or_else(PoisonError::into_inner) = Some(Backtrace::force_capture());
    }
    IS_COUNTING.set(true);
}
