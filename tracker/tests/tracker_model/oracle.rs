//! What the program would see without zio: a plain byte array. Bytes that nobody may rely on (freed, never
//! written) are unknown until they are written or read once.

use super::space::{BASE, PAGES};
use zio_tracker::addr::{PAGE, Span};

/// Contents, and 0xff where they are known.
pub struct Oracle {
    bytes: Vec<u8>,
    known: Vec<u8>,
}

fn range(s: Span) -> std::ops::Range<usize> {
    (s.start - BASE) as usize..(s.end - BASE) as usize
}

impl Oracle {
    pub fn new() -> Oracle {
        let n = (PAGES * PAGE) as usize;
        Oracle { bytes: vec![0; n], known: vec![0xff; n] }
    }

    pub fn write(&mut self, at: u64, b: &[u8]) {
        let r = range(Span::between(at, at + b.len() as u64));
        self.bytes[r.clone()].copy_from_slice(b);
        self.known[r].fill(0xff);
    }

    pub fn zero(&mut self, s: Span) {
        self.bytes[range(s)].fill(0);
        self.known[range(s)].fill(0xff);
    }

    /// Freed memory, as far as the program may tell.
    pub fn forget(&mut self, s: Span) {
        self.known[range(s)].fill(0);
    }

    pub fn moved(&mut self, dst: u64, src: Span) {
        self.bytes.copy_within(range(src), (dst - BASE) as usize);
        self.known.copy_within(range(src), (dst - BASE) as usize);
    }

    /// The first address at which `b` is not what the program's bytes from `at` on are.
    pub fn differs(&self, at: u64, b: &[u8]) -> Option<u64> {
        let r = range(Span::between(at, at + b.len() as u64));
        let (have, known) = (&self.bytes[r.clone()], &self.known[r]);
        let each = b.iter().zip(have).zip(known);
        let wrong = each.clone().fold(0, |bad, ((x, y), k)| bad | (x ^ y) & k);
        if wrong == 0 {
            return None;
        }
        each.enumerate().find(|(_, ((x, y), k))| (**x ^ **y) & **k != 0).map(|(i, _)| at + i as u64)
    }

    /// The program has seen these bytes: from now on they are what it saw.
    pub fn seen(&mut self, at: u64, b: &[u8]) {
        let r = range(Span::between(at, at + b.len() as u64));
        if self.known[r].contains(&0) {
            self.write(at, b);
        }
    }
}
