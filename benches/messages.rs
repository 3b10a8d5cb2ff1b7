//! What is looked at inside messages: names in Parse, Bind and Close, command tags, errors, and a client's names for
//! its prepared statements. There is no scanner of SQL yet; its benchmark belongs beside this one.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use qcp::protocol::error::Severity;
use qcp::protocol::tag::TargetKind;
use qcp::protocol::writer::{Full, NO_PARAMETER_TYPES, NO_PARAMETERS};
use qcp::protocol::{ErrorFields, SqlState, Writer, reader};
use qcp::session::prepared::{Names, Prepared, backend_name};

/// As drivers name them.
const NAME: &[u8] = b"__asyncpg_stmt_17__";

fn messages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("messages");
    let text = b"SELECT abalance FROM pgbench_accounts WHERE aid = $1";
    let parse = written(|writer| writer.parse(NAME, text, NO_PARAMETER_TYPES));
    group.bench_function("parse", |bencher| bencher.iter(|| reader::parse(black_box(&parse)).expect("well formed")));
    let bind = written(|writer| writer.bind(b"", NAME, NO_PARAMETERS));
    group.bench_function("names of a bind", |bencher| {
        bencher.iter(|| reader::bind_names(black_box(&bind)).expect("well formed").expect("whole"));
    });
    let close = written(|writer| writer.close(TargetKind::Statement, NAME));
    group.bench_function("target of a close", |bencher| {
        bencher.iter(|| reader::target(black_box(&close)).expect("well formed").expect("whole"));
    });
    let complete = written(|writer| writer.command_complete(b"INSERT 0 1"));
    group.bench_function("command tag", |bencher| {
        bencher.iter(|| reader::command_complete(black_box(&complete)).expect("well formed"));
    });
    let fields = ErrorFields {
        severity: Severity::Error,
        code: SqlState::SYNTAX_ERROR,
        message: "syntax error at or near \"selct\"",
        detail: None,
        hint: None,
    };
    let error = written(|writer| writer.error_response(&fields));
    group.bench_function("an error's severity and code", |bencher| {
        bencher.iter(|| {
            let fields = reader::fields(black_box(&error));
            (fields.severity(), fields.code())
        });
    });
    group.finish();
}

fn names(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("names");
    for count in [1_u32, 20] {
        let mut room = [0; 1024];
        let mut names = Names::new(&mut room, 0);
        for number in 1..=count {
            let name = format!("__asyncpg_stmt_{number}__");
            names.define(name.as_bytes(), number).expect("there is room");
            names.defined(number);
        }
        let last = format!("__asyncpg_stmt_{count}__");
        group.bench_function(format!("the last of {count}"), |bencher| {
            bencher.iter(|| names.find(black_box(last.as_bytes())).expect("it was defined"));
        });
    }
    group.bench_function("a statement's name on backends", |bencher| {
        let mut room = [0; 16];
        bencher.iter(|| backend_name(black_box(4711), &mut room).len());
    });
    group.bench_function("a backend's statement, found and used, of 200", |bencher| {
        let mut prepared = Prepared::new(200);
        for number in 1..=200 {
            prepared.insert(number);
        }
        let mut number = 0;
        bencher.iter(|| {
            number = number % 200 + 1;
            assert!(prepared.touch(black_box(number)));
        });
    });
    group.finish();
}

fn written(write: impl FnOnce(&mut Writer<'_>) -> Result<(), Full>) -> Vec<u8> {
    let mut room = [0; 1024];
    let mut writer = Writer::new(&mut room);
    write(&mut writer).expect("there is room");
    writer.written().to_vec()
}

criterion_group!(benches, messages, names);
criterion_main!(benches);
