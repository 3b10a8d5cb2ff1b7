//! Peers that do not read: what waits for them holds few chunks, no byte is lost, and the others are received from.

use std::time::{Duration, Instant};

use qcp::io::doorbell::Doorbell;
use qcp::io::{Event, Transport};
use qcp::memory::Arena;

use super::nets::{Net, Sockets};

const PEERS: u32 = 100;
const CHUNKS: usize = 512;

/// Each of many peers gets so much that its socket is full, and then a little again and again, each time from a chunk that
/// others were sent from too.
#[test]
fn a_little_for_each_of_many_does_not_hold_a_chunk_each() {
    let arena = Arena::new(66_560, CHUNKS).expect("memory");
    let mut net = Sockets::with_arena(arena.clone(), 8, Doorbell::new().expect("descriptors"));
    let mut events = Vec::new();
    let mut connections = Vec::new();
    for serial in 0..PEERS {
        net.connect_peer(2 * serial + 1);
        net.peer_reads(2 * serial + 1, false);
        while connections.len() <= serial as usize {
            net.turn(&mut events);
            for event in events.drain(..) {
                if let Event::Accepted { connection, .. } = event {
                    net.accepted(connection);
                    connections.push((connection, net.ring.owner(connection).expect("just accepted") as u32));
                }
            }
        }
    }
    let at_rest = arena.free_count();
    let mut sent = vec![Vec::new(); PEERS as usize];
    let mut send = |net: &mut Sockets, at: usize, bytes: &[u8]| {
        let slice = net.ring.scratch().copy(bytes).expect("a chunk is free");
        net.ring.send(connections[at].0, slice);
        sent[at].extend_from_slice(bytes);
    };
    // One after the other, until the kernel takes no more from it.
    for (at, &(connection, _)) in connections.iter().enumerate() {
        for round in 0..5000u32 {
            send(&mut net, at, &[round as u8; 1000]);
            net.turn(&mut events);
            net.turn(&mut events);
            if net.ring.queued(connection).0 > 0 {
                break;
            }
        }
        assert!(net.ring.queued(connection).0 > 0, "its socket is full");
    }
    for round in 0..50u8 {
        for at in 0..PEERS as usize {
            send(&mut net, at, &[round; 20]);
        }
        net.turn(&mut events);
    }
    let before = at_rest - arena.free_count();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(900) {
        net.turn(&mut events);
        std::thread::sleep(Duration::from_millis(2));
    }
    let queued: usize = connections.iter().map(|&(id, _)| net.ring.queued(id).0).sum();
    let held = at_rest - arena.free_count();
    // Blocks are cut in a few sizes, each from chunks of its own.
    let fair = 2 * queued / arena.chunk_size() + 4;
    println!("{queued} bytes are queued: {before} chunks held at first, then {held}; {fair} would be fair");
    assert!(before > 2 * fair, "the test shows nothing");
    assert!(held <= fair, "{held} chunks hold {queued} bytes; {fair} would be fair");
    for &(_, serial) in &connections {
        net.peer_reads(serial, true);
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while (0..PEERS as usize).any(|at| net.peer_got(connections[at].1).0.len() < sent[at].len()) {
        net.turn(&mut events);
        assert!(Instant::now() < deadline, "bytes are lost");
    }
    for at in 0..PEERS as usize {
        assert!(net.peer_got(connections[at].1).0 == sent[at], "bytes are not what was sent");
    }
    for _ in 0..10 {
        net.turn(&mut events);
    }
    assert_eq!(arena.free_count(), at_rest, "all chunks are back");
    assert!(!events.iter().any(|event| matches!(event, Event::Ended { .. })), "nobody was cut off");
}
