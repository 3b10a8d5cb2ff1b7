//! Acts that change what texts do: functions, triggers, views, columns and policies, made anew while their users go on. What a
//! client was seen to do is not what the same text does now.

use super::acts::{Act, Random, act, bind, execute, extended, parse, query, sync};

/// Makes what one client changes as it was.
pub fn clean(client: usize) -> String {
    format!(
        "ALTER TABLE c{client}.t DROP COLUMN IF EXISTS n; ALTER TABLE c{client}.t DISABLE ROW LEVEL SECURITY;
         DROP TRIGGER IF EXISTS changes ON c{client}.t; DROP VIEW IF EXISTS c{client}.w; DROP TABLE IF EXISTS c{client}.u;
         DROP FUNCTION IF EXISTS c{client}.g; DROP FUNCTION IF EXISTS c{client}.h;"
    )
}

/// An act where texts change what they do.
pub fn act_with_ddl(random: &mut Random, client: usize, may_pin: bool) -> Act {
    if !random.chance(45) {
        return act(random, client, may_pin);
    }
    let own = format!("c{client}");
    match random.below(30) {
        0 => query(&format!("alter table {own}.t add column if not exists n int default {}", random.below(9))),
        1 => query(&format!("alter table {own}.t drop column if exists n")),
        2..=5 => query(&function(random, client)),
        6..=9 => query(&format!("select {own}.g('x')")),
        10 => query(&trigger_function(random, client)),
        11..=12 => query(&format!(
            "{}; create or replace trigger changes after insert on {own}.t execute function {own}.h()",
            trigger_function(random, client)
        )),
        13 => query(&format!("drop trigger if exists changes on {own}.t")),
        14..=16 => {
            query(&format!("insert into {own}.t values ({}, 'seen') on conflict do nothing", 10 + random.below(90)))
        }
        17 => query(&format!("begin; {}; select {own}.g('x'); rollback", function(random, client))),
        18 => query(&format!("{}; select {own}.g('x')", function(random, client))),
        19 => query(&format!("drop function if exists {own}.g(text)")),
        20 => query(&format!("create or replace view {own}.w as select {} as made", body(random))),
        21..=22 => query(&format!("select made from {own}.w")),
        23 => query(&format!("create table if not exists {own}.u as select 'permanent' as kind")),
        24 if may_pin && random.chance(50) => query("create temp table u as select 'temporary' as kind"),
        24 => query(&format!("drop table if exists {own}.u")),
        25 => query("select kind from u"),
        26 => {
            let text = *random.pick(&["select kind from u", "select made from w", "select g('y')"]);
            extended(
                format!("extended, search_path {own}: {text}"),
                &[
                    parse("", &format!("set search_path to {own}")),
                    bind("", &[]),
                    execute(),
                    sync(),
                    parse("", text),
                    bind("", &[]),
                    execute(),
                    sync(),
                ],
            )
        }
        27 => {
            let switch = *random.pick(&["enable", "disable"]);
            query(&format!("alter table {own}.t {switch} row level security"))
        }
        28 => {
            let text = format!("select {own}.g('z') -- G");
            extended(format!("parse G: {text}"), &[parse("G", &text), bind("G", &[]), execute(), sync()])
        }
        _ => extended("execute G".to_owned(), &[bind("G", &[]), execute(), sync()]),
    }
}

/// An expression that sets something, or not.
fn body(random: &mut Random) -> String {
    match random.below(6) {
        0..=1 => format!("set_config('work_mem', '{}MB', false)", 1 + random.below(9)),
        2 => format!("set_config('timezone', '{}', false)", random.pick(&["UTC", "Asia/Tokyo"])),
        3 => format!("set_config('statement_timeout', '{}h', true)", 1 + random.below(9)),
        _ => format!("'nothing {}'::text", random.below(3)),
    }
}

fn function(random: &mut Random, client: usize) -> String {
    let body = body(random);
    match random.chance(50) {
        true => {
            format!("create or replace function c{client}.g(text) returns text language sql as $$ select {body} $$")
        }
        false => format!(
            "create or replace function c{client}.g(text) returns text language plpgsql as $$ begin return {body}; end $$"
        ),
    }
}

fn trigger_function(random: &mut Random, client: usize) -> String {
    format!(
        "create or replace function c{client}.h() returns trigger language plpgsql as \
         $$ begin perform {}; return null; end $$",
        body(random)
    )
}
