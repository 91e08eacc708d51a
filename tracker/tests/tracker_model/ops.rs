//! What a program does, at random: calls as the hooks of the preloaded library make them, and plain accesses.

use super::life;
use super::space::{BASE, END};
use super::world::World;
use zio_tracker::addr::{PAGE, Span};
use zio_tracker::copy::{Copied, RENAME_MIN};
use zio_tracker::page_state::Bit;
use zio_tracker::policy::SITES;
use zio_tracker::thread::IoVec;

/// Mappings whose life the hooks see.
pub const MAPPED: Span = pages(0, 320);
/// Memory that is never armed.
pub const UNKNOWN: Span = pages(320, 352);
/// glibc's: known block by block.
pub const HEAP: Span = pages(352, 480);
/// More mappings.
pub const MAPPED_TOO: Span = pages(480, 640);

const fn pages(from: u64, to: u64) -> Span {
    Span::between(BASE + from * PAGE, BASE + to * PAGE)
}

/// The program starts.
pub fn begin(w: &World) {
    w.tracker().mapping_added(Some(w.thread()), MAPPED);
    w.tracker().mapping_added(Some(w.thread()), MAPPED_TOO);
}

/// One operation of the main thread, and what must hold after it.
pub fn step(w: &World, check_every: u64) {
    w.ops.set(w.ops.get() + 1);
    if w.rng.coin(4000) {
        life::become_child(w);
    }
    if w.config.failures > 0 && w.rng.coin(1000) {
        life::lose_descriptor(w);
    }
    if w.forked.get() && w.rng.coin(40) {
        life::snapshot(w);
    }
    operation(w);
    if w.ops.get().is_multiple_of(check_every) {
        w.check();
        w.audit();
    }
    if w.ops.get().is_multiple_of(check_every * 2) {
        w.compare_all();
    }
}

/// One operation of whichever thread runs.
pub fn operation(w: &World) {
    // Every hook does this before it looks at its arguments.
    w.tracker().child_trim(Some(w.thread()));
    match w.rng.below(100) {
        0..18 => receive(w),
        18..42 => copy(w),
        42..54 => send(w),
        54..57 => gather(w),
        57..66 => load(w),
        66..76 => store(w),
        76..79 => overwrite(w),
        79..82 => zero(w),
        n => life::operation(w, n - 82),
    }
}

/// Length of a range.
fn length(w: &World) -> u64 {
    let r = &w.rng;
    match r.below(16) {
        0 => 1 + r.below(200),
        1 => 1 + r.below(PAGE),
        2..6 => PAGE * (1 + r.below(16)),
        6..9 => RENAME_MIN + r.below(8 * PAGE),
        9 if r.coin(8) => 1 + r.below(128 * PAGE),
        _ => 1 + r.below(16 * PAGE),
    }
}

fn offset(w: &World) -> u64 {
    match w.rng.below(4) {
        0 => 1 + w.rng.below(64),
        1 => w.rng.below(PAGE),
        _ => 0,
    }
}

/// A range of program memory, often one that was used a moment ago, or near it.
pub fn range(w: &World) -> Span {
    let r = &w.rng;
    let recent = w.recent.borrow();
    let span = if !recent.is_empty() && r.coin(2) {
        let s = recent[r.below(recent.len() as u64) as usize];
        match r.below(6) {
            0 => Span::between(s.start + r.below(s.len()), s.end),
            1 => Span::between(s.start, s.start + 1 + r.below(s.len())),
            2 => Span::between(s.start + offset(w), s.end + offset(w)),
            3 => Span::between(s.end, s.end + length(w)),
            4 => Span::between(s.start, s.start + length(w)),
            _ => s,
        }
    } else {
        let region = match r.below(20) {
            0 => UNKNOWN,
            1..4 => w.blocks.borrow().last().map_or(HEAP, |b| b.0),
            4..8 => MAPPED_TOO,
            _ => MAPPED,
        };
        let exact = r.coin(3) && region.len() < 64 * PAGE;
        let page = region.start + r.below(region.len() / PAGE + 1) * PAGE;
        if exact { region } else { Span::between(page + offset(w), page + offset(w) + length(w)) }
    };
    let start = span.start.clamp(BASE, END - 1);
    let span = Span::between(start, span.end.clamp(start + 1, END));
    drop(recent);
    let mut recent = w.recent.borrow_mut();
    if recent.len() < 10 {
        recent.push(span);
    } else if r.coin(2) {
        recent[r.below(10) as usize] = span;
    }
    span
}

/// A range with data that was elided, if one is found quickly.
fn source(w: &World) -> Span {
    let tries = [(); 4].map(|()| range(w));
    *tries.iter().find(|s| w.tracker().pages.any_armed(**s)).unwrap_or(&tries[0])
}

/// A call site: some are old acquaintances, some have no history.
fn site(w: &World) -> u16 {
    let n = if w.rng.coin(4) { 8 } else { SITES as u64 };
    w.rng.below(n) as u16
}

/// Calls that must work in the end, whatever the kernel says at first.
pub fn make_resident(w: &World, s: Span) {
    if w.tracker().make_resident(Some(w.thread()), s).is_err() {
        assert!(w.failing(), "make_resident failed without a reason");
        let again = w.without_failures(|| w.tracker().make_resident(Some(w.thread()), s));
        assert!(again.is_ok(), "make_resident fails for good: {again:?}");
    }
    assert!(!w.tracker().pages.any_armed(s), "made resident, still armed: {s:x?}");
}

fn receive(w: &World) {
    let rest = w.rest.get();
    let dst = if !rest.is_empty() && w.rng.coin(2) { rest } else { range(w) };
    let site = site(w);
    if !w.is_free(dst, true) {
        return;
    }
    let got = match w.rng.below(8) {
        0 => 0,
        1..4 => w.rng.below(dst.len() + 1),
        _ => dst.len(),
    };
    w.rest.set(Span::between(dst.start + got, dst.end));
    w.note("receive", [dst.start, dst.len(), got]);
    let data = w.rng.bytes(got);
    w.busy(&[(dst, true)], || {
        w.in_call(true);
        let here = 0u64;
        let t = w.thread();
        let mut claim = t.claim(&raw const here as u64).expect("scratch space");
        if w.tracker().receive_plan(t, &mut claim, dst, site).is_err() {
            drop(claim);
            make_resident(w, dst);
            w.kernel_writes(dst.start, &data);
            w.oracle.borrow_mut().write(dst.start, &data);
            return w.tracker().receive_passed(t, got, site);
        }
        w.note("receive planned", [dst.start, dst.len(), got]);
        w.let_others_run();
        let iov: Vec<IoVec> = claim.scratch().iov.as_slice().to_vec();
        deliver(w, &iov, dst, &data);
        w.oracle.borrow_mut().write(dst.start, &data);
        w.let_others_run();
        w.tracker().receive_done(t, &mut claim, dst.start, got, site);
    });
    w.compare(dst);
}

/// The kernel's part of a receive: fills the iovec from its start.
fn deliver(w: &World, iov: &[IoVec], dst: Span, data: &[u8]) {
    assert_eq!(iov.iter().map(|v| v.len).sum::<u64>(), dst.len(), "the iovec covers the destination");
    assert!(iov.len() <= 1024);
    let (mut at, mut done) = (dst.start, 0);
    let scribble = w.rng.coin(8);
    for v in iov {
        w.assert_usable(v.base, v.len);
        let own = super::space::is_program(v.base);
        assert!(!own || v.base == at, "direct part at the wrong place");
        let n = (data.len() - done).min(v.len as usize);
        w.kernel_writes(v.base, &data[done..done + n]);
        if !own && scribble {
            // A call that fails half-way has used more of its buffers than it says.
            w.kernel_writes(v.base + n as u64, &w.rng.bytes(v.len - n as u64));
        }
        (at, done) = (at + v.len, done + n);
    }
}

fn copy(w: &World) {
    let (a, b, site) = (source(w), range(w), site(w));
    let len = if w.rng.coin(2) { a.len() } else { a.len().min(b.len()) };
    if b.start + len > END {
        return;
    }
    let (src, dst) = (Span::between(a.start, a.start + len), Span::between(b.start, b.start + len));
    if !w.is_free(src, false) || !w.is_free(dst, true) {
        return;
    }
    w.note("copy", [dst.start, src.start, len]);
    w.busy(&[(src, false), (dst, true)], || {
        copy_as_hooked(w, dst, src, site);
        w.oracle.borrow_mut().moved(dst.start, src);
    });
    w.compare(dst);
    w.compare(src);
}

/// What the hook of memmove does.
fn copy_as_hooked(w: &World, dst: Span, src: Span, site: u16) {
    let (t, tracker) = (w.thread(), w.tracker());
    let named = tracker.pages.any_armed(src);
    let worth = named && (src.len() >= RENAME_MIN || w.rng.coin(4))
        || src.len() >= w.config.threshold && tracker.pages.any_armed(dst) && tracker.mostly_armed(dst);
    if worth {
        let here = 0u64;
        let mut claim = t.claim(&raw const here as u64).expect("scratch space");
        if let Copied::Done { elided } = tracker.copy(t, &mut claim, dst, src, site) {
            assert!(elided <= dst.len(), "{elided} bytes elided of {}", dst.len());
            w.note(if elided > 0 { "copy elided" } else { "copy gathered" }, [dst.start, src.start, elided]);
            if tracker.wants_compaction() {
                tracker.compact(t, &mut claim);
            }
            return;
        }
    }
    if !named && tracker.pages.any_armed(dst) {
        tracker.make_way(Some(t), dst);
        w.let_others_run();
    }
    w.program_move(dst.start, src.start, src.len());
}

fn send(w: &World) {
    let n = if w.rng.coin(2) { 1 } else { 1 + w.rng.below(5) };
    let parts: Vec<Span> = (0..n).map(|_| source(w)).filter(|s| w.is_free(*s, false)).collect();
    w.note("send", [parts.first().map_or(0, |s| s.start), parts.first().map_or(0, |s| s.len()), n]);
    let busy: Vec<_> = parts.iter().map(|s| (*s, false)).collect();
    let mut sent = Vec::new();
    w.busy(&busy, || {
        w.in_call(true);
        let here = 0u64;
        let t = w.thread();
        let mut claim = t.claim(&raw const here as u64).expect("scratch space");
        let input = &mut claim.scratch().input;
        input.clear();
        for s in &parts {
            input.push(IoVec { base: s.start, len: s.len() });
        }
        if w.tracker().send_plan(t, &mut claim).is_ok() {
            let iov: Vec<IoVec> = claim.scratch().iov.as_slice().to_vec();
            assert!(iov.len() <= 1024);
            w.let_others_run();
            iov.iter().for_each(|v| w.kernel_reads(v.base, v.len, &mut sent));
            w.let_others_run();
            w.tracker().send_done(t, &mut claim);
        } else {
            drop(claim);
            for s in &parts {
                make_resident(w, *s);
            }
            parts.iter().for_each(|s| w.kernel_reads(s.start, s.len(), &mut sent));
        }
    });
    let mut rest = &sent[..];
    for s in &parts {
        let (mine, others) = rest.split_at_checked(s.len() as usize).expect("all bytes are sent");
        seen(w, s.start, mine, "sent");
        rest = others;
    }
    assert!(rest.is_empty(), "more is sent than was asked for");
}

/// Bytes that the program, or its peer, has got of its memory.
pub fn seen(w: &World, at: u64, bytes: &[u8], how: &str) {
    let mut oracle = w.oracle.borrow_mut();
    if let Some(wrong) = oracle.differs(at, bytes) {
        panic!("wrong byte {how} of {wrong:#x}");
    }
    oracle.seen(at, bytes);
}

fn gather(w: &World) {
    let src = source(w);
    if !w.is_free(src, false) {
        return;
    }
    w.note("gather", [src.start, src.len(), 0]);
    let mut out = vec![0u8; src.len() as usize];
    let ok = w.busy(&[(src, false)], || {
        let here = 0u64;
        let t = w.thread();
        let mut claim = t.claim(&raw const here as u64).expect("scratch space");
        // SAFETY: `out` is as long as the source.
        unsafe { w.tracker().gather(t, &mut claim, src, out.as_mut_ptr() as u64) }
    });
    if ok {
        seen(w, src.start, &out, "gathered");
    }
}

/// A range of an access by the program itself: mostly small, as each page may be a fault.
fn small(w: &World) -> Span {
    let s = range(w);
    if w.rng.coin(4) {
        return s;
    }
    let at = s.start + w.rng.below(s.len());
    Span::between(at, (at + 1 + w.rng.below(64)).min(END))
}

fn load(w: &World) {
    let s = small(w);
    if !w.is_free(s, false) {
        return;
    }
    w.note("load", [s.start, s.len(), 0]);
    let mut got = Vec::new();
    w.load(s.start, s.len(), |_, b| got.extend_from_slice(b));
    seen(w, s.start, &got, "loaded");
}

pub fn store_random(w: &World, s: Span) {
    let bytes = w.rng.bytes(s.len());
    w.store(s.start, s.len(), |at, b| b.copy_from_slice(&bytes[at..][..b.len()]));
    w.oracle.borrow_mut().write(s.start, &bytes);
}

fn store(w: &World) {
    let s = small(w);
    if w.is_free(s, true) {
        w.note("store", [s.start, s.len(), 0]);
        store_random(w, s);
    }
}

/// memset with something else than zeros.
fn overwrite(w: &World) {
    let s = range(w);
    if !w.is_free(s, true) {
        return;
    }
    w.note("overwrite", [s.start, s.len(), 0]);
    w.busy(&[(s, true)], || {
        w.tracker().make_way(Some(w.thread()), s);
        w.let_others_run();
        store_random(w, s);
    });
}

/// memset with zeros.
fn zero(w: &World) {
    let s = range(w);
    if !w.is_free(s, true) {
        return;
    }
    w.note("zero", [s.start, s.len(), 0]);
    w.busy(&[(s, true)], || {
        let pages = &w.tracker().pages;
        w.tracker().discarded_inside(Some(w.thread()), s);
        let (mut at, last) = (s.start, s.end.div_ceil(PAGE));
        while at < s.end {
            let vacant = pages.get(Bit::Vacant, at) && at % PAGE == 0 && at + PAGE <= s.end;
            let stop = if vacant {
                (pages.find(Bit::Vacant, false, at / PAGE, last) * PAGE).min(s.end / PAGE * PAGE)
            } else {
                (pages.find(Bit::Vacant, true, at / PAGE + 1, last) * PAGE).min(s.end)
            };
            if !vacant {
                w.store(at, stop - at, |_, b| b.fill(0));
            }
            w.let_others_run();
            at = stop;
        }
        w.oracle.borrow_mut().zero(s);
    });
    w.compare(s);
}
