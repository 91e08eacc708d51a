//! Reads and checks the statistics page of another process.
//!
//! Unsafe code here: `process_vm_readv` into a buffer of our own, and viewing bytes as a [`StatsPage`],
//! which is plain data for which every bit pattern is a value.

use super::maps::{self, Mapping};
use crate::library::plain_error;
use std::fs::File;
use std::io::{self, BufReader};
use std::mem::{offset_of, size_of};
use std::sync::atomic::Ordering::Relaxed;
use thiserror::Error;
use zio_tracker::stats::{MAGIC, MEMFD_NAME, StatsPage, VERSION};

/// Why there are no statistics to show.
#[derive(Debug, Error)]
pub enum ReadError {
    /// Nothing has that process id.
    #[error("no process has id {0}")]
    NoProcess(i32),
    /// The kernel does not let us look.
    #[error("no permission to read process {pid}: run as the same user or as root{hint}")]
    Denied {
        /// The process.
        pid: i32,
        /// What else may be in the way, with a leading semicolon, or empty.
        hint: String,
    },
    /// The library is not in that process.
    #[error("process {0} does not run under zio; start it with `zio run -- CMD`")]
    NotUnderZio(i32),
    /// There is a page, but not one of ours.
    #[error("process {pid}: {why}")]
    Page {
        /// The process.
        pid: i32,
        /// What is wrong with it.
        why: PageError,
    },
    /// Anything else.
    #[error("process {pid}: {what}: {why}")]
    Io {
        /// The process.
        pid: i32,
        /// What was being done.
        what: &'static str,
        /// The error's text.
        why: String,
    },
}

/// Why bytes are not a statistics page.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PageError {
    /// Too short, or the magic number is wrong.
    #[error("its statistics page is damaged")]
    Damaged,
    /// Another version of zio wrote it.
    #[error(
        "its statistics page has layout version {version} and {len_bytes} bytes, and this command knows \
         version {VERSION} with {known} bytes; use the zio command that belongs to its libzio.so",
        known = size_of::<StatsPage>()
    )]
    Layout {
        /// The page's version.
        version: u32,
        /// The page's length.
        len_bytes: u32,
    },
}

/// Reads the statistics page of process `pid`.
///
/// # Errors
/// See [`ReadError`].
pub fn read(pid: i32) -> Result<Box<StatsPage>, ReadError> {
    let maps = File::open(format!("/proc/{pid}/maps")).map_err(|e| refused(pid, "opening its maps", &e))?;
    let mappings = maps::find(BufReader::new(maps), MEMFD_NAME).map_err(|e| refused(pid, "reading its maps", &e))?;
    let mut first: Option<Box<StatsPage>> = None;
    let mut error = ReadError::NotUnderZio(pid);
    for mapping in mappings {
        match read_mapping(pid, mapping) {
            // A forked child may still have its parent's page beside its own.
            Ok(page) if page.pid.load(Relaxed) == pid as u64 => return Ok(page),
            Ok(page) => first = first.or(Some(page)),
            Err(e) => error = e,
        }
    }
    first.ok_or(error)
}

fn read_mapping(pid: i32, mapping: Mapping) -> Result<Box<StatsPage>, ReadError> {
    // Never more than the page we know, whatever the other process mapped.
    let len = mapping.len_bytes.min(size_of::<StatsPage>() as u64) as usize;
    let mut bytes = vec![0u8; len];
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: len };
    let remote = libc::iovec { iov_base: mapping.start as usize as *mut libc::c_void, iov_len: len };
    // SAFETY: `local` covers exactly `bytes`, which outlives the call; `remote` is only an address in the
    // other process, which the kernel checks.
    let got = unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
    if got < 0 {
        return Err(refused(pid, "reading its memory", &io::Error::last_os_error()));
    }
    bytes.truncate(got as usize);
    decode(&bytes).map_err(|why| ReadError::Page { pid, why })
}

fn refused(pid: i32, what: &'static str, error: &io::Error) -> ReadError {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => ReadError::NoProcess(pid),
        Some(libc::EPERM | libc::EACCES) => ReadError::Denied { pid, hint: denied_hint() },
        _ => ReadError::Io { pid, what, why: plain_error(error) },
    }
}

/// What besides the user ids may forbid reading.
fn denied_hint() -> String {
    // SAFETY: takes nothing and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        return "; this root lacks CAP_SYS_PTRACE over it (a container, or a security policy)".into();
    }
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    match scope.as_deref().map(str::trim) {
        Ok(n @ ("1" | "2" | "3")) => {
            format!("; kernel.yama.ptrace_scope is {n}, which leaves that to root")
        }
        _ => String::new(),
    }
}

/// Checks bytes read from another process and copies them into a page.
///
/// # Errors
/// They are not a page of the layout that this command knows.
pub fn decode(bytes: &[u8]) -> Result<Box<StatsPage>, PageError> {
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    let magic = bytes.get(..8).and_then(|b| b.try_into().ok()).map(u64::from_ne_bytes);
    if magic != Some(MAGIC) {
        return Err(PageError::Damaged);
    }
    let version = word(offset_of!(StatsPage, version)).ok_or(PageError::Damaged)?;
    let len_bytes = word(offset_of!(StatsPage, page_len)).ok_or(PageError::Damaged)?;
    if version != VERSION || len_bytes as usize != size_of::<StatsPage>() {
        return Err(PageError::Layout { version, len_bytes });
    }
    if bytes.len() < size_of::<StatsPage>() {
        return Err(PageError::Damaged);
    }
    let mut page = Box::<StatsPage>::new_uninit();
    // SAFETY: the box has room for one page and `bytes` at least as many bytes, all of them written, and
    // every bit pattern is a value of a page's integers.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), page.as_mut_ptr().cast(), size_of::<StatsPage>());
        Ok(page.assume_init())
    }
}

/// The page's reason: clamped, lossy where it is not UTF-8, control characters escaped.
pub fn reason(page: &StatsPage) -> String {
    let len = page.reason_len.load(Relaxed).min(page.reason.len() as u64) as usize;
    printable(&String::from_utf8_lossy(&page.reason[..len]))
}

/// `text` without anything that a terminal would obey.
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let plain = !c.is_control()
                && !matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            let escaped = (!plain).then(|| c.escape_default());
            plain.then_some(c).into_iter().chain(escaped.into_iter().flatten())
        })
        .collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Bytes of a page with a good header and `fill` everywhere else.
    pub fn page_bytes(fill: u8) -> Vec<u8> {
        let mut bytes = vec![fill; size_of::<StatsPage>()];
        bytes[..8].copy_from_slice(&MAGIC.to_ne_bytes());
        bytes[8..12].copy_from_slice(&VERSION.to_ne_bytes());
        bytes[12..16].copy_from_slice(&(size_of::<StatsPage>() as u32).to_ne_bytes());
        bytes
    }

    #[test]
    fn header_is_checked() {
        assert_eq!(offset_of!(StatsPage, magic), 0);
        assert!(decode(&page_bytes(0)).is_ok());
        let mut bytes = page_bytes(0);
        bytes[8] ^= 0x40;
        assert!(matches!(decode(&bytes), Err(PageError::Layout { .. })));
        let mut bytes = page_bytes(0);
        bytes[12..16].fill(0xff);
        assert!(matches!(decode(&bytes), Err(PageError::Layout { len_bytes: u32::MAX, .. })));
        let mut bytes = page_bytes(0);
        bytes[0] = 0;
        assert_eq!(decode(&bytes).err(), Some(PageError::Damaged));
        for len in 0..64 {
            assert!(decode(&page_bytes(0)[..len]).is_err());
        }
    }

    #[test]
    fn random_pages_never_panic() {
        let mut x = 0x2545_F491_4F6C_DD1Du64;
        for round in 0..200 {
            let mut bytes = page_bytes(0);
            let from = if round % 4 == 0 { 0 } else { 16 };
            for b in &mut bytes[from..] {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                *b = x as u8;
            }
            if let Ok(page) = decode(&bytes) {
                assert!(reason(&page).chars().all(|c| !c.is_control()));
                let _ = super::super::report::json(1, &page).to_string();
                let _ = super::super::report::table(1, &page);
            }
        }
    }

    #[test]
    fn reasons_cannot_drive_a_terminal() {
        assert_eq!(printable("ok é"), "ok é");
        assert_eq!(printable("\x1b[31m\n"), "\\u{1b}[31m\\n");
        assert_eq!(printable("\u{202e}\u{9b}"), "\\u{202e}\\u{9b}");
        let page = decode(&page_bytes(0xff)).expect("good header");
        assert_eq!(reason(&page), "\u{fffd}".repeat(192));
    }
}
