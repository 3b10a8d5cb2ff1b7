//! What other processes cost, seen from outside: CPU time, system calls, memory of some processes and all theirs.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub struct Watched {
    roots: Vec<u32>,
}

/// Read once at the beginning and once at the end of a window; `cpu_since` takes the difference.
pub struct Reading {
    /// Nanoseconds on a CPU, by process, of all its threads, ended ones included.
    running: HashMap<u32, u64>,
    /// Of children that have ended and were waited for.
    reaped_ns: u64,
}

impl Watched {
    pub fn new(roots: Vec<u32>) -> Watched {
        Watched { roots }
    }

    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    pub fn read(&self) -> Reading {
        let family = self.family();
        let reaped_ns = family.iter().map(|&process| reaped_ns(process)).sum();
        let running = family.into_iter().map(|process| (process, cpu_ns(process))).collect();
        Reading { running, reaped_ns }
    }

    pub fn cpu_ns_since(&self, earlier: &Reading) -> u64 {
        let now = self.read();
        let before = |process: &u32| earlier.running.get(process).copied().unwrap_or(0);
        let running: u64 = now.running.iter().map(|(process, ns)| ns.saturating_sub(before(process))).sum();
        // What an ended child had used before the window is in `reaped_ns` now and in `running` then.
        let ended: u64 =
            earlier.running.iter().filter(|(process, _)| !now.running.contains_key(process)).map(|(_, ns)| ns).sum();
        running + now.reaped_ns.saturating_sub(earlier.reaped_ns).saturating_sub(ended)
    }

    /// Resident memory; that of several processes is counted proportionally, or what they share would count often.
    pub fn rss_kb(&self) -> u64 {
        let family = self.family();
        let (file, key) = if family.len() == 1 { ("status", "VmRSS:") } else { ("smaps_rollup", "Pss:") };
        family.iter().map(|process| kilobytes(&format!("/proc/{process}/{file}"), key)).sum()
    }

    fn family(&self) -> Vec<u32> {
        let mut family = self.roots.clone();
        let mut next = 0;
        while next < family.len() {
            for thread in threads(family[next]) {
                let path = format!("/proc/{}/task/{thread}/children", family[next]);
                let children = fs::read_to_string(path).unwrap_or_default();
                family.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            }
            next += 1;
        }
        family
    }
}

/// Counts system calls by the tracepoint `raw_syscalls:sys_enter`, as `perf stat` does.
pub struct SystemCalls {
    counters: Vec<OwnedFd>,
}

impl SystemCalls {
    /// `Err` where tracepoints are not for us: no tracefs, or not root.
    pub fn count(watched: &Watched) -> io::Result<SystemCalls> {
        let id = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
            .iter()
            .find_map(|root| fs::read_to_string(format!("{root}/events/raw_syscalls/sys_enter/id")).ok())
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(|| io::Error::other("no raw_syscalls:sys_enter in tracefs"))?;
        let tasks = watched.family().into_iter().flat_map(threads);
        let counters = tasks.map(|thread| open_counter(id, thread)).collect::<io::Result<_>>()?;
        Ok(SystemCalls { counters })
    }

    pub fn total(&self) -> u64 {
        self.counters.iter().map(read_counter).sum()
    }
}

fn open_counter(tracepoint: u64, thread: u32) -> io::Result<OwnedFd> {
    const TYPE_TRACEPOINT: u32 = 2;
    /// The first version of `perf_event_attr`; the kernel takes the fields after it as zero.
    #[repr(C)]
    struct Attributes {
        kind: u32,
        size: u32,
        config: u64,
        rest: [u64; 6],
    }
    let size = size_of::<Attributes>() as u32;
    let attributes = Attributes { kind: TYPE_TRACEPOINT, size, config: tracepoint, rest: [0; 6] };
    // SAFETY: the attributes outlive the call and say their own size; the descriptor is checked before it is owned.
    unsafe {
        let fd = libc::syscall(libc::SYS_perf_event_open, &raw const attributes, thread, -1, -1, 0);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
    }
}

fn read_counter(counter: &OwnedFd) -> u64 {
    let mut value = 0_u64;
    // SAFETY: the kernel writes eight bytes into `value`.
    let size = unsafe { libc::read(counter.as_raw_fd(), (&raw mut value).cast(), size_of::<u64>()) };
    assert_eq!(size, size_of::<u64>() as isize, "reading a counter: {}", io::Error::last_os_error());
    value
}

fn threads(process: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{process}/task")) else {
        return Vec::new();
    };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The process's CPU clock, to the nanosecond; zero if it is gone.
fn cpu_ns(process: u32) -> u64 {
    const CLOCK_OF_PROCESS: i32 = 2;
    let clock = !(process as i32) << 3 | CLOCK_OF_PROCESS;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` outlives the call.
    match unsafe { libc::clock_gettime(clock, &raw mut time) } {
        0 => time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64,
        _ => 0,
    }
}

/// `cutime + cstime` of proc(5), which the kernel keeps in hundredths of a second.
fn reaped_ns(process: u32) -> u64 {
    const TICK_NS: u64 = 10_000_000;
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(13).take(2).filter_map(|field| field.parse::<u64>().ok());
    ticks.sum::<u64>() * TICK_NS
}

fn kilobytes(path: &str, key: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    value.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}
