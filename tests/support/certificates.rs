//! Certificates for the tests, made anew in a folder: an authority, and what it has signed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

/// An authority in a folder, as `NAME.crt`.
pub struct Authority {
    folder: PathBuf,
    name: String,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(folder: &Path, name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("random numbers are at hand");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a right certificate");
        let authority = Authority { folder: folder.to_owned(), name: name.to_owned(), issuer };
        fs::write(authority.path(), authority.issuer.pem()).expect("the folder is writable");
        authority
    }

    /// The authority's own certificate.
    pub fn path(&self) -> PathBuf {
        self.folder.join(format!("{}.crt", self.name))
    }

    /// Signs `NAME.crt` and `NAME.key` for these hosts (names and addresses).
    pub fn sign(&self, name: &str, hosts: &[&str]) {
        self.sign_with(name, hosts, |_| {});
    }

    /// One that has expired.
    pub fn sign_expired(&self, name: &str, hosts: &[&str]) {
        self.sign_with(name, hosts, |params| params.not_after = date_time_ymd(2020, 1, 1));
    }

    fn sign_with(&self, name: &str, hosts: &[&str], change: impl FnOnce(&mut CertificateParams)) {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("right names");
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate().expect("random numbers are at hand");
        let certificate = params.signed_by(&key, &self.issuer).expect("a right certificate");
        fs::write(self.folder.join(format!("{name}.crt")), certificate.pem()).expect("the folder is writable");
        write_key(&self.folder.join(format!("{name}.key")), &key);
    }
}

/// For its owner alone, as PostgreSQL and QCP demand.
fn write_key(path: &Path, key: &KeyPair) {
    fs::write(path, key.serialize_pem()).expect("the folder is writable");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("it is ours");
}
