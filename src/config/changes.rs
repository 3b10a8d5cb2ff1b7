//! What two configurations say differently, key by key, and what of that a running pooler cannot take over.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use zeroize::Zeroize;

use super::Config;
use super::problem::{Error, KeyPath, Problem};
use super::resolve::Source;
use super::yaml::{self, Node};

/// A key that has another value. `None`: it is not written, so its default holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    pub key: String,
    pub from: Option<String>,
    pub to: Option<String>,
}

/// What is bound, allocated or opened at the start.
const AT_START: [&str; 8] =
    ["tcp", "cores", "arena", "log_output", "log_format", "control", "metrics", "limits.max_clients"];

/// What nobody is to read over an administrator's shoulder.
const HIDDEN: &str = "(hidden)";

/// The keys with their defaults, as the example documents them.
static DEFAULTS: LazyLock<BTreeMap<String, Leaf>> = LazyLock::new(|| leaves(include_str!("../../config-example.yaml")));

/// The value of a key as it is written.
#[derive(Clone, PartialEq, Eq)]
struct Leaf {
    text: String,
    is_secret: bool,
}

impl Drop for Leaf {
    fn drop(&mut self) {
        if self.is_secret {
            self.text.zeroize();
        }
    }
}

impl Leaf {
    fn shown(&self) -> String {
        if self.is_secret { HIDDEN.to_owned() } else { self.text.clone() }
    }
}

/// One key with what holds for it.
pub struct Known {
    pub key: String,
    pub value: String,
    /// Empty: there is none.
    pub default: String,
    pub changeable: bool,
}

impl Config {
    /// What `self` says that `before` did not, and the other way around.
    pub fn changes_since(&self, before: &Config) -> Vec<Change> {
        let (old, new) = (before.leaves(), self.leaves());
        let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let mut changes = Vec::new();
        for key in keys {
            let (from, to) = (old.get(key), new.get(key));
            if from != to {
                let shown = |leaf: Option<&Leaf>| leaf.map(Leaf::shown);
                changes.push(Change { key: key.clone(), from: shown(from), to: shown(to) });
            }
        }
        // Files that the configuration names, with the same names as before.
        let says_auth = changes.iter().any(|change| change.key.split('.').any(|part| part == "auth"));
        if !says_auth && self.auth != before.auth {
            let (from, to) = (Some("as its files were".to_owned()), Some("as its files are".to_owned()));
            changes.push(Change { key: "auth".to_owned(), from, to });
        }
        changes
    }

    /// Of [`Self::changes_since`] the start, what is in force only after a restart.
    pub fn needs_restart_since(&self, start: &Config) -> Vec<Change> {
        let mut changes = self.changes_since(start);
        changes.retain(|change| {
            is_at_start(&change.key) && (change.key != "limits.max_clients" || self.max_clients > start.max_clients)
        });
        changes
    }

    /// This configuration, but with what is at hand since the start: what a running pooler can be told. What cannot be
    /// left as it was without being half of something is an error.
    pub fn over_start(mut self, start: &Config) -> Result<Config, Error> {
        if self.has_tls() && !start.has_tls() {
            let problem = Problem::value("tls", "a restart: qcp was started without any, and has no room for it");
            return Err(self.source.error(KeyPath::of(["tls"]), problem));
        }
        self.cores = start.cores;
        self.tcp = start.tcp;
        self.arena = start.arena;
        self.log.output = start.log.output.clone();
        self.log.format = start.log.format;
        self.control_socket = start.control_socket.clone();
        self.metrics = start.metrics;
        self.max_clients = self.max_clients.min(start.max_clients);
        Ok(self)
    }

    /// Every key that is written or has a default, in order.
    pub fn keys(&self) -> Vec<Known> {
        let written = self.leaves();
        let keys: std::collections::BTreeSet<&String> = DEFAULTS.keys().chain(written.keys()).collect();
        let known = keys.into_iter().map(|key| {
            let default = DEFAULTS.get(key).map(|leaf| leaf.text.clone()).unwrap_or_default();
            let value = written.get(key).map_or_else(|| default.clone(), Leaf::shown);
            Known { changeable: !is_at_start(key), key: key.clone(), value, default }
        });
        known.collect()
    }

    fn leaves(&self) -> BTreeMap<String, Leaf> {
        let mut found = BTreeMap::new();
        if let Ok(node) = self.source.node() {
            collect(&node, "", false, &mut found);
        }
        found
    }
}

impl Source {
    /// The text, with what was set over it.
    pub(super) fn node(&self) -> Result<Node, Error> {
        let broken = |error: yaml::SyntaxError| self.syntax_error(error.line, error.reason);
        let mut node = yaml::read(self.text()).map_err(broken)?;
        for (key, value) in self.over() {
            let value = yaml::read(value).map_err(broken)?;
            set(&mut node, &key.split('.').collect::<Vec<_>>(), value);
        }
        Ok(node)
    }
}

fn set(node: &mut Node, path: &[&str], value: Node) {
    let Some((first, rest)) = path.split_first() else {
        *node = value;
        return;
    };
    if !matches!(node, Node::Map(_)) {
        *node = Node::Map(Vec::new());
    }
    let Node::Map(entries) = node else { unreachable!("made one above") };
    let at = entries.iter().position(|(key, _)| key == first).unwrap_or_else(|| {
        entries.push(((*first).to_owned(), Node::Null));
        entries.len() - 1
    });
    set(&mut entries[at].1, rest, value);
}

pub(super) fn is_at_start(key: &str) -> bool {
    AT_START.iter().any(|at| key.strip_prefix(at).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

fn leaves(text: &str) -> BTreeMap<String, Leaf> {
    let mut found = BTreeMap::new();
    if let Ok(node) = yaml::read(text) {
        collect(&node, "", false, &mut found);
    }
    found
}

fn collect(node: &Node, path: &str, is_secret: bool, found: &mut BTreeMap<String, Leaf>) {
    if let Node::Map(entries) = node {
        for (key, node) in entries {
            let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let is_secret = is_secret || below == "auth.users" || key == "server_password";
            collect(node, &below, is_secret, found);
        }
        return;
    }
    if !matches!(node, Node::Null) {
        found.insert(path.to_owned(), Leaf { text: text_of(node), is_secret });
    }
}

fn text_of(node: &Node) -> String {
    let list = |items: Vec<String>, open, close| format!("{open}{}{close}", items.join(", "));
    match node {
        Node::Null => String::new(),
        Node::Bool(value) => value.to_string(),
        Node::Unsigned(value) => value.to_string(),
        Node::Signed(value) => value.to_string(),
        Node::Float(value) => value.to_string(),
        Node::Text(value) => value.clone(),
        Node::List(nodes) => list(nodes.iter().map(text_of).collect(), "[", "]"),
        Node::Map(entries) => {
            list(entries.iter().map(|(key, node)| format!("{key}: {}", text_of(node))).collect(), "{", "}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Config {
        Config::parse("test.yaml", text).expect("it is right").0
    }

    fn lines(changes: &[Change]) -> Vec<String> {
        let of = |value: &Option<String>| value.clone().unwrap_or_else(|| "default".to_owned());
        changes.iter().map(|change| format!("{}: {} -> {}", change.key, of(&change.from), of(&change.to))).collect()
    }

    #[test]
    fn what_is_said_differently_is_found() {
        let before = parse("pool: {size: 5}\nservers: [a:1]\nauth: {users: {joe: secret}}\n");
        let after = parse("pool: {size: 6, lifetime: 2m}\nservers: [a:1, b:2]\nauth: {users: {joe: other}}\n");
        let expected = [
            "auth.users.joe: (hidden) -> (hidden)",
            "pool.lifetime: default -> 2m",
            "pool.size: 5 -> 6",
            "servers: [a:1] -> [a:1, b:2]",
        ];
        assert_eq!(lines(&after.changes_since(&before)), expected);
        assert!(before.changes_since(&before).is_empty());
    }

    #[test]
    fn what_was_taken_at_the_start_stays() {
        let start = parse("arena: {chunks_count: 100}\nlimits: {max_clients: 50}\nlistening_address: 127.0.0.1:1\n");
        let new = parse("limits: {max_clients: 80}\nlistening_address: 127.0.0.1:2\npool: {size: 3}\n");
        let needs = lines(&new.needs_restart_since(&start));
        let expected = ["arena.chunks_count: 100 -> default", "limits.max_clients: 50 -> 80"];
        assert_eq!(needs, expected);
        let taken = new.over_start(&start).expect("nothing against it");
        assert_eq!((taken.max_clients, taken.arena), (50, start.arena));
        assert_eq!(taken.listen.len(), 1);
        assert_ne!(taken.listen, start.listen);
        assert_eq!(taken.pool("a", "b").expect("served").pool.size, 3);
        let error = parse("tls: {server: {mode: prefer}}\n").over_start(&start).expect_err("no room");
        assert!(error.to_string().contains("restart"), "{error}");
    }

    #[test]
    fn one_key_is_set_over_the_text() {
        let over = vec![("pool.size".to_owned(), "7".to_owned()), ("users.joe.pool.size".to_owned(), "2".to_owned())];
        let (config, _) = Config::parse_over("test.yaml", "pool: {size: 5, lifetime: 1h}\n", over).expect("right");
        assert_eq!(config.pool("a", "b").expect("served").pool.size, 7);
        assert_eq!(config.pool("a", "joe").expect("served").pool.size, 2);
        let value = |key: &str| config.keys().into_iter().find(|known| known.key == key).map(|known| known.value);
        assert_eq!(value("pool.size").as_deref(), Some("7"));
        assert_eq!(value("pool.queue_timeout").as_deref(), Some("10s"));
        let wrong = vec![("pool.size".to_owned(), "many".to_owned())];
        let error = Config::parse_over("test.yaml", "", wrong).expect_err("no number").to_string();
        assert!(error.contains("pool.size"), "{error}");
    }
}
