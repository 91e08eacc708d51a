//! What happens to memory itself: blocks and mappings come and go, the process forks, zio cleans up.

use super::ops::{HEAP, MAPPED, MAPPED_TOO, UNKNOWN, make_resident, range, seen, store_random};
use super::space::{BASE, END};
use super::world::{THREADS, World};
use zio_tracker::addr::{PAGE, Span};
use zio_tracker::ledger::Ledger;

/// One of eighteen, by number.
pub fn operation(w: &World, n: u64) {
    match n {
        0..4 => free(w),
        4 | 5 => allocate(w),
        6 | 7 => block_comes(w),
        8 | 9 => block_goes(w),
        10 | 11 => discard(w),
        12 | 13 => remap(w),
        14 => change_protection(w),
        15 => resident(w),
        16 => compact(w),
        _ if w.rng.coin(20) => withdraw(w),
        _ if w.rng.coin(8) => pause(w),
        _ => {}
    }
}

fn in_mappings(s: Span) -> bool {
    MAPPED.contains(s) || MAPPED_TOO.contains(s)
}

/// free() by an allocator whose mappings the hooks see.
fn free(w: &World) {
    let s = range(w);
    if !in_mappings(s) || !w.is_free(s, true) {
        return;
    }
    w.note("free", [s.start, s.len(), 0]);
    w.tracker().block_freed(w.thread(), s);
    w.oracle.borrow_mut().forget(s);
    if w.rng.coin(2) {
        // Used again at once, by something small.
        let at = s.start + w.rng.below(s.len());
        let small = Span::between(at, s.end.min(at + 1 + w.rng.below(3000)));
        make_resident(w, small);
        store_random(w, small);
    }
}

/// malloc() of something large there.
fn allocate(w: &World) {
    let s = range(w);
    if in_mappings(s) {
        w.note("allocate", [s.start, s.len(), 0]);
        w.tracker().block_allocated(Some(w.thread()), s, 9);
        w.compare(s);
    }
}

/// malloc() by glibc: in the heap, or in a mapping of its own that begins with a header.
fn block_comes(w: &World) {
    let mapped = w.rng.coin(2);
    let page = HEAP.start + w.rng.below(HEAP.len() / PAGE) * PAGE;
    let n = 1 + w.rng.below(24);
    let (block, whole) = if mapped {
        (Span::between(page + 16, page + n * PAGE), Span::between(page, page + n * PAGE))
    } else {
        let start = page + w.rng.below(256) * 16;
        let s = Span::between(start, start + n * PAGE - w.rng.below(128) * 16);
        (s, s)
    };
    let mut blocks = w.blocks.borrow_mut();
    if !HEAP.contains(whole) || blocks.iter().any(|(b, _)| !b.outer_pages().intersect(whole).is_empty()) {
        return;
    }
    w.note("block comes", [block.start, block.len(), u64::from(mapped)]);
    blocks.push((block, mapped));
    w.tracker().block_added(Some(w.thread()), block);
}

fn block_goes(w: &World) {
    let mut blocks = w.blocks.borrow_mut();
    if blocks.is_empty() {
        return;
    }
    let i = w.rng.below(blocks.len() as u64) as usize;
    let (block, mapped) = blocks[i];
    let whole = block.outer_pages();
    if !w.is_free(if mapped { whole } else { block }, true) {
        return;
    }
    blocks.remove(i);
    drop(blocks);
    w.note("block goes", [block.start, block.len(), u64::from(mapped)]);
    w.tracker().block_removed(Some(w.thread()), block, mapped);
    if mapped {
        w.space.borrow_mut().map(whole, true);
        w.oracle.borrow_mut().zero(whole);
    } else {
        w.oracle.borrow_mut().forget(block);
    }
    w.compare(whole);
}

/// madvise(MADV_DONTNEED).
fn discard(w: &World) {
    let s = range(w).outer_pages();
    if !w.is_free(s, true) {
        return;
    }
    w.note("discard", [s.start, s.len(), 0]);
    w.space.borrow_mut().discard(s);
    w.tracker().discarded(Some(w.thread()), s);
    w.oracle.borrow_mut().zero(s);
    w.compare(s);
}

/// munmap and mmap, or mmap over the old mapping; now and then the call fails.
fn remap(w: &World) {
    let s = range(w).outer_pages();
    if !(in_mappings(s) || UNKNOWN.contains(s)) || !w.is_free(s, true) {
        return;
    }
    let (took, two_steps) = (!w.rng.coin(8), w.rng.coin(2));
    w.note("remap", [s.start, s.len(), u64::from(took)]);
    // Else the new mapping is of a kind that must never be armed: shared, say.
    let eligible = in_mappings(s) && !w.rng.coin(10);
    let t = Some(w.thread());
    w.tracker().with_mapping_change(t, s, eligible && !two_steps, || {
        if took {
            w.space.borrow_mut().map(s, eligible);
        }
        ((), took)
    });
    if took {
        w.oracle.borrow_mut().zero(s);
    }
    if eligible && took && two_steps {
        w.tracker().mapping_added(t, s);
    }
    w.compare(s);
}

/// mprotect or mlock, or a use as a stack, and perhaps back.
fn change_protection(w: &World) {
    let s = range(w);
    let t = Some(w.thread());
    let stack = w.rng.coin(3);
    w.note("make unknown", [s.start, s.len(), u64::from(stack)]);
    let give_up = || if stack { w.tracker().give_up(t, s) } else { w.tracker().make_unknown(t, s) };
    if give_up().is_err() {
        assert!(w.failing(), "giving memory up failed without a reason");
        w.without_failures(give_up).expect("giving memory up fails for good");
    }
    assert!(!w.tracker().pages.any_armed(s), "armed pages in unknown memory");
    w.let_others_run();
    if !w.rng.coin(8) {
        let fit = |at: &u64| w.space.borrow().page(*at).fit && !HEAP.contains(Span::between(*at, *at + PAGE));
        for at in (s.outer_pages().start..s.end).step_by(PAGE as usize).filter(fit) {
            w.tracker().mapping_added(t, Span::between(at, at + PAGE));
        }
        for (block, _) in w.blocks.borrow().iter() {
            w.tracker().block_added(t, *block);
        }
    }
    w.compare(s);
}

fn resident(w: &World) {
    let s = range(w);
    w.note("make resident", [s.start, s.len(), 0]);
    make_resident(w, s);
    w.compare(s);
}

fn compact(w: &World) {
    w.note("compact", [0; 3]);
    let here = 0u64;
    let mut claim = w.thread().claim(&raw const here as u64).expect("scratch space");
    w.tracker().compact(w.thread(), &mut claim);
}

/// Elision does not pay for the process any more, or is tried again.
fn pause(w: &World) {
    w.note("pause", [0; 3]);
    w.tracker().locked(Some(w.thread()), |st| {
        let paused = st.ledger.paused();
        st.ledger = Ledger::default();
        while !paused && !st.ledger.paused() {
            st.ledger.edge_moved();
            st.ledger.receive(0, 0);
        }
    });
}

fn withdraw(w: &World) {
    w.note("withdraw", [0; 3]);
    let t = Some(w.thread());
    if w.tracker().withdraw(t).is_err() {
        assert!(w.failing(), "withdraw failed without a reason");
        w.without_failures(|| w.tracker().withdraw(t)).expect("withdraw fails for good");
    }
    assert_eq!(w.tracker().pages.armed_pages(), 0, "armed pages after withdrawing");
    w.let_others_run();
    w.tracker().set_arming(w.config.arming);
}

/// fork(), seen from the child.
pub fn become_child(w: &World) {
    w.note("become the child", [0; 3]);
    let t = w.tracker();
    t.hold();
    let mut s = w.space.borrow_mut();
    s.lose_registrations();
    (s.ours, s.closed) = (false, false);
    drop(s);
    // SAFETY: one thread, and the lock is held.
    w.without_failures(|| unsafe { t.after_fork_in_child(std::ptr::null_mut()) });
    w.forked.set(true);
    w.check();
}

/// What a forked child is there for: it reads everything.
pub fn snapshot(w: &World) {
    w.note("snapshot", [0; 3]);
    w.busy(&[(Span::between(BASE, END), false)], || {
        w.load(BASE, END - BASE, |at, b| seen(w, BASE + at as u64, b, "read by the child"));
    });
}

/// close_range() unseen: registrations go, markers stay.
pub fn lose_descriptor(w: &World) {
    if w.config.arming == zio_tracker::state::Arming::Guard {
        w.note("lose the descriptor", [0; 3]);
        let mut s = w.space.borrow_mut();
        s.lose_registrations();
        s.closed = true;
    }
}

/// Bounded steps lead to the bound on held bytes.
fn compaction_ends(w: &World) {
    for _ in 0..3000 {
        compact(w);
        if !w.tracker().wants_compaction() {
            w.check();
            w.audit();
            return w.compare_all();
        }
    }
    let held = w.tracker().locked(None, |st| (st.arena.held_bytes(), st.arena.named_bytes()));
    panic!("3000 steps of compaction leave held and named bytes at {held:?}");
}

/// The end of a world: everything is right, everything is given back, and the books say so.
pub fn finish(w: &World) {
    w.check();
    w.audit();
    w.compare_all();
    if w.config.failures == 0 && w.config.map_nodes > 100 && !w.forked.get() {
        compaction_ends(w);
    }
    let t = w.tracker();
    let thread = Some(w.thread());
    w.without_failures(|| {
        if w.rng.coin(2) {
            t.withdraw(thread).expect("withdraw");
            w.check();
            w.audit();
            w.compare_all();
        }
        t.with_mapping_change(thread, Span::between(BASE, END), false, || {
            w.space.borrow_mut().map(Span::between(BASE, END), false);
            ((), true)
        });
    });
    w.check();
    w.audit();
    t.locked(thread, |st| assert!(st.map.is_empty(), "{} extents without memory", st.map.len()));
    for i in 0..THREADS {
        w.return_windows(i);
    }
    t.locked(thread, |st| {
        if !w.forked.get() {
            assert_eq!(st.arena.named_bytes(), 0, "named bytes without extents");
            assert_eq!(st.arena.held_bytes(), st.arena.dirty_free_bytes(), "core pages that nobody uses");
        }
        assert_eq!(st.arena.misuses(), 0);
    });
}
