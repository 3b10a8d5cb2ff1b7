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
        ("prepare a as select 1", Effects::PREPARED),
        ("prepare transaction 'x'", Effects::TWO_PHASE),
        ("deallocate all", Effects::PREPARED),
        ("create table t as execute a", Effects::TEMPORARY),
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
