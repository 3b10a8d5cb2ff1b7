//! Who may do what at the console, the virtual databases `qcp` and `pgbouncer`, and how such a login is checked: there is
//! no server behind them that could.

use super::secrets::Secret;
use super::settings::{Method, Settings};

/// What the console is called, as a database.
pub const DATABASES: [&str; 2] = ["qcp", "pgbouncer"];

/// What somebody may do at the console.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Right {
    /// Look at everything, change nothing.
    Look,
    /// Everything.
    Rule,
}

/// What a user of this name may do once its login has been checked by [`method`]. `is_owner`: it came over a Unix socket,
/// and the kernel says that it is run by root or by the user whom QCP itself is run by; who is that could as well use
/// `qcp-ctrl`. `None`: it has no business there.
pub fn right(settings: &Settings, user: &str, is_owner: bool) -> Option<Right> {
    let is_in = |names: &[String]| names.iter().any(|name| name == user);
    if is_owner || is_in(&settings.admin_users) {
        Some(Right::Rule)
    } else if is_in(&settings.stats_users) {
        Some(Right::Look)
    } else {
        None
    }
}

/// How a login at the console is checked where `configured` applies to the user. The owner is asked nothing. A login that
/// would be relayed to a server is checked by the user list, since what a server says of a user gives no right here; who is
/// not in the list is rejected.
pub fn method(settings: &Settings, configured: Method, user: &str, is_owner: bool) -> Method {
    match configured {
        _ if is_owner => Method::Trust,
        Method::Server => match settings.users.get(user).map(|secret| &**secret) {
            Some(Secret::Md5(_)) => Method::Md5,
            Some(Secret::Plain(_) | Secret::Scram(_)) => Method::Scram,
            None => Method::Reject,
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let mut settings = Settings {
            admin_users: vec!["ann".to_owned()],
            stats_users: vec!["stan".to_owned(), "ann".to_owned()],
            ..Settings::default()
        };
        settings.users.insert("ann", Secret::from_text("in the clear"));
        settings.users.insert("stan", Secret::from_text("md5c4ca4238a0b923820dcc509a6f75849b"));
        settings
    }

    #[test]
    fn rights() {
        let settings = settings();
        assert_eq!(right(&settings, "ann", false), Some(Right::Rule));
        assert_eq!(right(&settings, "stan", false), Some(Right::Look));
        assert_eq!(right(&settings, "stan", true), Some(Right::Rule));
        assert_eq!(right(&settings, "bob", true), Some(Right::Rule));
        assert_eq!(right(&settings, "bob", false), None);
        assert_eq!(right(&settings, "Ann", false), None);
        assert_eq!(right(&settings, "", false), None);
        // Without a list nobody gets in but the owner, whatever the name.
        let empty = Settings::default();
        assert_eq!(["pgbouncer", "qcp", "postgres"].map(|user| right(&empty, user, false)), [None; 3]);
    }

    #[test]
    fn a_server_is_never_asked() {
        let settings = settings();
        let of = |configured, user| method(&settings, configured, user, false);
        assert_eq!(of(Method::Server, "ann"), Method::Scram);
        assert_eq!(of(Method::Server, "stan"), Method::Md5);
        assert_eq!(of(Method::Server, "bob"), Method::Reject);
        assert_eq!(of(Method::Trust, "bob"), Method::Trust);
        assert_eq!(of(Method::Hba, "ann"), Method::Hba);
        assert_eq!(method(&settings, Method::Reject, "bob", true), Method::Trust);
    }
}
