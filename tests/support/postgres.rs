//! A private PostgreSQL for the tests of one process: made with initdb in a temporary folder, shared by all tests.
//!
//! A guard shell owns the postmaster and reads from a pipe that this process holds open. When the process ends, by
//! return, panic or SIGKILL, the pipe closes and the guard stops the postmaster and removes the folder.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use super::certificates::Authority;
use super::programs::psql;
use super::{Address, free_port, wait_until};

/// The superuser, whom the server lets in without asking.
pub const SUPERUSER: &str = "postgres";

/// A role for each way the server may ask who a client is.
pub struct Role {
    pub name: &'static str,
    /// The method of its line in pg_hba.conf.
    pub method: &'static str,
    pub password: &'static str,
}

pub const ROLES: [Role; 5] = [
    Role { name: "trust_user", method: "trust", password: "unasked" },
    Role { name: "password_user", method: "password", password: "in the clear" },
    Role { name: "md5_user", method: "md5", password: "salted once" },
    Role { name: "scram_user", method: "scram-sha-256", password: "salted and peppered" },
    Role { name: "rejected_user", method: "reject", password: "in vain" },
];

/// Roles that the server lets in without a password, by how they connect: only with TLS, only without, and only with a
/// certificate of the authority's whose common name they are.
pub const TLS_USER: &str = "tls_user";
pub const PLAIN_USER: &str = "plain_user";
pub const CERTIFICATE_USER: &str = "certificate_user";
/// With TLS, and by SCRAM.
pub const TLS_SCRAM_USER: &str = "tls_scram_user";

/// Connections that the server accepts: more than all tests that run at once may want.
const CONNECTIONS_MAX: u32 = 400;

/// Ends the postmaster ($1 is its program, $2 the folder, the rest its arguments) when standard input does.
const GUARD: &str = r#"
trap '' INT TERM HUP
folder=$1; shift
"$@" </dev/null &
postmaster=$!
cat >/dev/null
kill -QUIT "$postmaster"
wait "$postmaster"
rm -rf "$folder"
"#;

pub struct Postgres {
    /// Where psql, pgbench and the server's own programs are.
    pub programs: PathBuf,
    folder: PathBuf,
    port: u16,
    /// `CREATE DATABASE` copies a template that nobody else may be copying at the moment.
    creating: Mutex<()>,
}

/// The cluster of this process, started by whoever asks first.
pub fn postgres() -> &'static Postgres {
    static POSTGRES: OnceLock<Postgres> = OnceLock::new();
    POSTGRES.get_or_init(Postgres::start)
}

impl Postgres {
    fn start() -> Postgres {
        let programs = newest_programs();
        let folder = std::env::temp_dir().join(format!("qcp-postgres-{}", std::process::id()));
        let data = folder.join("data");
        let server = Postgres { programs, folder, port: free_port(), creating: Mutex::new(()) };
        fs::create_dir_all(&server.folder).expect("the temporary folder is writable");
        fs::set_permissions(&server.folder, fs::Permissions::from_mode(0o755)).expect("the folder is ours");
        if let Some(owner) = unprivileged() {
            chown(&server.folder, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).expect("root may give it away");
        }

        let initdb = server
            .as_server("initdb")
            .args(["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--username", SUPERUSER])
            .arg("--pgdata")
            .arg(&data)
            .output()
            .expect("initdb starts");
        assert!(initdb.status.success(), "initdb: {}", String::from_utf8_lossy(&initdb.stderr));
        server.make_certificates();
        fs::write(data.join("pg_hba.conf"), access_rules()).expect("the data folder is writable");

        server.run_guarded(&data);
        wait_until("PostgreSQL accepts", Duration::from_secs(30), || server.is_ready());
        server.create_roles();
        server
    }

    /// What the server shows (`server.crt`, for localhost and 127.0.0.1), the authority (`authority.crt`), and what it has
    /// signed for a client (`certificate_user.crt`).
    pub fn certificates(&self) -> PathBuf {
        self.folder.join("certificates")
    }

    fn make_certificates(&self) {
        let folder = self.certificates();
        fs::create_dir_all(&folder).expect("the temporary folder is writable");
        let authority = Authority::new(&folder, "authority");
        authority.sign("server", &["localhost", "127.0.0.1"]);
        authority.sign(CERTIFICATE_USER, &[]);
        let Some(owner) = unprivileged() else { return };
        let key = folder.join("server.key");
        chown(key, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).expect("root may give it away");
    }

    /// By TCP on the loopback.
    pub fn tcp(&self) -> Address {
        Address::loopback(self.port)
    }

    /// By its Unix socket.
    pub fn unix(&self) -> Address {
        Address { host: self.folder.display().to_string(), port: self.port }
    }

    /// Makes an empty database, so that a test can count the backends in it without counting anybody else's.
    pub fn create_database(&self, name: &str) {
        // A test that failed while creating leaves nothing half done.
        let _alone = self.creating.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.execute("postgres", &format!("CREATE DATABASE {name}"));
    }

    /// Runs statements directly as the superuser and gives what they print, unaligned and without headings.
    pub fn execute(&self, database: &str, statements: &str) -> String {
        psql(&self.tcp(), SUPERUSER, database)
            .args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-c", statements])
            .finish()
            .success()
    }

    /// Backends that clients of a database hold at the moment.
    pub fn count_backends(&self, database: &str) -> usize {
        self.count_activity(&format!("datname = '{database}' AND backend_type = 'client backend'"))
    }

    /// Rows of pg_stat_activity for which a condition holds, the asking backend aside.
    pub fn count_activity(&self, condition: &str) -> usize {
        let statement =
            format!("SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND ({condition})");
        self.execute("postgres", &statement).trim().parse().expect("a count is a number")
    }

    fn run_guarded(&self, data: &Path) {
        let postmaster = self.as_server("postgres");
        let mut guard = Command::new("sh");
        guard.args(["-c", GUARD, "guard"]).arg(&self.folder).arg(postmaster.get_program()).args(postmaster.get_args());
        guard.arg("-D").arg(data).arg("-k").arg(&self.folder).args(["-p", &self.port.to_string()]);
        for setting in [
            "listen_addresses=127.0.0.1",
            &format!("max_connections={CONNECTIONS_MAX}"),
            "shared_buffers=64MB",
            "fsync=off",
            "synchronous_commit=off",
            "full_page_writes=off",
            "autovacuum=off",
            "wal_level=replica",
            "max_wal_senders=8",
            "max_prepared_transactions=20",
            "timezone=UTC",
            "ssl=on",
            &format!("ssl_cert_file={}", self.certificates().join("server.crt").display()),
            &format!("ssl_key_file={}", self.certificates().join("server.key").display()),
            &format!("ssl_ca_file={}", self.certificates().join("authority.crt").display()),
        ] {
            guard.args(["-c", setting]);
        }
        let log = fs::File::create(self.folder.join("log")).expect("the temporary folder is writable");
        let log_too = log.try_clone().expect("a descriptor is left");
        // A group of its own: Ctrl-C on the tests must reach the guard through the pipe, not as a signal.
        let guard =
            guard.process_group(0).stdin(Stdio::piped()).stdout(log).stderr(log_too).spawn().expect("sh is everywhere");
        // Its standard input is held open for as long as this process lives; the end of it is the guard's signal.
        std::mem::forget(guard);
    }

    fn is_ready(&self) -> bool {
        let reply = Command::new(self.programs.join("pg_isready"))
            .args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()])
            .status();
        reply.is_ok_and(|status| status.success())
    }

    fn create_roles(&self) {
        let mut statements = String::new();
        for role in &ROLES {
            let stored_as = if role.method == "md5" { "md5" } else { "scram-sha-256" };
            statements += &format!("SET password_encryption = '{stored_as}';");
            statements += &format!("CREATE ROLE {} LOGIN PASSWORD '{}';", role.name, role.password);
        }
        for name in [TLS_USER, PLAIN_USER, CERTIFICATE_USER] {
            statements += &format!("CREATE ROLE {name} LOGIN;");
        }
        statements += &format!("CREATE ROLE {TLS_SCRAM_USER} LOGIN PASSWORD 'bound to the channel';");
        self.execute("postgres", &statements);
    }

    /// A command of the server's own programs, run by a user that PostgreSQL accepts to be run by.
    fn as_server(&self, program: &str) -> Command {
        unprivileged_command(&self.programs.join(program))
    }

    /// The server's log so far, for the report of a test that failed.
    pub fn log(&self) -> String {
        let mut text = String::new();
        let read = fs::File::open(self.folder.join("log")).and_then(|mut file| file.read_to_string(&mut text));
        match read {
            Ok(_) => text,
            Err(error) => format!("(no log: {error})"),
        }
    }
}

/// A command run by a user that PostgreSQL accepts to be run by.
pub(super) fn unprivileged_command(program: &Path) -> Command {
    let Some(owner) = unprivileged() else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={}", owner.uid))
        .arg(format!("--regid={}", owner.gid))
        .arg("--clear-groups")
        .arg(program)
        .current_dir("/");
    command
}

/// PostgreSQL refuses to be run by root; `None` where we are somebody else already.
pub(super) fn unprivileged() -> Option<nix::unistd::User> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let named = |name| nix::unistd::User::from_name(name).ok().flatten();
    Some(named("postgres").or_else(|| named("nobody")).expect("root needs a user postgres or nobody to run PostgreSQL"))
}

/// The folder of programs of the newest PostgreSQL on this machine.
pub fn newest_programs() -> PathBuf {
    let version = |folder: &fs::DirEntry| folder.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
    fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|folder| Some((version(&folder)?, folder.path().join("bin"))))
        .filter(|(_, programs)| programs.join("initdb").exists())
        .max()
        .expect("PostgreSQL is not installed (apt-get install postgresql)")
        .1
}

/// pg_hba.conf: one line for each role, and the superuser from anywhere near.
fn access_rules() -> String {
    let mut rules = String::new();
    for role in &ROLES {
        rules += &format!("local all {0} {1}\nhost all {0} 127.0.0.1/32 {1}\n", role.name, role.method);
    }
    rules += &format!("hostssl all {TLS_USER} 127.0.0.1/32 trust\n");
    rules += &format!("hostnossl all {PLAIN_USER} 127.0.0.1/32 trust\n");
    rules += &format!("hostssl all {CERTIFICATE_USER} 127.0.0.1/32 cert\n");
    rules += &format!("hostssl all {TLS_SCRAM_USER} 127.0.0.1/32 scram-sha-256\n");
    for database in ["all", "replication"] {
        rules += &format!("local {database} {SUPERUSER} trust\nhost {database} {SUPERUSER} 127.0.0.1/32 trust\n");
    }
    rules
}
