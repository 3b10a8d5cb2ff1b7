//! The rules of pg_hba.conf, and which of them is the first to fit.

use std::net::IpAddr;
use std::path::Path;

use super::tokens::{self, Line, Token};
use super::{Broken, Files, Pattern};

/// How a client is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// Not at all.
    Trust,
    /// It is refused.
    Reject,
    /// By a password in plain text.
    Password,
    /// By md5, or by SCRAM where that is what is known of the user.
    Md5,
    /// By SCRAM-SHA-256, with channel binding where both can.
    Scram,
    /// By who runs it, as the kernel says; Unix sockets only.
    Peer,
    /// By its certificate; TLS only.
    Cert,
}

/// What a client's certificate must show beside the method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientCertificate {
    /// That the CA signed it.
    VerifyCa,
    /// Also that it names the user.
    VerifyFull,
}

/// An IPv4 or IPv6 network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    address: IpAddr,
    mask: u128,
}

impl Network {
    /// The network of an address: its first `size` bits. `None`: it has not so many.
    pub fn new(address: IpAddr, size: u32) -> Option<Network> {
        let bits = bits_of(address);
        if size > bits {
            return None;
        }
        // Addresses of IPv4 are the low half of a word.
        let ones = if bits == 32 { u128::from(u32::MAX) } else { u128::MAX };
        let mask = if size == 0 { 0 } else { ones & (ones << (bits - size)) };
        Some(Network { address, mask })
    }

    /// `address/size`, or an address alone.
    pub fn from_text(text: &str) -> Option<Network> {
        let (address, size) = match text.split_once('/') {
            Some((address, size)) => (address, Some(size)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let size = match size {
            Some(size) => crate::auth::secrets::decimal(size.as_bytes())?,
            None => bits_of(address),
        };
        Network::new(address, size)
    }

    /// The network of an address by a mask. `None`: they are of two families.
    pub fn with_mask(address: IpAddr, mask: IpAddr) -> Option<Network> {
        (address.is_ipv4() == mask.is_ipv4()).then(|| Network { address, mask: word(mask) })
    }

    /// Whether an address is in it. An IPv4 address that came over an IPv6 socket counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.address.is_ipv4() == address.is_ipv4() && (word(self.address) ^ word(address)) & self.mask == 0
    }
}

fn bits_of(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn word(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Over {
    Unix,
    Tcp,
    Tls,
    PlainTcp,
}

#[derive(Clone, PartialEq, Debug)]
enum Addresses {
    Any,
    Network(Network),
    SameHost,
    SameNetwork,
}

#[derive(Clone, PartialEq, Debug)]
enum DatabaseItem {
    All,
    SameUser,
    SameRole,
    Replication,
    Name(String),
    Pattern(Pattern),
}

#[derive(Clone, PartialEq, Debug)]
enum UserItem {
    All,
    Member(String),
    Name(String),
    Pattern(Pattern),
}

/// A line of pg_hba.conf.
#[derive(Clone, PartialEq, Debug)]
pub struct Rule {
    /// `file:line`, for the log.
    pub place: String,
    over: Over,
    databases: Vec<DatabaseItem>,
    users: Vec<UserItem>,
    addresses: Addresses,
    /// How the client is checked.
    pub method: Method,
    /// `map=`: the map of pg_ident.conf by which names of the system or of certificates become users.
    pub map: Option<String>,
    /// `clientcert=`, also what `cert` implies.
    pub certificate: Option<ClientCertificate>,
    /// `clientname=DN`: it is the distinguished name that counts, not the common name.
    pub by_distinguished_name: bool,
}

/// A login, as the rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// The database asked for.
    pub database: &'a str,
    /// The user that the client says it is.
    pub user: &'a str,
    /// Whether it wants physical replication, which only the word `replication` stands for.
    pub replication: bool,
    /// The client's address. `None`: a Unix socket.
    pub address: Option<IpAddr>,
    /// Whether the channel is TLS.
    pub tls: bool,
    /// Addresses of this machine, each with its network, for samehost and samenet.
    pub own: &'a [(IpAddr, Network)],
    /// The roles that the user is a member of, itself among them. `None`: not known yet.
    pub roles: Option<&'a [String]>,
}

/// What the rules say.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Found<'a> {
    /// This rule is the first that fits.
    Rule(&'a Rule),
    /// None fits: the client is refused.
    None,
    /// It depends on the user's roles: ask for them and come again.
    NeedsRoles,
}

/// All rules, in their order.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Hba {
    rules: Vec<Rule>,
}

impl Hba {
    /// Reads a file with all that it includes.
    pub fn read(path: &Path, files: &dyn Files) -> Result<Hba, Broken> {
        let lines = tokens::lines(path, files)?;
        if lines.is_empty() {
            let what = "it has no rules: nobody could log in".to_owned();
            return Err(Broken { file: path.to_owned(), line: 0, what });
        }
        let rules = lines.iter().map(rule).collect::<Result<_, _>>()?;
        Ok(Hba { rules })
    }

    /// The rules.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The first rule that fits.
    pub fn find(&self, access: &Access<'_>) -> Found<'_> {
        for rule in &self.rules {
            if !rule.fits_channel(access) {
                continue;
            }
            let databases = any_fits(&rule.databases, |item| item.fits(access));
            let users = any_fits(&rule.users, |item| item.fits(access));
            match (databases, users) {
                (Some(true), Some(true)) => return Found::Rule(rule),
                (Some(false), _) | (_, Some(false)) => {}
                (None, _) | (_, None) => return Found::NeedsRoles,
            }
        }
        Found::None
    }
}

/// Whether one of the items fits. `None`: that depends on the user's roles.
fn any_fits<T>(items: &[T], fits: impl Fn(&T) -> Option<bool>) -> Option<bool> {
    let mut depends = false;
    for item in items {
        match fits(item) {
            Some(true) => return Some(true),
            Some(false) => {}
            None => depends = true,
        }
    }
    if depends { None } else { Some(false) }
}

impl Rule {
    /// Whether it goes by the roles that a user is a member of.
    pub fn needs_roles(&self) -> bool {
        self.databases.contains(&DatabaseItem::SameRole)
            || self.users.iter().any(|item| matches!(item, UserItem::Member(_)))
    }

    fn fits_channel(&self, access: &Access<'_>) -> bool {
        let Some(address) = access.address else { return self.over == Over::Unix };
        let fits_over = match self.over {
            Over::Unix => false,
            Over::Tcp => true,
            Over::Tls => access.tls,
            Over::PlainTcp => !access.tls,
        };
        let address = address.to_canonical();
        fits_over
            && match &self.addresses {
                Addresses::Any => true,
                Addresses::Network(network) => network.contains(address),
                Addresses::SameHost => access.own.iter().any(|(own, _)| own.to_canonical() == address),
                Addresses::SameNetwork => access.own.iter().any(|(_, network)| network.contains(address)),
            }
    }
}

impl DatabaseItem {
    fn fits(&self, access: &Access<'_>) -> Option<bool> {
        if access.replication {
            return Some(*self == DatabaseItem::Replication);
        }
        match self {
            DatabaseItem::All => Some(true),
            DatabaseItem::SameUser => Some(access.database == access.user),
            DatabaseItem::SameRole => member(access, access.database),
            DatabaseItem::Replication => Some(false),
            DatabaseItem::Name(name) => Some(name == access.database),
            DatabaseItem::Pattern(pattern) => Some(pattern.0.is_match(access.database)),
        }
    }
}

impl UserItem {
    fn fits(&self, access: &Access<'_>) -> Option<bool> {
        match self {
            UserItem::All => Some(true),
            UserItem::Member(role) => member(access, role),
            UserItem::Name(name) => Some(name == access.user),
            UserItem::Pattern(pattern) => Some(pattern.0.is_match(access.user)),
        }
    }
}

fn member(access: &Access<'_>, role: &str) -> Option<bool> {
    if role == access.user {
        return Some(true);
    }
    access.roles.map(|roles| roles.iter().any(|one| one == role))
}

fn rule(line: &Line) -> Result<Rule, Broken> {
    let mut fields = line.fields.iter();
    let over = match single(line, fields.next(), "type of connection")? {
        "local" => Over::Unix,
        "host" => Over::Tcp,
        "hostssl" => Over::Tls,
        "hostnossl" => Over::PlainTcp,
        "hostgssenc" => return Err(line.broken("hostgssenc: qcp has no GSSAPI encryption")),
        // Every connection of QCP's is without GSSAPI encryption.
        "hostnogssenc" => Over::Tcp,
        other => return Err(line.broken(format!("unknown type of connection \"{other}\""))),
    };
    let list = |field: Option<&Vec<Token>>, what: &str| {
        field.cloned().ok_or_else(|| line.broken(format!("the line ends before the {what}")))
    };
    let databases = list(fields.next(), "database")?;
    let databases = databases.iter().map(|token| database_item(line, token)).collect::<Result<_, _>>()?;
    let users = list(fields.next(), "user")?;
    let users = users.iter().map(|token| user_item(line, token)).collect::<Result<_, _>>()?;
    let addresses = match over {
        Over::Unix => Addresses::Any,
        Over::Tcp | Over::Tls | Over::PlainTcp => {
            let address = list(fields.next(), "address")?;
            let [address] = &address[..] else { return Err(line.broken("there can be only one address")) };
            match addresses(line, address)? {
                Some(addresses) => addresses,
                None => {
                    let mask = single(line, fields.next(), "mask")?;
                    let ends = address.text.parse().ok().zip(mask.parse().ok());
                    let network = ends.and_then(|(address, mask)| Network::with_mask(address, mask));
                    let what = || line.broken(format!("\"{mask}\" is not a mask of \"{}\"", address.text));
                    Addresses::Network(network.ok_or_else(what)?)
                }
            }
        }
    };
    let method = single(line, fields.next(), "method")?;
    let mut rule = Rule {
        place: format!("{}:{}", line.file.display(), line.number),
        over,
        databases,
        users,
        addresses,
        method: self::method(line, method, over)?,
        map: None,
        certificate: None,
        by_distinguished_name: false,
    };
    if rule.method == Method::Cert {
        rule.certificate = Some(ClientCertificate::VerifyFull);
    }
    for option in fields {
        let [option] = &option[..] else { return Err(line.broken("an option has a comma")) };
        read_option(line, &option.text, &mut rule)?;
    }
    Ok(rule)
}

fn single<'a>(line: &Line, field: Option<&'a Vec<Token>>, what: &str) -> Result<&'a str, Broken> {
    match field.map(|tokens| &tokens[..]) {
        Some([token]) => Ok(&token.text),
        Some(_) => Err(line.broken(format!("there can be only one {what}"))),
        None => Err(line.broken(format!("the line ends before the {what}"))),
    }
}

fn database_item(line: &Line, token: &Token) -> Result<DatabaseItem, Broken> {
    Ok(match &token.text[..] {
        "all" if !token.quoted => DatabaseItem::All,
        "sameuser" if !token.quoted => DatabaseItem::SameUser,
        "samerole" | "samegroup" if !token.quoted => DatabaseItem::SameRole,
        "replication" if !token.quoted => DatabaseItem::Replication,
        text => match pattern(line, text)? {
            Some(pattern) => DatabaseItem::Pattern(pattern),
            None => DatabaseItem::Name(text.to_owned()),
        },
    })
}

fn user_item(line: &Line, token: &Token) -> Result<UserItem, Broken> {
    if token.is("all") {
        return Ok(UserItem::All);
    }
    if let Some(role) = token.text.strip_prefix('+').filter(|_| !token.quoted) {
        return Ok(UserItem::Member(role.to_owned()));
    }
    Ok(match pattern(line, &token.text)? {
        Some(pattern) => UserItem::Pattern(pattern),
        None => UserItem::Name(token.text.clone()),
    })
}

fn pattern(line: &Line, text: &str) -> Result<Option<Pattern>, Broken> {
    match text.strip_prefix('/') {
        Some(pattern) => Pattern::new(pattern).map(Some).map_err(|what| line.broken(what)),
        None => Ok(None),
    }
}

/// `None`: an address whose mask is the next field.
fn addresses(line: &Line, token: &Token) -> Result<Option<Addresses>, Broken> {
    match &token.text[..] {
        "all" if !token.quoted => return Ok(Some(Addresses::Any)),
        "samehost" if !token.quoted => return Ok(Some(Addresses::SameHost)),
        "samenet" if !token.quoted => return Ok(Some(Addresses::SameNetwork)),
        _ => {}
    }
    if token.text.contains('/') {
        let network = Network::from_text(&token.text);
        let what = || line.broken(format!("\"{}\" is not a network", token.text));
        return network.map(Addresses::Network).map(Some).ok_or_else(what);
    }
    if token.text.parse::<IpAddr>().is_ok() {
        return Ok(None);
    }
    Err(line.broken(format!(
        "\"{}\": qcp does not look up host names for rules of access; give the address as ADDRESS/SIZE",
        token.text
    )))
}

fn method(line: &Line, text: &str, over: Over) -> Result<Method, Broken> {
    match text {
        "trust" => Ok(Method::Trust),
        "reject" => Ok(Method::Reject),
        "password" => Ok(Method::Password),
        "md5" => Ok(Method::Md5),
        "scram-sha-256" => Ok(Method::Scram),
        // "When ident is specified for a local connection, peer authentication will be used instead."
        "peer" | "ident" if over == Over::Unix => Ok(Method::Peer),
        "peer" => Err(line.broken("peer is only for local connections")),
        "cert" if over == Over::Tls => Ok(Method::Cert),
        "cert" => Err(line.broken("cert is only for hostssl connections")),
        "ident" => Err(line.broken("ident over TCP: qcp does not have this method")),
        "ldap" | "gss" | "sspi" | "pam" | "bsd" | "radius" | "oauth" => {
            Err(line.broken(format!("{text}: qcp does not have this method")))
        }
        _ => Err(line.broken(format!("unknown method \"{text}\""))),
    }
}

fn read_option(line: &Line, text: &str, rule: &mut Rule) -> Result<(), Broken> {
    let (name, value) = text.split_once('=').ok_or_else(|| line.broken(format!("\"{text}\" is not NAME=VALUE")))?;
    match (name, value) {
        ("map", map) if matches!(rule.method, Method::Peer | Method::Cert) && !map.is_empty() => {
            rule.map = Some(map.to_owned());
        }
        ("map", _) => return Err(line.broken("map is only for the methods peer and cert")),
        ("clientcert" | "clientname", _) if rule.over != Over::Tls => {
            return Err(line.broken(format!("{name} is only for hostssl connections")));
        }
        ("clientcert", "verify-full") => rule.certificate = Some(ClientCertificate::VerifyFull),
        ("clientcert", "verify-ca") if rule.method == Method::Cert => {
            return Err(line.broken("the method cert needs clientcert=verify-full"));
        }
        ("clientcert", "verify-ca") => rule.certificate = Some(ClientCertificate::VerifyCa),
        ("clientname", "CN") => rule.by_distinguished_name = false,
        ("clientname", "DN") => rule.by_distinguished_name = true,
        _ => return Err(line.broken(format!("unknown option \"{text}\""))),
    }
    Ok(())
}
