//! How much of the host's memory a process has taken and can still take, and what limits it.

use std::fmt;
use std::fs;
use std::path::Path;

/// The allocator for a program that trains on the processor: `#[global_allocator] static MEMORY: HostMemory = HostMemory::new();`.
#[cfg(feature = "flex")]
pub use frontier_kernels_cpu::memory::HostMemory;

/// What limits memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// What is free on the machine.
    Machine,
    /// What is left of the limit of a container, or of another control group.
    Container,
    /// What is left of the address space that the process may have (`ulimit -v`).
    Process,
    /// A GPU's own memory, whoever else holds some of it.
    Gpu,
}

/// Memory that can be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// How much.
    pub bytes: u64,
    /// Why not more.
    pub limit: Limit,
}

/// As in "there are 4.0 GiB free on this machine".
impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = self.bytes as f64 / 2f64.powi(30);
        let what = match self.limit {
            Limit::Machine => "free on this machine",
            Limit::Container => "left of the memory limit of this container (its control group)",
            Limit::Process => "left of the address space of this process (ulimit -v)",
            Limit::Gpu => "on the GPU",
        };
        write!(f, "{gib:.1} GiB {what}")
    }
}

/// What this process can still take of the host's memory; `None` where the system does not say, as outside of Linux.
pub fn host() -> Option<Room> {
    host_of(Path::new("/"))
}

/// [`host`] of the system whose files lie under `root`.
fn host_of(root: &Path) -> Option<Room> {
    let rooms = [
        (machine(root), Limit::Machine),
        (container(root), Limit::Container),
        (process(root), Limit::Process),
    ];
    rooms
        .into_iter()
        .filter_map(|(bytes, limit)| bytes.map(|bytes| Room { bytes, limit }))
        .min_by_key(|room| room.bytes)
}

/// Largest resident memory that this process has had so far, in bytes (`VmHWM` of Linux). None on other systems.
///
/// Ranks that are threads of one process share the figure.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    kibibytes(&status, "VmHWM:")
}

/// Bytes of the line of `text` that begins with `name`, as the files of /proc write them: `VmHWM:    1234 kB`.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

fn machine(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    kibibytes(&text, "MemAvailable:")
}

fn process(root: &Path) -> Option<u64> {
    let limits = fs::read_to_string(root.join("proc/self/limits")).ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
    Some(limit.saturating_sub(kibibytes(&status, "VmSize:")?))
}

/// The files of a control group, of one of the two versions of them.
struct Files {
    /// Where the groups lie.
    base: &'static str,
    limit: &'static str,
    used: &'static str,
    /// The line of `memory.stat` that counts what the system drops when it needs memory: files that were read once.
    dropped: &'static str,
}

const VERSION_1: Files = Files {
    base: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    dropped: "total_inactive_file",
};

const VERSION_2: Files = Files {
    base: "sys/fs/cgroup",
    limit: "memory.max",
    used: "memory.current",
    dropped: "inactive_file",
};

impl Files {
    /// What is left of the limit of one group; `None` if it has none.
    fn left(&self, group: &Path) -> Option<u64> {
        let number = |name: &str| -> Option<u64> {
            let text = fs::read_to_string(group.join(name)).ok()?;
            text.trim().parse().ok()
        };
        let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let dropped = stat.lines().find_map(|line| {
            let (name, count) = line.split_once(' ')?;
            (name == self.dropped).then(|| count.trim().parse::<u64>().ok())?
        });
        let used = number(self.used)?.saturating_sub(dropped.unwrap_or(0));
        Some(number(self.limit)?.saturating_sub(used))
    }
}

/// What is left of the tightest limit among the process's control group and those that it lies in.
fn container(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mut least = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let files = match controllers {
            "" => VERSION_2,
            _ if controllers.split(',').any(|name| name == "memory") => VERSION_1,
            _ => continue,
        };
        let base = root.join(files.base);
        // In a container the path may be the host's, of which only the root is there.
        let group = base.join(path.trim_start_matches('/'));
        let around = group
            .ancestors()
            .take_while(|group| group.starts_with(&base));
        least = around
            .filter_map(|group| files.left(group))
            .chain(least)
            .min();
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system of the given files.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn room(files: &[(&str, &str)]) -> Option<(u64, Limit)> {
        host_of(system(files).path()).map(|room| (room.bytes, room.limit))
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable:    8000000 kB\n",
    );
    const MACHINE: Option<(u64, Limit)> = Some((8_192_000_000, Limit::Machine));

    #[test]
    fn without_limits_what_the_machine_has_available_counts() {
        assert_eq!(room(&[MEMINFO]), MACHINE);
        assert_eq!(room(&[]), None);
        assert_eq!(room(&[("proc/meminfo", "MemAvailable: much\n")]), None);
        let none = [
            MEMINFO,
            ("proc/self/cgroup", "0::/user.slice\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
            ("sys/fs/cgroup/user.slice/memory.current", "1000\n"),
            (
                "proc/self/limits",
                "Limit  Soft Limit Hard Limit Units\nMax address space         unlimited            unlimited            bytes\n",
            ),
            ("proc/self/status", "VmSize:\t  1000 kB\n"),
        ];
        assert_eq!(room(&none), MACHINE);
    }

    #[test]
    fn a_container_may_take_what_is_left_of_its_limit_and_the_files_it_has_read() {
        let group = [
            MEMINFO,
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "4000000000\n"),
            ("sys/fs/cgroup/memory.current", "3000000000\n"),
            (
                "sys/fs/cgroup/memory.stat",
                "anon 1\ninactive_file 2500000000\nactive_file 7\n",
            ),
        ];
        assert_eq!(room(&group), Some((3_500_000_000, Limit::Container)));
        assert_eq!(room(&group[..4]), Some((1_000_000_000, Limit::Container)));
    }

    #[test]
    fn the_tightest_group_around_the_process_counts() {
        let nested = [
            MEMINFO,
            ("proc/self/cgroup", "0::/job/step/task\n"),
            ("sys/fs/cgroup/job/memory.max", "2000000000\n"),
            ("sys/fs/cgroup/job/memory.current", "500000000\n"),
            ("sys/fs/cgroup/job/step/memory.max", "3000000000\n"),
            ("sys/fs/cgroup/job/step/memory.current", "1\n"),
            ("sys/fs/cgroup/job/step/task/memory.max", "max\n"),
            ("sys/fs/cgroup/job/step/task/memory.current", "1\n"),
        ];
        assert_eq!(room(&nested), Some((1_500_000_000, Limit::Container)));
        // A group that is over its limit has nothing left.
        let mut over = nested;
        over[3].1 = "2500000000\n";
        assert_eq!(room(&over), Some((0, Limit::Container)));
    }

    #[test]
    fn a_container_of_the_first_version_counts_too_whatever_the_host_calls_it() {
        let group = [
            MEMINFO,
            (
                "proc/self/cgroup",
                "12:cpu,cpuacct:/docker/abc\n9:memory:/docker/abc\n0::/system.slice\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "600000000\n"),
            (
                "sys/fs/cgroup/memory/memory.stat",
                "inactive_file 5\ntotal_inactive_file 100000000\n",
            ),
        ];
        assert_eq!(room(&group), Some((500_000_000, Limit::Container)));
        let mut free = group;
        free[2].1 = "9223372036854771712\n";
        assert_eq!(room(&free), MACHINE);
    }

    #[test]
    fn a_limit_on_the_address_space_counts() {
        let limited = [
            MEMINFO,
            (
                "proc/self/limits",
                "Max cpu time              unlimited            unlimited            seconds\n\
                 Max address space         2048000000           unlimited            bytes\n",
            ),
            (
                "proc/self/status",
                "Name:\tx\nVmPeak:\t  9 kB\nVmSize:\t  1000000 kB\n",
            ),
        ];
        assert_eq!(room(&limited), Some((1_024_000_000, Limit::Process)));
    }

    #[test]
    fn a_room_says_how_much_and_whose() {
        let room = Room {
            bytes: 6 << 29,
            limit: Limit::Container,
        };
        let text = room.to_string();
        assert!(
            text.starts_with("3.0 GiB left") && text.contains("container"),
            "{text}"
        );
        if cfg!(target_os = "linux") {
            assert!(host().is_some_and(|room| room.bytes > 0));
        }
    }
}
