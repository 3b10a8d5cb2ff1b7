//! Listeners, and logins to a server that trusts us. Dialling blocks: a floor opens its few backends once.

use crate::arguments::Arguments;
use crate::wire::{self, tag};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};

pub struct Server {
    pub port: u16,
    pub user: String,
    pub database: String,
    /// `(name, sql)` of statements that each new backend is given, so that clients may execute them on any.
    pub statements: Vec<(String, String)>,
}

pub struct Backend {
    pub stream: TcpStream,
    /// The ParameterStatus messages of the server's greeting, as they came.
    pub parameters: Vec<u8>,
}

impl Server {
    pub fn from_arguments(arguments: &Arguments) -> Server {
        let text = |name, default: &str| arguments.text(name).unwrap_or(default).to_owned();
        let statement = |given: &str| {
            let (name, sql) = given.split_once('=').expect("--prepare NAME=SQL");
            (name.to_owned(), sql.to_owned())
        };
        Server {
            port: arguments.required("server"),
            user: text("user", "bench"),
            database: text("database", "bench"),
            statements: arguments.all("prepare").map(statement).collect(),
        }
    }

    /// # Panics
    /// If the server cannot be reached or refuses.
    pub fn dial(&self) -> Backend {
        let mut stream = TcpStream::connect(SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.port)).expect("server reached");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.write_all(&wire::startup(&self.user, &self.database)).expect("startup sent");
        let parameters = read_until_ready(&mut stream);
        for (name, sql) in &self.statements {
            let mut request = wire::parse(name, sql);
            request.extend(wire::sync());
            stream.write_all(&request).expect("statement sent");
            read_until_ready(&mut stream);
        }
        Backend { stream, parameters }
    }
}

/// Returns the ParameterStatus messages on the way.
fn read_until_ready(stream: &mut TcpStream) -> Vec<u8> {
    let mut parameters = Vec::new();
    loop {
        let mut header = [0; 5];
        stream.read_exact(&mut header).expect("a message from the server");
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        let mut body = vec![0; length as usize - 4];
        stream.read_exact(&mut body).expect("a whole message from the server");
        match header[0] {
            tag::READY_FOR_QUERY => return parameters,
            tag::PARAMETER_STATUS => parameters.extend(wire::message(header[0], &body)),
            tag::ERROR_RESPONSE => panic!("the server refused: {}", wire::error_text(&body)),
            _ => {}
        }
    }
}

/// A listener on loopback whose connections inherit TCP_NODELAY, and are accepted when their first bytes are here: that is one
/// turn less for each.
pub fn listen(port: u16) -> TcpListener {
    let listener = loopback_socket();
    let options = [
        (libc::SOL_SOCKET, libc::SO_REUSEADDR),
        (libc::IPPROTO_TCP, libc::TCP_NODELAY),
        (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    ];
    for (level, option) in options {
        let one: libc::c_int = 1;
        // SAFETY: the pointer and size describe `one`, which outlives the call.
        let result = unsafe {
            libc::setsockopt(listener.as_raw_fd(), level, option, (&raw const one).cast(), size_of_val(&one) as u32)
        };
        assert_eq!(result, 0, "setsockopt: {}", std::io::Error::last_os_error());
    }
    let address = loopback(port);
    // SAFETY: the pointer and size describe `address`, which outlives the call.
    let bound = unsafe {
        libc::bind(listener.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
    };
    assert_eq!(bound, 0, "bind to port {port}: {}", std::io::Error::last_os_error());
    // SAFETY: takes no pointer.
    let listening = unsafe { libc::listen(listener.as_raw_fd(), 4096) };
    assert_eq!(listening, 0, "listen: {}", std::io::Error::last_os_error());
    listener
}

pub fn loopback(port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be() },
        sin_zero: [0; 8],
    }
}

fn loopback_socket() -> TcpListener {
    // SAFETY: takes no pointer; the descriptor is ours alone and checked before it is owned.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0, "socket: {}", std::io::Error::last_os_error());
        TcpListener::from_raw_fd(fd)
    }
}
