//! The statistics file: JSON, written to a temporary name and renamed, so that a reader sees all of it or the old
//! one.
//!
//! Soundness: raw calls on paths that are terminated in our own buffers.

use crate::init::Path;
use crate::report::Text;
use crate::sys;
use core::sync::atomic::Ordering;
use zio_tracker::raw;
use zio_tracker::stats::{COUNTER_NAMES, Counter, JSON_SCHEMA, Mode, PASS_PREFIX, StatsPage};

type Json = Text<8192>;

/// Writes the file that `template` names: `%p` is the process id, `%e` the program's name, `%%` a percent sign. A
/// child whose path would be its parent's gets its process id appended.
pub fn write_file(template: &[u8], child: bool, page: &StatsPage) {
    let mut path = Path::new();
    let own = expand(template, &mut path);
    if child && !own {
        path.push(b".");
        path.number(u64::from(sys::getpid()));
    }
    let mut temporary = Path::new();
    temporary.push(path.bytes());
    temporary.push(b".tmp");
    temporary.number(u64::from(sys::getpid()));
    let mut json = Json::new();
    render(page, &mut json);
    let from = temporary.c_str() as u64;
    let flags = (libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_CLOEXEC) as u64;
    // SAFETY: terminated paths of ours, a descriptor of ours.
    unsafe {
        let at = libc::AT_FDCWD as u64;
        let Ok(fd) = raw::call(libc::SYS_openat, [at, from, flags, 0o644, 0, 0]) else { return };
        let whole = sys::write_all(fd as i32, json.bytes());
        let _ = raw::call(libc::SYS_close, [fd, 0, 0, 0, 0, 0]);
        if whole {
            let _ = raw::call(libc::SYS_rename, [from, path.c_str() as u64, 0, 0, 0, 0]);
        } else {
            let _ = raw::call(libc::SYS_unlink, [from, 0, 0, 0, 0, 0]);
        }
    }
}

/// Expands the template; true if it names the process.
fn expand(template: &[u8], out: &mut Path) -> bool {
    let mut own = false;
    let mut i = 0;
    while let Some(&b) = template.get(i) {
        i += 1;
        if b != b'%' {
            out.push(&[b]);
            continue;
        }
        match template.get(i) {
            Some(b'p') => {
                out.number(u64::from(sys::getpid()));
                own = true;
            }
            Some(b'e') => program_name(out),
            Some(b'%') => out.push(b"%"),
            _ => {
                out.push(b"%");
                continue;
            }
        }
        i += 1;
    }
    own
}

fn program_name(out: &mut Path) {
    let mut buf = [0u8; 512];
    let path = c"/proc/self/exe".as_ptr() as u64;
    // SAFETY: a constant path, our own buffer.
    let n = unsafe { raw::call(libc::SYS_readlink, [path, buf.as_mut_ptr() as u64, buf.len() as u64, 0, 0, 0]) };
    let full = buf.get(..n.unwrap_or(0) as usize).unwrap_or(&[]);
    let name = full.rsplit(|&b| b == b'/').next().unwrap_or(b"");
    out.push(if name.is_empty() { b"unknown" } else { name });
}

fn field(out: &mut Json, name: &[u8], value: u64) {
    out.push(b"  \"");
    out.push(name);
    out.push(b"\": ");
    out.number(value);
    out.push(b",\n");
}

fn text(out: &mut Json, name: &[u8], value: &[u8]) {
    out.push(b"  \"");
    out.push(name);
    out.push(b"\": \"");
    for &b in value {
        match b {
            b'"' | b'\\' => out.push(&[b'\\', b]),
            0x20..=0x7e => out.push(&[b]),
            _ => out.push(b"?"),
        }
    }
    out.push(b"\",\n");
}

/// Counters that stand first, in the documented order.
const FIRST: &[Counter] = &[Counter::BytesReceived, Counter::BytesSent, Counter::CopyCalls, Counter::BytesRequested];
const SECOND: &[Counter] =
    &[Counter::BytesElided, Counter::BytesMaterialised, Counter::Faults, Counter::PageTableCalls];

fn total(page: &StatsPage, i: usize) -> u64 {
    page.shards.iter().filter_map(|s| s.counters.get(i)).fold(0, |a, c| a.wrapping_add(c.load(Ordering::Relaxed)))
}

fn render(page: &StatsPage, out: &mut Json) {
    let load = |a: &core::sync::atomic::AtomicU64| a.load(Ordering::Relaxed);
    let mode = Mode::from_u32(load(&page.mode) as u32).unwrap_or(Mode::Bootstrap);
    let reason = page.reason.get(..(load(&page.reason_len) as usize).min(192)).unwrap_or(&[]);
    out.push(b"{\n");
    field(out, b"schema", u64::from(JSON_SCHEMA));
    text(out, b"zio_version", env!("CARGO_PKG_VERSION").as_bytes());
    field(out, b"pid", load(&page.pid));
    text(out, b"mode", mode.name().as_bytes());
    text(out, b"reason", reason);
    field(out, b"threshold", load(&page.threshold));
    for &c in FIRST {
        counter(page, out, c as usize);
    }
    field(out, b"bytes_copied", page.bytes_copied());
    for &c in SECOND {
        counter(page, out, c as usize);
    }
    for (name, gauge) in [
        (&b"extents"[..], &page.extents),
        (b"core_bytes_held", &page.core_bytes_held),
        (b"core_bytes_named", &page.core_bytes_named),
        (b"core_bytes_cap", &page.core_bytes_cap),
        (b"threads", &page.threads),
    ] {
        field(out, name, load(gauge));
    }
    let listed = |i: usize| FIRST.iter().chain(SECOND).any(|&c| c as usize == i);
    for (i, name) in COUNTER_NAMES.iter().enumerate() {
        if !listed(i) && !name.starts_with(PASS_PREFIX) {
            counter(page, out, i);
        }
    }
    out.push(b"  \"passthrough\": {");
    let mut first = true;
    for (i, name) in COUNTER_NAMES.iter().enumerate() {
        if let Some(reason) = name.strip_prefix(PASS_PREFIX) {
            out.push(if first { b"\n    \"" } else { b",\n    \"" });
            out.push(reason.as_bytes());
            out.push(b"\": ");
            out.number(total(page, i));
            first = false;
        }
    }
    out.push(b"\n  }\n}\n");
}

fn counter(page: &StatsPage, out: &mut Json, i: usize) {
    if let Some(name) = COUNTER_NAMES.get(i) {
        field(out, name.as_bytes(), total(page, i));
    }
}
