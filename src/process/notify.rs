//! What systemd is told (`Type=notify`), where it has asked to be: a datagram to the socket that the environment names.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::time::{ClockId, clock_gettime};

/// As `sd_notify` has it; nothing where nobody has asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tell {
    /// Clients are served, by this process: it may be another than the one that the unit was started with.
    Ready,
    /// A reload has begun; [`Tell::Ready`] says that it is over.
    Reloading,
    /// Clients are served by another process from now on.
    Successor(u32),
    Stopping,
}

impl Tell {
    fn text(self) -> String {
        match self {
            Tell::Ready => format!("READY=1\nMAINPID={}\nSTATUS=serving\n", std::process::id()),
            Tell::Reloading => {
                // "the current monotonic time .. in µs", by which systemd tells this reload from one before.
                let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
                    .map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000);
                format!("RELOADING=1\nMONOTONIC_USEC={now}\n")
            }
            Tell::Successor(pid) => format!("MAINPID={pid}\n"),
            Tell::Stopping => "STOPPING=1\nSTATUS=transactions may finish\n".to_owned(),
        }
    }

    /// Says it.
    pub fn say(self) {
        if let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())
            && let Err(error) = send(socket.as_bytes(), &self.text())
        {
            log::warn!("systemd cannot be told: {error}");
        }
    }
}

fn send(socket: &[u8], text: &str) -> std::io::Result<()> {
    let address = match socket {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(text.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_arrives() {
        let path = std::env::temp_dir().join(format!("qcp-notify-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let systemd = UnixDatagram::bind(&path).expect("a free name");
        let mut room = [0; 256];
        for tell in [Tell::Ready, Tell::Reloading, Tell::Successor(7), Tell::Stopping] {
            send(path.as_os_str().as_bytes(), &tell.text()).expect("somebody listens");
            let count = systemd.recv(&mut room).expect("it has come");
            let text = String::from_utf8_lossy(&room[..count]).into_owned();
            let expected = match tell {
                Tell::Ready => format!("READY=1\nMAINPID={}\n", std::process::id()),
                Tell::Reloading => "RELOADING=1\nMONOTONIC_USEC=".to_owned(),
                Tell::Successor(_) => "MAINPID=7\n".to_owned(),
                Tell::Stopping => "STOPPING=1\n".to_owned(),
            };
            assert!(text.starts_with(&expected), "{text}");
        }
        let _ = std::fs::remove_file(&path);
    }

    #[test]
    fn an_abstract_name_is_one() {
        let name = format!("qcp-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let systemd = UnixDatagram::bind_addr(&address).expect("a free name");
        send(format!("@{name}").as_bytes(), "READY=1").expect("somebody listens");
        assert_eq!(systemd.recv(&mut [0; 16]).expect("it has come"), 7);
    }
}
