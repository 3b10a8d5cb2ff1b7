//! TLS over pipes in memory, against rustls's own connections and against itself.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;
use crate::io::{Close, Group, Parcel, SocketAddress};
use crate::memory::{Arena, Scratch};

/// Certificates in a folder of their own.
struct Files(PathBuf);

impl Files {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("qcp-tls-unit-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let files = Self(std::env::temp_dir().join(name));
        fs::create_dir_all(&files.0).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(files.path("ca"), authority.pem()).unwrap();
        let mut params = CertificateParams::new(vec!["db.example.com".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "batch");
        let key = KeyPair::generate().unwrap();
        fs::write(files.path("crt"), params.signed_by(&key, &authority).unwrap().pem()).unwrap();
        fs::write(files.path("key"), key.serialize_pem()).unwrap();
        fs::set_permissions(files.path("key"), fs::Permissions::from_mode(0o600)).unwrap();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn acceptor(&self) -> Arc<Acceptor> {
        self.acceptor_with(&[], false)
    }

    fn acceptor_with(&self, ciphers: &[String], asks: bool) -> Arc<Acceptor> {
        let allowed = Allowed { minimum_version: Version::V1_2, ciphers, curves: &[] };
        let (crt, key, ca) = (self.path("crt"), self.path("key"), self.path("ca"));
        let authority = asks.then_some(ca.as_path());
        Arc::new(Acceptor::new(&[(&crt, &key)], authority, asks, allowed, None).unwrap())
    }

    fn connector(&self, trust: Trust) -> Arc<Connector> {
        let allowed = Allowed { minimum_version: Version::V1_2, ciphers: &[], curves: &[] };
        let (crt, key, ca) = (self.path("crt"), self.path("key"), self.path("ca"));
        Arc::new(Connector::new(trust, Some(&ca), Some((&crt, &key)), true, allowed).unwrap())
    }

    /// rustls's own client.
    fn client(&self) -> ClientConnection {
        self.client_with(&[])
    }

    fn client_with(&self, alpn: &[&[u8]]) -> ClientConnection {
        let mut roots = RootCertStore::empty();
        roots.add(rustls::pki_types::CertificateDer::from_pem_file(self.path("ca")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        ClientConnection::new(Arc::new(config), ServerName::try_from("db.example.com").unwrap()).unwrap()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One connection of which the test is the other end.
struct Pipe {
    arena: Arena,
    scratch: Scratch,
    sent: Vec<u8>,
    closed: Option<Close>,
    aborted: bool,
}

const ID: ConnectionId = ConnectionId { index: 0, generation: 7 };

impl Transport for Pipe {
    fn arena(&self) -> &Arena {
        &self.arena
    }
    fn scratch(&mut self) -> &mut Scratch {
        &mut self.scratch
    }
    fn now(&self) -> Instant {
        Instant::now()
    }
    fn set_owner(&mut self, _: ConnectionId, _: u64) {}
    fn owner(&self, _: ConnectionId) -> Option<u64> {
        None
    }
    fn send(&mut self, _: ConnectionId, bytes: Slice) {
        self.sent.extend_from_slice(&bytes);
    }
    fn queued(&self, _: ConnectionId) -> (usize, usize) {
        (0, 0)
    }
    fn taken(&self, _: ConnectionId) -> u64 {
        0
    }
    fn is_starved(&self) -> bool {
        false
    }
    fn notify_drained(&mut self, _: ConnectionId) {}
    fn abort(&mut self, _: ConnectionId) {
        self.aborted = true;
    }
    fn receive(&mut self, _: ConnectionId, _: bool) {}
    fn connect(&mut self, _: &SocketAddress) -> Result<ConnectionId, Errno> {
        unreachable!("the test has connected it")
    }
    fn close(&mut self, _: ConnectionId, how: Close) {
        self.closed = Some(how);
    }
    fn detach(&mut self, _: ConnectionId) {}
    fn adopt(&mut self, parcel: Parcel, _: Group) -> Option<ConnectionId> {
        assert!(parcel.layer.is_none(), "that is TLS's");
        Some(ID)
    }
    fn peer(&self, _: ConnectionId) -> String {
        "test".to_owned()
    }
    fn address(&self, _: ConnectionId) -> Option<std::net::IpAddr> {
        None
    }
    fn peer_user(&self, _: ConnectionId) -> Option<String> {
        None
    }
    fn is_local(&self, _: ConnectionId) -> bool {
        true
    }
    fn stop_listening(&mut self) {}
    fn resolve(&mut self, _: &str, _: u16, _: u64) {}
}

/// What the owner of the connection has seen.
#[derive(Default, Debug)]
struct Seen {
    bytes: Vec<u8>,
    secured: Option<Result<(), String>>,
    ended: Option<Option<Errno>>,
}

fn over_pipe(chunks: usize) -> Tls<Pipe> {
    let arena = Arena::new(20480, chunks).unwrap();
    let pipe = Pipe { scratch: Scratch::new(&arena), arena, sent: Vec::new(), closed: None, aborted: false };
    Tls::new(pipe, 4, 1000)
}

impl Tls<Pipe> {
    /// Bytes from the other end, in pieces of at most `piece`; steps until nothing more happens.
    fn feed(&mut self, bytes: &[u8], piece: usize, seen: &mut Seen) {
        for bytes in bytes.chunks(piece.min(20480)) {
            // A chunk of its own, as the kernel gives it.
            let bytes = Scratch::new(self.arena()).copy(bytes).expect("a chunk is free");
            let mut event = self.on_event(Event::Received { connection: ID, bytes });
            loop {
                match event {
                    Some(event) => seen.note(event),
                    None if self.step() => {}
                    None => break,
                }
                event = self.next_ready();
            }
            self.end_turn();
            self.begin_turn();
        }
        self.turn(seen);
    }

    fn turn(&mut self, seen: &mut Seen) {
        loop {
            match self.next_ready() {
                Some(event) => seen.note(event),
                None if self.step() => self.begin_turn(),
                None => break,
            }
        }
        self.end_turn();
        self.begin_turn();
    }

    fn say(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(20480) {
            let slice = Scratch::new(self.arena()).copy(piece).expect("a chunk is free");
            self.send(ID, slice);
            self.end_turn();
        }
    }
}

impl Seen {
    fn note(&mut self, event: Event) {
        match event {
            Event::Received { bytes, .. } => {
                assert!(self.ended.is_none() && matches!(self.secured, Some(Ok(()))) && !bytes.is_empty());
                self.bytes.extend_from_slice(&bytes);
            }
            Event::Secured { error, .. } => {
                assert!(self.secured.is_none());
                self.secured = Some(error.map_or(Ok(()), Err));
            }
            Event::Ended { error, .. } => {
                assert!(self.ended.is_none());
                self.ended = Some(error);
            }
            _ => panic!("an event that no test asks for"),
        }
    }
}

/// Lets rustls's client and a `Tls` talk until both have nothing to say, in pieces of at most `piece`.
fn talk(tls: &mut Tls<Pipe>, client: &mut ClientConnection, piece: usize, seen: &mut Seen) -> Vec<u8> {
    let mut received = Vec::new();
    loop {
        let mut to_tls = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut to_tls).unwrap();
        }
        tls.feed(&to_tls, piece, seen);
        let to_client = std::mem::take(&mut tls.inner.sent);
        if to_tls.is_empty() && to_client.is_empty() {
            return received;
        }
        for bytes in to_client.chunks(piece) {
            let mut bytes = bytes;
            while !bytes.is_empty() {
                client.read_tls(&mut bytes).unwrap();
                if client.process_new_packets().is_err() {
                    return received;
                }
                let mut buffer = [0; 65536];
                while let Ok(count @ 1..) = client.reader().read(&mut buffer) {
                    received.extend_from_slice(&buffer[..count]);
                }
            }
        }
    }
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn accepted(files: &Files, begun: Option<&[u8]>) -> Tls<Pipe> {
    let mut tls = over_pipe(16);
    let begun = begun.map(|bytes| Scratch::new(tls.arena()).copy(bytes).unwrap());
    tls.secure(ID, Secure::Accept { acceptor: files.acceptor(), begun });
    tls
}

/// Wherever the stream is cut, the same bytes come out, and nothing of the arena stays in use.
#[test]
fn records_are_whole_wherever_they_are_cut() {
    let files = Files::new();
    for piece in (1..80).chain([100, 517, 4096, 16383, 16384, 16406, 20480]) {
        let (mut tls, mut client, mut seen) = (accepted(&files, None), files.client(), Seen::default());
        let request = pattern(40_000);
        // Before the handshake is through: it follows the client's last message in the same write.
        client.writer().write_all(&request[..10]).unwrap();
        talk(&mut tls, &mut client, piece, &mut seen);
        client.writer().write_all(&request[10..]).unwrap();
        talk(&mut tls, &mut client, piece, &mut seen);
        assert_eq!(seen.secured, Some(Ok(())));
        assert!(seen.bytes == request, "pieces of {piece}");
        let answer = pattern(50_000);
        tls.say(&answer);
        assert!(talk(&mut tls, &mut client, piece, &mut seen) == answer, "pieces of {piece}");
        tls.close(ID, Close::Flushed);
        talk(&mut tls, &mut client, piece, &mut seen);
        assert_eq!(client.reader().read(&mut [0; 8]).unwrap(), 0, "close_notify has come");
        tls.scratch().rest();
        assert_eq!(tls.arena().free_count(), 16);
        assert_eq!((tls.inner.closed, tls.nodes.free_count(), tls.count), (Some(Close::Flushed), 1000, 0));
    }
}

/// Several small sends of a turn are one record, large ones are as few as can be.
#[test]
fn sends_of_a_turn_share_records() {
    let files = Files::new();
    let (mut tls, mut client, mut seen) = (accepted(&files, None), files.client(), Seen::default());
    talk(&mut tls, &mut client, 20480, &mut seen);
    let mut scratch = Scratch::new(tls.arena());
    for word in [&b"Parse"[..], b"Bind", b"Execute", b"Sync"] {
        let slice = scratch.copy(word).unwrap();
        tls.send(ID, slice);
    }
    assert_eq!(tls.queued(ID).0, 20);
    tls.end_turn();
    assert_eq!(tls.inner.sent.len(), 5 + 20 + 1 + 16);
    assert_eq!(tls.queued(ID), (0, 0));
    assert_eq!(talk(&mut tls, &mut client, 20480, &mut seen), b"ParseBindExecuteSync");
    tls.say(&pattern(16384));
    assert_eq!(tls.inner.sent.len(), 16384 + 22);
}

/// Each cipher suite of both versions, both ways, against rustls.
#[test]
fn every_suite_is_spoken() {
    let files = Files::new();
    let names = [
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    ];
    for name in names {
        let mut tls = over_pipe(16);
        tls.secure(ID, Secure::Accept { acceptor: files.acceptor_with(&[name.to_owned()], false), begun: None });
        let (mut client, mut seen) = (files.client(), Seen::default());
        let request = pattern(30_000);
        client.writer().write_all(&request).unwrap();
        talk(&mut tls, &mut client, 1000, &mut seen);
        tls.say(&pattern(20_000));
        assert!(talk(&mut tls, &mut client, 1000, &mut seen) == pattern(20_000), "{name}");
        assert!(seen.bytes == request, "{name}");
        let facts = tls.facts(ID).unwrap();
        assert_eq!(facts.version, if name.contains("WITH") { "TLSv1.2" } else { "TLSv1.3" });
        assert_eq!(facts.end_point.len(), 32);
    }
}

/// Against itself: both sides of a connection, with certificates.
#[test]
fn both_sides_know_each_other() {
    let files = Files::new();
    let check = |trust, host: &str, direct, expected: Result<(), &str>| {
        let (mut server, mut client) = (over_pipe(16), over_pipe(16));
        let (mut at_server, mut at_client) = (Seen::default(), Seen::default());
        let connector = files.connector(trust);
        client.secure(ID, Secure::Connect { connector, host: host.to_owned(), direct });
        client.turn(&mut at_client);
        let begun = std::mem::take(&mut client.inner.sent);
        let begun = Scratch::new(server.arena()).copy(&begun).unwrap();
        server.secure(ID, Secure::Accept { acceptor: files.acceptor_with(&[], true), begun: Some(begun) });
        for _ in 0..10 {
            server.turn(&mut at_server);
            let bytes = std::mem::take(&mut server.inner.sent);
            client.feed(&bytes, 333, &mut at_client);
            let bytes = std::mem::take(&mut client.inner.sent);
            server.feed(&bytes, 333, &mut at_server);
        }
        match expected {
            Ok(()) => {
                assert_eq!((at_server.secured, at_client.secured), (Some(Ok(())), Some(Ok(()))));
                let facts = server.facts(ID).unwrap();
                assert!(facts.verified);
                let shown = Certificate::read(facts.peer_certificate.as_deref().unwrap()).unwrap();
                assert_eq!(shown.common_name.as_deref(), Some("batch"));
                assert_eq!(facts.end_point, client.facts(ID).unwrap().end_point);
            }
            Err(why) => {
                let said = at_client.secured.unwrap().unwrap_err();
                assert!(said.contains(why), "{said}");
                assert!(at_server.secured.unwrap().unwrap_err().contains("the peer refused"));
            }
        }
    };
    check(Trust::Host, "db.example.com", true, Ok(()));
    check(Trust::Host, "db.example.org", true, Err("not valid for name"));
    check(Trust::Host, "10.0.0.1", true, Err("not valid for name"));
    check(Trust::Authority, "db.example.org", false, Ok(()));
    check(Trust::Blind, "10.0.0.1", false, Ok(()));
}

#[test]
fn direct_tls_has_to_name_the_protocol() {
    let files = Files::new();
    for (alpn, is_in) in [(&[][..], false), (&[&b"http/1.1"[..]][..], false), (&[&b"postgresql"[..]][..], true)] {
        let (mut client, mut seen) = (files.client_with(alpn), Seen::default());
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        let mut tls = accepted(&files, Some(&hello));
        tls.turn(&mut seen);
        talk(&mut tls, &mut client, 20480, &mut seen);
        assert_eq!(seen.secured.unwrap().is_ok(), is_in, "{alpn:?}");
        assert_eq!(seen.bytes, b"");
    }
}

/// One bit that changed on the way, anywhere: an alert, and the end; no changed byte comes out.
#[test]
fn what_was_changed_is_refused() {
    let files = Files::new();
    for at in 0..60 {
        let (mut tls, mut client, mut seen) = (accepted(&files, None), files.client(), Seen::default());
        talk(&mut tls, &mut client, 20480, &mut seen);
        client.writer().write_all(b"SELECT 1 -- of some length ").unwrap();
        let mut record = Vec::new();
        client.write_tls(&mut record).unwrap();
        let at = at % record.len();
        record[at] ^= 0x04;
        tls.feed(&record, 20480, &mut seen);
        // A length that says more than there is only waits for it.
        tls.feed(&[0; 17000], 20480, &mut seen);
        assert_eq!(seen.bytes, b"");
        // The record's version is nobody's business (RFC 8446, 5.1), but it is sealed as it is.
        assert_eq!(seen.ended, Some(Some(Errno(libc::EPROTO))), "byte {at}");
        assert!(tls.inner.sent.len() >= 7 + 16, "an alert was sent");
        tls.say(b"nothing more is said");
    }
}

#[test]
fn garbage_is_no_handshake() {
    let files = Files::new();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0x16; 100], &pattern(40_000), b"\x16\x03\x01\x00\x00"]
    {
        let (mut tls, mut seen) = (accepted(&files, None), Seen::default());
        tls.feed(garbage, 20480, &mut seen);
        tls.feed(&pattern(60_000), 20480, &mut seen);
        assert!(matches!(seen.secured, Some(Err(_))), "{seen:?}");
        assert_eq!(seen.bytes, b"");
        assert!(tls.facts(ID).is_none());
    }
}

/// The end without a close_notify is told from the end with one.
#[test]
fn truncation_is_told() {
    let files = Files::new();
    for orderly in [false, true] {
        let (mut tls, mut client, mut seen) = (accepted(&files, None), files.client(), Seen::default());
        client.writer().write_all(b"the last words").unwrap();
        if orderly {
            talk(&mut tls, &mut client, 20480, &mut seen);
            client.send_close_notify();
        }
        talk(&mut tls, &mut client, 20480, &mut seen);
        if let Some(event) = tls.on_event(Event::Ended { connection: ID, error: None }) {
            seen.note(event);
        }
        assert_eq!(seen.bytes, b"the last words");
        assert_eq!(seen.ended, Some(if orderly { None } else { Some(Errno(libc::ECONNRESET)) }));
    }
    // In the middle of the handshake.
    let (mut tls, mut seen) = (accepted(&files, None), Seen::default());
    tls.feed(b"\x16\x03\x01\x02", 20480, &mut seen);
    seen.note(tls.on_event(Event::Ended { connection: ID, error: None }).unwrap());
    assert_eq!(seen.secured, Some(Err("the peer hung up during the handshake".to_owned())));
}

/// New keys, as often as the peer likes as long as it also says something.
#[test]
fn keys_are_renewed() {
    let files = Files::new();
    let (mut tls, mut client, mut seen) = (accepted(&files, None), files.client(), Seen::default());
    talk(&mut tls, &mut client, 20480, &mut seen);
    for _ in 0..100 {
        client.refresh_traffic_keys().unwrap();
        client.writer().write_all(b"x").unwrap();
        talk(&mut tls, &mut client, 20480, &mut seen);
        tls.say(b"y");
        assert_eq!(talk(&mut tls, &mut client, 20480, &mut seen), b"y");
    }
    assert_eq!((seen.bytes.len(), seen.ended), (100, None));
    // A flood of wishes is answered once, and then it ends.
    for _ in 0..32 {
        client.refresh_traffic_keys().unwrap();
    }
    let mut wishes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut wishes).unwrap();
    }
    tls.inner.sent.clear();
    let bytes = Scratch::new(tls.arena()).copy(&wishes).unwrap();
    assert!(tls.on_event(Event::Received { connection: ID, bytes }).is_none());
    tls.end_turn();
    assert_eq!(tls.inner.sent.len(), 5 + 5 + 1 + 16, "one answer");
    tls.inner.sent.clear();
    client.refresh_traffic_keys().unwrap();
    talk(&mut tls, &mut client, 20480, &mut seen);
    assert_eq!(seen.ended, Some(Some(Errno(libc::EPROTO))));
}

/// This side renews its key before it is worn.
#[test]
fn own_keys_are_renewed() {
    let files = Files::new();
    let (mut tls, mut client, mut seen) = (accepted(&files, None), files.client(), Seen::default());
    talk(&mut tls, &mut client, 20480, &mut seen);
    let State::Open(channel) = &mut tls.session(ID).unwrap().state else { panic!("it is open") };
    channel.wear_out();
    // The peer cannot follow a jump of the sequence: only what is sent is looked at.
    tls.say(b"z");
    let sent = std::mem::take(&mut tls.inner.sent);
    assert_eq!(sent.len(), (5 + 5 + 1 + 16) + (5 + 1 + 1 + 16), "a KeyUpdate goes ahead");
}

/// Without a chunk, bytes wait; nothing is lost.
#[test]
fn an_arena_that_is_used_up_only_delays() {
    let files = Files::new();
    let (mut tls, mut client, mut seen) = (accepted(&files, None), files.client(), Seen::default());
    talk(&mut tls, &mut client, 20480, &mut seen);
    client.writer().write_all(&pattern(30_000)).unwrap();
    let mut records = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut records).unwrap();
    }
    tls.scratch().rest();
    let first = Scratch::new(tls.arena()).copy(&records[..15_000]).unwrap();
    let second = Scratch::new(tls.arena()).copy(&records[15_000..]).unwrap();
    let mut taken = Vec::new();
    while let Some(chunk) = tls.arena().take() {
        taken.push(chunk);
    }
    for bytes in [first, second] {
        if let Some(event) = tls.on_event(Event::Received { connection: ID, bytes }) {
            seen.note(event);
        }
        tls.turn(&mut seen);
    }
    // The chunk that the first record came in is free by now, and one may fit; the rest waits.
    assert!(seen.bytes.len() < 30_000);
    let answer = Slice::clone(&taken.pop().unwrap().filled(20480));
    taken.clear();
    for _ in 0..3 {
        tls.begin_turn();
        tls.turn(&mut seen);
    }
    assert!(seen.bytes == pattern(30_000), "{}", seen.bytes.len());
    // And what is to be sent waits as well.
    let expected = answer.to_vec();
    tls.scratch().rest();
    while let Some(chunk) = tls.arena().take() {
        taken.push(chunk);
    }
    tls.send(ID, answer);
    tls.end_turn();
    assert_eq!((tls.inner.sent.len(), tls.queued(ID).0), (0, 20480));
    taken.clear();
    tls.end_turn();
    assert!(talk(&mut tls, &mut client, 20480, &mut seen) == expected);
}

/// To another shard in the middle of a record: the stream goes on there.
#[test]
fn keys_go_along() {
    let files = Files::new();
    let (mut tls, mut client, mut seen) = (accepted(&files, None), files.client(), Seen::default());
    talk(&mut tls, &mut client, 20480, &mut seen);
    client.writer().write_all(&pattern(5000)).unwrap();
    client.writer().write_all(b"and more").unwrap();
    let mut records = Vec::new();
    client.write_tls(&mut records).unwrap();
    let mut scratch = Scratch::new(tls.arena());
    // One record whole, whose content its owner has not looked at; half a record behind it.
    let bytes = scratch.copy(&records[..5022 + 7]).unwrap();
    let event = tls.on_event(Event::Received { connection: ID, bytes });
    tls.ready.push_front(event.expect("the first record"));
    tls.say(b"a last word from here, ");
    tls.detach(ID);
    let parcel = Parcel { socket: Box::new(()), received: records[5022 + 7..].to_vec(), layer: None };
    let event = tls.on_event(Event::Detached { connection: ID, owner: 3, parcel }).unwrap();
    let Event::Detached { parcel, .. } = event else { panic!("it has left") };
    assert!(tls.count == 0 && tls.next_ready().is_none() && tls.nodes.free_count() == 1000);

    let mut there = over_pipe(16);
    let received = parcel.received.clone();
    let id = there.adopt(parcel, Group::Client).unwrap();
    assert_eq!(there.facts(id).unwrap().version, "TLSv1.3");
    there.receive(id, true);
    let mut seen = Seen { secured: Some(Ok(())), ..Seen::default() };
    there.turn(&mut seen);
    assert!(seen.bytes == pattern(5000));
    there.feed(&received, 20480, &mut seen);
    assert_eq!(&seen.bytes[5000..], b"and more");
    there.say(b"and a first from there");
    there.inner.sent.splice(0..0, std::mem::take(&mut tls.inner.sent));
    let said = talk(&mut there, &mut client, 20480, &mut seen);
    assert_eq!(said, b"a last word from here, and a first from there");
}

/// One step of a handshake in a turn, whoever else wants one.
#[test]
fn steps_wait_their_turn() {
    let files = Files::new();
    let mut tls = over_pipe(16);
    for index in 0..4 {
        let id = ConnectionId { index, generation: 7 };
        let mut hello = Vec::new();
        files.client().write_tls(&mut hello).unwrap();
        let bytes = Scratch::new(tls.arena()).copy(&hello).unwrap();
        tls.secure(id, Secure::Accept { acceptor: files.acceptor(), begun: None });
        assert!(tls.on_event(Event::Received { connection: id, bytes }).is_none());
    }
    for _ in 0..4 {
        assert!(tls.has_work() && tls.step() && !tls.step());
        tls.end_turn();
        tls.begin_turn();
    }
    assert!(!tls.has_work() && !tls.step());
}

/// What one connection takes on the heap is what `table_sizes` says, at most.
#[test]
fn what_a_connection_takes() {
    // glibc says how much is allocated; other tests run beside, so the least of several tries counts.
    let allocated = || {
        // SAFETY: no arguments; reads the allocator's own numbers.
        let info = unsafe { libc::mallinfo2() };
        info.uordblks + info.hblkhd
    };
    let files = Files::new();
    let mut least = [usize::MAX; 2];
    for _ in 0..20 {
        let mut tls = over_pipe(16);
        let acceptor = files.acceptor_with(&[], false);
        let before = allocated();
        let mut client = files.client();
        let with_client = allocated();
        tls.secure(ID, Secure::Accept { acceptor, begun: None });
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        let mut seen = Seen::default();
        let at_start = allocated();
        tls.feed(&hello, 20480, &mut seen);
        let handshake = allocated().saturating_sub(at_start) + 2000;
        talk(&mut tls, &mut client, 20480, &mut seen);
        let with_both = allocated();
        drop(client);
        let open = with_both.saturating_sub(before).saturating_sub(with_client.saturating_sub(before));
        least[0] = least[0].min(handshake);
        least[1] = least[1].min(open);
    }
    assert!(least[0] <= HANDSHAKE_BYTES && least[1] <= OPEN_BYTES, "{least:?}");
}
