//! Finds the statistics mapping in the text of `/proc/PID/maps`.
//!
//! The traced process chooses its file names, so the text is untrusted: every line is parsed as bytes,
//! bounded in length, and skipped unless it is exactly what the library maps.

use std::io::{self, BufRead, Read};

/// Longer lines are not ours: a path is at most 4096 bytes, escaped to four times that.
const LINE_LEN_MAX: u64 = 32 * 1024;
/// A process has one such mapping, a forked child may have its parent's too; more is somebody's game.
const MAPPINGS_MAX: usize = 16;

/// A private, writable mapping with the statistics page's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// First address in the other process.
    pub start: u64,
    /// Length in bytes; not zero.
    pub len_bytes: u64,
}

/// All mappings called `/memfd:NAME`, in order, at most sixteen.
///
/// # Errors
/// Reading failed. ESRCH when the process ended meanwhile.
pub fn find(mut maps: impl BufRead, name: &str) -> io::Result<Vec<Mapping>> {
    let mut found = Vec::new();
    let mut line = Vec::new();
    while found.len() < MAPPINGS_MAX {
        line.clear();
        if maps.by_ref().take(LINE_LEN_MAX).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        found.extend(parse(&line, name));
    }
    Ok(found)
}

/// `start-end rw-p offset dev inode   /memfd:NAME (deleted)`
fn parse(line: &[u8], name: &str) -> Option<Mapping> {
    let line = std::str::from_utf8(line).ok()?;
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    if fields.next()? != "rw-p" || hex(fields.next()?)? != 0 {
        return None;
    }
    let path = fields.nth(2)?.trim_start_matches(' ');
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    if path.strip_prefix("/memfd:")? != name {
        return None;
    }
    let (start, end) = (hex(start)?, hex(end)?);
    let len_bytes = end.checked_sub(start).filter(|&n| n > 0)?;
    Some(Mapping { start, len_bytes })
}

fn hex(text: &str) -> Option<u64> {
    // from_str_radix takes a sign; the kernel writes none.
    if text.starts_with(['+', '-']) {
        return None;
    }
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &[u8]) -> Vec<Mapping> {
        find(text, "zio-stats").expect("a slice reads")
    }

    #[test]
    fn the_real_thing() {
        let text = b"55d0-55d1 r--p 00000000 fe:00 123                        /usr/bin/x\n\
            7f0000000000-7f0000005000 rw-p 00000000 00:01 2049                       /memfd:zio-stats (deleted)\n\
            7fff0000-7fff1000 rw-p 00000000 00:00 0                          [stack]\n";
        assert_eq!(found(text), [Mapping { start: 0x7f00_0000_0000, len_bytes: 0x5000 }]);
    }

    #[test]
    fn hostile_lines_are_skipped() {
        for line in [
            "1000-2000 r--p 0 0:1 1 /memfd:zio-stats (deleted)",
            "1000-2000 rw-s 0 0:1 1 /memfd:zio-stats (deleted)",
            "1000-2000 rw-p 1000 0:1 1 /memfd:zio-stats (deleted)",
            "1000-2000 rw-p 0 0:1 1 /tmp/memfd:zio-stats",
            "1000-2000 rw-p 0 0:1 1 /memfd:zio-stats2 (deleted)",
            "1000-2000 rw-p 0 0:1 1 /memfd:zio-stats\\012 (deleted)",
            "2000-1000 rw-p 0 0:1 1 /memfd:zio-stats (deleted)",
            "1000-1000 rw-p 0 0:1 1 /memfd:zio-stats (deleted)",
            "+1000-2000 rw-p 0 0:1 1 /memfd:zio-stats (deleted)",
            "1000-fffffffffffffffff rw-p 0 0:1 1 /memfd:zio-stats (deleted)",
            "rw-p rw-p rw-p",
            "-",
            "",
        ] {
            assert!(found(line.as_bytes()).is_empty(), "{line}");
        }
        assert!(found(b"\xff\xfe\n\0\0\0-\0\n").is_empty());
    }

    #[test]
    fn endless_lines_and_many_mappings_are_bounded() {
        let mut text = vec![b'x'; 3 * LINE_LEN_MAX as usize];
        text.push(b'\n');
        for _ in 0..100 {
            text.extend_from_slice(b"1000-2000 rw-p 0 0:1 1 /memfd:zio-stats (deleted)\n");
        }
        assert_eq!(found(&text).len(), MAPPINGS_MAX);
    }

    #[test]
    fn random_text_never_panics() {
        let alphabet = b"0123456789abcf-rwp: /memfd:zio-stats(deleted)\n\xff\0";
        let mut x = 0x9E37_79B9_7F4A_7C15u64;
        for _ in 0..2000 {
            let line: Vec<u8> = (0..200)
                .map(|_| {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    alphabet[(x % alphabet.len() as u64) as usize]
                })
                .collect();
            let _ = found(&line);
        }
    }
}
