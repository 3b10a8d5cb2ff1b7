//! The scanner of SQL over texts as clients send them: how many bytes it reads in a second.
//!
//! `QCP_BENCH_SQL` names a folder of `.sql` files, of which each statement is what psql would send; without it the texts are
//! those of `scanner.sql`. One iteration is all of them: once each by itself, once those of a file as one text.

use std::hint::black_box;
use std::path::PathBuf;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use qcp::session::scanner::{Effects, Scanner};

fn scanner(criterion: &mut Criterion) {
    let folder = std::env::var_os("QCP_BENCH_SQL").map(PathBuf::from);
    let name = if folder.is_some() { "given files" } else { "scanner.sql" };
    let files: Vec<Vec<Vec<u8>>> = match folder {
        Some(folder) => {
            let listed = std::fs::read_dir(&folder).expect("QCP_BENCH_SQL is a folder");
            let mut paths: Vec<PathBuf> = listed.map(|entry| entry.expect("it can be listed").path()).collect();
            paths.retain(|path| path.extension().is_some_and(|extension| extension == "sql"));
            paths.sort();
            paths.iter().map(|path| statements(&std::fs::read(path).expect("it can be read"))).collect()
        }
        None => vec![statements(include_bytes!("scanner.sql"))],
    };
    let joined: Vec<Vec<u8>> = files.iter().map(|statements| statements.concat()).collect();
    let alone: Vec<Vec<u8>> = files.into_iter().flatten().collect();
    assert!(!alone.is_empty(), "there are statements");
    let mut group = criterion.benchmark_group("scanner");
    for (way, texts) in [("file by file", &joined), ("each statement", &alone)] {
        let mut scanner = Scanner::default();
        for text in texts {
            assert!(is_read_whole(&mut scanner, text), "{}", String::from_utf8_lossy(text));
        }
        group.throughput(Throughput::Bytes(texts.iter().map(|text| text.len() as u64).sum()));
        group.bench_function(format!("{name}, {way}"), |bencher| {
            bencher.iter(|| {
                for text in texts {
                    black_box(scanner.scan(black_box(text), false));
                }
            });
        });
    }
    group.finish();
}

/// Whether what stands behind it is seen. What could not be read to its end would look fast.
fn is_read_whole(scanner: &mut Scanner, text: &[u8]) -> bool {
    let followed = [text, b"\n;listen a"].concat();
    scanner.scan(&followed, false).effects.has(Effects::LISTEN)
}

/// What psql would send of a file, each with its semicolon and what stands before it; its own commands, the data of COPY
/// and what is cut off (in tests of errors) are left out.
fn statements(file: &[u8]) -> Vec<Vec<u8>> {
    let mut sql = Vec::with_capacity(file.len());
    let mut in_data = false;
    for line in file.split_inclusive(|&byte| byte == b'\n') {
        if in_data {
            in_data = !line.starts_with(b"\\.");
        } else if !line.starts_with(b"\\") {
            sql.extend_from_slice(line);
            let lower = line.trim_ascii().to_ascii_lowercase();
            in_data = lower.starts_with(b"copy ") && contains(&lower, b"from stdin") && lower.ends_with(b";");
        }
    }
    let mut found = Vec::new();
    let mut begin = 0;
    let mut at = 0;
    while at < sql.len() {
        let rest = &sql[at..];
        at += match rest[0] {
            b'\'' | b'"' => 1 + until(&rest[1..], &rest[..1]),
            b'-' if rest.starts_with(b"--") => until(rest, b"\n"),
            b'/' if rest.starts_with(b"/*") => until(rest, b"*/"),
            b'$' => {
                let tag = rest[1..].iter().take_while(|&&byte| byte.is_ascii_alphanumeric() || byte == b'_').count();
                match rest.get(1 + tag) {
                    Some(b'$') => tag + 2 + until(&rest[tag + 2..], &rest[..tag + 2]),
                    _ => 1,
                }
            }
            _ => 1,
        };
        if rest[0] == b';' {
            found.push(sql[begin..at].to_vec());
            begin = at;
        }
    }
    let mut scanner = Scanner::default();
    found.retain(|text| is_read_whole(&mut scanner, text));
    found
}

/// How many bytes there are up to the end of the first `end`, or in all.
fn until(text: &[u8], end: &[u8]) -> usize {
    text.windows(end.len()).position(|window| window == end).map_or(text.len(), |at| at + end.len())
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

criterion_group!(benches, scanner);
criterion_main!(benches);
