//! Experiments that show what this kernel lets this process do, each in a forked child: a seccomp
//! filter may kill for a forbidden call, and a fault that nobody resolves ends the process.
//!
//! The mode probes do what the library does: arm pages, touch them, fill each from a signal handler on
//! the touching thread, and compare every byte.
//!
//! Unsafe code here forks a process that has one thread, so the child may run any code; the child ends
//! by `_exit` and shares one mapping of atomics with the parent. Addresses that are dereferenced or
//! filled lie in mappings that the child made itself and keeps until it ends.

use crate::uffd;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

/// A child that takes longer is stuck in a fault that no signal reports.
const CHILD_SECONDS_MAX: u32 = 5;
const PAGE: usize = 4096;
const PAGES: usize = 4;

/// Ways to get a userfaultfd descriptor, in the order of preference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    /// The system call with `UFFD_USER_MODE_ONLY`.
    UserModeOnly,
    /// The system call, kernel faults included.
    Full,
    /// `/dev/userfaultfd`.
    Device,
}

impl Door {
    /// All of them.
    pub const ALL: [Door; 3] = [Door::UserModeOnly, Door::Full, Door::Device];

    fn open(self) -> io::Result<OwnedFd> {
        match self {
            Door::UserModeOnly => uffd::open_by_system_call(uffd::USER_MODE_ONLY),
            Door::Full => uffd::open_by_system_call(0),
            Door::Device => uffd::open_by_device(),
        }
    }
}

macro_rules! steps {
    ($($variant:ident = $words:literal,)*) => {
        /// What a probe was doing.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u32)]
        pub enum Step { $(#[doc = $words] $variant,)* }

        impl Step {
            const ALL: &[Step] = &[$(Step::$variant),*];

            /// The step in words.
            pub const fn name(self) -> &'static str {
                match self { $(Step::$variant => $words,)* }
            }
        }
    };
}

steps! {
    Start = "starting",
    Open = "opening a userfaultfd",
    Features = "asking for userfaultfd features",
    Map = "mapping memory",
    Handler = "installing a signal handler",
    Register = "registering memory",
    Arm = "installing guard markers",
    Disarm = "removing guard markers",
    Touch = "touching an armed page",
    Fill = "UFFDIO_COPY over an armed page",
    Compare = "comparing the filled bytes",
    Query = "PROCMAP_QUERY",
}

/// How a probe ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It works; the value is the probe's own (the features, for a door).
    Works(u64),
    /// A call failed with this errno; 0 where bytes or signals were not as they should be.
    Failed(Step, i32),
    /// The child was killed by this signal.
    Killed(Step, i32),
    /// No child could be made, errno.
    NotRun(i32),
}

impl Outcome {
    /// Whether the probe worked.
    pub fn works(self) -> bool {
        matches!(self, Outcome::Works(_))
    }

    /// The errno it failed with, if it failed with one.
    pub fn errno(self) -> Option<i32> {
        match self {
            Outcome::Failed(_, errno) | Outcome::NotRun(errno) if errno != 0 => Some(errno),
            _ => None,
        }
    }
}

/// What a child leaves for its parent, in a shared mapping.
#[derive(Default)]
struct Slot {
    done: AtomicU32,
    step: AtomicU32,
    errno: AtomicI32,
    value: AtomicU64,
}

/// The pages that the child's fault handler serves.
struct Armed {
    fd: AtomicI32,
    base: AtomicUsize,
    source: AtomicUsize,
    slot: AtomicUsize,
    faults: AtomicU32,
}

static ARMED: Armed = Armed {
    fd: AtomicI32::new(-1),
    base: AtomicUsize::new(0),
    source: AtomicUsize::new(0),
    slot: AtomicUsize::new(0),
    faults: AtomicU32::new(0),
};

/// A failed step.
struct Stop(Step, i32);

type Stepped<T> = Result<T, Stop>;

fn at<T>(step: Step, result: io::Result<T>) -> Stepped<T> {
    result.map_err(|e| Stop(step, e.raw_os_error().unwrap_or(0)))
}

/// Opens a door and shakes hands; the value is the feature bits.
pub fn door(door: Door) -> Outcome {
    in_child(|slot| {
        slot.step.store(Step::Open as u32, SeqCst);
        let fd = at(Step::Open, door.open())?;
        at(Step::Features, uffd::handshake(&fd, 0))
    })
}

/// Whether `MADV_GUARD_INSTALL` and `MADV_GUARD_REMOVE` are there.
pub fn guard_markers() -> (Outcome, Outcome) {
    let install = in_child(|slot| {
        slot.step.store(Step::Arm as u32, SeqCst);
        advise(Step::Arm, map(PAGES)?, uffd::MADV_GUARD_INSTALL)
    });
    let remove = in_child(|slot| {
        slot.step.store(Step::Disarm as u32, SeqCst);
        advise(Step::Disarm, map(PAGES)?, uffd::MADV_GUARD_REMOVE)
    });
    (install, remove)
}

/// Whether mappings can be asked for without parsing text.
pub fn mapping_query() -> Outcome {
    in_child(|slot| {
        slot.step.store(Step::Query as u32, SeqCst);
        let base = map(PAGES)?;
        let start = at(Step::Query, uffd::query_mapping(base))?;
        if start > base {
            return Err(Stop(Step::Compare, 0));
        }
        Ok(0)
    })
}

/// The whole of `guard` mode, through this door.
pub fn guard_mode(door: Door) -> Outcome {
    in_child(|slot| {
        let fd = opened(slot, door, uffd::FEATURE_SIGBUS | uffd::FEATURE_WP)?;
        let (base, source) = pages(slot)?;
        at(Step::Register, uffd::register(&fd, base, PAGES * PAGE, uffd::REGISTER_WP))?;
        slot.step.store(Step::Arm as u32, SeqCst);
        advise(Step::Arm, base, uffd::MADV_GUARD_INSTALL)?;
        touch_all(slot, &fd, base, source, libc::SIGSEGV)
    })
}

/// The whole of `sigbus` mode, through this door.
pub fn sigbus_mode(door: Door) -> Outcome {
    in_child(|slot| {
        let fd = opened(slot, door, uffd::FEATURE_SIGBUS)?;
        let (base, source) = pages(slot)?;
        at(Step::Register, uffd::register(&fd, base, PAGES * PAGE, uffd::REGISTER_MISSING))?;
        touch_all(slot, &fd, base, source, libc::SIGBUS)
    })
}

fn opened(slot: &Slot, door: Door, features: u64) -> Stepped<OwnedFd> {
    slot.step.store(Step::Open as u32, SeqCst);
    let fd = at(Step::Open, door.open())?;
    slot.step.store(Step::Features as u32, SeqCst);
    at(Step::Features, uffd::handshake(&fd, features))?;
    Ok(fd)
}

/// Untouched pages to arm, and as many with a pattern that differs in every page.
fn pages(slot: &Slot) -> Stepped<(usize, usize)> {
    slot.step.store(Step::Map as u32, SeqCst);
    let base = map(PAGES)?;
    let source = map(PAGES)?;
    for i in 0..PAGES * PAGE {
        // SAFETY: `i` is within the mapping that was just made at `source`.
        unsafe { *((source + i) as *mut u8) = pattern(i) };
    }
    slot.step.store(Step::Register as u32, SeqCst);
    Ok((base, source))
}

fn pattern(i: usize) -> u8 {
    (i.wrapping_mul(31) ^ (i / PAGE).wrapping_mul(97)) as u8 | 1
}

/// Reads page 0, writes page 1, fills page 2 without a touch, leaves page 3 to the comparison.
fn touch_all(slot: &Slot, fd: &OwnedFd, base: usize, source: usize, signal: i32) -> Stepped<u64> {
    slot.step.store(Step::Handler as u32, SeqCst);
    ARMED.fd.store(fd.as_raw_fd(), SeqCst);
    ARMED.base.store(base, SeqCst);
    ARMED.source.store(source, SeqCst);
    ARMED.slot.store(ptr::from_ref(slot) as usize, SeqCst);
    at(Step::Handler, handle(signal))?;
    slot.step.store(Step::Fill as u32, SeqCst);
    let (third, from) = (base + 2 * PAGE, source + 2 * PAGE);
    // SAFETY: page 2 of each of the child's own mappings.
    at(Step::Fill, unsafe { uffd::copy(fd.as_raw_fd(), third, from, PAGE) })?;
    slot.step.store(Step::Touch as u32, SeqCst);
    // SAFETY: pages of the child's own mapping; the handler fills them before the access completes.
    unsafe {
        let _ = ((base + 7) as *const u8).read_volatile();
        ((base + PAGE + 9) as *mut u8).write_volatile(0);
    }
    for i in 0..PAGES * PAGE {
        let expected = if i == PAGE + 9 { 0 } else { pattern(i) };
        // SAFETY: within the child's own mapping; the handler fills what is still armed.
        if unsafe { ((base + i) as *const u8).read_volatile() } != expected {
            return Err(Stop(Step::Compare, 0));
        }
    }
    // Pages 0, 1 and 3: fewer faults mean that pages were not armed, and would read as zeros elsewhere.
    match ARMED.faults.load(SeqCst) {
        3 => Ok(0),
        _ => Err(Stop(Step::Touch, 0)),
    }
}

fn handle(signal: i32) -> io::Result<()> {
    // SAFETY: sigaction is plain data for which zeros are a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_fault as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: `action` is filled in, its handler has the SA_SIGINFO signature and lives forever.
    if unsafe { libc::sigaction(signal, &action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as for sigaction above; the set is initialised by sigemptyset.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
    }
    Ok(())
}

extern "C" fn on_fault(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo, and both signals carry an address.
    let addr = unsafe { (*info).si_addr() } as usize;
    let base = ARMED.base.load(SeqCst);
    let page = addr.wrapping_sub(base) & !(PAGE - 1);
    if page >= PAGES * PAGE || ARMED.faults.fetch_add(1, SeqCst) as usize >= PAGES {
        stop(Step::Touch, 0);
    }
    let source = ARMED.source.load(SeqCst) + page;
    // SAFETY: `page` is inside both of the child's own mappings.
    if let Err(e) = unsafe { uffd::copy(ARMED.fd.load(SeqCst), base + page, source, PAGE) } {
        stop(Step::Fill, e.raw_os_error().unwrap_or(0));
    }
}

/// Ends the child from its fault handler.
fn stop(step: Step, errno: i32) -> ! {
    // SAFETY: set from a live `&Slot` before the handler was installed; the mapping outlives the child.
    let slot = unsafe { &*(ARMED.slot.load(SeqCst) as *const Slot) };
    finish(slot, Err(Stop(step, errno)))
}

fn finish(slot: &Slot, result: Stepped<u64>) -> ! {
    match result {
        Ok(value) => slot.value.store(value, SeqCst),
        Err(Stop(step, errno)) => {
            slot.step.store(step as u32, SeqCst);
            slot.errno.store(errno, SeqCst);
        }
    }
    slot.done.store(if result.is_ok() { 1 } else { 2 }, SeqCst);
    // SAFETY: ends the child without running anything that belongs to the parent (buffers, exit hooks).
    unsafe { libc::_exit(0) }
}

fn map(pages: usize) -> Stepped<usize> {
    at(Step::Map, map_raw(pages * PAGE, libc::MAP_PRIVATE))
}

fn map_raw(len: usize, sharing: i32) -> io::Result<usize> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new anonymous mapping where the kernel likes; nothing existing is replaced.
    let addr = unsafe { libc::mmap(ptr::null_mut(), len, protection, sharing | libc::MAP_ANONYMOUS, -1, 0) };
    if addr == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(addr as usize)
}

fn advise(step: Step, base: usize, advice: i32) -> Stepped<u64> {
    // SAFETY: the child's own mapping, whose bytes nothing refers to yet.
    if unsafe { libc::madvise(base as *mut libc::c_void, PAGES * PAGE, advice) } != 0 {
        return at(step, Err(io::Error::last_os_error()));
    }
    Ok(0)
}

/// Runs `probe` in a forked child and tells how it ended.
fn in_child(probe: impl FnOnce(&Slot) -> Stepped<u64>) -> Outcome {
    let len = size_of::<Slot>();
    let base = match map_raw(len, libc::MAP_SHARED) {
        Ok(base) => base,
        Err(e) => return Outcome::NotRun(e.raw_os_error().unwrap_or(0)),
    };
    // SAFETY: a fresh zeroed mapping, large and aligned enough for the atomics, unmapped only below.
    let slot = unsafe { &*(base as *const Slot) };
    // SAFETY: this command has one thread, so the child holds no lock that another thread had.
    let outcome = match unsafe { libc::fork() } {
        0 => {
            quiet_child();
            finish(slot, probe(slot))
        }
        pid if pid < 0 => Outcome::NotRun(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        pid => ended(slot, wait(pid)),
    };
    // SAFETY: mapped above with this length; the child is gone and `slot` is not used again.
    unsafe { libc::munmap(base as *mut libc::c_void, len) };
    outcome
}

/// A time limit, no core file, and the fault signals at their defaults whatever was inherited.
fn quiet_child() {
    let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain system calls with valid arguments, in the child only.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &limit);
        for signal in [libc::SIGALRM, libc::SIGSEGV, libc::SIGBUS, libc::SIGSYS] {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
        libc::alarm(CHILD_SECONDS_MAX);
    }
}

fn wait(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: waits for our own child and writes one integer.
    while unsafe { libc::waitpid(pid, &mut status, 0) } < 0 {
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            break;
        }
    }
    status
}

fn ended(slot: &Slot, status: i32) -> Outcome {
    let step = Step::ALL.get(slot.step.load(SeqCst) as usize).copied().unwrap_or(Step::Start);
    match slot.done.load(SeqCst) {
        1 => Outcome::Works(slot.value.load(SeqCst)),
        2 => Outcome::Failed(step, slot.errno.load(SeqCst)),
        _ if libc::WIFSIGNALED(status) => Outcome::Killed(step, libc::WTERMSIG(status)),
        _ => Outcome::Failed(step, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The test harness has other threads: these children make system calls and nothing else.
    #[test]
    fn a_killed_or_failing_child_is_reported() {
        let killed = in_child(|slot| {
            slot.step.store(Step::Touch as u32, SeqCst);
            // SAFETY: ends this child the way an unresolved fault would.
            unsafe { libc::raise(libc::SIGSEGV) };
            Ok(0)
        });
        assert_eq!(killed, Outcome::Killed(Step::Touch, libc::SIGSEGV));
        let failed = in_child(|_| Err(Stop(Step::Arm, libc::EINVAL)));
        assert_eq!(failed, Outcome::Failed(Step::Arm, libc::EINVAL));
        assert_eq!(in_child(|_| Ok(42)), Outcome::Works(42));
    }

    #[test]
    fn pattern_differs_between_pages_and_from_zeros() {
        assert!((0..PAGES * PAGE).all(|i| pattern(i) != 0));
        assert_ne!(pattern(0), pattern(PAGE));
    }
}
