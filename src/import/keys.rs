//! What each key of PgBouncer's `[pgbouncer]` section becomes. The keys are those of PgBouncer 1.25's documentation and
//! of the versions before it.

use std::time::Duration;

use super::draft::{Setting, Value};
use super::{Importer, Outcome};
use crate::config::format_duration;

/// Why a value is not what its key needs.
type Wrong = String;

impl Importer<'_> {
    /// What becomes of a key of `[pgbouncer]`.
    pub(super) fn global(&self, key: &str, value: &str) -> Result<Outcome, Wrong> {
        Ok(match key {
            // Where clients come in.
            "listen_addr" | "listen_port" | "unix_socket_dir" => {
                // Together one key, made once for all.
                Outcome::Part { of: "listening_address" }
            }
            "unix_socket_mode" => match mode(value) {
                Some(0o777) => Outcome::same("every local user may connect to the socket"),
                _ => Outcome::decide("QCP makes its sockets open to all: let the directory keep others out (chmod)"),
            },
            "unix_socket_group" if value.is_empty() => Outcome::same("no group"),
            "unix_socket_group" => {
                Outcome::decide("QCP does not change the group of its sockets: let the directory keep others out")
            }
            "listen_backlog" => Outcome::to(["tcp", "backlog"], whole(value)?).nicety(),
            "tcp_keepalive" if off(value)? => Outcome::decide("QCP keeps TCP's keepalive on"),
            "tcp_keepalive" => Outcome::same("QCP keeps it on as well"),
            "tcp_keepidle" if off(value)? => Outcome::same("the system's"),
            "tcp_keepidle" => Outcome::to(["tcp", "keepalive"], duration(value)?).nicety(),
            "tcp_user_timeout" if off(value)? => Outcome::same("the system's"),
            "tcp_user_timeout" => {
                let timeout = Duration::from_millis(number(value)?);
                Outcome::to(["tcp", "user_timeout"], Value::Bare(format_duration(timeout))).nicety()
            }
            "tcp_keepcnt" | "tcp_keepintvl" => Outcome::ignore("tcp.user_timeout says when a peer is given up"),
            "tcp_defer_accept" => Outcome::ignore("QCP does so by itself, for a second"),
            "tcp_socket_buffer" => Outcome::ignore("the system sizes the buffers by itself"),
            "so_reuseport" => {
                let several = "; where several PgBouncers shared the port, multiply the pool sizes by their number";
                Outcome::ignore(&format!(
                    "each core has its listener in one process{}",
                    if off(value)? { "" } else { several }
                ))
            }

            // Pools.
            "pool_mode" => Outcome::to(["relay_mode"], relay_mode(value)?),
            "default_pool_size" => Outcome::to(["pool", "size"], whole(value)?),
            "min_pool_size" => Outcome::to(["pool", "min_size"], self.min_size(value, None)?),
            "reserve_pool_size" if off(value)? => Outcome::same("no reserve"),
            "reserve_pool_size" => Outcome::to(["pool", "reserve_size"], whole(value)?),
            "reserve_pool_timeout" if self.has_no_reserve() => Outcome::ignore("there is no reserve pool"),
            "reserve_pool_timeout" => Outcome::to(["pool", "reserve_timeout"], duration(value)?),
            "max_client_conn" => Outcome::to(["limits", "max_clients"], whole(value)?),
            "max_db_connections"
            | "max_user_connections"
            | "max_db_client_connections"
            | "max_user_client_connections"
                if off(value)? =>
            {
                Outcome::same("no limit")
            }
            "max_db_connections" | "max_user_connections" => Outcome::decide(
                "QCP limits the backends of each database and user together (pool.size), not of one of the two alone",
            ),
            "max_db_client_connections" | "max_user_client_connections" => {
                Outcome::decide("give the databases or users that need it limits of their own")
            }
            "server_round_robin" => Outcome::ignore("QCP lends the backend that was used last"),
            "max_prepared_statements" if off(value)? => Outcome::ignore("QCP keeps prepared statements in any case"),
            "max_prepared_statements" => Outcome::to(["pool", "max_statements"], whole(value)?).nicety(),
            "pool_idle_timeout" | "autodb_idle_timeout" => {
                Outcome::ignore("a pool that nobody uses is dropped by itself")
            }

            // Sessions.
            "track_extra_parameters" if is_interval_style(value) => Outcome::same("IntervalStyle follows the client"),
            "track_extra_parameters" if self.has_only_session_mode() => {
                Outcome::same("in Session mode every setting stays with the client")
            }
            "track_extra_parameters" => Outcome::to(["session_state"], Value::Bare("preserve".to_owned())),
            "ignore_startup_parameters" => Outcome::ignore("startup parameters are applied for each client"),
            "server_reset_query" if value.eq_ignore_ascii_case("DISCARD ALL") => Outcome::same("DISCARD ALL"),
            "server_reset_query" => {
                Outcome::to(["pool", "reset_query"], Value::Text(value.to_owned())).otherwise("DISCARD ALL is sent")
            }
            "server_reset_query_always" if off(value)? => Outcome::same("off"),
            "server_reset_query_always" => Outcome::decide(
                "QCP resets backends in Session mode only: give the applications that need it that mode",
            ),
            "disable_pqexec" if off(value)? => Outcome::same("off"),
            "disable_pqexec" => Outcome::decide("QCP lets simple queries through"),
            "application_name_add_host" if off(value)? => Outcome::same("off"),
            "application_name_add_host" => {
                Outcome::ignore("qcp-ctrl show clients has the address of each client and its backend's pid")
            }

            // Health and times.
            "server_check_query" | "server_check_delay" => {
                Outcome::ignore("QCP sees at once when an idle backend is closed")
            }
            "server_fast_close" => Outcome::ignore("QCP never closes a backend under a session"),
            "server_lifetime" => Outcome::to(["pool", "lifetime"], lifetime(value)?),
            "server_idle_timeout" => Outcome::to(["pool", "idle_timeout"], duration(value)?),
            "server_connect_timeout" => Outcome::to(["reconnect", "connect_timeout"], duration(value)?),
            "server_login_retry" => login_retry(value)?,
            "client_login_timeout" => Outcome::to(["limits", "login_timeout"], duration(value)?),
            "query_wait_timeout" => Outcome::to(["pool", "queue_timeout"], duration(value)?)
                .note("QCP answers 53300 and the client stays connected"),
            "query_wait_notify" if off(value)? => Outcome::same("nothing is said"),
            "query_wait_notify" => Outcome::to(["queue_notice"], duration(value)?).otherwise("nothing is said"),
            "query_timeout" | "idle_transaction_timeout" | "transaction_timeout" | "client_idle_timeout"
                if off(value)? =>
            {
                Outcome::same("off")
            }
            "query_timeout" => Outcome::to(["limits", "query_timeout"], duration(value)?),
            "idle_transaction_timeout" => Outcome::to(["limits", "idle_in_transaction_timeout"], duration(value)?),
            "transaction_timeout" => Outcome::to(["limits", "transaction_timeout"], duration(value)?),
            "client_idle_timeout" => Outcome::to(["limits", "client_idle_timeout"], duration(value)?),
            "cancel_wait_timeout" => Outcome::to(["limits", "cancel_timeout"], duration(value)?).nicety(),
            "suspend_timeout" => Outcome::ignore("there is no SUSPEND"),
            "dns_max_ttl" => {
                Outcome::to(["dns_ttl"], duration(value)?).otherwise("names are looked up for each connection")
            }
            "dns_nxdomain_ttl" => Outcome::ignore("reconnect.min_backoff is the pause after a failure"),
            "dns_zone_check_period" => Outcome::ignore("names are looked up when a connection is opened"),
            "resolv_conf" if value.is_empty() => Outcome::same("the system's"),
            "resolv_conf" => Outcome::decide("QCP asks the system's resolver"),

            // Who may.
            "auth_type" | "auth_file" | "auth_hba_file" | "auth_ident_file" | "auth_user" | "auth_query"
            | "auth_dbname" | "auth_ldap_options" | "auth_pam_confdir" => self.auth(key, value),
            "scram_iterations" => Outcome::ignore("QCP makes no SCRAM secrets"),
            "admin_users" | "stats_users" if value.is_empty() => Outcome::same("nobody"),
            "admin_users" | "stats_users" => {
                let users = Value::List(list(value).map(str::to_owned).collect());
                Outcome::to(["auth", key], users).otherwise("only root and the user who runs qcp may")
            }

            // TLS.
            _ if key.starts_with("client_tls") || key.starts_with("server_tls") => self.tls(key, value)?,

            // The log.
            "logfile" if value.is_empty() => Outcome::same("standard error"),
            "logfile" => Outcome::to(["log_output"], Value::Pair("file", value.to_owned())),
            "syslog" if off(value)? => Outcome::same("off"),
            "syslog" if self.has("logfile") => Outcome::ignore("QCP logs to one place: logfile"),
            "syslog" => Outcome::to(["log_output"], Value::Bare("syslog".to_owned())).otherwise("standard error"),
            "syslog_ident" | "syslog_facility" => Outcome::ignore("QCP's are \"qcp\" and \"daemon\""),
            "verbose" => Outcome::to(["log_level"], log_level(value)?),
            "log_connections" | "log_disconnections" | "log_pooler_errors" => {
                Outcome::ignore("log_level says how much is logged")
            }
            "log_stats" | "stats_period" => Outcome::ignore("qcp-ctrl show has the counters at any time"),

            // The process.
            "pidfile" => Outcome::ignore("qcp runs in the foreground; qcp-ctrl status has its pid"),
            "user" => Outcome::ignore("start qcp as that user (systemd: User=)"),
            "conffile" | "service_name" | "job_name" => Outcome::ignore("of PgBouncer's own process"),
            "login_notify_message" if value.is_empty() => Outcome::same("no message"),
            "login_notify_message" => Outcome::ignore("QCP greets nobody"),
            "peer_id" => Outcome::ignore("one process has all cores, so cancel requests find their way"),
            "pkt_buf" | "sbuf_loopcnt" => Outcome::ignore("arena.chunk_size is what compares; leave it"),
            "max_packet_size" if number(value)? >= 1 << 30 => Outcome::same("PostgreSQL's own limit, 1 GB"),
            "max_packet_size" => Outcome::decide("QCP lets messages of any size through, piece by piece"),
            _ => Outcome::decide("not a key of PgBouncer 1.25"),
        })
    }

    fn tls(&self, key: &str, value: &str) -> Result<Outcome, Wrong> {
        let (side, rest) = match key.strip_prefix("client_") {
            Some(rest) => ("client", rest),
            None => ("server", key.trim_start_matches("server_")),
        };
        let mode = self.value(&format!("{side}_tls_sslmode"));
        let mode = mode.unwrap_or(if side == "client" { "disable" } else { "prefer" });
        let to = |name, value: &str| Outcome::to(["tls", side, name], Value::Text(value.to_owned()));
        Ok(match rest {
            "tls_sslmode" => match (side, value.to_ascii_lowercase().as_str()) {
                (_, "disable") => Outcome::same("no TLS"),
                // What PgBouncer's prefer promises, plain TCP keeps as well.
                ("server", "allow" | "prefer") => {
                    to("mode", value).otherwise("connections to servers are not encrypted")
                }
                // PgBouncer's does not look at the name in a client's certificate; ours does.
                ("client", "verify-full") => to("mode", "verify-ca"),
                (_, word @ ("allow" | "prefer" | "require" | "verify-ca" | "verify-full")) => to("mode", word),
                _ => return Err(one_of("disable, allow, prefer, require, verify-ca, verify-full")),
            },
            _ if mode.eq_ignore_ascii_case("disable") => Outcome::ignore("TLS is off on this side"),
            "tls_key_file" | "tls_cert_file" | "tls_ca_file" if value.is_empty() => Outcome::same("none"),
            "tls_key_file" => to("key", value),
            "tls_cert_file" => to("certificate", value),
            "tls_ca_file" => to("ca", value),
            "tls_protocols" => match value.to_ascii_lowercase().as_str() {
                "secure" => Outcome::same("TLS 1.2 and 1.3"),
                "tlsv1.3" => to("minimum_version", "1.3"),
                _ => Outcome::ignore("QCP has TLS 1.2 and 1.3 and nothing older"),
            },
            "tls_ciphers" if matches!(value, "default" | "secure" | "fast" | "normal" | "") => {
                Outcome::same("the safe ones")
            }
            "tls13_ciphers" if value.is_empty() => Outcome::same("the safe ones"),
            "tls_ecdhcurve" if matches!(value, "auto" | "") => Outcome::same("the usual ones"),
            "tls_dheparams" => Outcome::ignore("QCP has elliptic curves only"),
            "tls_ciphers" | "tls13_ciphers" | "tls_ecdhcurve" => {
                Outcome::decide("QCP does not read OpenSSL's names; all that its TLS has is thought safe today")
            }
            _ => Outcome::decide("not a key of PgBouncer 1.25"),
        })
    }

    /// At most the size of the same pool: PgBouncer caps it, QCP would refuse.
    pub(super) fn min_size(&self, value: &str, size: Option<&str>) -> Result<Value, Wrong> {
        let min_size = number(value)?;
        let size = size.or_else(|| self.value("default_pool_size")).map_or(Ok(20), number)?;
        Ok(Value::Bare(min_size.min(size).to_string()))
    }

    fn has_no_reserve(&self) -> bool {
        self.value("reserve_pool_size").is_none_or(|value| off(value) == Ok(true))
    }
}

/// `max_backoff`, and `min_backoff` with it where the pause is shorter than that would be.
fn login_retry(value: &str) -> Result<Outcome, Wrong> {
    let retry = seconds(value)?.max(Duration::from_millis(1));
    let mut settings = vec![Setting::new(["reconnect", "max_backoff"], Value::Bare(format_duration(retry)))];
    if retry < Duration::from_millis(100) {
        settings.push(Setting::new(["reconnect", "min_backoff"], Value::Bare(format_duration(retry))));
    }
    Ok(Outcome::To { settings, note: Some("the longest pause; the first is shorter".to_owned()), nicety: false })
}

pub(super) fn relay_mode(value: &str) -> Result<Value, Wrong> {
    let mode = match value.to_ascii_lowercase().as_str() {
        "session" => "Session",
        "transaction" => "Smart",
        "statement" => "Statement",
        _ => return Err(one_of("session, transaction, statement")),
    };
    Ok(Value::Bare(mode.to_owned()))
}

fn log_level(value: &str) -> Result<Value, Wrong> {
    let level = match number(value)? {
        0 => "Info",
        1 => "Debug",
        _ => "Trace",
    };
    Ok(Value::Bare(level.to_owned()))
}

/// PgBouncer's 0 means "used once", QCP's "without end".
pub(super) fn lifetime(value: &str) -> Result<Value, Wrong> {
    Ok(Value::Bare(format_duration(seconds(value)?.max(Duration::from_millis(1)))))
}

/// As C reads a mode: octal with a 0 before it. Some write it without, and mean the same.
fn mode(value: &str) -> Option<u32> {
    u32::from_str_radix(value, 8).ok()
}

fn is_interval_style(value: &str) -> bool {
    list(value).all(|name| name.eq_ignore_ascii_case("IntervalStyle"))
}

/// The elements of a list with commas.
pub(super) fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim_ascii).filter(|element| !element.is_empty())
}

fn one_of(words: &str) -> Wrong {
    format!("PgBouncer takes one of {words}")
}

/// A whole number as C reads it: decimal, or with 0x or 0 before it.
pub(super) fn number(value: &str) -> Result<u64, Wrong> {
    let read = match (value.strip_prefix("0x"), value.strip_prefix('0')) {
        (Some(hexadecimal), _) => u64::from_str_radix(hexadecimal, 16),
        (None, Some(octal)) if !octal.is_empty() => u64::from_str_radix(octal, 8),
        _ => value.parse(),
    };
    read.map_err(|_| "PgBouncer takes a whole number".to_owned())
}

pub(super) fn whole(value: &str) -> Result<Value, Wrong> {
    Ok(Value::Bare(number(value)?.to_string()))
}

/// Whether a number, a flag or a time is 0.
pub(super) fn off(value: &str) -> Result<bool, Wrong> {
    seconds(value)
        .or_else(|wrong| number(value).map(Duration::from_secs).map_err(|_| wrong))
        .map(|value| value.is_zero())
}

/// Seconds with decimals; less than a millisecond, but not 0, is one.
pub(super) fn seconds(value: &str) -> Result<Duration, Wrong> {
    let read = value.parse::<f64>().ok().filter(|seconds| (0.0..1e12).contains(seconds));
    let seconds = read.ok_or("PgBouncer takes a number of seconds")?;
    let milliseconds = (seconds * 1000.0).round() as u64;
    Ok(Duration::from_millis(if seconds > 0.0 { milliseconds.max(1) } else { 0 }))
}

pub(super) fn duration(value: &str) -> Result<Value, Wrong> {
    Ok(Value::Bare(format_duration(seconds(value)?)))
}
