//! Sending: bytes go to the kernel from where they are, cores or resident pages, as one gathered call.
//!
//! The pieces' cores are pinned for as long as the call runs (I4) and the lock is not held meanwhile: a send may
//! block for ever.

use crate::addr::{PAGE, Span, page_down};
use crate::state::{State, Tracker, ZERO_CORE};
use crate::stats::Counter;
use crate::sys::Kernel;
use crate::thread::{Claim, IoVec, Place, Scratch, Thread};
use core::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

/// Bytes of a cache line.
const LINE: u64 = 64;
/// Lines of each page that are asked for.
const WARM_LINES: u64 = 4;
/// Most pages of one send that are: more would push each other out, and cost the more the less is sent in the end.
const WARM_PAGES: u32 = 256;

impl<K: Kernel> Tracker<K> {
    /// Plans a send of the program's buffers `scratch.input`: afterwards `scratch.iov` names the same bytes, in order, without a
    /// reference to an armed page, and the cores in it are pinned until [`Self::send_done`].
    ///
    /// # Errors
    /// More pieces than one call can carry: nothing is pinned, the caller makes the ranges resident.
    ///
    /// # Context
    /// Hook, with the scratch space claimed.
    pub fn send_plan(&self, t: &Thread, c: &mut Claim<'_>) -> Result<(), Counter> {
        let x = c.scratch();
        x.iov.clear();
        x.pieces.clear();
        let fits = self
            .locked(Some(t), |st| {
                for i in 0..x.input.len() {
                    let Some(&p) = x.input.as_slice().get(i) else { break };
                    let Some(s) = Span::new(p.base, p.len) else { return false };
                    let before = x.pieces.len();
                    if !self.append_pieces(st, &mut x.pieces, s) || !self.append_iov(x, before) {
                        return false;
                    }
                }
                self.pin_pieces(st, &x.pieces);
                st.ledger.operation();
                true
            })
            .unwrap_or(false);
        if fits {
            warm_up(x.iov.as_slice());
            self.count(Some(t), Counter::CoreSends, 1);
            Ok(())
        } else {
            x.pieces.clear();
            Err(Counter::PassPieces)
        }
    }

    /// Appends the pieces from `first` on to the iovec; neighbours in memory become one entry.
    fn append_iov(&self, x: &mut Scratch, first: usize) -> bool {
        for i in first..x.pieces.len() {
            let Some(&p) = x.pieces.as_slice().get(i) else { break };
            let fits = match p.place {
                Place::Resident => push_joined(x, p.at, p.len),
                Place::Core => push_joined(x, self.core_ptr(p.at) as u64, p.len),
                Place::Zero => {
                    let mut left = p.len;
                    let mut fits = true;
                    while left > 0 && fits {
                        let n = left.min(PAGE);
                        fits = x.iov.push(IoVec { base: self.core_ptr(ZERO_CORE) as u64, len: n });
                        left -= n;
                    }
                    fits
                }
            };
            if !fits {
                return false;
            }
        }
        true
    }

    /// The call is over: the cores are no longer in flight.
    pub fn send_done(&self, t: &Thread, c: &mut Claim<'_>) {
        let x = c.scratch();
        self.locked(Some(t), |st| self.unpin_pieces(st, &x.pieces));
        x.pieces.clear();
    }

    /// Copies `len` bytes of `src`, elided or not, to core-free memory of ours (a bounce buffer): for calls that
    /// take one buffer. False when there are too many pieces.
    ///
    /// # Safety
    /// `out` is valid for `src.len()` writes and not program memory.
    pub unsafe fn gather(&self, t: &Thread, c: &mut Claim<'_>, src: Span, out: u64) -> bool {
        let x = c.scratch();
        let ok = self.locked(Some(t), |st: &mut State| self.collect(st, &mut x.pieces, src)).unwrap_or(false);
        if !ok {
            return false;
        }
        self.move_pieces(x.pieces.as_slice(), out, Span::between(out, out + src.len()), false);
        self.count(Some(t), Counter::CopiedGather, src.len());
        self.send_done(t, c);
        true
    }
}

/// Starts to bring in the beginning of each page of a send. Its bytes are in no cache near the processor, where the
/// copies that were not made would have put them, and the kernel's copy waits for each new page: for its translation,
/// and for the first lines, before the processor sees that it reads on. Here all pages' waits overlap: measured with
/// 256 KiB values, 22 us of the kernel's copying become 19, for 1 us.
fn warm_up(iov: &[IoVec]) {
    let mut pages = 0;
    for v in iov {
        let mut at = v.base;
        while at < v.base + v.len && pages < WARM_PAGES {
            for line in 0..WARM_LINES {
                // SAFETY: a prefetch of any address, mapped or not, changes nothing that can be seen.
                unsafe { _mm_prefetch::<_MM_HINT_T1>((at + line * LINE) as *const i8) };
            }
            at = page_down(at) + PAGE;
            pages += 1;
        }
    }
}

fn push_joined(x: &mut Scratch, base: u64, len: u64) -> bool {
    if let Some(last) = x.iov.as_mut_slice().last_mut()
        && last.base + last.len == base
    {
        last.len += len;
        return true;
    }
    x.iov.push(IoVec { base, len })
}
