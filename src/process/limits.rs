//! What the kernel must grant before the first executor exists.
//!
//! Looked at here, once, because the libraries below find out late and say little: an executor that is refused its ring
//! panics. Each refusal says what is missing and how to mend it.

use std::fmt;
use std::fs;
use std::io;

use io_uring::{IoUring, Probe, opcode};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::format_size;

/// An executor does not start with less, whoever runs it.
const LOCKED_MEMORY_MIN: u64 = 512 << 10;

/// What the executor and the ring of one shard lock together, measured, for a user without CAP_IPC_LOCK.
const LOCKED_MEMORY_PER_SHARD: u64 = 450 << 10;

/// Log, control socket, signals, standard streams.
const DESCRIPTORS_OF_PROCESS: u64 = 32;

/// Rings, eventfds and listeners of one shard.
const DESCRIPTORS_PER_SHARD: u64 = 32;

const CAP_IPC_LOCK: u32 = 14;

/// Why QCP cannot run here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// ENOSYS: the kernel has no io_uring.
    Absent,
    /// EPERM: somebody forbids it.
    Forbidden(Forbidden),
    /// The kernel has io_uring, but not all of it.
    Lacks { feature: &'static str, kernel: &'static str },
    /// Any other answer to the attempt to make a ring.
    Failed(Errno),
    /// RLIMIT_MEMLOCK, in bytes.
    LockedMemory { limit: u64, needed: u64 },
    /// RLIMIT_NOFILE.
    OpenFiles { limit: u64, needed: u64 },
}

/// Who forbids io_uring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forbidden {
    /// `kernel.io_uring_disabled`, which has this value.
    Sysctl(u8),
    /// A seccomp profile, as container runtimes have.
    Seccomp,
    /// Neither is to be seen: a security module, most likely.
    Unknown,
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Absent => write!(
                f,
                "this kernel has no io_uring (ENOSYS); QCP needs Linux 6.1 or later, with CONFIG_IO_URING and outside of \
                 sandboxes that emulate a kernel, such as gVisor"
            ),
            Refusal::Forbidden(Forbidden::Sysctl(1)) => write!(
                f,
                "io_uring is forbidden by the sysctl kernel.io_uring_disabled = 1; add QCP's group to \
                 kernel.io_uring_group, or run: sysctl -w kernel.io_uring_disabled=0"
            ),
            Refusal::Forbidden(Forbidden::Sysctl(value)) => write!(
                f,
                "io_uring is forbidden by the sysctl kernel.io_uring_disabled = {value}; run: \
                 sysctl -w kernel.io_uring_disabled=0"
            ),
            Refusal::Forbidden(Forbidden::Seccomp) => write!(
                f,
                "io_uring is forbidden by a seccomp profile, as container runtimes have; allow io_uring_setup, \
                 io_uring_enter and io_uring_register in it (Docker: --security-opt seccomp=PROFILE.json; Kubernetes: \
                 securityContext.seccompProfile; systemd: SystemCallFilter)"
            ),
            Refusal::Forbidden(Forbidden::Unknown) => write!(
                f,
                "io_uring is forbidden (EPERM), neither by the sysctl kernel.io_uring_disabled nor by a seccomp profile; \
                 look at the rules of SELinux or AppArmor"
            ),
            Refusal::Lacks { feature, kernel } => {
                write!(f, "this kernel's io_uring lacks {feature}; QCP needs Linux {kernel} or later for it")
            }
            Refusal::Failed(Errno::ENOMEM) => write!(
                f,
                "io_uring: no memory for a ring (ENOMEM); raise RLIMIT_MEMLOCK (systemd: LimitMEMLOCK=infinity; Docker: \
                 --ulimit memlock=-1) or the memory limit of the container"
            ),
            Refusal::Failed(errno) => write!(f, "io_uring: a ring cannot be made: {errno}"),
            Refusal::LockedMemory { limit, needed } => write!(
                f,
                "RLIMIT_MEMLOCK is {}, and {} is needed for this number of cores; raise it (systemd: \
                 LimitMEMLOCK=infinity; Docker: --ulimit memlock=-1; shell: ulimit -l unlimited), grant CAP_IPC_LOCK, or \
                 run with fewer cores",
                format_size(*limit),
                format_size(*needed)
            ),
            Refusal::OpenFiles { limit, needed } => write!(
                f,
                "RLIMIT_NOFILE is {limit}, and {needed} open files are needed for limits.max_clients, the backends and \
                 QCP itself; raise it (systemd: LimitNOFILE={needed}; Docker: --ulimit nofile={needed}; shell: \
                 ulimit -n {needed}), or lower limits.max_clients"
            ),
        }
    }
}

/// Tries the very ring that a shard will make, and asks for the operations it will use.
pub fn check_io_uring() -> Result<(), Refusal> {
    let full = IoUring::builder().setup_submit_all().setup_single_issuer().setup_defer_taskrun().build(8);
    let error = match full {
        Ok(ring) => return check_operations(&ring),
        Err(error) => error,
    };
    match errno(&error) {
        Errno::EINVAL => {}
        other => return Err(refused_ring(other, &sysctl_io_uring_disabled(), &process_status())),
    }
    // The kernel does not know one of the flags. An operation that it lacks as well tells more about its age.
    let plain = IoUring::new(8).map_err(|error| Refusal::Failed(errno(&error)))?;
    check_operations(&plain)?;
    Err(Refusal::Lacks { feature: "deferred task work (IORING_SETUP_DEFER_TASKRUN)", kernel: "6.1" })
}

fn check_operations(ring: &IoUring) -> Result<(), Refusal> {
    let mut probe = Probe::new();
    // Probing came with Linux 5.6.
    if ring.submitter().register_probe(&mut probe).is_err() {
        return Err(Refusal::Lacks { feature: "probing (IORING_REGISTER_PROBE)", kernel: "6.1" });
    }
    match NEEDED.iter().find(|(code, _, _)| !probe.is_supported(*code)) {
        Some((_, feature, kernel)) => Err(Refusal::Lacks { feature, kernel }),
        None => Ok(()),
    }
}

/// What a kernel must have, the youngest last. A multishot operation has no number of its own: it is told by another
/// operation that came with the same kernel.
const NEEDED: &[(u8, &str, &str)] = &[
    (opcode::PollAdd::CODE, "poll (IORING_OP_POLL_ADD)", "5.1"),
    (opcode::SendMsg::CODE, "sendmsg (IORING_OP_SENDMSG)", "5.3"),
    (opcode::Timeout::CODE, "timeouts (IORING_OP_TIMEOUT)", "5.4"),
    (opcode::Accept::CODE, "accept (IORING_OP_ACCEPT)", "5.5"),
    (opcode::Connect::CODE, "connect (IORING_OP_CONNECT)", "5.5"),
    (opcode::AsyncCancel::CODE, "cancellation (IORING_OP_ASYNC_CANCEL)", "5.5"),
    (opcode::Send::CODE, "send (IORING_OP_SEND)", "5.6"),
    (opcode::Recv::CODE, "recv (IORING_OP_RECV)", "5.6"),
    (opcode::Read::CODE, "read (IORING_OP_READ)", "5.6"),
    (opcode::Close::CODE, "close (IORING_OP_CLOSE)", "5.6"),
    (opcode::Shutdown::CODE, "shutdown (IORING_OP_SHUTDOWN)", "5.11"),
    (opcode::MsgRingData::CODE, "messages between rings (IORING_OP_MSG_RING)", "5.18"),
    (opcode::Socket::CODE, "multishot accept and rings of buffers (as young as IORING_OP_SOCKET)", "5.19"),
    (opcode::SendZc::CODE, "multishot receive (as young as IORING_OP_SEND_ZC)", "6.0"),
];

/// Pure: what the kernel's answer means, given the sysctl's text and /proc/self/status.
fn refused_ring(errno: Errno, sysctl: &str, status: &str) -> Refusal {
    match errno {
        Errno::ENOSYS => Refusal::Absent,
        Errno::EPERM | Errno::EACCES => Refusal::Forbidden(match sysctl.trim().parse() {
            Ok(value @ 1..) => Forbidden::Sysctl(value),
            _ if status_field(status, "Seccomp:").is_some_and(|mode| mode != "0") => Forbidden::Seccomp,
            _ => Forbidden::Unknown,
        }),
        other => Refusal::Failed(other),
    }
}

/// Raises the soft limit to the hard one, and compares.
pub fn check_locked_memory(shards: usize) -> Result<(), Refusal> {
    let limit = raise(Resource::RLIMIT_MEMLOCK);
    let needed = locked_memory_needed(shards, has_capability(&process_status(), CAP_IPC_LOCK));
    if limit < needed {
        return Err(Refusal::LockedMemory { limit, needed });
    }
    Ok(())
}

fn locked_memory_needed(shards: usize, is_exempt: bool) -> u64 {
    if is_exempt { LOCKED_MEMORY_MIN } else { LOCKED_MEMORY_MIN.max(shards as u64 * LOCKED_MEMORY_PER_SHARD) }
}

/// Raises the soft limit to the hard one, and compares. `backends` are those that all pools may have together, as far
/// as that is known at start.
pub fn check_open_files(shards: usize, clients: u64, backends: u64) -> Result<(), Refusal> {
    let needed = DESCRIPTORS_OF_PROCESS + shards as u64 * DESCRIPTORS_PER_SHARD + clients + backends;
    let limit = raise(Resource::RLIMIT_NOFILE);
    if limit < needed {
        return Err(Refusal::OpenFiles { limit, needed });
    }
    Ok(())
}

/// What the limit is afterwards. Where raising is refused the soft limit stays, and the comparison tells.
fn raise(resource: Resource) -> u64 {
    let (soft, hard) = getrlimit(resource).expect("getrlimit fails only for a resource that does not exist");
    match setrlimit(resource, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// Empty where the kernel does not have the sysctl (before 6.6).
fn sysctl_io_uring_disabled() -> String {
    fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default()
}

/// Empty without /proc.
fn process_status() -> String {
    fs::read_to_string("/proc/self/status").unwrap_or_default()
}

fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn has_capability(status: &str, capability: u32) -> bool {
    let effective = status_field(status, "CapEff:").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    effective.is_some_and(|mask| mask >> capability & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_ring_says_who_forbids_it() {
        let check = |errno, sysctl, status, expected: &str| {
            let text = refused_ring(errno, sysctl, status).to_string();
            assert!(text.contains(expected), "{text}");
        };
        let seccomp = "Name:\tqcp\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        let free = "Name:\tqcp\nSeccomp:\t0\nSeccomp_filters:\t0\n";
        check(Errno::ENOSYS, "", free, "has no io_uring");
        check(Errno::EPERM, "2\n", free, "kernel.io_uring_disabled = 2; run");
        check(Errno::EPERM, "1\n", seccomp, "kernel.io_uring_group");
        check(Errno::EPERM, "0\n", seccomp, "seccomp profile");
        check(Errno::EPERM, "", seccomp, "seccomp profile");
        check(Errno::EPERM, "0\n", free, "SELinux");
        check(Errno::ENOMEM, "0\n", free, "RLIMIT_MEMLOCK");
        check(Errno::EMFILE, "0\n", free, "EMFILE");
    }

    #[test]
    fn what_is_missing_is_named_with_its_kernel() {
        let text = Refusal::Lacks { feature: "multishot receive", kernel: "6.0" }.to_string();
        assert_eq!(text, "this kernel's io_uring lacks multishot receive; QCP needs Linux 6.0 or later for it");
    }

    #[test]
    fn locked_memory_grows_with_the_shards_unless_exempt() {
        assert_eq!(locked_memory_needed(1, false), 512 << 10);
        assert_eq!(locked_memory_needed(64, false), (64 * 450) << 10);
        assert_eq!(locked_memory_needed(64, true), 512 << 10);
    }

    #[test]
    fn limits_are_compared_with_what_is_needed() {
        assert_eq!(check_open_files(1, 10, 10), Ok(()));
        let Err(refusal) = check_open_files(1, u64::MAX / 2, 0) else { return };
        assert!(refusal.to_string().contains("limits.max_clients"), "{refusal}");
        let text = Refusal::LockedMemory { limit: 64 << 10, needed: 900 << 10 }.to_string();
        assert!(text.starts_with("RLIMIT_MEMLOCK is 64 KB, and 900 KB is needed"), "{text}");
    }

    #[test]
    fn capabilities_are_read_from_the_status() {
        assert!(has_capability("CapEff:\t0000000000004000\n", CAP_IPC_LOCK));
        assert!(!has_capability("CapEff:\t0000000000003fff\n", CAP_IPC_LOCK));
        assert!(!has_capability("", CAP_IPC_LOCK));
    }

    #[test]
    fn a_kernel_that_runs_the_tests_has_what_is_needed_or_says_what_it_lacks() {
        match check_io_uring() {
            Ok(()) => {}
            Err(Refusal::Absent | Refusal::Forbidden(_) | Refusal::Lacks { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
}
