//! Settings that follow a client: interned vectors of name and value, and the SQL that leads from one to another.
//!
//! Invariant: equal vectors have equal ids, so that "does this backend fit this client" is a comparison of two numbers.
//! A vector says what differs from a session that was opened with the neutral startup packet; [`VectorId::NEUTRAL`] is
//! empty. Owned by one shard; count and bytes are bounded.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::time::Duration;

use foldhash::fast::RandomState;

/// A vector of settings.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct VectorId(u32);

impl VectorId {
    /// Nothing differs.
    pub const NEUTRAL: Self = Self(0);
}

/// The table is full: too many clients have settings of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// All vectors of a shard.
pub struct Vectors {
    vectors: Vec<Vector>,
    vacant: Vec<u32>,
    by_hash: HashMap<u64, Vec<u32>, RandomState>,
    hasher: RandomState,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Default)]
struct Vector {
    settings: Box<[Setting]>,
    holders: u32,
    hash: u64,
    projection: u64,
    /// `idle_session_timeout`; zero: there is none.
    idle_session: Duration,
    /// A server may refuse to set one of these, or to reset it.
    doubtful: bool,
}

/// One setting; the name in lower case, as PostgreSQL compares it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Setting {
    /// `datestyle`, `my.tenant`.
    pub name: Box<str>,
    /// As the server takes it.
    pub value: Box<str>,
}

/// Settings that the server reports and that therefore follow a client whatever changes them.
pub const TRACKED: [&str; 6] =
    ["application_name", "client_encoding", "datestyle", "intervalstyle", "standard_conforming_strings", "timezone"];

/// A session that does nothing for so long ends.
pub const IDLE_SESSION_TIMEOUT: &str = "idle_session_timeout";

/// Settings that everybody may set at any time to whatever was a value once: in order.
const HARMLESS: [&str; 51] = [
    "application_name",
    "array_nulls",
    "backslash_quote",
    "bytea_output",
    "check_function_bodies",
    "client_encoding",
    "client_min_messages",
    "constraint_exclusion",
    "cpu_index_tuple_cost",
    "cpu_operator_cost",
    "cpu_tuple_cost",
    "cursor_tuple_fraction",
    "datestyle",
    "default_statistics_target",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "effective_cache_size",
    "effective_io_concurrency",
    "escape_string_warning",
    "extra_float_digits",
    "from_collapse_limit",
    "geqo",
    "geqo_threshold",
    "hash_mem_multiplier",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "intervalstyle",
    "jit",
    "jit_above_cost",
    "join_collapse_limit",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "lock_timeout",
    "maintenance_work_mem",
    "max_parallel_workers",
    "max_parallel_workers_per_gather",
    "plan_cache_mode",
    "quote_all_identifiers",
    "random_page_cost",
    "row_security",
    "search_path",
    "seq_page_cost",
    "standard_conforming_strings",
    "synchronous_commit",
    "timezone",
    "transform_null_equals",
    "work_mem",
    "xmlbinary",
    "xmloption",
];
/// Settings that only a superuser may set, or who was granted it (context `superuser`): in order.
const OF_SUPERUSERS: [&str; 48] = [
    "allow_in_place_tablespaces",
    "allow_system_table_mods",
    "backtrace_functions",
    "commit_delay",
    "compute_query_id",
    "deadlock_timeout",
    "debug_discard_caches",
    "dynamic_library_path",
    "event_triggers",
    "extension_control_path",
    "extension_destdir",
    "ignore_checksum_failure",
    "jit_dump_bitcode",
    "lc_messages",
    "lo_compat_privileges",
    "log_duration",
    "log_error_verbosity",
    "log_executor_stats",
    "log_lock_failures",
    "log_lock_waits",
    "log_min_duration_sample",
    "log_min_duration_statement",
    "log_min_error_statement",
    "log_min_messages",
    "log_parameter_max_length",
    "log_parser_stats",
    "log_planner_stats",
    "log_replication_commands",
    "log_statement",
    "log_statement_sample_rate",
    "log_statement_stats",
    "log_temp_files",
    "log_transaction_sample_rate",
    "max_stack_depth",
    "session_replication_role",
    "temp_file_limit",
    "track_activities",
    "track_cost_delay_timing",
    "track_counts",
    "track_functions",
    "track_io_timing",
    "track_wal_io_timing",
    "update_process_title",
    "wal_compression",
    "wal_consistency_checking",
    "wal_init_zero",
    "wal_recycle",
    "zero_damaged_pages",
];
/// Libraries whose settings are of either kind.
const LIBRARIES: [&str; 6] = ["auto_explain", "pg_stat_statements", "pgaudit", "plperl", "plpgsql", "pltcl"];
/// A replay takes much less than this.
const TIMEOUT_SHORT: Duration = Duration::from_secs(1);

/// Whether no server refuses this one, wherever it has been a value before.
fn is_harmless(setting: &Setting) -> bool {
    match &*setting.name {
        STATEMENT_TIMEOUT => duration(&setting.value).is_some_and(|limit| limit.is_zero() || limit >= TIMEOUT_SHORT),
        name => match name.split_once('.') {
            Some((library, _)) => !LIBRARIES.contains(&library),
            None => HARMLESS.binary_search(&name).is_ok() || name.starts_with("enable_"),
        },
    }
}

/// Whether only a superuser may set this, as a rule; the name in lower case.
pub fn is_of_superusers(name: &str) -> bool {
    let of_library = || name.split_once('.').is_some_and(|(library, _)| LIBRARIES.contains(&library));
    OF_SUPERUSERS.binary_search(&name).is_ok() || of_library()
}

/// What the server ends a statement by, one of ours too.
pub const STATEMENT_TIMEOUT: &str = "statement_timeout";

/// Before other statements in one query: these take their snapshot at once, whatever transactions of the session's are
/// like by default.
pub const NO_WAITING: &[u8] = b"SET TRANSACTION ISOLATION LEVEL READ COMMITTED;";

/// Settings that parse analysis reads: they decide what a text means when it is prepared.
/// `session_replication_role` does not, but which triggers fire depends on it.
const READ_BY_PARSER: [&str; 14] = [
    "array_nulls",
    "backslash_quote",
    "client_encoding",
    "datestyle",
    "intervalstyle",
    "lc_monetary",
    "role",
    "search_path",
    "session_replication_role",
    "standard_conforming_strings",
    "timezone",
    "timezone_abbreviations",
    "transform_null_equals",
    "xmloption",
];

/// Whether what a text means when it is prepared depends on this setting; the name in lower case.
pub fn is_read_by_parser(name: &[u8]) -> bool {
    READ_BY_PARSER.iter().any(|known| known.as_bytes() == name)
}

/// Whether a ParameterStatus of this name says something about the session rather than the server.
pub fn is_tracked(name: &[u8]) -> bool {
    TRACKED.iter().any(|tracked| name.eq_ignore_ascii_case(tracked.as_bytes()))
}

/// A tracked setting's name as the server reports it.
pub fn reported_name(name: &str) -> &str {
    match name {
        "datestyle" => "DateStyle",
        "intervalstyle" => "IntervalStyle",
        "timezone" => "TimeZone",
        _ => name,
    }
}

/// Settings that can only be given when a session starts (contexts `backend` and `superuser-backend`, and those read
/// once at its start): a client that brings one gets a backend of its own.
pub fn is_startup_only(name: &str) -> bool {
    const NAMES: [&str; 9] = [
        "ignore_system_indexes",
        "jit_debugging_support",
        "jit_profiling_support",
        "local_preload_libraries",
        "log_connections",
        "log_disconnections",
        "post_auth_delay",
        "pre_auth_delay",
        "session_preload_libraries",
    ];
    NAMES.iter().any(|known| name.eq_ignore_ascii_case(known))
}

impl Vectors {
    /// Room for vectors of `bytes_max` bytes in all.
    pub fn new(bytes_max: usize) -> Self {
        let neutral = Vector { holders: 1, ..Vector::default() };
        Self {
            vectors: vec![neutral],
            vacant: Vec::new(),
            by_hash: HashMap::default(),
            hasher: RandomState::default(),
            bytes: 0,
            bytes_max,
        }
    }

    /// Bytes in use.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The vector of these settings; a name that comes twice has its last value. The caller holds it.
    pub fn intern(&mut self, settings: impl IntoIterator<Item = Setting>) -> Result<VectorId, Full> {
        let mut sorted: Vec<Setting> = Vec::new();
        for setting in settings {
            match sorted.binary_search_by(|known| known.name.cmp(&setting.name)) {
                Ok(at) => sorted[at] = setting,
                Err(at) => sorted.insert(at, setting),
            }
        }
        if sorted.is_empty() {
            return Ok(VectorId::NEUTRAL);
        }
        let hash = self.hasher.hash_one(&sorted);
        let known = self.by_hash.get(&hash).into_iter().flatten().copied();
        if let Some(id) = known.into_iter().find(|&id| *self.vectors[id as usize].settings == *sorted) {
            self.vectors[id as usize].holders += 1;
            return Ok(VectorId(id));
        }
        let size = Self::size(&sorted);
        if self.bytes + size > self.bytes_max {
            return Err(Full);
        }
        self.bytes += size;
        let projection = self.project(&sorted);
        let idle_session = sorted.iter().find(|setting| &*setting.name == IDLE_SESSION_TIMEOUT);
        let idle_session = idle_session.and_then(|setting| duration(&setting.value)).unwrap_or_default();
        let doubtful = !sorted.iter().all(is_harmless);
        let settings = sorted.into_boxed_slice();
        let vector = Vector { settings, holders: 1, hash, projection, idle_session, doubtful };
        let id = match self.vacant.pop() {
            Some(id) => {
                self.vectors[id as usize] = vector;
                id
            }
            None => {
                self.vectors.push(vector);
                self.vectors.len() as u32 - 1
            }
        };
        self.by_hash.entry(hash).or_default().push(id);
        Ok(VectorId(id))
    }

    /// One holder more.
    pub fn hold(&mut self, id: VectorId) -> VectorId {
        if id != VectorId::NEUTRAL {
            self.vectors[id.0 as usize].holders += 1;
        }
        id
    }

    /// One holder less; the last one frees the vector.
    pub fn let_go(&mut self, id: VectorId) {
        if id == VectorId::NEUTRAL {
            return;
        }
        let vector = &mut self.vectors[id.0 as usize];
        assert!(vector.holders > 0, "only a holder lets go");
        vector.holders -= 1;
        if vector.holders > 0 {
            return;
        }
        let vector = std::mem::take(vector);
        self.bytes -= Self::size(&vector.settings);
        if let Some(ids) = self.by_hash.get_mut(&vector.hash) {
            ids.retain(|&other| other != id.0);
            if ids.is_empty() {
                self.by_hash.remove(&vector.hash);
            }
        }
        self.vacant.push(id.0);
    }

    /// Whether it has a setting that the server does not report.
    pub fn has_untracked(&self, id: VectorId) -> bool {
        self.settings(id).iter().any(|setting| !TRACKED.contains(&&*setting.name))
    }

    /// The same for vectors that agree in all that the meaning of a statement's text depends on; 0 where they have none
    /// of it. A statement that was prepared under other such settings may give other answers.
    pub fn projection(&self, id: VectorId) -> u64 {
        self.vectors[id.0 as usize].projection
    }

    /// How long a session with these settings may do nothing between its transactions; zero: as long as it likes.
    #[inline]
    pub fn idle_session(&self, id: VectorId) -> Duration {
        self.vectors[id.0 as usize].idle_session
    }

    /// Whether a server may refuse to give a session these settings, or to take them back: by who is logged in, by what
    /// there is by now, or by what the connection has been used for.
    #[inline]
    pub fn is_doubtful(&self, id: VectorId) -> bool {
        self.vectors[id.0 as usize].doubtful
    }

    fn project(&self, settings: &[Setting]) -> u64 {
        let read = settings.iter().filter(|setting| is_read_by_parser(setting.name.as_bytes()));
        let read: Vec<&Setting> = read.collect();
        // Of equal settings equal; 0 is kept for none, and the highest bit for those that nobody shares.
        if read.is_empty() { 0 } else { (self.hasher.hash_one(&read) | 1) & !(1 << 63) }
    }

    /// The settings of a vector, by name.
    pub fn settings(&self, id: VectorId) -> &[Setting] {
        &self.vectors[id.0 as usize].settings
    }

    /// One value.
    pub fn get(&self, id: VectorId, name: &str) -> Option<&str> {
        let settings = self.settings(id);
        let at = settings.binary_search_by(|setting| (*setting.name).cmp(name)).ok()?;
        Some(&settings[at].value)
    }

    /// `id` with one value changed; the caller's hold on `id` moves to the result.
    pub fn change(&mut self, id: VectorId, name: &str, value: &str) -> Result<VectorId, Full> {
        if self.get(id, name) == Some(value) {
            return Ok(id);
        }
        let new = Setting { name: name.into(), value: value.into() };
        let settings: Vec<Setting> = self.settings(id).iter().cloned().chain([new]).collect();
        let changed = self.intern(settings)?;
        self.let_go(id);
        Ok(changed)
    }

    /// Writes the statements that lead from `from` to `to`; nothing when they are the same. Roles come last: what they
    /// may not set is set before. `again`: what the server does not report may have been changed, so it is set in any case;
    /// and so are those of `unset`, which have their value from the server rather than from a SET.
    pub fn write_change(&self, from: VectorId, to: VectorId, again: bool, unset: &[Box<str>], sql: &mut Vec<u8>) {
        if from == to && !again && unset.is_empty() {
            return;
        }
        let (old, new) = (self.settings(from), self.settings(to));
        let find = |settings: &[Setting], name: &str| {
            settings.binary_search_by(|setting| (*setting.name).cmp(name)).ok().map(|at| settings[at].value.clone())
        };
        // Who may set a setting may not be who the client is by now: what it is logged in as comes first, and who it is last.
        let is_identity = |setting: &&Setting| is_identity(&setting.name);
        let identities = || old.iter().filter(is_identity);
        // These statements are under the one's limit until they end it, and under the other's from when they set it.
        let is_timeout = |setting: &&Setting| &*setting.name == STATEMENT_TIMEOUT;
        let gone = |setting: &&Setting| !is_identity(setting) && find(new, &setting.name).is_none();
        for setting in old.iter().filter(gone).filter(is_timeout) {
            write_reset(&setting.name, sql);
        }
        for setting in identities() {
            write_reset(&setting.name, sql);
        }
        for setting in old.iter().filter(gone).filter(|setting| !is_timeout(setting)) {
            write_reset(&setting.name, sql);
        }
        let unsure = |setting: &&Setting| {
            again && !TRACKED.contains(&&*setting.name) || unset.iter().any(|name| **name == *setting.name)
        };
        let changed =
            |setting: &&Setting| unsure(setting) || find(old, &setting.name).as_deref() != Some(&*setting.value);
        for setting in new.iter().filter(|setting| !is_identity(setting) && !is_timeout(setting)).filter(changed) {
            write_set(setting, sql);
        }
        // The role goes with the authorization.
        for setting in new.iter().rev().filter(is_identity) {
            write_set(setting, sql);
        }
        for setting in new.iter().filter(is_timeout).filter(changed) {
            write_set(setting, sql);
        }
    }

    fn size(settings: &[Setting]) -> usize {
        let text: usize = settings.iter().map(|setting| setting.name.len() + setting.value.len()).sum();
        text + size_of_val(settings) + size_of::<Vector>()
    }
}

/// A time as PostgreSQL writes it, or takes it: milliseconds, where no unit is named.
fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len()));
    let unit_ms = match unit.trim() {
        "us" => 0.001,
        "" | "ms" => 1.0,
        "s" => 1_000.0,
        "min" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return None,
    };
    let ms = number.trim().parse::<f64>().ok()? * unit_ms;
    (ms >= 0.0 && ms <= f64::from(i32::MAX)).then(|| Duration::from_millis(ms.round() as u64))
}

/// Who a session acts as, rather than how.
fn is_identity(name: &str) -> bool {
    matches!(name, "role" | "session_authorization")
}

/// Writes the statements that set these, whatever they are; roles come last.
pub fn write_sets(settings: &[Setting], sql: &mut Vec<u8>) {
    let (identities, others): (Vec<_>, Vec<_>) = settings.iter().partition(|setting| is_identity(&setting.name));
    // The role goes with the authorization.
    for setting in others.into_iter().chain(identities.into_iter().rev()) {
        write_set(setting, sql);
    }
}

/// Writes the statement that gives a setting this value, or back its first one.
pub fn write_value(name: &str, value: Option<&str>, sql: &mut Vec<u8>) {
    match value {
        Some(value) => write_set(&Setting { name: name.into(), value: value.into() }, sql),
        None => write_reset(name, sql),
    }
}

fn write_reset(name: &str, sql: &mut Vec<u8>) {
    sql.extend_from_slice(b"RESET ");
    write_name(name, sql);
    sql.push(b';');
}

fn write_set(setting: &Setting, sql: &mut Vec<u8>) {
    if TRACKED.contains(&&*setting.name) || &*setting.name == "role" {
        sql.extend_from_slice(b"SET ");
        write_name(&setting.name, sql);
        sql.extend_from_slice(b" TO ");
        write_literal(&setting.value, sql);
        sql.push(b';');
        return;
    }
    // Lists (`search_path`) must not be quoted as one name: set_config takes the text as the startup packet does.
    sql.extend_from_slice(b"SELECT pg_catalog.set_config(");
    write_literal(&setting.name, sql);
    sql.push(b',');
    write_literal(&setting.value, sql);
    sql.extend_from_slice(b",false);");
}

/// A setting's name, each part quoted.
fn write_name(name: &str, sql: &mut Vec<u8>) {
    for (at, part) in name.split('.').enumerate() {
        if at > 0 {
            sql.push(b'.');
        }
        sql.push(b'"');
        for byte in part.bytes() {
            if byte == b'"' {
                sql.push(b'"');
            }
            sql.push(byte);
        }
        sql.push(b'"');
    }
}

/// A string constant that means the same whatever `standard_conforming_strings` says.
pub fn write_literal(text: &str, sql: &mut Vec<u8>) {
    let escapes = text.contains('\\');
    sql.extend_from_slice(if escapes { b"E'" } else { b"'" });
    for byte in text.bytes() {
        if byte == b'\'' || byte == b'\\' {
            sql.push(byte);
        }
        sql.push(byte);
    }
    sql.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn setting(name: &str, value: &str) -> Setting {
        Setting { name: name.into(), value: value.into() }
    }

    fn sql(vectors: &Vectors, from: VectorId, to: VectorId) -> String {
        let mut sql = Vec::new();
        vectors.write_change(from, to, false, &[], &mut sql);
        String::from_utf8(sql).unwrap()
    }

    #[test]
    fn what_may_not_be_set_is_set_again() {
        let mut vectors = Vectors::new(10_000);
        let both = vectors.intern([setting("datestyle", "German"), setting("my.x", "1")]).unwrap();
        let mut sql = Vec::new();
        vectors.write_change(both, both, false, &["datestyle".into(), "other".into()], &mut sql);
        assert_eq!(String::from_utf8_lossy(&sql), r#"SET "datestyle" TO 'German';"#);
        // What the one before has set is reset, whether that is certain or not.
        sql.clear();
        vectors.write_change(both, VectorId::NEUTRAL, false, &["my.x".into()], &mut sql);
        assert_eq!(String::from_utf8_lossy(&sql), r#"RESET "datestyle";RESET "my"."x";"#);
    }

    #[test]
    fn equal_vectors_are_one() {
        let mut vectors = Vectors::new(10_000);
        let one = vectors.intern([setting("a", "1"), setting("b", "2")]).unwrap();
        let two = vectors.intern([setting("b", "0"), setting("a", "1"), setting("b", "2")]).unwrap();
        assert_eq!(one, two);
        vectors.let_go(one);
        assert_eq!(vectors.get(two, "b"), Some("2"));
        vectors.let_go(two);
        assert_eq!(vectors.bytes(), 0);
    }

    #[test]
    fn the_way_from_one_to_another() {
        let mut vectors = Vectors::new(10_000);
        let plain = VectorId::NEUTRAL;
        let german = vectors.intern([setting("datestyle", "German"), setting("role", "o'x")]).unwrap();
        let path = vectors.intern([setting("search_path", "a, b"), setting("my.x", "\\")]).unwrap();
        assert_eq!(sql(&vectors, german, german), "");
        assert_eq!(sql(&vectors, plain, german), r#"SET "datestyle" TO 'German';SET "role" TO 'o''x';"#);
        assert_eq!(
            sql(&vectors, german, path),
            "RESET \"role\";RESET \"datestyle\";SELECT pg_catalog.set_config('my.x',E'\\\\',false);\
             SELECT pg_catalog.set_config('search_path','a, b',false);"
        );
        assert_eq!(sql(&vectors, path, plain), r#"RESET "my"."x";RESET "search_path";"#);
        // What only the one who logged in may set is set before the client is another.
        let other = vectors
            .intern([
                setting("role", "r"),
                setting("session_authorization", "s"),
                setting("lo_compat_privileges", "on"),
            ])
            .unwrap();
        assert_eq!(
            sql(&vectors, german, other),
            "RESET \"role\";RESET \"datestyle\";SELECT pg_catalog.set_config('lo_compat_privileges','on',false);\
             SELECT pg_catalog.set_config('session_authorization','s',false);SET \"role\" TO 'r';"
        );
    }

    #[test]
    fn a_vector_knows_how_long_its_session_may_be_idle() {
        let mut vectors = Vectors::new(10_000);
        for (value, ms) in [
            ("0", 0),
            ("100ms", 100),
            ("1500us", 2),
            ("250", 250),
            (" 0.5 s ", 500),
            ("2min", 120_000),
            ("1d", 86_400_000),
        ] {
            let id = vectors.intern([setting("idle_session_timeout", value)]).unwrap();
            assert_eq!(vectors.idle_session(id), Duration::from_millis(ms), "{value}");
        }
        let other = vectors.intern([setting("idle_session_timeout", "never"), setting("a", "1s")]).unwrap();
        assert_eq!((vectors.idle_session(other), vectors.idle_session(VectorId::NEUTRAL)), Default::default());
    }

    #[test]
    fn what_a_server_may_refuse_is_known() {
        assert!(HARMLESS.is_sorted() && OF_SUPERUSERS.is_sorted());
        let mut vectors = Vectors::new(10_000);
        let mut check = |name, value, doubtful| {
            let id = vectors.intern([setting("datestyle", "ISO"), setting(name, value)]).unwrap();
            assert_eq!(vectors.is_doubtful(id), doubtful, "{name}");
        };
        for name in ["application_name", "search_path", "my.tenant", "enable_seqscan"] {
            check(name, "x", false);
        }
        for name in ["role", "temp_buffers", "default_text_search_config", "plpgsql.variable_conflict"] {
            check(name, "x", true);
        }
        for (value, doubtful) in [("0", false), ("1ms", true), ("5s", false), ("500", true), ("odd", true)] {
            check("statement_timeout", value, doubtful);
        }
        assert!(!vectors.is_doubtful(VectorId::NEUTRAL));
        assert!(is_of_superusers("session_replication_role") && is_of_superusers("auto_explain.log_analyze"));
        assert!(!is_of_superusers("work_mem") && !is_of_superusers("my.tenant"));
    }

    #[test]
    fn a_limit_of_statements_is_not_on_those_that_set_it() {
        let mut vectors = Vectors::new(10_000);
        let limited = vectors
            .intern([setting("role", "r"), setting("statement_timeout", "1ms"), setting("work_mem", "1MB")])
            .unwrap();
        assert_eq!(
            sql(&vectors, VectorId::NEUTRAL, limited),
            "SELECT pg_catalog.set_config('work_mem','1MB',false);SET \"role\" TO 'r';\
             SELECT pg_catalog.set_config('statement_timeout','1ms',false);"
        );
        assert_eq!(
            sql(&vectors, limited, VectorId::NEUTRAL),
            r#"RESET "statement_timeout";RESET "role";RESET "work_mem";"#
        );
    }

    #[test]
    fn a_full_table_says_so() {
        let mut vectors = Vectors::new(300);
        assert!(vectors.intern([setting("a", "1")]).is_ok());
        assert_eq!(vectors.intern([setting("a", &"x".repeat(400))]), Err(Full));
    }

    proptest! {
        /// PostgreSQL's reading of the constant gives the text back, and the constant ends where it should.
        #[test]
        fn literals_hold_any_text(text in "[^\0]*") {
            let mut written = Vec::new();
            write_literal(&text, &mut written);
            let written = String::from_utf8(written).unwrap();
            let (escapes, body) = match written.strip_prefix('E') {
                Some(rest) => (true, rest),
                None => (false, &*written),
            };
            let body = body.strip_prefix('\'').unwrap();
            let mut read = String::new();
            let mut characters = body.chars().peekable();
            loop {
                match characters.next().unwrap() {
                    '\'' if characters.peek() == Some(&'\'') => {
                        characters.next();
                        read.push('\'');
                    }
                    '\'' => break,
                    '\\' if escapes => read.push(characters.next().unwrap()),
                    other => read.push(other),
                }
            }
            prop_assert_eq!(characters.next(), None);
            prop_assert_eq!(read, text);
        }

        /// Interning, changing and letting go in any order leaves nothing behind.
        #[test]
        fn nothing_leaks(steps in proptest::collection::vec(("[a-c]", "[x-z]{0,3}"), 0..50)) {
            let mut vectors = Vectors::new(100_000);
            let mut current = VectorId::NEUTRAL;
            for (name, value) in &steps {
                current = vectors.change(current, name, value).unwrap();
                prop_assert_eq!(vectors.get(current, name), Some(&**value));
            }
            vectors.let_go(current);
            prop_assert_eq!(vectors.bytes(), 0);
        }
    }
}
