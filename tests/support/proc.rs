//! What Linux says of a process, and the limits of our own.

use std::fs;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{SysconfVar, sysconf};

/// Memory that a process holds at the moment, in bytes.
pub fn resident(pid: u32) -> u64 {
    status_kilobytes(pid, "VmRSS:") * 1024
}

/// The most memory that a process held since the last `forget_peak`, in bytes.
pub fn resident_peak(pid: u32) -> u64 {
    status_kilobytes(pid, "VmHWM:") * 1024
}

/// Lets `resident_peak` count from what the process holds now.
pub fn forget_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("the process is ours");
}

/// Processor time that a process has used, in all its threads, user and system.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    // The second field is the program's name in parentheses, which may hold spaces: count after it.
    let (_, fields) = stat.rsplit_once(')').expect("proc(5) promises the parentheses");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    const USER: usize = 11;
    const SYSTEM: usize = 12;
    let ticks: u64 = fields[USER].parse::<u64>().expect("a number") + fields[SYSTEM].parse::<u64>().expect("a number");
    let ticks_per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().expect("Linux has one") as u64;
    Duration::from_micros(ticks * 1_000_000 / ticks_per_second)
}

/// How often these bytes stand in a process's memory.
pub fn count_in_memory(pid: u32, bytes: &[u8]) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process lives");
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("the process is ours");
    let count = |line: &str| {
        let mut words = line.split_whitespace();
        let (range, rights, file) = (words.next()?, words.next()?, words.nth(3).unwrap_or_default());
        if !rights.starts_with("rw") || file.starts_with("[v") {
            return None;
        }
        let (start, end) = range.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        let mut found = vec![0; usize::try_from(end - start).ok()?];
        // What is not there (guards, rings of the kernel's) cannot be read.
        std::os::unix::fs::FileExt::read_exact_at(&memory, &mut found, start).ok()?;
        Some(memchr::memmem::find_iter(&found, bytes).count())
    };
    maps.lines().filter_map(count).sum()
}

/// Whether a process is there.
pub fn is_alive(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap_or(false)
}

/// Lets this process, and those it starts, have `count` descriptors.
pub fn allow_descriptors(count: u64) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("every process has a limit");
    if soft < count {
        setrlimit(Resource::RLIMIT_NOFILE, count, hard.max(count))
            .unwrap_or_else(|error| panic!("{count} descriptors are needed, the hard limit is {hard}: {error}"));
    }
}

fn status_kilobytes(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("proc(5) lists the field");
    line.trim().trim_end_matches(" kB").parse().expect("a number of kilobytes")
}
