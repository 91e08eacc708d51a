//! What a server has used up to now: CPU time, minor faults and zio's own counters.
//!
//! All of it is read from outside, through `/proc`, at the start and at the end of the measured window,
//! so that start-up and warm-up do not count.
//!
//! The one unsafe part reads another process's memory with `process_vm_readv` into a buffer of ours of
//! the length we pass; nothing in the buffer is followed or trusted before it is checked.

use std::fs;
use std::time::Instant;

use zio_tracker::stats::{COUNTERS, Counter, MAGIC, MEMFD_NAME, Mode, SHARDS, StatsPage, VERSION};

use super::Failure;

/// zio's counters of one process, summed over its threads.
#[derive(Clone, Debug)]
pub struct Counters {
    /// The library's mode, as a word.
    pub mode: &'static str,
    /// Why it is in that mode.
    pub reason: String,
    values: [u64; COUNTERS],
}

impl Counters {
    /// One counter.
    pub fn get(&self, c: Counter) -> u64 {
        self.values[c as usize]
    }

    /// Every byte moved in user space, by the program's large copies and by zio.
    pub fn bytes_copied(&self) -> u64 {
        [
            Counter::CopiedByProgram,
            Counter::CopiedFringe,
            Counter::CopiedGather,
            Counter::CopiedCompaction,
            Counter::BytesMaterialised,
        ]
        .iter()
        .map(|&c| self.get(c))
        .sum()
    }

    /// What was counted after `earlier`; mode and reason are the later ones.
    pub fn since(&self, earlier: &Counters) -> Counters {
        let mut values = self.values;
        for (v, e) in values.iter_mut().zip(&earlier.values) {
            *v = v.wrapping_sub(*e);
        }
        Counters { values, ..self.clone() }
    }

    /// Adds another window's counts to these.
    pub fn add(&mut self, other: &Counters) {
        for (v, o) in self.values.iter_mut().zip(&other.values) {
            *v = v.wrapping_add(*o);
        }
    }

    #[cfg(test)]
    pub fn with(pairs: &[(Counter, u64)]) -> Counters {
        let mut values = [0; COUNTERS];
        for &(c, v) in pairs {
            values[c as usize] = v;
        }
        Counters { mode: "guard", reason: String::new(), values }
    }
}

/// A process's use of the machine at one moment.
pub struct Snapshot {
    /// When it was taken.
    pub at: Instant,
    /// CPU time of all its threads, nanoseconds.
    pub cpu_ns: u64,
    /// Page faults that needed no IO.
    pub minor_faults: u64,
    /// zio's counters, when the process publishes them.
    pub zio: Option<Counters>,
}

impl Snapshot {
    /// Reads the state of a live process.
    ///
    /// # Errors
    /// When the process is gone or its `/proc` files don't parse.
    pub fn take(pid: u32) -> Result<Snapshot, Failure> {
        let gone = |e: std::io::Error| Failure::new(format!("server process {pid}: {e}"));
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(gone)?;
        let minor_faults =
            minor_faults(&stat).ok_or_else(|| Failure::new(format!("/proc/{pid}/stat does not parse")))?;
        let zio = read_counters(pid);
        let mut cpu_ns = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task")).map_err(gone)? {
            let path = task.map_err(gone)?.path().join("schedstat");
            // A thread may end between the listing and the reading.
            if let Ok(text) = fs::read_to_string(path) {
                cpu_ns += run_time_ns(&text).unwrap_or(0);
            }
        }
        Ok(Snapshot { at: Instant::now(), cpu_ns, minor_faults, zio })
    }
}

/// The tenth field of `/proc/PID/stat`; the second may hold spaces and parentheses.
fn minor_faults(stat: &str) -> Option<u64> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name.split_ascii_whitespace().nth(7)?.parse().ok()
}

/// The first field of a `schedstat` file.
fn run_time_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().next()?.parse().ok()
}

/// Start address of the statistics mapping in the text of `/proc/PID/maps`.
fn stats_address(maps: &str) -> Option<usize> {
    let wanted = format!("/memfd:{MEMFD_NAME} (deleted)");
    let line = maps.lines().find(|l| l.ends_with(&wanted))?;
    usize::from_str_radix(line.split('-').next()?, 16).ok()
}

fn read_counters(pid: u32) -> Option<Counters> {
    let maps = fs::read(format!("/proc/{pid}/maps")).ok()?;
    let address = stats_address(&String::from_utf8_lossy(&maps))?;
    let mut bytes = vec![0u8; size_of::<StatsPage>()];
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: the call writes at most `iov_len` bytes to `local`, which is `bytes`, alive and of that
    // length; the remote range is checked by the kernel.
    let n = unsafe { libc::process_vm_readv(pid as libc::pid_t, &local, 1, &remote, 1, 0) };
    if n != bytes.len() as isize {
        return None;
    }
    decode(&bytes)
}

/// Reads the counters out of the raw bytes of a page; `None` when the layout is not ours.
fn decode(bytes: &[u8]) -> Option<Counters> {
    use std::mem::offset_of;
    let word = |at: usize| -> Option<u64> { Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?)) };
    let half = |at: usize| -> Option<u32> { Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?)) };
    if word(offset_of!(StatsPage, magic))? != MAGIC
        || half(offset_of!(StatsPage, version))? != VERSION
        || half(offset_of!(StatsPage, page_len))? as usize != size_of::<StatsPage>()
    {
        return None;
    }
    let mode = word(offset_of!(StatsPage, mode))?;
    let mode = u32::try_from(mode).ok().and_then(Mode::from_u32)?;
    let reason_at = offset_of!(StatsPage, reason);
    let reason_len = word(offset_of!(StatsPage, reason_len))?.min(192) as usize;
    let reason = bytes.get(reason_at..reason_at + reason_len)?;
    let mut values = [0u64; COUNTERS];
    let shards = offset_of!(StatsPage, shards);
    let stride = size_of::<zio_tracker::stats::Shard>();
    for shard in 0..SHARDS {
        for (i, v) in values.iter_mut().enumerate() {
            *v = v.wrapping_add(word(shards + shard * stride + i * 8)?);
        }
    }
    Some(Counters {
        mode: mode.name(),
        reason: String::from_utf8_lossy(reason).chars().filter(|c| !c.is_control()).collect(),
        values,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_stat_with_a_hostile_name() {
        let stat = "12 (a) b) 7) S 1 2 3 4 5 6 777 8 9 10";
        assert_eq!(minor_faults(stat), Some(777));
        assert_eq!(minor_faults("12 no name"), None);
        assert_eq!(run_time_ns("123456 7 8\n"), Some(123_456));
    }

    #[test]
    fn finds_the_mapping() {
        let maps =
            "1000-2000 r-xp 0 0:0 1 /bin/x\n7f12a000-7f12f000 rw-p 00000000 00:01 9 /memfd:zio-stats (deleted)\n";
        assert_eq!(stats_address(maps), Some(0x7f12_a000));
        assert_eq!(stats_address("1000-2000 r-xp 0 0:0 1 /bin/x\n"), None);
    }

    #[test]
    fn decodes_a_page_and_refuses_others() {
        use std::mem::offset_of;
        let mut page = vec![0u8; size_of::<StatsPage>()];
        assert!(decode(&page).is_none());
        page[..8].copy_from_slice(&MAGIC.to_ne_bytes());
        page[8..12].copy_from_slice(&VERSION.to_ne_bytes());
        page[12..16].copy_from_slice(&(size_of::<StatsPage>() as u32).to_ne_bytes());
        page[offset_of!(StatsPage, mode)] = Mode::Guard as u8;
        let at = offset_of!(StatsPage, shards) + Counter::Faults as usize * 8;
        page[at] = 5;
        page[at + size_of::<zio_tracker::stats::Shard>()] = 6;
        let c = decode(&page).unwrap();
        assert_eq!((c.mode, c.get(Counter::Faults)), ("guard", 11));
        assert!(decode(&page[..100]).is_none());
    }

    #[test]
    fn reads_a_live_page() {
        let len = size_of::<StatsPage>();
        let name = std::ffi::CString::new(MEMFD_NAME).unwrap();
        // SAFETY: a new descriptor and a new private mapping of it, long enough for the header that is
        // written (a page of integers); nobody else uses either.
        let page = unsafe {
            let fd = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC);
            assert!(fd >= 0 && libc::ftruncate(fd, len as libc::off_t) == 0);
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let at = libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_PRIVATE, fd, 0);
            assert_ne!(at, libc::MAP_FAILED);
            libc::close(fd);
            let page: *mut StatsPage = at.cast();
            (*page).magic.store(MAGIC, std::sync::atomic::Ordering::Relaxed);
            (*page).version = VERSION;
            (*page).page_len = len as u32;
            &*page
        };
        let count = &page.shards[3].counters[Counter::BytesSent as usize];
        count.store(100, std::sync::atomic::Ordering::Relaxed);
        let before = read_counters(std::process::id()).unwrap();
        count.store(142, std::sync::atomic::Ordering::Relaxed);
        let after = read_counters(std::process::id()).unwrap();
        assert_eq!(after.since(&before).get(Counter::BytesSent), 42);
    }

    #[test]
    fn our_own_snapshot() {
        let a = Snapshot::take(std::process::id()).unwrap();
        let mut x = 0u64;
        while a.at.elapsed().as_millis() < 5 {
            x = x.wrapping_add(1);
        }
        std::hint::black_box(x);
        let b = Snapshot::take(std::process::id()).unwrap();
        assert!(b.cpu_ns > a.cpu_ns);
        assert!(Snapshot::take(u32::MAX).is_err());
    }
}
