//! What becomes of PgBouncer's listening addresses, of who checks logins, and of the entries of `[databases]` and
//! `[users]`.

use std::net::IpAddr;

use super::draft::{Setting, Value};
use super::ini::{Entry, connect_string};
use super::keys::{duration, lifetime, list, number, off, relay_mode, whole};
use super::{Importer, Outcome};

/// Who checks logins, once it is moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Judge {
    /// QCP, by this method.
    Own(&'static str),
    Server,
    Trust,
    /// Nobody that QCP has.
    None,
}

/// The names of a connect string's pairs, or of the lack of any.
struct Pairs(Vec<(String, String)>);

impl Pairs {
    /// The last of the name, as PgBouncer has it.
    fn value(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

impl Importer<'_> {
    /// `listening_address`, and which key has something in it that cannot be had.
    pub(super) fn listening(&self) -> (Vec<String>, Vec<(&'static str, String)>) {
        let (mut addresses, mut wrong) = (Vec::new(), Vec::new());
        let port = match number(self.value("listen_port").unwrap_or("6432")) {
            Ok(port @ 1..=65535) => port,
            _ => {
                wrong.push(("listen_port", "PgBouncer takes a number from 1 to 65535".to_owned()));
                6432
            }
        };
        for host in list(self.value("listen_addr").unwrap_or("")) {
            let mut add = |address: String| {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            };
            match host {
                "*" => {
                    add(format!("0.0.0.0:{port}"));
                    if self.ipv6 {
                        add(format!("[::]:{port}"));
                    }
                }
                "localhost" => add(format!("127.0.0.1:{port}")),
                _ => match host.parse() {
                    Ok(IpAddr::V4(address)) => add(format!("{address}:{port}")),
                    Ok(IpAddr::V6(address)) => add(format!("[{address}]:{port}")),
                    Err(_) => wrong.push(("listen_addr", format!("QCP takes numeric addresses; what is {host}'s?"))),
                },
            }
        }
        match self.value("unix_socket_dir").unwrap_or("/tmp") {
            "" => {}
            directory if directory.starts_with('@') => {
                wrong.push(("unix_socket_dir", "QCP has no sockets in the abstract namespace".to_owned()));
            }
            directory => addresses.push(format!("unix:{directory}:{port}")),
        }
        if addresses.is_empty() && wrong.is_empty() {
            wrong.push(("listen_addr", "there is no address to listen on".to_owned()));
        }
        (addresses, wrong)
    }

    /// What becomes of a key of `[pgbouncer]` that says who may log in.
    pub(super) fn auth(&self, key: &str, value: &str) -> Outcome {
        // A file that lies beside the imported one is named so that qcp finds it from anywhere.
        let beside = self.folder.join(value);
        let is_file = matches!(key, "auth_file" | "auth_hba_file" | "auth_ident_file");
        let value = match is_file && !std::path::Path::new(value).exists() && beside.exists() {
            true => &*std::path::absolute(&beside).unwrap_or(beside).to_string_lossy().into_owned(),
            false => value,
        };
        let path = |name: &'static str| Outcome::to(["auth", name], Value::Text(value.to_owned()));
        let not_needed = |why: &str| Outcome::ignore(&format!("not needed: {why}"));
        match (key, self.judge) {
            ("auth_type", Judge::None) => match value.to_ascii_lowercase().as_str() {
                "any" => Outcome::decide("QCP lets in nobody under another name than the one given"),
                "ldap" | "pam" | "gss" => Outcome::decide("QCP does not have this method"),
                _ => Outcome::decide(
                    "PgBouncer takes one of md5, scram-sha-256, plain, trust, any, cert, hba, ldap, pam",
                ),
            },
            ("auth_type", Judge::Server) => Outcome::to(["auth", "method"], Value::Bare("server".to_owned()))
                .note("the server checks each login, over QCP; no passwords are kept here"),
            ("auth_type", Judge::Trust) => Outcome::to(["auth", "method"], Value::Bare("trust".to_owned()))
                .note("who is not in auth_file is left to the server"),
            ("auth_type", Judge::Own(method)) => Outcome::to(["auth", "method"], Value::Bare(method.to_owned())),
            ("auth_file", Judge::Server | Judge::Trust) => match &self.users {
                Some(Ok(users)) => not_needed(&format!(
                    "its {} users ({} plain, {} md5, {} SCRAM) log in as before",
                    users.plain + users.md5 + users.scram,
                    users.plain,
                    users.md5,
                    users.scram
                )),
                Some(Err(reason)) => not_needed(&format!("and {reason}")),
                None => not_needed("empty"),
            },
            ("auth_file", Judge::Own(_) | Judge::None) => match &self.users {
                Some(Err(reason)) => Outcome::decide(reason),
                _ => path("user_file"),
            },
            (_, Judge::Server | Judge::Trust) if !matches!(key, "auth_hba_file" | "auth_ldap_options") => {
                not_needed("QCP asks for no secrets")
            }
            ("auth_hba_file" | "auth_ident_file", Judge::Own("hba")) => match &self.hba {
                Some(Err(reason)) if key == "auth_hba_file" => Outcome::decide(reason),
                _ => path(if key == "auth_hba_file" { "hba_file" } else { "ident_file" }),
            },
            ("auth_hba_file" | "auth_ident_file", _) => Outcome::ignore("auth_type is not hba"),
            ("auth_user", _) => path("query_user"),
            ("auth_query", _) => path("query"),
            ("auth_dbname", _) => path("query_database"),
            _ => Outcome::ignore("auth_type is not of this method"),
        }
    }

    /// An entry of `[databases]`.
    pub(super) fn database(&mut self, entry: &Entry) {
        let name = entry.key.as_str();
        let others = name == "*";
        let label = format!("[databases] {name}");
        let pairs = match connect_string(&entry.value) {
            Ok(pairs) => Pairs(pairs),
            Err(reason) => return self.add(entry, &label, Outcome::decide(reason)),
        };
        if name == "pgbouncer" {
            return self.add(entry, &label, Outcome::decide("the name belongs to the console, in PgBouncer as well"));
        }
        if name == "qcp" {
            return self.add(
                entry,
                &label,
                Outcome::decide("the name belongs to QCP's console: console: off frees it"),
            );
        }
        let path: &[&str] = if others { &["servers"] } else { &["databases", name, "servers"] };
        let servers = match self.servers(&pairs) {
            Ok(servers) => {
                // PgBouncer takes them in turn whatever they are.
                if servers.len() > 1 && pairs.value("target_session_attrs").is_none() {
                    let path: &[&str] = if others { &["route"] } else { &["databases", name, "route"] };
                    let any = Outcome::to(path.iter().copied(), Value::Bare("any".to_owned()));
                    self.add(entry, &label, any);
                }
                Outcome::to(path.iter().copied(), Value::List(servers))
            }
            Err(reason) => Outcome::Decide(reason),
        };
        self.add(entry, &label, servers);
        for (key, value) in &pairs.0 {
            if pairs.value(key) != Some(value.as_str()) {
                self.add(entry, &format!("{label}: {key}"), Outcome::ignore("given again behind it"));
                continue;
            }
            let outcome = self.of_database(name, key, value, &pairs).unwrap_or_else(Outcome::Decide);
            // The servers say it all.
            if !matches!(outcome, Outcome::Part { .. }) {
                self.add(entry, &format!("{label}: {key}"), outcome);
            }
        }
    }

    fn servers(&self, pairs: &Pairs) -> Result<Vec<String>, String> {
        let port = number(pairs.value("port").unwrap_or("5432"))?;
        // Without a host PgBouncer goes to a socket where its own is.
        let default = self.value("unix_socket_dir").unwrap_or("/tmp");
        let mut servers = Vec::new();
        for host in list(pairs.value("host").unwrap_or(default)) {
            let server = match host {
                _ if host.starts_with('/') => format!("unix:{host}:{port}"),
                _ if host.starts_with('@') => return Err("QCP has no sockets in the abstract namespace".to_owned()),
                _ if host.contains(':') => format!("[{host}]:{port}"),
                _ => format!("{host}:{port}"),
            };
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
        if servers.is_empty() { Err("no host, and no unix_socket_dir".to_owned()) } else { Ok(servers) }
    }

    fn of_database(&self, name: &str, key: &str, value: &str, pairs: &Pairs) -> Result<Outcome, String> {
        let to = |path: &[&str], value| Outcome::to(["databases", name].iter().chain(path).copied(), value);
        let text = |value: &str| Value::Text(value.to_owned());
        Ok(match key {
            "host" | "port" => Outcome::Part { of: "servers" },
            "dbname" if value == name => Outcome::same("the name that clients use"),
            "dbname" => to(&["dbname"], text(value)),
            "user" => to(&["auth", "server_user"], text(value)),
            "password" => to(&["auth", "server_password"], text(value)),
            "pool_size" => self.size(&["databases", name], value, pairs.value("min_pool_size").is_some())?,
            "min_pool_size" => to(&["pool", "min_size"], self.min_size(value, pairs.value("pool_size"))?),
            "reserve_pool" | "reserve_pool_size" if off(value)? => Outcome::same("no reserve"),
            "reserve_pool" | "reserve_pool_size" => to(&["pool", "reserve_size"], whole(value)?),
            "pool_mode" => to(&["relay_mode"], relay_mode(value)?),
            "query_wait_timeout" if value == "-1" => Outcome::same("not set"),
            "query_wait_timeout" => to(&["pool", "queue_timeout"], duration(value)?),
            "server_lifetime" => to(&["pool", "lifetime"], lifetime(value)?),
            "max_db_connections" | "max_db_client_connections" if off(value)? => Outcome::same("no limit"),
            "max_db_connections" => {
                Outcome::decide("QCP limits the backends of each database and user together (pool.size)")
            }
            "max_db_client_connections" => to(&["limits", "max_clients"], whole(value)?),
            "auth_user" | "auth_query" | "auth_dbname" => match self.judge {
                Judge::Server | Judge::Trust => Outcome::ignore("not needed: QCP asks for no secrets"),
                Judge::Own(_) if key == "auth_user" && self.is_everywhere(key, value) => {
                    Outcome::to(["auth", "query_user"], text(value))
                }
                Judge::Own(_) | Judge::None => Outcome::decide("QCP has one auth query for all databases"),
            },
            "connect_query" => {
                Outcome::decide("QCP sends nothing of its own at a login: ALTER ROLE or DATABASE .. SET")
            }
            "client_encoding" | "datestyle" | "timezone" => {
                Outcome::decide("let the server say so: ALTER DATABASE .. SET, or ALTER ROLE .. SET")
            }
            "application_name" => Outcome::ignore("each client's own name is seen at the server"),
            "load_balance_hosts" => match value.to_ascii_lowercase().as_str() {
                "round-robin" => to(&["pool", "schedule"], Value::Bare("round-robin".to_owned())),
                "disable" => Outcome::decide("QCP has no order of servers: name the one to use first, alone"),
                _ => return Err("PgBouncer takes round-robin or disable".to_owned()),
            },
            "target_session_attrs" => match value {
                "any" => to(&["route"], Value::Bare("any".to_owned())),
                "primary" | "read-write" => to(&["route"], Value::Bare("primary".to_owned())),
                "standby" | "read-only" => to(&["route"], Value::Bare("standby".to_owned())),
                _ => return Err("PgBouncer takes any, read-write, read-only, primary, standby".to_owned()),
            },
            _ => Outcome::decide("not a parameter of PgBouncer 1.25"),
        })
    }

    /// Whether all databases say the same, and `[pgbouncer]` nothing else: then it may as well stand there.
    fn is_everywhere(&self, key: &str, value: &str) -> bool {
        let says = |entry: &Entry| {
            connect_string(&entry.value).ok().and_then(|pairs| Pairs(pairs).value(key).map(str::to_owned))
        };
        let mut databases = self.entries.iter().filter(|entry| &*entry.section == "databases");
        databases.all(|entry| says(entry).as_deref() == Some(value))
            && self.value(key).is_none_or(|global| global.is_empty() || global == value)
    }

    /// An entry of `[users]`.
    pub(super) fn user(&mut self, entry: &Entry) {
        let label = format!("[users] {}", entry.key);
        let pairs = match connect_string(&entry.value) {
            Ok(pairs) => Pairs(pairs),
            Err(reason) => return self.add(entry, &label, Outcome::decide(reason)),
        };
        if pairs.0.is_empty() {
            self.add(entry, &label, Outcome::ignore("nothing is different for this user"));
        }
        for (key, value) in &pairs.0 {
            let outcome = match pairs.value(key) == Some(value.as_str()) {
                true => self.of_user(&entry.key, key, value).unwrap_or_else(Outcome::Decide),
                false => Outcome::ignore("given again behind it"),
            };
            self.add(entry, &format!("{label}: {key}"), outcome);
        }
    }

    /// An entry's `pool_size`. PgBouncer caps the least size by it, QCP would refuse the two.
    fn size(&self, path: &[&str], value: &str, has_own_min: bool) -> Result<Outcome, String> {
        let to = |key, value| Setting::new(path.iter().copied().chain(["pool", key]), value);
        let mut settings = vec![to("size", whole(value)?)];
        let min_size = self.value("min_pool_size").and_then(|value| number(value).ok()).unwrap_or(0);
        if min_size > number(value)? && !has_own_min {
            settings.push(to("min_size", whole(value)?));
        }
        Ok(Outcome::To { settings, note: None, nicety: false })
    }

    fn of_user(&self, name: &str, key: &str, value: &str) -> Result<Outcome, String> {
        let to = |path: &[&str], value| Outcome::to(["users", name].iter().chain(path).copied(), value);
        Ok(match key {
            "pool_mode" => to(&["relay_mode"], relay_mode(value)?),
            "pool_size" => self.size(&["users", name], value, false)?,
            "query_wait_timeout" if value == "-1" => Outcome::same("not set"),
            "query_wait_timeout" => to(&["pool", "queue_timeout"], duration(value)?),
            "reserve_pool_size"
            | "query_timeout"
            | "idle_transaction_timeout"
            | "transaction_timeout"
            | "client_idle_timeout"
            | "max_user_connections"
            | "max_user_client_connections"
                if off(value)? =>
            {
                // QCP's 0 is what stands at the top level; PgBouncer's as well, where that is off too.
                Outcome::same("no limit")
            }
            "reserve_pool_size" => to(&["pool", "reserve_size"], whole(value)?),
            "query_timeout" => to(&["limits", "query_timeout"], duration(value)?),
            "idle_transaction_timeout" => to(&["limits", "idle_in_transaction_timeout"], duration(value)?),
            "transaction_timeout" => to(&["limits", "transaction_timeout"], duration(value)?),
            "client_idle_timeout" => to(&["limits", "client_idle_timeout"], duration(value)?),
            "max_user_client_connections" => to(&["limits", "max_clients"], whole(value)?),
            "max_user_connections" => {
                Outcome::decide("QCP limits the backends of each database and user together (pool.size)")
            }
            _ => Outcome::decide("not a parameter of PgBouncer 1.25"),
        })
    }

    /// Who is to check logins: as PgBouncer where this version of QCP can, the server otherwise.
    pub(super) fn judge_of(method: &str) -> Judge {
        let own = |method, settings: &str| {
            let taken = super::is_taken(&format!("auth: {{method: {method}{settings}}}\n"));
            if taken { Judge::Own(method) } else { Judge::Server }
        };
        match method.to_ascii_lowercase().as_str() {
            "md5" => own("md5", ", user_file: /"),
            "scram-sha-256" => own("scram-sha-256", ", user_file: /"),
            "plain" => own("password", ", user_file: /"),
            "trust" => Judge::Trust,
            // What these keep out must not come in because QCP cannot do it yet.
            "hba" => Judge::Own("hba"),
            "cert" => Judge::Own("cert"),
            _ => Judge::None,
        }
    }
}

/// What a setting of PgBouncer's defaults is, where QCP's is another.
pub(super) fn defaults(importer: &Importer<'_>) -> Vec<(&'static str, Setting)> {
    let bare = |text: &str| Value::Bare(text.to_owned());
    let all = [
        ("pool_mode", Setting::new(["relay_mode"], bare("Session"))),
        ("max_client_conn", Setting::new(["limits", "max_clients"], bare("100"))),
        ("query_wait_timeout", Setting::new(["pool", "queue_timeout"], bare("120s"))),
        ("server_connect_timeout", Setting::new(["reconnect", "connect_timeout"], bare("15s"))),
    ];
    all.into_iter().filter(|(key, _)| !importer.has(key)).collect()
}
