//! PgBouncer's names of keys, for those who ask and set by them at the console. Times are in seconds there.

use std::time::Duration;

use super::changes::Known;
use super::sizes::{format_duration, parse_duration};
use super::{Config, changes};

/// How PgBouncer writes a value.
#[derive(Clone, Copy)]
enum Form {
    AsItIs,
    Seconds,
    /// session, transaction, statement.
    Mode,
    /// a, b
    List,
}

/// PgBouncer's name, and ours.
const NAMES: [(&str, &str, Form); 17] = [
    ("admin_users", "auth.admin_users", Form::List),
    ("cancel_wait_timeout", "limits.cancel_timeout", Form::Seconds),
    ("client_idle_timeout", "limits.client_idle_timeout", Form::Seconds),
    ("client_login_timeout", "limits.login_timeout", Form::Seconds),
    ("default_pool_size", "pool.size", Form::AsItIs),
    ("idle_transaction_timeout", "limits.idle_in_transaction_timeout", Form::Seconds),
    ("max_client_conn", "limits.max_clients", Form::AsItIs),
    ("min_pool_size", "pool.min_size", Form::AsItIs),
    ("pool_mode", "relay_mode", Form::Mode),
    ("query_timeout", "limits.query_timeout", Form::Seconds),
    ("query_wait_timeout", "pool.queue_timeout", Form::Seconds),
    ("server_connect_timeout", "reconnect.connect_timeout", Form::Seconds),
    ("server_idle_timeout", "pool.idle_timeout", Form::Seconds),
    ("server_lifetime", "pool.lifetime", Form::Seconds),
    ("server_login_retry", "reconnect.max_backoff", Form::Seconds),
    ("stats_users", "auth.stats_users", Form::List),
    ("transaction_timeout", "limits.transaction_timeout", Form::Seconds),
];

/// Limits that QCP has not, in the way of "none": exporters ask for them.
const NONE: [&str; 4] =
    ["max_db_client_connections", "max_db_connections", "max_user_client_connections", "max_user_connections"];

const MODES: [(&str, &str); 3] = [("session", "Session"), ("transaction", "Smart"), ("statement", "Statement")];

impl Form {
    /// Our value in PgBouncer's way.
    fn theirs(self, value: &str) -> String {
        match self {
            Form::AsItIs => value.to_owned(),
            Form::Seconds => parse_duration(value).map_or_else(|| value.to_owned(), seconds),
            Form::Mode => {
                let mode = MODES.iter().find(|(_, ours)| ours.eq_ignore_ascii_case(value));
                mode.map_or(value, |(theirs, _)| theirs).to_owned()
            }
            Form::List => value.trim_matches(['[', ']']).to_owned(),
        }
    }

    /// PgBouncer's value in ours. What makes no sense stays, to be refused with our own words.
    fn ours(self, value: &str) -> String {
        match self {
            Form::AsItIs => value.to_owned(),
            Form::Seconds => {
                let seconds = value.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                seconds.map_or_else(|| value.to_owned(), format_duration)
            }
            Form::Mode => {
                let mode = MODES.iter().find(|(theirs, _)| theirs.eq_ignore_ascii_case(value));
                mode.map_or(value, |(_, ours)| ours).to_owned()
            }
            Form::List => format!("[{value}]"),
        }
    }
}

fn seconds(time: Duration) -> String {
    match time.subsec_nanos() {
        0 => time.as_secs().to_string(),
        _ => time.as_secs_f64().to_string(),
    }
}

/// A key and a value as they are set at the console, by our names.
pub fn from_pgbouncer(key: &str, value: &str) -> (String, String) {
    match NAMES.iter().find(|(theirs, ..)| theirs.eq_ignore_ascii_case(key)) {
        Some((_, ours, form)) => ((*ours).to_owned(), form.ours(value)),
        None => (key.to_owned(), value.to_owned()),
    }
}

impl Config {
    /// As [`Config::keys`], by PgBouncer's names.
    pub fn pgbouncer_keys(&self) -> Vec<Known> {
        let known = self.keys();
        let translated = NAMES.iter().map(|(theirs, ours, form)| {
            let of = known.iter().find(|known| known.key == *ours);
            let say = |read: fn(&Known) -> &str| of.map(|known| form.theirs(read(known))).unwrap_or_default();
            Known {
                key: (*theirs).to_owned(),
                value: say(|known| &known.value),
                default: say(|known| &known.default),
                changeable: !changes::is_at_start(ours),
            }
        });
        let none = NONE.iter().map(|key| Known {
            key: (*key).to_owned(),
            value: "0".to_owned(),
            default: "0".to_owned(),
            changeable: false,
        });
        let mut keys: Vec<Known> = translated.chain(none).collect();
        keys.sort_by(|one, other| one.key.cmp(&other.key));
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_in_both_ways() {
        let (config, _) =
            Config::parse("test.yaml", "relay_mode: Smart\npool: {size: 7, queue_timeout: 1500ms}\n").expect("right");
        let keys = config.pgbouncer_keys();
        let value = |key: &str| keys.iter().find(|known| known.key == key).map(|known| known.value.clone());
        assert_eq!(value("default_pool_size").as_deref(), Some("7"));
        assert_eq!(value("pool_mode").as_deref(), Some("transaction"));
        assert_eq!(value("query_wait_timeout").as_deref(), Some("1.5"));
        assert_eq!(value("server_lifetime").as_deref(), Some("3600"));
        assert_eq!(value("max_db_connections").as_deref(), Some("0"));
        let set = |key, value| from_pgbouncer(key, value);
        assert_eq!(set("query_wait_timeout", "1.5"), ("pool.queue_timeout".to_owned(), "1500ms".to_owned()));
        assert_eq!(set("pool_mode", "session"), ("relay_mode".to_owned(), "Session".to_owned()));
        assert_eq!(set("stats_users", "a, b"), ("auth.stats_users".to_owned(), "[a, b]".to_owned()));
        assert_eq!(set("pool.size", "9"), ("pool.size".to_owned(), "9".to_owned()));
    }
}
