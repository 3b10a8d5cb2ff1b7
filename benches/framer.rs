//! The framer over streams as they come from a socket: short requests, answers to `select 1`, and a large result.
//!
//! One iteration is the whole stream, in slices of a chunk's size.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use qcp::protocol::writer::Full;
use qcp::protocol::{Direction, Framer, Step, TransactionStatus, Writer};

const SLICE_SIZE: usize = 16 * 1024;
const STREAM_SIZE: usize = 4 * SLICE_SIZE;

fn framer(criterion: &mut Criterion) {
    let requests = stream(|writer| writer.query(b"select 1"));
    let answers = stream(|writer| {
        writer.row_description(&[b"?column?"])?;
        writer.data_row(&[Some(b"1")])?;
        writer.command_complete(b"SELECT 1")?;
        writer.ready_for_query(TransactionStatus::Idle)
    });
    let row = [b'x'; 1000];
    let result = stream(|writer| writer.data_row(&[Some(&row)]));
    let streams = [
        ("requests", Direction::Frontend, requests),
        ("answers", Direction::Backend, answers),
        ("rows of 1000 bytes", Direction::Backend, result),
    ];
    let mut group = criterion.benchmark_group("framer");
    for (name, direction, stream) in streams {
        group.throughput(Throughput::Elements(messages(direction, &stream)));
        group.bench_function(name, |bencher| bencher.iter(|| messages(direction, black_box(&stream))));
    }
    group.finish();
}

/// As many of what `write` writes as there is room for.
fn stream(write: impl Fn(&mut Writer<'_>) -> Result<(), Full>) -> Vec<u8> {
    let mut room = [0; 2048];
    let mut writer = Writer::new(&mut room);
    write(&mut writer).expect("there is room");
    let one = writer.written();
    one.repeat(STREAM_SIZE / one.len())
}

/// Messages in `stream`, which whole messages fill.
fn messages(direction: Direction, stream: &[u8]) -> u64 {
    let mut framer = Framer::new(direction);
    let mut count = 0;
    // What the framer wants in one piece and is not, the shard keeps in a stash; here the slice begins with it.
    let mut begun = 0;
    while begun < stream.len() {
        let slice = &stream[begun..stream.len().min(begun + SLICE_SIZE)];
        let mut at = 0;
        loop {
            match framer.next(&slice[at..], |_, _| 0).expect("well formed") {
                Step::Message { available, .. } => {
                    count += 1;
                    at += available;
                }
                Step::Rest { length, .. } => at += length,
                Step::Incomplete { .. } | Step::End => break,
            }
        }
        begun += at;
    }
    assert!(framer.at_boundary());
    count
}

criterion_group!(benches, framer);
criterion_main!(benches);
