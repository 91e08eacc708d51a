//! Prints the cost of the extent map's operations, in nanoseconds, at 10^3 to 10^6 extents.
//!
//! Why the unsafe code here is sound: each map gets an allocation of its own, of the size and alignment it
//! asks for, which is never freed.

use std::alloc::{Layout, alloc_zeroed};
use std::hint::black_box;
use std::time::Instant;

use zio_tracker::extent_map::{Extent, ExtentMap};

/// The best of 40 runs of `n / 10` calls each: other load on the machine only ever adds.
fn ns_per_call(n: u64, mut f: impl FnMut(u64)) -> f64 {
    let n = n / 10;
    let mut best = f64::INFINITY;
    for run in 0..40 {
        let t = Instant::now();
        for i in run * n..(run + 1) * n {
            f(i);
        }
        best = best.min(t.elapsed().as_nanos() as f64 / n as f64);
    }
    best
}

fn fresh_map(extents: u64) -> ExtentMap {
    let len = (extents as usize / 2 + 64) * 832;
    let layout = Layout::from_size_align(len, 64).expect("a layout");
    // SAFETY: the size is not zero; the memory is leaked, so it outlives the map, which alone uses it.
    unsafe { ExtentMap::new(alloc_zeroed(layout), len) }
}

fn main() {
    const LEN: u64 = 60_000;
    println!("extents levels |  find  replace(same range)  both, 16 hot  erase+insert  shifted rename   (ns)");
    for n in [1_000u64, 10_000, 100_000, 1_000_000] {
        let mut map = fresh_map(n);
        // Odd, so it permutes 0..n for the powers of ten, which it shares no factor with.
        let scatter = |i: u64| (i.wrapping_mul(7_368_787) % n) << 16;
        for i in 0..n {
            let e = Extent { start: scatter(i), len: LEN, core: (i * 7) << 17, site: 1 };
            map.insert(e).expect("room");
        }
        let calls = 200_000;
        // The addresses are drawn before the clock runs.
        let places: Vec<u64> = (0..1 << 18).map(|i: u64| scatter(i.wrapping_mul(1_000_003))).collect();
        let place = |i: u64| places[i as usize & (places.len() - 1)];
        let find = ns_per_call(calls, |i| {
            black_box(map.find(place(i) + 999));
        });
        let replace = ns_per_call(calls, |i| {
            let e = Extent { start: place(i), len: LEN, core: (i * 3) << 17, site: 2 };
            map.replace(e, |d| {
                black_box(d);
            })
            .expect("room");
        });
        // One tracked copy among few buffers: look the source up, name the destination.
        let hot = ns_per_call(calls, |i| {
            let from = map.find(place(i % 16)).map_or(0, |e| e.core);
            let e = Extent { start: place(16 + i % 16), len: LEN, core: from, site: 3 };
            map.replace(e, |d| {
                black_box(d);
            })
            .expect("room");
        });
        let churn = ns_per_call(calls, |i| {
            let start = place(i);
            map.erase(start, start + LEN, |d| {
                black_box(d);
            })
            .expect("room");
            map.insert(Extent { start, len: LEN, core: (i * 5) << 17, site: 2 }).expect("room");
        });
        // The range grows and shrinks: hardly ever the same as what is there, and shorter ones leave tails.
        let shifted = ns_per_call(calls, |i| {
            let e = Extent { start: place(i), len: LEN + i % 7 * 512, core: (i * 3) << 17, site: 2 };
            map.replace(e, |d| {
                black_box(d);
            })
            .expect("room");
        });
        println!("{n:>7} {:>6} | {find:>5.1} {replace:>20.1} {hot:>13.1} {churn:>13.1} {shifted:>15.1}", map.height());
    }
}
