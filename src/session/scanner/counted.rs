//! How much of texts has been looked at on this thread, for tests that say how much may be. Not there in a release.

use std::cell::Cell;

/// Bytes so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counted {
    /// Read by the scanner.
    pub scanned: u64,
    /// Hashed, to find what is known of a text.
    pub hashed: u64,
}

thread_local! {
    static COUNTED: Cell<Counted> = const { Cell::new(Counted { scanned: 0, hashed: 0 }) };
}

/// What has been counted so far.
pub fn so_far() -> Counted {
    COUNTED.get()
}

pub(super) fn add_scanned(size: usize) {
    let counted = COUNTED.get();
    COUNTED.set(Counted { scanned: counted.scanned + size as u64, ..counted });
}

pub(super) fn add_hashed(size: usize) {
    let counted = COUNTED.get();
    COUNTED.set(Counted { hashed: counted.hashed + size as u64, ..counted });
}
