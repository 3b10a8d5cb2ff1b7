//! Files as PostgreSQL takes them, and files that must not be taken.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::*;

/// Files in memory.
struct Memory(BTreeMap<PathBuf, String>);

impl Files for Memory {
    fn read(&self, path: &Path) -> io::Result<String> {
        self.0.get(path).cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let files: Vec<_> = self.0.keys().filter(|path| path.parent() == Some(folder)).cloned().collect();
        if files.is_empty() { Err(io::Error::from(io::ErrorKind::NotFound)) } else { Ok(files) }
    }
}

fn memory(files: &[(&str, &str)]) -> Memory {
    Memory(files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect())
}

fn hba_of(files: &[(&str, &str)]) -> Result<Hba, Broken> {
    Hba::read(Path::new("/etc/hba"), &memory(files))
}

fn hba(text: &str) -> Hba {
    hba_of(&[("/etc/hba", text)]).expect(text)
}

fn ident(text: &str) -> Result<IdentMaps, Broken> {
    IdentMaps::read(Path::new("/etc/ident"), &memory(&[("/etc/ident", text)]))
}

const UNIX: Option<&str> = None;

fn access<'a>(database: &'a str, user: &'a str, address: Option<&str>) -> Access<'a> {
    let address = address.map(|text| text.parse().expect("an address"));
    Access { database, user, replication: false, address, tls: false, own: &[], roles: None }
}

/// The line of the rule that fits, 0 for none.
fn line(hba: &Hba, access: Access<'_>) -> usize {
    match hba.find(&access) {
        Found::Rule(rule) => rule.place.rsplit(':').next().and_then(|line| line.parse().ok()).expect("file:line"),
        Found::None => 0,
        Found::NeedsRoles => 999,
    }
}

#[test]
fn the_first_rule_that_fits_counts() {
    let rules = hba("# a comment\n\
         local all postgres peer map=admins\n\
         local sameuser all scram-sha-256 # behind a rule\n\
         host db1,\"db two\" alice,bob 192.0.2.0/24 md5\n\
         host all all 198.51.100.0 255.255.255.0 trust\n\
         hostssl secret all 0.0.0.0/0 scram-sha-256\n\
         hostnossl secret all all reject\n\
         host \"all\" \"all\" ::/0 password\n\
         host /^app_\\d+$ all 203.0.113.7/32 trust\n\
         host all \"/^svc_[a-z,]+$\" 203.0.113.7/32 trust\n");
    let check = |access, expected| assert_eq!(line(&rules, access), expected, "{access:?}");
    check(access("x", "postgres", UNIX), 2);
    check(access("x", "x", UNIX), 3);
    check(access("x", "y", UNIX), 0);
    check(access("db1", "alice", Some("192.0.2.200")), 4);
    check(access("db two", "bob", Some("192.0.2.1")), 4);
    check(access("db two", "bob", Some("::ffff:192.0.2.1")), 4);
    check(access("db1", "carol", Some("192.0.2.1")), 0);
    check(access("db1", "alice", Some("192.0.3.1")), 0);
    check(access("any", "any", Some("198.51.100.77")), 5);
    check(Access { tls: true, ..access("secret", "x", Some("203.0.113.9")) }, 6);
    check(access("secret", "x", Some("203.0.113.9")), 7);
    check(Access { tls: true, ..access("secret", "x", Some("2001:db8::1")) }, 0);
    check(access("all", "all", Some("2001:db8::1")), 8);
    check(access("all", "x", Some("2001:db8::1")), 0);
    check(access("app_12", "x", Some("203.0.113.7")), 9);
    check(access("app_x", "x", Some("203.0.113.7")), 0);
    check(access("x", "svc_a,b", Some("203.0.113.7")), 10);
    assert_eq!(rules.rules()[0].map.as_deref(), Some("admins"));
    assert_eq!(rules.rules()[0].method, Method::Peer);
}

#[test]
fn replication_is_a_database_of_its_own() {
    let rules = hba("host all all all trust\nhost replication rep all scram-sha-256\n");
    let physical = |user| Access { replication: true, ..access("", user, Some("192.0.2.1")) };
    assert_eq!(line(&rules, physical("rep")), 2);
    assert_eq!(line(&rules, physical("other")), 0);
    assert_eq!(line(&rules, access("replication", "rep", Some("192.0.2.1"))), 1);
}

#[test]
fn members_of_roles_are_asked_for_only_where_it_matters() {
    let rules = hba("host all boss all trust\nhost all +staff all md5\nhost samerole all all scram-sha-256\n");
    let with = |user, roles| Access { roles, ..access("team", user, Some("192.0.2.1")) };
    assert_eq!(line(&rules, with("boss", None)), 1);
    assert_eq!(line(&rules, with("alice", None)), 999);
    let (staff, team, other) = (["staff".to_owned()], ["team".to_owned()], ["other".to_owned()]);
    assert_eq!(line(&rules, with("alice", Some(&staff))), 2);
    assert_eq!(line(&rules, with("alice", Some(&team))), 3);
    assert_eq!(line(&rules, with("alice", Some(&other))), 0);
    // A role is a member of itself.
    assert_eq!(line(&rules, with("staff", None)), 2);
    // In quotes the plus is part of the name.
    assert_eq!(line(&hba("host all \"+staff\" all md5\n"), with("alice", Some(&staff))), 0);
}

#[test]
fn addresses_of_this_machine() {
    let rules = hba("host all all samehost trust\nhost all all samenet md5\n");
    let own: IpAddr = "192.0.2.5".parse().expect("an address");
    let own = [(own, Network::new(own, 24).expect("24 of 32"))];
    let from = |address| Access { own: &own, ..access("x", "x", Some(address)) };
    assert_eq!(line(&rules, from("192.0.2.5")), 1);
    assert_eq!(line(&rules, from("192.0.2.6")), 2);
    assert_eq!(line(&rules, from("192.0.3.6")), 0);
}

#[test]
fn networks() {
    let check = |network: &str, address: &str, expected: bool| {
        let network = Network::from_text(network).expect(network);
        assert_eq!(network.contains(address.parse().expect(address)), expected, "{address}");
    };
    check("0.0.0.0/0", "203.0.113.7", true);
    check("0.0.0.0/0", "::1", false);
    check("::/0", "203.0.113.7", false);
    check("10.0.0.0/8", "10.255.0.1", true);
    check("10.0.0.0/8", "11.0.0.1", false);
    check("10.1.2.3", "10.1.2.3", true);
    check("10.1.2.3", "10.1.2.4", false);
    check("2001:db8::/33", "2001:db8:7fff::1", true);
    check("2001:db8::/33", "2001:db8:8000::1", false);
    check("2001:db8::1/128", "2001:db8::1", true);
    for wrong in ["10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/", "10.0.0.0/+8", "", "host/8"] {
        assert_eq!(Network::from_text(wrong), None, "{wrong}");
    }
}

#[test]
fn files_include_files() {
    let rules = hba_of(&[
        ("/etc/hba", "include sub/one\ninclude_if_exists nowhere\ninclude_dir d\nhost @dbs \\\n  all all trust\n"),
        ("/etc/sub/one", "local one all trust\ninclude two\n"),
        ("/etc/sub/two", "local two all trust\n"),
        ("/etc/d/b.conf", "local b all trust\n"),
        ("/etc/d/a.conf", "local a all trust\n"),
        ("/etc/d/.hidden.conf", "nonsense\n"),
        ("/etc/d/backup.conf~", "nonsense\n"),
        ("/etc/dbs", "db1 db2,\"db 3\"\n# comment\ndb4\n@more\n"),
        ("/etc/more", "db5\n"),
    ])
    .expect("valid");
    let places: Vec<_> = rules.rules().iter().map(|rule| &rule.place[..]).collect();
    assert_eq!(places, ["/etc/sub/one:1", "/etc/sub/two:1", "/etc/d/a.conf:1", "/etc/d/b.conf:1", "/etc/hba:4"]);
    for database in ["db1", "db2", "db 3", "db4", "db5"] {
        assert_eq!(line(&rules, access(database, "x", Some("192.0.2.1"))), 4, "{database}");
    }
    assert_eq!(line(&rules, access("db6", "x", Some("192.0.2.1"))), 0);
}

#[test]
fn what_is_wrong_is_named_with_file_and_line() {
    let check = |text: &str, expected: &str| {
        let broken = hba_of(&[("/etc/hba", &format!("local all all trust\n{text}\n"))]).expect_err(text);
        assert_eq!((broken.file.to_str(), broken.line), (Some("/etc/hba"), 2), "{text}");
        assert!(broken.what.contains(expected), "{text}: {}", broken.what);
    };
    for method in ["ldap", "gss", "sspi", "pam", "bsd", "radius", "ident", "oauth"] {
        check(&format!("host all all all {method}"), "does not have this method");
    }
    check("hostgssenc all all all trust", "GSSAPI");
    check("host all all all trusted", "unknown method");
    check("hosts all all all trust", "unknown type");
    check("host all all db.example.com md5", "host names");
    check("host all all .example.com md5", "host names");
    check("host all all 10.0.0.0/33 md5", "not a network");
    check("host all all 10.0.0.0 md5", "not a mask");
    check("host all all 10.0.0.0 ffff:: md5", "not a mask");
    check("host all all all", "ends before the method");
    check("host all", "ends before the user");
    check("host all all 10.0.0.0/8,11.0.0.0/8 md5", "only one address");
    check("host all all all peer", "only for local");
    check("host all all all cert", "only for hostssl");
    check("local all all cert", "only for hostssl");
    check("host all all all md5 map=x", "only for the methods");
    check("host all all all md5 clientcert=verify-full", "only for hostssl");
    check("hostssl all all all cert clientcert=verify-ca", "verify-full");
    check("hostssl all all all md5 clientcert=1", "unknown option");
    check("host all all all md5 ldapserver=x", "unknown option");
    check("host all all all md5 x", "not NAME=VALUE");
    check("host \"all all all md5", "quote");
    check("host /( all all md5", "regular expression");
    check("host @nowhere all all md5", "nowhere");
    check("include nowhere", "nowhere");
    check("include", "one file");
    check("include_dir nowhere", "nowhere");
    check("include hba", "10 deep");
    check("host @hba all all trust", "10 deep");
    assert!(hba_of(&[("/etc/hba", "# nothing\n")]).is_err());
    assert!(hba_of(&[]).is_err());
}

#[test]
fn certificates() {
    let rules = hba("hostssl all all all cert map=m clientname=DN\nhostssl x all all md5 clientcert=verify-ca\n");
    let first = &rules.rules()[0];
    assert_eq!(first.certificate, Some(ClientCertificate::VerifyFull));
    assert!(first.by_distinguished_name);
    assert_eq!(rules.rules()[1].certificate, Some(ClientCertificate::VerifyCa));
}

#[test]
fn names_of_the_system_become_users() {
    let maps = ident(
        "# map system user\n\
         m alice app\n\
         m /^(.*)@example\\.com$ \\1\n\
         m /^(.*)@jobs\\.example\\.com$ job_\\1\n\
         m root all\n\
         n \"with space\" \"a user\"\n\
         n bob /^b.*$\n",
    )
    .expect("valid");
    let check = |map, system, user, expected| assert_eq!(maps.may_be(map, system, user), expected, "{system} {user}");
    check(Some("m"), "alice", "app", Mapped::Yes);
    check(Some("m"), "alice", "alice", Mapped::No);
    check(Some("m"), "bob@example.com", "bob", Mapped::Yes);
    check(Some("m"), "bob@example.com", "carol", Mapped::No);
    check(Some("m"), "x@jobs.example.com", "job_x", Mapped::Yes);
    check(Some("m"), "root", "anybody", Mapped::Yes);
    check(Some("n"), "with space", "a user", Mapped::Yes);
    check(Some("n"), "bob", "berta", Mapped::Yes);
    check(Some("n"), "bob", "carol", Mapped::No);
    check(Some("o"), "bob", "bob", Mapped::NoMap);
    check(None, "bob", "bob", Mapped::Yes);
    check(None, "bob", "carol", Mapped::No);
}

#[test]
fn maps_that_are_not_taken() {
    for wrong in ["m a", "m a b c", "m a,b c", "m /( c", "m a \\1", "m /^a$ x\\1", "m a +role"] {
        let broken = ident(&format!("m a b\n{wrong}\n")).expect_err(wrong);
        assert_eq!(broken.line, 2, "{wrong}");
    }
}
