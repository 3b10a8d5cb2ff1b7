//! Talking to a running pooler: what may be asked, what is answered, and the Unix socket between the two programs.
//!
//! `qcp` answers on a plain thread of its own, which no core owns: it asks the shards by mailbox and never touches what
//! is theirs. `qcp-ctrl` is the other end.
#![forbid(unsafe_code)]

pub mod client;
pub mod command;
pub mod report;
pub mod socket;
pub mod table;
pub mod wire;

use std::path::{Path, PathBuf};

/// Where the control socket is when the configuration does not say, the better place first. Both programs walk this
/// list, so that an unprivileged pooler is found without an option.
pub fn default_paths(runtime_dir: Option<&Path>) -> Vec<PathBuf> {
    let system = PathBuf::from("/run/qcp/control.sock");
    let own = runtime_dir.filter(|dir| dir.is_absolute()).map(|dir| dir.join("qcp/control.sock"));
    std::iter::once(system).chain(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_socket_is_tried_before_ones_own() {
        let check = |runtime_dir: Option<&str>, expected: &[&str]| {
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(default_paths(runtime_dir.map(Path::new)), expected);
        };
        check(None, &["/run/qcp/control.sock"]);
        check(Some("/run/user/7"), &["/run/qcp/control.sock", "/run/user/7/qcp/control.sock"]);
        // The XDG specification: "If an implementation encounters a relative path ... it should consider the path invalid".
        check(Some("run"), &["/run/qcp/control.sock"]);
        check(Some(""), &["/run/qcp/control.sock"]);
    }
}
