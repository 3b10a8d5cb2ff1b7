use super::*;
use proptest::prelude::*;

fn scan(text: &str) -> (Effects, Vec<String>, Option<Only>) {
    let mut scanner = Scanner::default();
    let found = scanner.scan(text.as_bytes(), false);
    let names = scanner.names().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    (found.effects, names, found.only)
}

fn effects(text: &str) -> Effects {
    scan(text).0.without(Effects::PARSER)
}

#[test]
fn what_changes_nothing() {
    for text in [
        "",
        ";;",
        "select 1",
        "-- set x to 1\nselect 1",
        "/* listen /* x */ */ select 'set_config(''a'', 1)' ",
        "select $$ do something $$, $a$ pg_temp $a$",
        "select \"listen\" from t",
        "with a as (select 1) table a",
        "begin; update t set a = 1; commit",
        "set local work_mem to 1",
        "set local time zone 'UTC'",
        "set local role x",
        "set transaction isolation level serializable",
        "set constraints all deferred",
        "select pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(2)",
        "(select 1) union (select 2)",
        "explain analyze select 1",
        "show search_path",
    ] {
        assert_eq!(effects(text), Effects::NONE, "{text}");
    }
}

#[test]
fn what_changes_something() {
    for (text, expected) in [
        ("create temp table t (a int)", Effects::TEMPORARY),
        ("select * into temporary t from u", Effects::TEMPORARY),
        ("select 1 from pg_temp.t", Effects::TEMPORARY),
        ("LISTEN a", Effects::LISTEN),
        ("unlisten *", Effects::LISTEN),
        ("declare c cursor with hold for select 1", Effects::CURSOR),
        ("close all", Effects::CURSOR),
        ("prepare a as select 1", Effects::PREPARED.and(Effects::PREPARES)),
        ("prepare transaction 'x'", Effects::TWO_PHASE),
        ("deallocate all", Effects::PREPARED),
        ("create table t as execute a", Effects::TEMPORARY.and(Effects::EXECUTES)),
        ("select set_config($1, 'a', false)", Effects::PARAMETER),
        ("select set_config('a' || 'b', '', true)", Effects::ANY_SETTING.and(Effects::LASTING)),
        ("select set_config from t", Effects::NONE),
        ("select 1; select pg_advisory_lock(1)", Effects::LOCK),
        ("select \"pg_try_advisory_lock\"(1)", Effects::LOCK),
        ("load 'x'", Effects::LASTING),
        ("do $$ begin end $$", Effects::OPAQUE),
        ("call p()", Effects::OPAQUE),
        ("frobnicate", Effects::OPAQUE),
        ("select 'no end", Effects::OPAQUE),
        ("select /* no end", Effects::OPAQUE),
        ("select $a$ no end", Effects::OPAQUE),
        ("select \"no end", Effects::OPAQUE),
        ("insert into t values (1)", Effects::SEQUENCE),
        ("select nextval('s'), lastval()", Effects::SEQUENCE.and(Effects::LAST_VALUE)),
        (
            "create or replace function f() returns int language sql as 'select 1'",
            Effects::RELEARN.and(Effects::TEMPORARY),
        ),
        ("drop trigger t on u", Effects::RELEARN.and(Effects::TEMPORARY)),
        ("set seed to 0.5", Effects::LASTING),
        ("set local \"seed\" to 0.5", Effects::LASTING),
        ("select set_config('seed', '0.5', true)", Effects::LASTING),
        ("alter table t add trigger", Effects::RELEARN.and(Effects::TEMPORARY).and(Effects::SEQUENCE)),
        ("create policy p on t", Effects::RELEARN.and(Effects::TEMPORARY)),
        ("create table t (a int default 1)", Effects::TEMPORARY),
        ("update t set a = default", Effects::SEQUENCE),
        ("execute p(1)", Effects::EXECUTES),
        ("fetch all from c", Effects::EXECUTES),
        ("move c", Effects::EXECUTES),
        (
            "prepare a as select pg_advisory_lock($1)",
            Effects::PREPARED.and(Effects::PREPARES).and(Effects::LOCK).and(Effects::LASTING),
        ),
        ("select pg_backup_start('x'), 1", Effects::LASTING),
        ("select pg_create_logical_replication_slot('x', 'y', true)", Effects::LASTING),
        ("select \"pg_copy_physical_replication_slot\"('x', 'y', true)", Effects::LASTING),
        ("select pg_replication_origin_session_setup('x')", Effects::LASTING),
        ("select e'a'\n  '\\'', lastval(), 'b'", Effects::LAST_VALUE),
        ("select E'a' -- it's\n'\\'', lastval(), 'b'", Effects::LAST_VALUE),
        ("select E'a' '\\'', lastval(), 'b'", Effects::OPAQUE),
        ("select 'a'\n'\\', lastval()", Effects::LAST_VALUE),
    ] {
        assert_eq!(effects(text), expected, "{text}");
    }
}

#[test]
fn names_of_settings() {
    for (text, expected) in [
        ("set work_mem = 1", &["work_mem"][..]),
        ("SET SESSION My.\"Tenant\" TO 'a'", &["my.tenant"]),
        ("set time zone 'UTC'; set names 'utf8'", &["timezone", "client_encoding"]),
        ("set schema 'a'", &["search_path"]),
        ("set role x", &["role"]),
        ("reset role", &["role"]),
        ("set session authorization x", &["session_authorization", "role"]),
        ("reset session authorization", &["session_authorization", "role"]),
        ("select set_config('a.b', 'c', false), set_config('d', $1, true)", &["a.b", "d"]),
        ("set search_path = a, b; set local x = 1; reset y", &["search_path", "y"]),
        (
            "set session characteristics as transaction read only",
            &["default_transaction_isolation", "default_transaction_read_only", "default_transaction_deferrable"],
        ),
    ] {
        let (effects, names, _) = scan(text);
        assert_eq!(names, expected, "{text}");
        assert_eq!(effects.without(Effects::PARSER.and(Effects::RESETS)), Effects::SETTINGS, "{text}");
    }
    for text in ["reset all", "set \"a\"\"b\" = 1"] {
        assert_eq!(effects(text).without(Effects::RESETS), Effects::ANY_SETTING, "{text}");
    }
}

/// Words that SET takes specially are parts of names where a dot follows.
#[test]
fn names_of_custom_settings() {
    for (text, name) in [
        ("set session.uid = '5'", "session.uid"),
        ("set session session.x to 1", "session.x"),
        ("set session local.x to 1", "local.x"),
        ("set local.x = 1", "local.x"),
        ("set time.x = 1", "time.x"),
        ("set names.x = 1", "names.x"),
        ("set schema.x = 1", "schema.x"),
        ("set role.x = 1", "role.x"),
        ("set xml.x = 1", "xml.x"),
        ("set transaction.x = 1", "transaction.x"),
        ("set constraints . x = 1", "constraints.x"),
        ("set seed.x = 1", "seed.x"),
        ("set session characteristics.x = 1", "characteristics.x"),
        ("reset session.x", "session.x"),
        ("reset time.x", "time.x"),
        ("reset role.x; select 1", "role.x"),
        ("reset transaction.x", "transaction.x"),
    ] {
        let (effects, names, _) = scan(text);
        assert_eq!(names, [name], "{text}");
        assert_eq!(effects.without(Effects::RESETS), Effects::SETTINGS, "{text}");
    }
    for text in ["set local session.x = 1", "set local local.x = 1"] {
        assert_eq!(scan(text), (Effects::NONE, vec![], None), "{text}");
    }
    // As the server cuts them.
    let part = "x".repeat(70);
    let (found, names, _) = scan(&format!("set {part}.\"{part}\" = 1"));
    assert_eq!((found, names), (Effects::SETTINGS, vec![format!("{0}.{0}", &part[..63])]));
    for text in [
        format!("select set_config('a.{}', '1', false)", "x".repeat(130)),
        "select set_config('app.gr\u{f6}\u{df}e', '1', false)".to_owned(),
        "set app.gr\u{f6}\u{df}e to 1".to_owned(),
        "set a.\"b\"\"c\" to 1".to_owned(),
        (0..17).map(|number| format!("set a.x{number} = 1;")).collect(),
    ] {
        assert!(scan(&text).0.has(Effects::LASTING), "{text}");
    }
    let many: String = (0..17).map(|number| format!("set x{number} = 1;")).collect();
    assert_eq!(effects(&many), Effects::SETTINGS.and(Effects::ANY_SETTING));
}

#[test]
fn what_goes_back_to_the_first_value() {
    for (text, name) in [
        ("set time zone local", "timezone"),
        ("set time zone default;", "timezone"),
        ("set session time zone default", "timezone"),
        ("set names", "client_encoding"),
        ("set names;", "client_encoding"),
        ("set names default", "client_encoding"),
        ("set work_mem = default", "work_mem"),
        ("set role to default", "role"),
        ("reset time zone", "timezone"),
    ] {
        let (effects, names, only) = scan(text);
        assert_eq!((names, only), (vec![name.to_owned()], Some(Only::Reset)), "{text}");
        assert!(effects.has(Effects::RESETS), "{text}");
    }
    assert_eq!(scan("set session authorization default").2, Some(Only::Reset));
    assert!(scan("discard all; select 1").0.has(Effects::RESETS));
    for text in ["select set_config('work_mem', null, false)", "select set_config('work_mem', $1, false)"] {
        assert!(scan(text).0.has(Effects::RESETS), "{text}");
    }
    for text in [
        "select set_config('work_mem', '1', false)",
        "set time zone 'UTC'",
        "set names 'utf8'",
        "set role none",
        "set local time zone default",
        "discard temp",
    ] {
        assert!(!scan(text).0.has(Effects::RESETS), "{text}");
    }
}

#[test]
fn code_in_constants() {
    for (text, effects, names) in [
        (
            "do $$ begin perform set_config('a.b', '1', false); end $$",
            Effects::SETTINGS.and(Effects::RESETS),
            &["a.b"][..],
        ),
        ("do 'begin perform set_config(''a.b'', ''1'', false); end'", Effects::SETTINGS.and(Effects::RESETS), &["a.b"]),
        ("do $$ begin perform set_config('a' || 'b', '1', false); end $$", COMPUTED.and(Effects::RESETS), &[]),
        ("do $x$ begin set a.b = 1; set session \"c\".d to 2; end $x$", Effects::SETTINGS, &["a.b", "c.d"]),
        ("do $$ begin execute 'set a.b = 1'; update t set x = 1; end $$", Effects::SETTINGS, &["a.b"]),
        ("do $$ begin execute format('set %I = 1', x); end $$", COMPUTED, &[]),
        ("do $$ begin execute 'set app.' || x; end $$", COMPUTED, &[]),
        ("do $$ begin perform setseed(1); end $$ language plpgsql", Effects::LASTING, &[]),
        ("do $$ begin perform currval('s'), nextval('s'); end $$", Effects::LAST_VALUE.and(Effects::SEQUENCE), &[]),
        ("do $$ begin perform dblink_connect('s'); end $$", Effects::LASTING, &[]),
        ("do $$ begin create function f() ...; end $$", Effects::RELEARN, &[]),
        ("do $$ begin if a then reset work_mem; end if; end $$", Effects::RESETS.and(Effects::ANY_SETTING), &[]),
    ] {
        let (found, found_names, _) = scan(text);
        assert_eq!(found, effects.and(Effects::OPAQUE).and(Effects::PARSER), "{text}");
        assert_eq!(found_names, names, "{text}");
    }
    assert_eq!(effects("do 'select 1'; listen a"), Effects::OPAQUE.and(Effects::LISTEN));
}

#[test]
fn names_with_escapes_may_be_any() {
    for text in
        ["select U&\"set\\005fconfig\"('a.b', '1', false)", "set u&\"app\".x = 1", "do U&\"x\"", "select u&\"a\""]
    {
        assert!(scan(text).0.has(Effects::LASTING), "{text}");
        assert!(scan(text).0.has(Effects::OPAQUE), "{text}");
    }
    for text in ["select menu&\"mask\"", "select u & \"mask\"", "select U&'x'"] {
        assert_eq!(scan(text).0, Effects::NONE, "{text}");
    }
}

#[test]
fn what_decides_the_meaning_of_texts() {
    for text in ["set local search_path to a", "set time zone 'UTC'", "reset all", "do ''", "set role x"] {
        assert!(scan(text).0.has(Effects::PARSER), "{text}");
    }
    for text in ["set local my.tenant to 'a'", "set work_mem to 1", "select 1"] {
        assert!(!scan(text).0.has(Effects::PARSER), "{text}");
    }
}

#[test]
fn statements_that_stand_alone() {
    assert_eq!(scan("RESET work_mem;").2, Some(Only::Reset));
    assert_eq!(scan("set work_mem to default").2, Some(Only::Reset));
    assert_eq!(scan("/* x */ reset all -- y").2, Some(Only::ResetAll));
    assert_eq!(scan("discard all;").2, Some(Only::DiscardAll));
    assert_eq!(scan("discard temp").2, None);
    assert_eq!(scan("reset work_mem; select 1").2, None);
    assert_eq!(scan("execute \"a b\"(1)").2, Some(Only::Prepared { name: 8..13, deallocates: false }));
    assert_eq!(scan("deallocate prepare a").2, Some(Only::Prepared { name: 19..20, deallocates: true }));
    assert_eq!(scan("deallocate all").2, None);
    assert_eq!(scan("explain (costs off) execute p(1)").2, Some(Only::Prepared { name: 28..29, deallocates: false }));
    assert_eq!(scan("create table t as execute p").2, Some(Only::Prepared { name: 26..27, deallocates: false }));
}

#[test]
fn backslashes_where_they_escape() {
    let mut scanner = Scanner::default();
    assert!(scanner.scan(br"select '\'; listen a; --'", true).effects.is_empty());
    assert_eq!(scanner.scan(br"select '\'; listen a; --'", false).effects, Effects::LISTEN);
    assert!(scanner.scan(br"select e'\'; listen a; --'", false).effects.is_empty());
}

#[test]
fn fingerprints_leave_constants_out() {
    let of = |text: &str| Scanner::default().scan(text.as_bytes(), false).fingerprint;
    assert_eq!(of("select 1, 'a' from T"), of("SELECT  22, 'b' /* c */ from t"));
    assert_ne!(of("select 1 from t"), of("select 1 from u"));
}

proptest! {
    /// No text makes it panic, and what is behind a comment is as it was.
    #[test]
    fn any_text(text in "[a-z'\"$;(/*) -]{0,40}", backslashes: bool) {
        let mut scanner = Scanner::default();
        let found = scanner.scan(text.as_bytes(), backslashes);
        let commented = format!("/* set x = 1 */ {text}");
        prop_assert_eq!(scanner.scan(commented.as_bytes(), backslashes).effects, found.effects);
    }

    #[test]
    fn any_bytes(text: Vec<u8>) {
        Scanner::default().scan(&text, false);
    }
}

/// What the fast scanner finds, where the slow one finds the same.
fn check_against_reference(text: &[u8], backslashes: bool) -> Found {
    let (mut scanner, mut reference) = (Scanner::default(), reference::Scanner::default());
    let found = scanner.scan(text, backslashes);
    let expected = reference.scan(text, backslashes);
    let shown = String::from_utf8_lossy(text);
    assert_eq!((found.effects, &found.only), (expected.effects, &expected.only), "{shown}");
    assert!(scanner.names().eq(reference.names()), "{shown}");
    found
}

/// Whether the slow scanner holds two texts for the same but for constants, space and comments.
fn are_alike(one: &[u8], other: &[u8], backslashes: bool) -> bool {
    let print = |text: &[u8]| reference::Scanner::default().scan(text, backslashes).fingerprint;
    print(one) == print(other)
}

/// Pieces of which texts are made that come near everything that the scanner knows.
const PIECES: &[&str] = &[
    " ",
    "  ",
    "\n",
    "\t ",
    ";",
    ",",
    "(",
    ")",
    ".",
    "'",
    "''",
    "'a'",
    "'it''s'",
    "e'\\''",
    "E'a\\'b'",
    "b'01'",
    "n'x'",
    "U&'d'",
    "x",
    "e",
    "1",
    "12.5e3",
    "1.",
    "1e'x'",
    "1.e'x'",
    "$1",
    "$1e'a'",
    "$2abc",
    "$",
    "$$",
    "$a$",
    "$a$ ; $a$",
    "$a$xyz",
    "a$b$c",
    "--",
    "-- x\n",
    "-",
    "/",
    "/*",
    "*/",
    "/* ' */",
    "/* /* */ */",
    "\"",
    "\"a\"",
    "\"set_config\"",
    "\"listen\"",
    "\"SET_CONFIG\"",
    "select",
    "SELECT",
    "set",
    "local",
    "session",
    "reset",
    "all",
    "work_mem",
    "search_path",
    "to",
    "=",
    "default",
    "set_config",
    "('a.b',",
    "($1,",
    "into",
    "INTO",
    "temp",
    "Temporary",
    "table",
    "create",
    "drop",
    "or",
    "replace",
    "function",
    "listen",
    "unlisten",
    "notify",
    "declare",
    "prepare",
    "transaction",
    "execute",
    "explain",
    "analyze",
    "deallocate",
    "discard",
    "do",
    "call",
    "insert",
    "nextval",
    "lastval",
    "currval",
    "setseed",
    "pg_notify",
    "pg_backup_stop",
    "pg_create_logical_replication_slot",
    "U&\"a\"",
    "&\"a\"",
    "e'a'\n'\\''",
    "E'a' --\n  '",
    "null",
    "names",
    "session.",
    ".",
    "seed",
    "$$ set a.b = 1 $$",
    "fetch",
    "alter",
    "policy",
    "pg_temp",
    "pg_temp_3",
    "pg_advisory_lock",
    "pg_advisory_xact_lock",
    "pg_try_advisory_lock",
    "pg_listening_channels",
    "dblink_connect_u",
    "load",
    "role",
    "time",
    "zone",
    "authorization",
    "a_name_that_is_longer_than_sixteen_bytes",
    "a_name_of_16_byt",
    "1_number_that_is_much_longer_than_a_block_of_64_bytes_and_goes_on_and_on_and_on",
    "characteristics",
    "a_name_that_is_much_longer_than_a_block_of_64_bytes_which_names_may_be_although_the_server_cuts_them",
    "\u{e4}\u{f6}",
    "na\u{ef}ve",
    "\u{1}",
    "set_config_",
    "_set_config",
    "pg_",
    "next",
    "temps",
    "<>",
    "||",
    "::",
    "[",
    "]",
    "{",
    "}",
    "^",
    "~",
    "|",
    "\\",
    "@",
    "`",
];

fn any_sql() -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(PIECES), 0..40).prop_map(|pieces| pieces.concat())
}

/// The same with space between the pieces, so that more of it is read.
fn any_spaced_sql() -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(PIECES), 0..60).prop_map(|pieces| pieces.join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn fast_and_slow_find_the_same(text in prop_oneof![any_sql(), any_spaced_sql()], backslashes: bool) {
        check_against_reference(text.as_bytes(), backslashes);
    }

    #[test]
    fn fast_and_slow_find_the_same_in_any_bytes(text in proptest::collection::vec(any::<u8>(), 0..300), backslashes: bool) {
        check_against_reference(&text, backslashes);
    }

    /// A piece more or less, or another: what is alike for one is alike for the other.
    #[test]
    fn fingerprints_are_as_before(
        pieces in proptest::collection::vec(proptest::sample::select(PIECES), 1..30),
        at: proptest::sample::Index,
        piece in proptest::sample::select(PIECES),
        replaces: bool,
        backslashes: bool,
    ) {
        let one = pieces.concat();
        let mut others = pieces.clone();
        let at = at.index(pieces.len());
        if replaces { others[at] = piece } else { others.insert(at, piece) }
        let other = others.concat();
        let (found, changed) =
            (check_against_reference(one.as_bytes(), backslashes), check_against_reference(other.as_bytes(), backslashes));
        prop_assert_eq!(
            found.fingerprint == changed.fingerprint,
            are_alike(one.as_bytes(), other.as_bytes(), backslashes),
            "{} / {}", one, other
        );
    }
}

/// The statements of the benchmark, and of `QCP_BENCH_SQL` where it is given: whole, and cut off at any byte.
#[test]
fn fast_and_slow_find_the_same_in_real_texts() {
    let corpus = include_bytes!("../../../benches/scanner.sql");
    check_against_reference(corpus, false);
    for end in 0..corpus.len() {
        check_against_reference(&corpus[end.saturating_sub(700)..end], end % 2 == 0);
    }
    let Some(folder) = std::env::var_os("QCP_BENCH_SQL") else { return };
    for entry in std::fs::read_dir(folder).expect("QCP_BENCH_SQL is a folder") {
        let path = entry.expect("it can be listed").path();
        if path.extension().is_some_and(|extension| extension == "sql") {
            let text = std::fs::read(&path).expect("it can be read");
            check_against_reference(&text, false);
            for statement in text.split_inclusive(|&byte| byte == b';') {
                check_against_reference(statement, true);
            }
        }
    }
}

/// A constant between dollars can end within what looks like one long word; what follows may go on behind the block.
#[test]
fn a_word_behind_a_constant_is_whole() {
    for size in 0..140 {
        let text = format!("select $a${}$a$pg_advisory_lock(1)", "x".repeat(size));
        assert_eq!(scan(&text).0, scan("select 'x' pg_advisory_lock(1)").0, "{text}");
        check_against_reference(text.as_bytes(), false);
        let (joined, apart) = (format!("$a${}$a$somewhere'\\''", "x".repeat(size)), "'x' somewhere'\\''");
        let print = |text: &str| Scanner::default().scan(text.as_bytes(), false).fingerprint;
        assert_eq!(print(&joined), print(apart), "{joined}");
    }
}
