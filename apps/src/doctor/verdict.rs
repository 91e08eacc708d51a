//! Which fault modes work, why, and what to do about those that do not.

use super::facts::{Facts, Kernel};
use crate::probe::{self, Door, Outcome, Step};
use serde::Serialize;

/// One probe, in words.
#[derive(Serialize, Debug)]
pub struct Probe {
    /// Whether it works.
    pub works: bool,
    /// The failing call's errno by name.
    pub errno: Option<String>,
    /// What happened, when it does not work.
    pub why: Option<String>,
}

/// One fault mode.
#[derive(Serialize, Debug)]
pub struct FaultMode {
    /// As in `zio run --fault`.
    pub name: &'static str,
    /// Whether it works.
    pub works: bool,
    /// What was seen.
    pub why: String,
    /// What to do when it does not work; nothing if nothing can be done.
    pub remedy: Option<String>,
}

/// The ways to a userfaultfd.
#[derive(Serialize, Debug)]
pub struct Doors {
    /// `userfaultfd(UFFD_USER_MODE_ONLY)`.
    pub system_call_user_mode: Probe,
    /// `userfaultfd(0)`.
    pub system_call_full: Probe,
    /// `/dev/userfaultfd`.
    pub device: Probe,
}

/// Results of all experiments.
#[derive(Serialize, Debug)]
pub struct Verdict {
    /// The ways to a userfaultfd.
    pub userfaultfd: Doors,
    /// MADV_GUARD_INSTALL.
    pub guard_install: Probe,
    /// MADV_GUARD_REMOVE.
    pub guard_remove: Probe,
    /// PROCMAP_QUERY on `/proc/self/maps`.
    pub procmap_query: Probe,
    /// The fault modes, preferred first.
    pub modes: Vec<FaultMode>,
    /// What `--fault auto` takes: a mode's name, or `passthrough`.
    pub auto: &'static str,
}

impl Verdict {
    /// Runs the experiments, each in a child of its own.
    pub fn reach(facts: &Facts) -> Verdict {
        let doors = Door::ALL.map(probe::door);
        let open = Door::ALL.into_iter().zip(doors).find(|d| d.1.works()).map(|d| d.0);
        let modes = vec![
            mode("guard", open, doors, facts, probe::guard_mode),
            mode("sigbus", open, doors, facts, probe::sigbus_mode),
        ];
        let (install, remove) = probe::guard_markers();
        let [user_mode, full, device] = doors.map(|d| describe(&d));
        Verdict {
            userfaultfd: Doors { system_call_user_mode: user_mode, system_call_full: full, device },
            guard_install: describe(&install),
            guard_remove: describe(&remove),
            procmap_query: describe(&probe::mapping_query()),
            auto: modes.iter().find(|m| m.works).map_or("passthrough", |m| m.name),
            modes,
        }
    }
}

fn mode(
    name: &'static str,
    open: Option<Door>,
    doors: [Outcome; 3],
    facts: &Facts,
    try_it: fn(Door) -> Outcome,
) -> FaultMode {
    let Some(door) = open else {
        return FaultMode {
            name,
            works: false,
            why: "no way to a userfaultfd is open".into(),
            remedy: Some(door_remedy(doors, &facts.kernel)),
        };
    };
    let outcome = try_it(door);
    let through = match door {
        Door::UserModeOnly => "userfaultfd(UFFD_USER_MODE_ONLY)",
        Door::Full => "userfaultfd(2)",
        Door::Device => "/dev/userfaultfd",
    };
    FaultMode {
        name,
        works: outcome.works(),
        why: match describe(&outcome).why {
            None => format!("touched pages were filled, through {through}"),
            Some(why) => why,
        },
        remedy: mode_remedy(name, outcome, &facts.kernel),
    }
}

/// What opens a door when all are shut: the one that needs no privilege first.
fn door_remedy(doors: [Outcome; 3], kernel: &Kernel) -> String {
    let device = "or give this user /dev/userfaultfd (setfacl -m u:USER:rw /dev/userfaultfd; in a container \
                  also --device /dev/userfaultfd)";
    match doors[0] {
        Outcome::Failed(_, libc::EINVAL) => {
            "this kernel is older than 5.11: upgrade it, or set vm.unprivileged_userfaultfd=1, or \
             run as root"
                .into()
        }
        Outcome::Failed(_, libc::ENOSYS) => format!(
            "use a kernel with CONFIG_USERFAULTFD=y, or a seccomp profile that does not hide userfaultfd, {device}"
        ),
        Outcome::Failed(_, libc::EPERM) | Outcome::Killed(..) => {
            format!("allow userfaultfd in the seccomp profile (Docker: --security-opt seccomp=PROFILE), {device}")
        }
        Outcome::Failed(_, libc::EMFILE | libc::ENFILE) => "raise the limit on open files".into(),
        _ => format!("Linux {} should allow this; see what limits this process, {device}", kernel.release),
    }
}

fn mode_remedy(name: &str, outcome: Outcome, kernel: &Kernel) -> Option<String> {
    let text = match outcome {
        Outcome::Works(_) => return None,
        Outcome::Failed(Step::Arm, libc::EINVAL) if !kernel.at_least(6, 13) => {
            "guard markers need Linux 6.13 or later; until then use sigbus"
        }
        Outcome::Failed(Step::Fill, libc::EEXIST) if name == "guard" => {
            "this kernel does not fill over guard markers: use sigbus"
        }
        Outcome::Failed(Step::Features | Step::Register, libc::EINVAL) if name == "guard" => {
            "guard needs a kernel with write-protect userfaultfd (CONFIG_HAVE_ARCH_USERFAULTFD_WP, x86-64 since \
             5.7): use sigbus"
        }
        Outcome::Failed(_, libc::ENOMEM) => "raise the limit on memory or address space (ulimit -v, the cgroup's)",
        Outcome::Failed(_, libc::EPERM | libc::EACCES | libc::ENOSYS) | Outcome::Killed(_, libc::SIGSYS) => {
            "a security policy forbids the call named here: allow it in the seccomp profile"
        }
        _ if name == "guard" => "use sigbus if it works",
        _ => "use guard if it works",
    };
    Some(text.into())
}

fn describe(outcome: &Outcome) -> Probe {
    let why = match *outcome {
        Outcome::Works(_) => None,
        Outcome::Failed(step, 0) => Some(format!("{}: not as it should be", step.name())),
        Outcome::Failed(step, errno) => Some(format!("{}: {}", step.name(), errno_text(errno))),
        Outcome::Killed(step, libc::SIGSYS) => Some(format!("{}: killed by a seccomp filter", step.name())),
        Outcome::Killed(step, libc::SIGALRM) => Some(format!("{}: no answer", step.name())),
        Outcome::Killed(step, signal) => Some(format!("{}: killed by signal {signal}", step.name())),
        Outcome::NotRun(errno) => Some(format!("no process to try it in: {}", errno_text(errno))),
    };
    Probe { works: outcome.works(), errno: outcome.errno().map(errno_name), why }
}

fn errno_text(errno: i32) -> String {
    let error = std::io::Error::from_raw_os_error(errno);
    format!("{} ({})", crate::library::plain_error(&error), errno_name(errno))
}

fn errno_name(errno: i32) -> String {
    let name = match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::ESRCH => "ESRCH",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::ENODEV => "ENODEV",
        libc::EINVAL => "EINVAL",
        libc::ENFILE => "ENFILE",
        libc::EMFILE => "EMFILE",
        libc::ENOTTY => "ENOTTY",
        libc::ENOSYS => "ENOSYS",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        _ => return format!("errno {errno}"),
    };
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(release: &str) -> Kernel {
        Kernel { release: release.into(), arch: "x86_64".into() }
    }

    #[test]
    fn every_failure_has_a_remedy() {
        let k = kernel("6.1.0");
        for errno in [libc::EPERM, libc::ENOSYS, libc::EINVAL, libc::EMFILE, libc::EIO] {
            for name in ["guard", "sigbus"] {
                let failed = Outcome::Failed(Step::Register, errno);
                assert!(mode_remedy(name, failed, &k).is_some());
                assert!(!door_remedy([failed; 3], &k).is_empty());
            }
        }
        let old = mode_remedy("guard", Outcome::Failed(Step::Arm, libc::EINVAL), &k);
        assert!(old.expect("a remedy").contains("6.13"));
        assert_eq!(mode_remedy("guard", Outcome::Works(0), &k), None);
    }

    #[test]
    fn failures_are_described() {
        let p = describe(&Outcome::Failed(Step::Fill, libc::EEXIST));
        assert_eq!(p.errno.as_deref(), Some("EEXIST"));
        assert!(p.why.expect("why").starts_with("UFFDIO_COPY over an armed page: File exists"));
        assert!(describe(&Outcome::Killed(Step::Open, libc::SIGSYS)).why.expect("why").contains("seccomp"));
        assert!(describe(&Outcome::Works(1)).works);
    }
}
