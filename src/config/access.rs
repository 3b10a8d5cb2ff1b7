//! `auth`, for everyone and for one database or user: who checks clients, how QCP logs in, and the files that either
//! needs. They are read here, once; what is wrong with them is an error of the key that names them.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::file;
use super::problem::{Error, KeyPath, Problem, Warning};
use super::resolve::{Override, Source};
use super::tls::TlsMode;
use super::values::{Hidden, Name, Parsed};
use super::{Auth, Config};
use crate::auth::hba::{self, Files, Hba, IdentMaps, Network};
use crate::auth::incoming::Kinds;
use crate::auth::limiter;
use crate::auth::query::{QUERY_DEFAULT, Query};
use crate::auth::secrets::{SECRET_SIZE_MAX, Secret, Users};
use crate::auth::settings::{Credentials, LIMITER, Method, Rules, SCRAM_ITERATIONS_MAX, Settings};
use crate::auth::userlist;

const CHECK_CONNECTIONS: u32 = 4;

/// What a database or a user says instead of what is said for everyone.
#[derive(Clone, PartialEq, Default, Debug)]
pub(super) struct Change {
    method: Option<Method>,
    credentials: Option<Arc<Credentials>>,
}

impl Change {
    /// Name and password of QCP's own login go together: a level that gives one of them gives both.
    pub(super) fn over(&self, below: Rules) -> Rules {
        Rules {
            method: self.method.unwrap_or(below.method),
            credentials: self.credentials.clone().or(below.credentials),
        }
    }
}

/// Where nothing is said of QCP's own login, the user list may know the user's password.
pub(super) fn with_known_password(mut rules: Rules, user: &str, users: &Users) -> Rules {
    if rules.credentials.is_none()
        && rules.method != Method::Server
        && let Some(secret) = users.get(user).filter(|secret| !matches!(***secret, Secret::Scram(_)))
    {
        rules.credentials = Some(Arc::new(Credentials { user: None, secret: Some(secret.clone()) }));
    }
    rules
}

/// What authentication goes by that stands outside of `auth`.
pub(super) struct Others {
    pub proxies: Vec<Network>,
    pub clients_of_address_max: u32,
}

/// The `auth` of everyone.
pub(super) fn resolve(
    source: &Source,
    written: file::Auth,
    others: Others,
    warnings: &mut Vec<Warning>,
) -> Result<(Auth, Rules), Error> {
    let path = KeyPath::of(["auth"]);
    let mut users = match &written.user_file {
        Some(Parsed(file)) => user_file(source, &path.join(["user_file"]), file, warnings)?,
        None => Users::default(),
    };
    for (name, Hidden(secret)) in written.users.iter().flatten() {
        // What stands in the configuration goes before the file.
        users.insert(name, Secret::from_text(secret));
    }
    let hba = match &written.hba_file {
        Some(Parsed(file)) => Some(read(source, &path.join(["hba_file"]), Hba::read(file, &Disk))?),
        None => None,
    };
    let ident = match &written.ident_file {
        Some(Parsed(file)) => read(source, &path.join(["ident_file"]), IdentMaps::read(file, &Disk))?,
        None => IdentMaps::default(),
    };
    let query = query(source, &written)?;
    let mut kinds = Kinds::of(&users);
    // What servers keep is verifiers, most of it.
    kinds.scram |= query.is_some();
    let settings = Settings {
        kinds,
        query,
        users,
        own_addresses: if hba.is_some() { own_addresses() } else { Vec::new() },
        hba,
        ident,
        scram_iterations_max: written.scram_iterations_max.map_or(SCRAM_ITERATIONS_MAX, |count| count.0),
        limiter: limiter::Settings {
            failures_max: written.failed_logins_max.map_or(LIMITER.failures_max, |count| count.0),
            ..LIMITER
        },
        admin_users: names(written.admin_users),
        stats_users: names(written.stats_users),
        proxies: others.proxies,
        clients_of_address_max: others.clients_of_address_max,
    };
    check_maps(source, &settings)?;
    let auth = Auth {
        check_connections: written.check_connections.map_or(CHECK_CONNECTIONS, |count| count.0),
        settings: Arc::new(settings),
    };
    let own = file::OwnAuth {
        method: written.method,
        server_user: written.server_user,
        server_password: written.server_password,
        server_password_file: written.server_password_file,
        server_password_env: written.server_password_env,
    };
    let change = change(source, &path, own, warnings)?;
    Ok((auth, change.over(Rules::default())))
}

fn names(written: Option<Vec<Name>>) -> Vec<String> {
    written.unwrap_or_default().into_iter().map(|name| name.0).collect()
}

/// The `auth` of one database or user, or these keys of everyone's.
pub(super) fn change(
    source: &Source,
    path: &KeyPath,
    written: file::OwnAuth,
    warnings: &mut Vec<Warning>,
) -> Result<Change, Error> {
    let file::OwnAuth { method, server_user, server_password, server_password_file, server_password_env } = written;
    let given = [
        ("server_password", server_password.is_some()),
        ("server_password_file", server_password_file.is_some()),
        ("server_password_env", server_password_env.is_some()),
    ];
    let mut given = given.iter().filter(|(_, is_there)| *is_there);
    if let (Some((first, _)), Some((second, _))) = (given.next(), given.next()) {
        return Err(source.error(path.join([*second]), Problem::Excludes { other: (*first).to_owned() }));
    }
    let password = if let Some(Hidden(password)) = server_password {
        Some(password)
    } else if let Some(Parsed(file)) = server_password_file {
        Some(password_file(source, &path.join(["server_password_file"]), &file, warnings)?)
    } else if let Some(Name(name)) = server_password_env {
        Some(password_of_environment(source, &path.join(["server_password_env"]), &name)?)
    } else {
        None
    };
    let user = server_user.map(|name| name.0);
    let credentials = (user.is_some() || password.is_some()).then(|| {
        let secret = password.map(|password| Arc::new(Secret::from_text(&password)));
        Arc::new(Credentials { user, secret })
    });
    if let Some(credentials) = &credentials
        && matches!(credentials.secret.as_deref(), Some(Secret::Scram(_)))
    {
        let problem = Problem::value("a SCRAM verifier", "a password or its md5 hash: a verifier cannot log in");
        return Err(source.error(path.clone(), problem));
    }
    Ok(Change { method: method.map(|method| method.0), credentials })
}

/// What only shows when everything is there: each database and user with what applies to it in the end.
pub(super) fn check(config: &Config, warnings: &mut Vec<Warning>) -> Result<(), Error> {
    let settings = &config.auth.settings;
    let everyone: (KeyPath, Option<&Override>) = (KeyPath::default(), None);
    let changes = |(path, change)| (path, Some(change));
    let databases: Vec<_> = config.database_changes().map(changes).chain([everyone.clone()]).collect();
    let users: Vec<_> = config.user_changes().map(changes).chain([everyone]).collect();
    let mut is_ruled = false;
    let mut asks_for_secrets = false;
    for database in &databases {
        for user in &users {
            let changes = [database.1, user.1].into_iter().flatten();
            let rules = changes.fold(config.everyone.rules.clone(), |rules, change| change.access.over(rules));
            // The innermost that says anything about it is the one to change.
            let says = |(path, change): &(KeyPath, Option<&Override>)| {
                change.is_some_and(|change| change.access.method.is_some()).then(|| path.clone())
            };
            let chosen = says(user).or_else(|| says(database)).unwrap_or_default().join(["auth"]);
            let path = if user.1.is_some() { &user.0 } else { &database.0 };
            let path = path.join(["auth"]);
            if rules.method == Method::Hba && settings.hba.is_none() {
                let problem = Problem::value("hba", "auth.hba_file must name the file with the rules");
                return Err(config.source.error(chosen.join(["method"]), problem));
            }
            let tls = &config.tls_client;
            let lacking = match rules.method {
                Method::ScramPlus if tls.mode == TlsMode::Disable => Some("tls.client.mode must not be disable"),
                Method::Cert if tls.mode == TlsMode::Disable || tls.ca.is_none() => Some(
                    "tls.client must name the ca that signs clients' certificates, with a mode that is not disable",
                ),
                _ => None,
            };
            if let Some(lacking) = lacking {
                let method = if rules.method == Method::Cert { "cert" } else { "scram-sha-256-plus" };
                return Err(config.source.error(chosen.join(["method"]), Problem::value(method, lacking)));
            }
            is_ruled |= rules.method == Method::Hba;
            asks_for_secrets |=
                matches!(rules.method, Method::Password | Method::Md5 | Method::Scram | Method::ScramPlus);
            let renamed = rules.credentials.as_ref().is_some_and(|credentials| credentials.user.is_some());
            if rules.method == Method::Server && renamed {
                let problem = Problem::value(
                    "server_user",
                    "a method other than server: the server would check the clients of one user for another",
                );
                return Err(config.source.error(path.join(["server_user"]), problem));
            }
        }
    }
    let shows_certificates = config.tls_client.mode != TlsMode::Disable && config.tls_client.ca.is_some();
    let certified = settings.hba.iter().flat_map(|hba| hba.rules()).find(|rule| rule.certificate.is_some());
    if let Some(rule) = certified.filter(|_| !shows_certificates) {
        let what = format!("{}: it asks for a certificate, and tls.client has no ca that signs them", rule.place);
        return Err(config.source.error(KeyPath::of(["auth", "hba_file"]), Problem::Broken(what)));
    }
    let mut warn = |key: &str, text: &str| warnings.push(config.source.warning(KeyPath::of(["auth", key]), text));
    if settings.hba.is_some() && !is_ruled {
        warn("hba_file", "has no effect: no method is hba");
    }
    if asks_for_secrets && settings.users.is_empty() && settings.query.is_none() {
        warn("method", "nobody can log in by it: there are neither users nor a user_file nor a query_user");
    }
    for (name, secret) in settings.users.iter() {
        if let Secret::Scram(verifier) = &**secret
            && verifier.iterations < crate::auth::secrets::ITERATIONS
        {
            warn("users", &format!("{name}: its SCRAM secret has fewer than 4096 iterations"));
        }
    }
    Ok(())
}

/// `query` has a default, which applies when there is somebody to ask as.
fn query(source: &Source, written: &file::Auth) -> Result<Option<Query>, Error> {
    let Some(Name(user)) = &written.query_user else {
        let others = [("query", written.query.is_some()), ("query_database", written.query_database.is_some())];
        return match others.iter().find(|(_, is_there)| *is_there) {
            Some((key, _)) => {
                let problem = Problem::value("no query_user", "auth.query_user must say who asks");
                Err(source.error(KeyPath::of(["auth", *key]), problem))
            }
            None => Ok(None),
        };
    };
    let text = written.query.as_ref().map_or(QUERY_DEFAULT, |text| &text.0);
    let database = written.query_database.as_ref().map(|name| name.0.as_str());
    let problem = || Problem::value(format!("{text:?}"), "a query with $1, once, for the user's name, and no other $");
    let query = Query::new(text, user, database);
    query.map(Some).ok_or_else(|| source.error(KeyPath::of(["auth", "query"]), problem()))
}

/// A rule's `map=` must be there: with a misspelt one nobody would get in, and nobody would know why.
fn check_maps(source: &Source, settings: &Settings) -> Result<(), Error> {
    for rule in settings.hba.iter().flat_map(|hba| hba.rules()) {
        if rule.needs_roles() && settings.query.is_none() {
            let what = format!("{}: +role and samerole need auth.query_user, who asks for the roles", rule.place);
            return Err(source.error(KeyPath::of(["auth", "hba_file"]), Problem::Broken(what)));
        }
        if let Some(map) = rule.map.as_deref().filter(|map| !settings.ident.has(map)) {
            let what = format!("{}: auth.ident_file has no map \"{map}\"", rule.place);
            return Err(source.error(KeyPath::of(["auth", "hba_file"]), Problem::Broken(what)));
        }
    }
    Ok(())
}

/// This machine's addresses with their networks.
fn own_addresses() -> Vec<(IpAddr, Network)> {
    let ip = |address: Option<nix::sys::socket::SockaddrStorage>| -> Option<IpAddr> {
        let address = address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let own = interfaces.filter_map(|interface| {
        let address = ip(interface.address)?;
        let network = ip(interface.netmask).and_then(|mask| Network::with_mask(address, mask));
        Some((address, network.or_else(|| Network::from_text(&address.to_string()))?))
    });
    own.collect()
}

/// The file system, for files that include files.
struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect()
    }
}

fn read<T>(source: &Source, path: &KeyPath, outcome: Result<T, hba::Broken>) -> Result<T, Error> {
    outcome.map_err(|broken| source.error(path.clone(), Problem::Broken(broken.to_string())))
}

fn user_file(source: &Source, path: &KeyPath, file: &Path, warnings: &mut Vec<Warning>) -> Result<Users, Error> {
    let text = secret_file(source, path, file, warnings)?;
    let users = userlist::read(&text);
    users.map_err(|broken| source.error(path.clone(), Problem::Broken(format!("{}: {broken}", file.display()))))
}

/// The first line of a file.
fn password_file(
    source: &Source,
    path: &KeyPath,
    file: &Path,
    warnings: &mut Vec<Warning>,
) -> Result<Zeroizing<String>, Error> {
    let text = secret_file(source, path, file, warnings)?;
    let line = text.lines().next().unwrap_or_default();
    checked(source, path, line)
}

fn password_of_environment(source: &Source, path: &KeyPath, name: &str) -> Result<Zeroizing<String>, Error> {
    match std::env::var(name) {
        Ok(value) => checked(source, path, &Zeroizing::new(value)),
        Err(_) => {
            let problem = Problem::value(format!("{name:?}"), "a variable of the environment that is set");
            Err(source.error(path.clone(), problem))
        }
    }
}

fn checked(source: &Source, path: &KeyPath, password: &str) -> Result<Zeroizing<String>, Error> {
    if password.is_empty() || password.len() > SECRET_SIZE_MAX {
        let problem = Problem::value("an empty or too long password", format!("1 to {SECRET_SIZE_MAX} bytes"));
        return Err(source.error(path.clone(), problem));
    }
    Ok(Zeroizing::new(password.to_owned()))
}

fn secret_file(
    source: &Source,
    path: &KeyPath,
    file: &Path,
    warnings: &mut Vec<Warning>,
) -> Result<Zeroizing<String>, Error> {
    let unreadable = |error: io::Error| {
        source.error(path.clone(), Problem::Broken(format!("{}: cannot be read: {error}", file.display())))
    };
    let text = std::fs::read_to_string(file).map(Zeroizing::new).map_err(unreadable)?;
    let mode = std::fs::metadata(file).map_err(unreadable)?.permissions().mode();
    if mode & 0o007 != 0 {
        warnings.push(source.warning(path.clone(), "names a file that every user of this machine can read"));
    }
    Ok(text)
}
