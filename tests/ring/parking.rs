//! A ring that is parked is woken: by the doorbell and by traffic, every time. The kernel can defer the signal of a ring's
//! eventfd for ever (see `qcp::io::doorbell`), and glommio 0.9 can park an executor that has something to run.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use glommio::{LocalExecutorBuilder, Placement};
use qcp::ids::DoorId;
use qcp::io::doorbell::Doorbell;
use qcp::io::park::Park;
use qcp::io::ring::{Ring, Settings};
use qcp::io::{Event, Transport};
use qcp::memory::Arena;

/// Nobody sleeps longer than this who has been woken, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(5);
const ROUNDS: u32 = 3000;

#[derive(Debug, PartialEq, Eq)]
enum Woken {
    ByDoorbell,
    ByTraffic,
}

/// Parks at every turn, as `process::shards` does where it is quiet; but no tick is there to save who was not woken.
async fn sleeper(doorbell: Doorbell, port: Sender<u16>, woken: Sender<Woken>, stop: Arc<AtomicBool>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let number = listener.local_addr().expect("it is bound").port();
    let settings = Settings {
        arena: Arena::new(4096, 32).expect("memory"),
        connections_max: 8,
        nodes_count: 32,
        backend_reserve: 4,
        ready_max: 4,
    };
    let mut ring = Ring::new(settings, doorbell.clone()).expect("io_uring");
    ring.listen(listener.into(), false, DoorId(0));
    let park = Park::new(&doorbell).expect("a descriptor");
    ring.register_park(park.descriptor()).expect("an eventfd");
    port.send(number).expect("the test waits for it");
    while !stop.load(Ordering::Relaxed) {
        ring.signal_park(true);
        if !ring.submit().expect("io_uring works") {
            park.wait().await;
        }
        ring.signal_park(false);
        ring.wake();
        while let Some(event) = ring.next_event() {
            let told = match event {
                Event::Accepted { connection, .. } => {
                    ring.receive(connection, true);
                    None
                }
                Event::Received { connection, bytes } => {
                    ring.send(connection, bytes);
                    Some(Woken::ByTraffic)
                }
                Event::Rung => Some(Woken::ByDoorbell),
                _ => None,
            };
            if let Some(told) = told {
                // Nobody listens any more only where the test has failed.
                let _ = woken.send(told);
            }
        }
    }
}

fn expect(woken: &Receiver<Woken>, expected: Woken, round: u32) {
    match woken.recv_timeout(PATIENCE) {
        Ok(found) => assert_eq!(found, expected, "round {round}"),
        Err(_) => panic!("round {round}: {expected:?}: it sleeps on"),
    }
}

#[test]
fn a_parked_ring_is_woken_by_the_doorbell_and_by_traffic() {
    let doorbell = Doorbell::new().expect("descriptors");
    let stop = Arc::new(AtomicBool::new(false));
    let (port_to, port) = channel();
    let (woken_to, woken) = channel();
    let (bell, stopped) = (doorbell.clone(), stop.clone());
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(0)
        .ring_depth(256)
        .preempt_timer(Duration::from_secs(10))
        .spawn(move || sleeper(bell, port_to, woken_to, stopped))
        .expect("an executor");
    let port = port.recv_timeout(PATIENCE).expect("it starts");
    let mut peer = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    peer.set_nodelay(true).expect("a fresh socket");
    peer.set_read_timeout(Some(PATIENCE)).expect("a fresh socket");
    let mut byte = [0];
    for round in 0..ROUNDS {
        // Now and then it gets the time to fall asleep for certain; else it is caught on its way.
        if round.is_multiple_of(16) {
            std::thread::sleep(Duration::from_millis(1));
        }
        match round % 3 {
            0 => {
                doorbell.ring();
                expect(&woken, Woken::ByDoorbell, round);
            }
            1 => {
                peer.write_all(&[1]).expect("it is there");
                expect(&woken, Woken::ByTraffic, round);
                peer.read_exact(&mut byte).expect("it echoes");
            }
            _ => {
                // Both at once, in either order of arrival.
                doorbell.ring();
                peer.write_all(&[1]).expect("it is there");
                let mut both = [woken.recv_timeout(PATIENCE), woken.recv_timeout(PATIENCE)];
                both.sort_by_key(|woken| *woken == Ok(Woken::ByTraffic));
                assert_eq!(both, [Ok(Woken::ByDoorbell), Ok(Woken::ByTraffic)], "round {round}");
                peer.read_exact(&mut byte).expect("it echoes");
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    doorbell.ring();
    executor.join().expect("it ends");
}

/// glommio 0.9 parks an executor with runnable tasks if it was not scheduled between arming its preempt timer and looking
/// at it. A shard's measures against it, a long preempt timer and a tick: with both it is never silent for long, also
/// where the processor is fought over.
#[test]
fn an_executor_with_a_tick_is_never_silent_for_long() {
    let turns = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let core = core_affinity::get_core_ids().unwrap_or_default().first().map_or(0, |core| core.id);
    let rivals: Vec<_> = (0..2)
        .map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                core_affinity::set_for_current(core_affinity::CoreId { id: core });
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    let (counted, stopped) = (turns.clone(), stop.clone());
    let executor = LocalExecutorBuilder::new(Placement::Fixed(core))
        .io_memory(0)
        // A thousandth of a shard's, so that the wrong park happens within the test.
        .preempt_timer(preempt_timer())
        .spawn(move || async move {
            if std::env::var_os("NO_TICK").is_none() {
                glommio::spawn_local(async {
                    loop {
                        glommio::timer::sleep(Duration::from_millis(100)).await;
                    }
                })
                .detach();
            }
            while !stopped.load(Ordering::Relaxed) {
                counted.fetch_add(1, Ordering::Relaxed);
                // Always runnable: it never waits for anything.
                glommio::executor().yield_task_queue_now().await;
            }
        })
        .expect("an executor");
    let begun = Instant::now();
    let (mut last, mut last_at, mut longest) = (0, Instant::now(), Duration::ZERO);
    while begun.elapsed() < Duration::from_secs(4) {
        std::thread::sleep(Duration::from_millis(5));
        let count = turns.load(Ordering::Relaxed);
        if count != last {
            (last, last_at) = (count, Instant::now());
        }
        longest = longest.max(last_at.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    println!("{last} turns; silent for {longest:?} at most");
    assert!(last > 0 && longest < Duration::from_secs(2), "{last} turns; silent for {longest:?}");
    executor.join().expect("it ends");
    for rival in rivals {
        rival.join().expect("it ends");
    }
}

fn preempt_timer() -> Duration {
    Duration::from_millis(1)
}
