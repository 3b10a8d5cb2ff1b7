//! Addresses as they are written: `host:port`, `[v6]:port`, `unix:/directory`, `unix:/directory:port`.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::values::FromText;

/// PostgreSQL's own port, where a server's address names none.
pub const SERVER_PORT_DEFAULT: u16 = 5432;

/// A socket file is named by the directory and a port, as PostgreSQL's clients expect.
const SOCKET_FILE_PREFIX: &str = ".s.PGSQL.";

/// The kernel's `sun_path` has 108 bytes; the last is the terminating zero.
const SOCKET_PATH_SIZE_MAX: usize = 107;

/// DNS names are no longer than this.
const HOST_SIZE_MAX: usize = 253;

/// Where clients are accepted.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix {
        directory: PathBuf,
        /// The socket file in it, whole.
        path: PathBuf,
    },
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => write!(f, "{address}"),
            Listen::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A PostgreSQL server. A name is not resolved here: it may come to mean another machine while QCP runs.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ServerAddress {
    Tcp {
        host: String,
        port: u16,
    },
    Unix {
        /// The socket file, whole.
        path: PathBuf,
    },
}

/// As it may be written in the configuration.
impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerAddress::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            ServerAddress::Tcp { host, port } => write!(f, "{host}:{port}"),
            ServerAddress::Unix { path } => match socket_file_port(path) {
                Some((directory, SERVER_PORT_DEFAULT)) => write!(f, "unix:{}", directory.display()),
                Some((directory, port)) => write!(f, "unix:{}:{port}", directory.display()),
                None => write!(f, "unix:{}", path.display()),
            },
        }
    }
}

impl FromText for ServerAddress {
    fn allowed() -> String {
        "\"host:port\", \"[v6 address]:port\", \"unix:/directory\" or \"unix:/directory:port\"; without a port, 5432"
            .to_owned()
    }

    fn from_text(text: &str) -> Option<ServerAddress> {
        if let Some(written) = text.strip_prefix("unix:") {
            let (directory, port) = socket_directory(written)?;
            let path = socket_file(&directory, port.unwrap_or(SERVER_PORT_DEFAULT))?;
            return Some(ServerAddress::Unix { path });
        }
        let (host, port) = split_port(text)?;
        let host = match host.strip_prefix('[') {
            Some(bracketed) => bracketed.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.to_string(),
            None if is_host(host) => host.to_owned(),
            None => return None,
        };
        Some(ServerAddress::Tcp { host, port: port.unwrap_or(SERVER_PORT_DEFAULT) })
    }
}

/// A listening address as written: the port of a socket file may depend on the other addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ListenAddress {
    Tcp(SocketAddr),
    Unix { directory: PathBuf, port: Option<u16> },
}

impl ListenAddress {
    /// `None` if the path of the socket file would be longer than the kernel takes.
    pub(super) fn resolve(self, port_default: u16) -> Option<Listen> {
        match self {
            ListenAddress::Tcp(address) => Some(Listen::Tcp(address)),
            ListenAddress::Unix { directory, port } => {
                let path = socket_file(&directory, port.unwrap_or(port_default))?;
                Some(Listen::Unix { directory, path })
            }
        }
    }
}

impl FromText for ListenAddress {
    fn allowed() -> String {
        "\"address:port\" with a numeric address (0.0.0.0 and [::] are all of this machine's), \"unix:/directory\" or \
         \"unix:/directory:port\""
            .to_owned()
    }

    fn from_text(text: &str) -> Option<ListenAddress> {
        if let Some(written) = text.strip_prefix("unix:") {
            let (directory, port) = socket_directory(written)?;
            return Some(ListenAddress::Unix { directory, port });
        }
        // Each shard has a listener of its own; port 0 would give each another port.
        let address: SocketAddr = text.parse().ok()?;
        (address.port() != 0).then_some(ListenAddress::Tcp(address))
    }
}

/// `host` and `port` of `host:port`; a v6 address has its colons in brackets.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => Some((host, Some(port_number(port)?))),
        _ => Some((text, None)),
    }
}

fn port_number(text: &str) -> Option<u16> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|port| *port != 0)
}

fn is_host(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    (1..=HOST_SIZE_MAX).contains(&text.len()) && text.bytes().all(allowed)
}

/// `/directory` or `/directory:port`, as it stands after `unix:`.
fn socket_directory(written: &str) -> Option<(PathBuf, Option<u16>)> {
    let (directory, port) = match written.rsplit_once(':') {
        Some((directory, port)) => (directory, Some(port_number(port)?)),
        None => (written, None),
    };
    // The file instead of its directory is a likely slip, and would be looked for inside itself.
    let is_socket_file = socket_file_port(Path::new(directory)).is_some();
    let taken = directory.starts_with('/') && !directory.contains('\0') && !is_socket_file;
    taken.then(|| (PathBuf::from(directory), port))
}

fn socket_file(directory: &Path, port: u16) -> Option<PathBuf> {
    let path = directory.join(format!("{SOCKET_FILE_PREFIX}{port}"));
    (path.as_os_str().len() <= SOCKET_PATH_SIZE_MAX).then_some(path)
}

/// The directory and the port that a socket file's name consists of.
fn socket_file_port(path: &Path) -> Option<(&Path, u16)> {
    let name = path.file_name()?.to_str()?;
    Some((path.parent()?, port_number(name.strip_prefix(SOCKET_FILE_PREFIX)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn servers() {
        let check = |text, shown: Option<&str>| {
            let read = ServerAddress::from_text(text).map(|address| address.to_string());
            assert_eq!(read.as_deref(), shown, "{text}");
        };
        check("10.0.0.1:5433", Some("10.0.0.1:5433"));
        check("10.0.0.1", Some("10.0.0.1:5432"));
        check("db-1.example.org", Some("db-1.example.org:5432"));
        check("[::1]:6000", Some("[::1]:6000"));
        check("[::1]", Some("[::1]:5432"));
        check("unix:/run/postgresql", Some("unix:/run/postgresql"));
        check("unix:/run/postgresql:5432", Some("unix:/run/postgresql"));
        check("unix:/run/postgresql:5433", Some("unix:/run/postgresql:5433"));
        for refused in [
            "",
            ":5432",
            "host:",
            "host:0",
            "host:65536",
            "host:+1",
            "::1",
            "::1:5432",
            "[::1",
            "[host]:1",
            "a b",
            "unix:",
            "unix:run",
            "unix:/run:x",
            "unix:/run/.s.PGSQL.5432",
            "postgres://host",
        ] {
            check(refused, None);
        }
        check(&format!("unix:/{}", "x".repeat(107)), None);
    }

    #[test]
    fn a_socket_directory_becomes_its_file() {
        let server = ServerAddress::from_text("unix:/run/postgresql:5433").unwrap();
        assert_eq!(server, ServerAddress::Unix { path: "/run/postgresql/.s.PGSQL.5433".into() });
        let listen = ListenAddress::from_text("unix:/run/qcp").unwrap().resolve(8080).unwrap();
        let expected = Listen::Unix { directory: "/run/qcp".into(), path: "/run/qcp/.s.PGSQL.8080".into() };
        assert_eq!(listen, expected);
    }

    #[test]
    fn listening_addresses() {
        for taken in ["0.0.0.0:8080", "[::]:8080", "127.0.0.1:1", "unix:/tmp", "unix:/tmp:6432"] {
            assert!(ListenAddress::from_text(taken).is_some(), "{taken}");
        }
        for refused in ["", "8080", "localhost:8080", "*:8080", "0.0.0.0", "0.0.0.0:0", "unix:tmp", "unix:"] {
            assert!(ListenAddress::from_text(refused).is_none(), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String, near in "(unix:/?)?[a-z0-9:./\\[\\]]{0,20}") {
            for text in [text, near] {
                let _ = ListenAddress::from_text(&text);
                if let Some(address) = ServerAddress::from_text(&text) {
                    prop_assert_eq!(ServerAddress::from_text(&address.to_string()), Some(address));
                }
            }
        }
    }
}
