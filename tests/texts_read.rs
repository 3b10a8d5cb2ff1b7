//! How much of clients' texts is looked at where sessions are kept: of a statement that is known nothing, of the text of a simple
//! query each byte once.

// Only such a build counts.
#![cfg(debug_assertions)]

#[path = "support/played.rs"]
mod played;

use played::{Kind, Part, Sizes, World};
use qcp::session::Transparency;
use qcp::session::scanner::counted;

const CLIENTS: usize = 8;
const SIZES: Sizes = Sizes { clients: CLIENTS, backends: 3, texts: 4, statements_max: 200, preserve: None };
const ROUNDS: u64 = 10;
/// `SELECT 0`, which is all that clients ask here.
const TEXT_SIZE: u64 = 8;

#[test]
fn a_known_text_is_not_read_again() {
    for transparency in [Transparency::Fast, Transparency::Balanced] {
        let mut world = World::new(Sizes { preserve: Some(transparency), ..SIZES }, || (), || ());
        for kind in Kind::ALL {
            world.transact(kind, Part::Prepare);
            world.transact(kind, Part::Transaction);
            let before = counted::so_far();
            for _ in 0..ROUNDS {
                world.transact(kind, Part::Transaction);
            }
            let after = counted::so_far();
            assert_eq!(after.scanned, before.scanned, "{kind:?}, {transparency:?}");
            let each = TEXT_SIZE * ROUNDS * CLIENTS as u64;
            let expected = match kind {
                // Each brings the text again.
                Kind::Simple | Kind::Extended => each..=each,
                // A Parse that is not answered from what is known goes to a server.
                Kind::PreparedEachTime if transparency == Transparency::Balanced => 0..=each,
                // Bind and Execute by a name.
                Kind::Prepared | Kind::PreparedEachTime => 0..=0,
            };
            assert!(expected.contains(&(after.hashed - before.hashed)), "{kind:?}, {transparency:?}");
        }
        assert_eq!(world.backend_count(), SIZES.backends);
    }
}
