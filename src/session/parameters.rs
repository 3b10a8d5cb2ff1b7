//! Settings that follow a client: interned vectors of name and value, and the SQL that leads from one to another.
//!
//! Invariant: equal vectors have equal ids, so that "does this backend fit this client" is a comparison of two numbers.
//! A vector says what differs from a session that was opened with the neutral startup packet; [`VectorId::NEUTRAL`] is
//! empty. Owned by one shard; count and bytes are bounded.

use std::collections::HashMap;
use std::hash::BuildHasher;

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

/// Settings that parse analysis reads: they decide what a text means when it is prepared.
const READ_BY_PARSER: [&str; 10] = [
    "backslash_quote",
    "client_encoding",
    "datestyle",
    "intervalstyle",
    "role",
    "search_path",
    "standard_conforming_strings",
    "timezone",
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
        let vector = Vector { settings: sorted.into_boxed_slice(), holders: 1, hash, projection };
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
        for setting in identities() {
            write_reset(setting, sql);
        }
        for setting in old.iter().filter(|setting| !is_identity(setting)) {
            if find(new, &setting.name).is_none() {
                write_reset(setting, sql);
            }
        }
        let unsure = |setting: &&Setting| {
            again && !TRACKED.contains(&&*setting.name) || unset.iter().any(|name| **name == *setting.name)
        };
        let changed =
            |setting: &&Setting| unsure(setting) || find(old, &setting.name).as_deref() != Some(&*setting.value);
        for setting in new.iter().filter(|setting| !is_identity(setting)).filter(changed) {
            write_set(setting, sql);
        }
        // The role goes with the authorization.
        for setting in new.iter().rev().filter(is_identity) {
            write_set(setting, sql);
        }
    }

    fn size(settings: &[Setting]) -> usize {
        let text: usize = settings.iter().map(|setting| setting.name.len() + setting.value.len()).sum();
        text + size_of_val(settings) + size_of::<Vector>()
    }
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

fn write_reset(setting: &Setting, sql: &mut Vec<u8>) {
    sql.extend_from_slice(b"RESET ");
    write_name(&setting.name, sql);
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
