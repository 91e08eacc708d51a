//! What the kernel says about itself and about this process, without experiments.
//!
//! Unsafe code here is `uname` and `getrlimit`, each writing a plain structure of ours.

use serde::Serialize;
use std::ffi::CStr;
use std::fs;
use std::path::Path;

/// Bit of CAP_SYS_PTRACE in a capability set.
const CAP_SYS_PTRACE: u32 = 19;

/// The kernel.
#[derive(Serialize, Debug)]
pub struct Kernel {
    /// As `uname -r`.
    pub release: String,
    /// As `uname -m`.
    pub arch: String,
}

/// What this process is allowed.
#[derive(Serialize, Debug)]
pub struct Privilege {
    /// Real user id.
    pub uid: u32,
    /// Effective user id.
    pub euid: u32,
    /// Whether CAP_SYS_PTRACE is effective: it opens `userfaultfd(2)` with kernel faults.
    pub cap_sys_ptrace: bool,
    /// Whether no_new_privs is set.
    pub no_new_privs: bool,
    /// `disabled`, `strict`, `filter` or `unknown`.
    pub seccomp: &'static str,
}

/// Limits that memory elision can meet. `None` is "no limit" or "not known".
#[derive(Serialize, Debug)]
pub struct Limits {
    /// RLIMIT_AS, soft, bytes.
    pub address_space_bytes: Option<u64>,
    /// RLIMIT_NOFILE, soft.
    pub open_files: Option<u64>,
    /// vm.max_map_count.
    pub max_map_count: Option<u64>,
    /// vm.overcommit_memory.
    pub overcommit_memory: Option<u64>,
    /// Smallest memory limit of this cgroup and those above it, bytes.
    pub cgroup_memory_bytes: Option<u64>,
}

/// Everything here.
#[derive(Serialize, Debug)]
pub struct Facts {
    /// The kernel.
    pub kernel: Kernel,
    /// What this process is allowed.
    pub privilege: Privilege,
    /// Limits.
    pub limits: Limits,
    /// vm.unprivileged_userfaultfd.
    pub unprivileged_userfaultfd: Option<u64>,
    /// The chosen word of `/sys/kernel/mm/transparent_hugepage/enabled`.
    pub transparent_hugepages: Option<String>,
}

impl Facts {
    /// Reads them; what cannot be read is `None`, `false` or `unknown`.
    pub fn gather() -> Facts {
        Facts {
            kernel: kernel(),
            privilege: privilege(&fs::read_to_string("/proc/self/status").unwrap_or_default()),
            limits: Limits {
                address_space_bytes: limit(libc::RLIMIT_AS),
                open_files: limit(libc::RLIMIT_NOFILE),
                max_map_count: number("/proc/sys/vm/max_map_count"),
                overcommit_memory: number("/proc/sys/vm/overcommit_memory"),
                cgroup_memory_bytes: cgroup_memory(),
            },
            unprivileged_userfaultfd: number("/proc/sys/vm/unprivileged_userfaultfd"),
            transparent_hugepages: fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
                .ok()
                .and_then(|text| chosen(&text)),
        }
    }
}

impl Kernel {
    /// Whether the release is at least `major.minor`; `true` when it cannot be parsed.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        let mut parts = self.release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        match (parts.next(), parts.next()) {
            (Some(Ok(a)), Some(Ok(b))) => (a, b) >= (major, minor),
            _ => true,
        }
    }
}

fn kernel() -> Kernel {
    // SAFETY: utsname is arrays of bytes, for which zeros are a value; uname fills it.
    let name = unsafe {
        let mut name: libc::utsname = std::mem::zeroed();
        libc::uname(&mut name);
        name
    };
    let text = |field: &[libc::c_char]| {
        let bytes: Vec<u8> = field.iter().map(|&c| c as u8).collect();
        CStr::from_bytes_until_nul(&bytes).map_or(String::new(), |s| s.to_string_lossy().into_owned())
    };
    Kernel { release: text(&name.release), arch: text(&name.machine) }
}

fn privilege(status: &str) -> Privilege {
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim()
    };
    let mut ids = field("Uid").split_ascii_whitespace().map(|n| n.parse().unwrap_or(u32::MAX));
    let effective = u64::from_str_radix(field("CapEff"), 16).unwrap_or(0);
    Privilege {
        uid: ids.next().unwrap_or(u32::MAX),
        euid: ids.next().unwrap_or(u32::MAX),
        cap_sys_ptrace: effective >> CAP_SYS_PTRACE & 1 == 1,
        no_new_privs: field("NoNewPrivs") == "1",
        seccomp: match field("Seccomp") {
            "0" => "disabled",
            "1" => "strict",
            "2" => "filter",
            _ => "unknown",
        },
    }
}

fn limit(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: writes one rlimit, which outlives the call.
    unsafe { libc::getrlimit(resource, &mut limit) };
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

fn number(path: impl AsRef<Path>) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The word in brackets: `always [madvise] never`.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// Version 2 and version 1 hierarchies; "max", and version 1's huge numbers, are no limit.
fn cgroup_memory() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut least = None;
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            c if c.split(',').any(|c| c == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        let group = Path::new(group.trim_start_matches('/'));
        for level in group.ancestors() {
            let here = number(Path::new(root).join(level).join(file)).filter(|&n| n < 1 << 62);
            least = [least, here].into_iter().flatten().min();
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_fields() {
        let p = privilege(
            "Uid:\t5\t6\t7\t8\nNoNewPrivs:\t1\nCapEff:\t0000000000080000\nSeccomp:\t2\nSeccomp_filters:\t1\n",
        );
        assert_eq!((p.uid, p.euid, p.cap_sys_ptrace, p.no_new_privs), (5, 6, true, true));
        assert_eq!(p.seccomp, "filter");
        let p = privilege("");
        assert_eq!((p.uid, p.cap_sys_ptrace, p.seccomp), (u32::MAX, false, "unknown"));
    }

    #[test]
    fn releases_compare() {
        let kernel = |release: &str| Kernel { release: release.into(), arch: String::new() };
        assert!(kernel("6.13.0-rc1").at_least(6, 13));
        assert!(!kernel("6.1.0-18-amd64").at_least(6, 13));
        assert!(kernel("7.0").at_least(6, 13));
        assert!(kernel("odd").at_least(6, 13));
    }

    #[test]
    fn chosen_words() {
        assert_eq!(chosen("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(chosen("nothing"), None);
    }
}
