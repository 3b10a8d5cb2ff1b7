//! TLS on a blocking socket, for `--check`: rustls's own stream, with the connector that the shards would use.

use std::fs::File;
use std::io::{self, Read, Write};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::handshake::describe;
use super::settings::{ALPN, Connector};

/// An encrypted connection to a server.
pub struct Blocking(StreamOwned<ClientConnection, File>);

impl Blocking {
    /// Makes the handshake. `direct`: the server has to name the protocol. Errors: in words for people, but for those of the
    /// socket.
    pub fn connect(connector: &Connector, host: &str, direct: bool, mut socket: File) -> io::Result<Self> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| io::Error::other("its name is no host name"))?;
        let refused = |error: &rustls::Error| io::Error::other(describe(error));
        let mut connection = ClientConnection::new(connector.config.clone(), name).map_err(|error| refused(&error))?;
        while connection.is_handshaking() {
            if let Err(error) = connection.complete_io(&mut socket) {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
                return Err(inner.map(refused).unwrap_or(error));
            }
        }
        if direct && connection.alpn_protocol() != Some(ALPN) {
            return Err(io::Error::other("TLS without SSLRequest needs ALPN to name postgresql"));
        }
        Ok(Self(StreamOwned::new(connection, socket)))
    }

    /// The socket, for its limits.
    pub fn socket(&self) -> &File {
        &self.0.sock
    }
}

impl Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Blocking {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
