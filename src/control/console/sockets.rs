//! SHOW CLIENTS, SERVERS, SOCKETS and ACTIVE_SOCKETS: a row for each connection, of either side, with the same columns.

use std::net::SocketAddr;
use std::time::Duration;

use super::Source;
use super::rows::{Column, Kind, Value};
use super::show::{Failed, of_all};
use crate::control::report::{BackendRow, BackendState, ClientRow, ClientState};

pub(super) const SOCKET: [Column; 21] = [
    ("type", Kind::Text),
    ("user", Kind::Text),
    ("database", Kind::Text),
    ("replication", Kind::Text),
    ("state", Kind::Text),
    ("addr", Kind::Text),
    ("port", Kind::Int4),
    ("local_addr", Kind::Text),
    ("local_port", Kind::Int4),
    ("connect_time", Kind::Text),
    ("request_time", Kind::Text),
    ("wait", Kind::Int4),
    ("wait_us", Kind::Int4),
    ("close_needed", Kind::Int4),
    ("ptr", Kind::Text),
    ("link", Kind::Text),
    ("remote_pid", Kind::Int4),
    ("tls", Kind::Text),
    ("application_name", Kind::Text),
    ("prepared_statements", Kind::Int4),
    ("id", Kind::Int4),
];
/// What PgBouncer says of its buffers; ours are not a socket's own.
pub(super) const SOCKET_BUFFERS: [&str; 7] =
    ["recv_pos", "pkt_pos", "pkt_remain", "send_pos", "send_remain", "pkt_avail", "send_avail"];
pub(super) const SOCKET_OURS: [Column; 3] = [("core", Kind::Int4), ("pinned", Kind::Text), ("pinned_s", Kind::Int4)];

/// A connection on either side.
pub(super) struct Socket<'r> {
    pub(super) is_client: bool,
    user: &'r str,
    database: &'r str,
    pub(super) state: &'static str,
    address: &'r str,
    connected_s: u64,
    /// Since its last request.
    quiet_s: u64,
    wait: Duration,
    close_needed: bool,
    ptr: u64,
    link: Option<u64>,
    remote_pid: u64,
    cipher: &'r str,
    local: &'r str,
    replication: &'r str,
    application_name: &'r str,
    prepared_statements: u64,
    id: u64,
    core: u16,
    pinned: String,
    pinned_s: u64,
}

/// Backends' pointers are made of what the server calls them, apart from clients' ids.
const BACKENDS: u64 = 1 << 32;

impl<'r> Socket<'r> {
    fn client(row: &'r ClientRow) -> Socket<'r> {
        Socket {
            is_client: true,
            user: if row.user.is_empty() { "(nouser)" } else { &row.user },
            database: if row.database.is_empty() { "(nodb)" } else { &row.database },
            state: match row.state {
                ClientState::Login => "login",
                ClientState::Idle => "idle",
                ClientState::Waiting => "waiting",
                ClientState::Active | ClientState::Dedicated | ClientState::Console => "active",
                ClientState::Closing => "close",
            },
            address: &row.address,
            connected_s: row.connected_s,
            quiet_s: row.quiet_s,
            wait: Duration::from_millis(row.wait_ms),
            close_needed: false,
            ptr: row.id,
            link: row.backend_pid.map(|pid| BACKENDS | u64::from(pid as u32)),
            remote_pid: 0,
            cipher: &row.cipher,
            local: &row.local,
            replication: if row.replication.is_empty() { "none" } else { &row.replication },
            application_name: &row.application_name,
            prepared_statements: row.prepared_statements,
            id: row.id,
            core: row.shard,
            pinned: row.pinned.join(", "),
            pinned_s: row.pinned_s,
        }
    }

    fn backend(row: &'r BackendRow) -> Socket<'r> {
        let pid = row.pid.map_or(0, |pid| u64::from(pid as u32));
        Socket {
            is_client: false,
            user: &row.user,
            database: &row.database,
            state: match row.state {
                BackendState::Dialing | BackendState::Login => "new",
                BackendState::Idle => "idle",
                BackendState::Linked | BackendState::Dedicated | BackendState::Listening => "active",
                BackendState::Cleaning => "tested",
                BackendState::Closing => "close",
            },
            address: &row.server,
            connected_s: row.age_s,
            quiet_s: row.idle_s,
            wait: Duration::ZERO,
            close_needed: row.close_needed,
            ptr: BACKENDS | pid,
            link: row.client,
            remote_pid: pid,
            cipher: &row.cipher,
            local: &row.local,
            replication: if row.replication.is_empty() { "none" } else { &row.replication },
            application_name: "",
            prepared_statements: row.prepared_statements,
            id: pid,
            core: row.shard,
            pinned: String::new(),
            pinned_s: 0,
        }
    }

    fn row(&self, now: Duration, buffers: bool) -> Vec<Value> {
        let (host, port) = host_and_port(self.address);
        let (local_host, local_port) = host_and_port(self.local);
        // As SHOW SOCKETS names them.
        let state = match (buffers, self.is_client, self.state) {
            (false, _, state) => state.to_owned(),
            (true, true, "idle") => "cl_active".to_owned(),
            (true, true, state) => format!("cl_{state}"),
            (true, false, "new") => "sv_login".to_owned(),
            (true, false, state) => format!("sv_{state}"),
        };
        let at = |ago: u64| timestamp(now.as_secs().saturating_sub(ago));
        let mut row: Vec<Value> = vec![
            if self.is_client { "C" } else { "S" }.into(),
            self.user.into(),
            self.database.into(),
            self.replication.into(),
            state.into(),
            host.into(),
            u64::from(port).into(),
            local_host.into(),
            u64::from(local_port).into(),
            at(self.connected_s).into(),
            at(self.quiet_s).into(),
            self.wait.as_secs().into(),
            u64::from(self.wait.subsec_micros()).into(),
            self.close_needed.into(),
            format!("{:#x}", self.ptr).into(),
            self.link.map(|link| format!("{link:#x}")).unwrap_or_default().into(),
            self.remote_pid.into(),
            self.cipher.into(),
            self.application_name.into(),
            self.prepared_statements.into(),
            self.id.into(),
        ];
        if buffers {
            row.extend(SOCKET_BUFFERS.map(|_| Value::Number(0)));
        }
        row.extend([u64::from(self.core).into(), self.pinned.clone().into(), self.pinned_s.into()]);
        row
    }
}

pub(super) fn sockets(
    source: &dyn Source,
    is_meant: impl Fn(&Socket<'_>) -> bool,
    buffers: bool,
) -> Result<Vec<Vec<Value>>, Failed> {
    let reports = source.reports()?;
    let now = source.now();
    let clients = of_all(&reports, |report| &report.clients).map(Socket::client);
    let backends = of_all(&reports, |report| &report.backends).map(Socket::backend);
    let mut meant: Vec<Socket<'_>> = clients.chain(backends).filter(is_meant).collect();
    meant.sort_by_key(|socket| (!socket.is_client, socket.core, socket.id));
    Ok(meant.iter().map(|socket| socket.row(now, buffers)).collect())
}

/// Of `host:port`, `[host]:port` or `unix`; a socket file has no port.
fn host_and_port(address: &str) -> (String, u16) {
    if let Ok(address) = address.parse::<SocketAddr>() {
        return (address.ip().to_string(), address.port());
    }
    if let Some(path) = address.strip_prefix("unix:") {
        return (path.to_owned(), 0);
    }
    let split = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    split.map_or_else(|| (address.to_owned(), 0), |(host, port)| (host.to_owned(), port))
}

/// Seconds since the epoch, in the way of PgBouncer.
fn timestamp(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days are counted in eras of 400 years that begin on the first of March.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_times() {
        let of = |text: &str| host_and_port(text);
        assert_eq!(of("127.0.0.1:5432"), ("127.0.0.1".to_owned(), 5432));
        assert_eq!(of("[::1]:5432"), ("::1".to_owned(), 5432));
        assert_eq!(of("db.example:5432"), ("db.example".to_owned(), 5432));
        assert_eq!(of("unix"), ("unix".to_owned(), 0));
        assert_eq!(of("unix:/run/x/.s.PGSQL.5432"), ("/run/x/.s.PGSQL.5432".to_owned(), 0));
        assert_eq!(timestamp(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(timestamp(951_782_400 + 86_399), "2000-02-29 23:59:59 UTC");
        assert_eq!(timestamp(1_735_689_599), "2024-12-31 23:59:59 UTC");
    }
}
