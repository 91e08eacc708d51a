//! The measuring child of `zio bench tracked`: receives a few messages and copies them to many destinations.
//!
//! The library holds what was received in cores; each destination is an extent of its map, and each copy gives it
//! other names. A process of its own (`zio bench server tracked`), so that the library can be preloaded into it.
//!
//! The unsafe code maps memory, reads into it, copies within it and asks for a resource count. It is sound because
//! every address comes from [`Slots::at`], which checks it, the areas are never unmapped, and one thread uses them.

use std::io::Write;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::Failure;
use super::echo_server::program_copy;
use super::size::{parse_size, show_size};
use super::stats_math::{Xorshift, median};

const PAGE: usize = 4096;
/// Several, so that each copy gives its destination other names than it had.
const SOURCES: usize = 4;
/// Times that each source is received: the library must have seen what a call site's reads return.
const RECEIVES: usize = 10;
/// Longest message, bytes: it fits a socket's default buffer, so that one thread can write it and then read it.
const MESSAGE: usize = 64 << 10;
/// Measured passes of each order; the child's result is their median.
const PASSES: usize = 9;
/// Most destinations: a core page is named at most 2^31 bytes' worth, so by 524,287 copies of each source.
pub const EXTENTS_MOST: u64 = 2_000_000;
/// Copies between two looks at the memory in use.
const CHUNK: usize = 256;
/// Memory in use at which the child gives up, bytes: then the copies are not renamed, and fill all destinations.
const MEMORY_MOST: usize = 2 << 30;

/// Arguments of the measuring child.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct ChildArgs {
    /// Destinations
    #[arg(long)]
    pub extents: usize,
    /// Bytes per copy
    #[arg(long, value_parser = parse_tracked_size)]
    pub size: usize,
}

impl ChildArgs {
    /// Copies that a child makes in all.
    pub fn copies(&self) -> usize {
        self.extents * (1 + 2 * PASSES)
    }
}

/// Parses a size that can be received into cores and renamed as a whole.
///
/// # Errors
/// Says what is accepted.
pub fn parse_tracked_size(text: &str) -> Result<usize, String> {
    match parse_size(text)? {
        n if (16 << 10..=4 << 20).contains(&n) && n.is_multiple_of(PAGE) => Ok(n),
        _ => Err("accepted: 16K to 4M, in steps of 4K".into()),
    }
}

/// Fresh pages cut into slots of one length, each with an unused page after it: neighbours never become one extent.
struct Slots {
    base: *mut u8,
    count: usize,
    len_bytes: usize,
}

impl Slots {
    fn map(count: usize, len_bytes: usize) -> Result<Slots, Failure> {
        let what = || format!("mapping {count} times {}", show_size(len_bytes + PAGE));
        let total = count.checked_mul(len_bytes + PAGE).ok_or_else(|| Failure::new(what() + ": too much"))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), total, prot, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(Failure::io(&what(), std::io::Error::last_os_error()));
        }
        Ok(Slots { base: base.cast(), count, len_bytes })
    }

    /// The address of byte `offset` of a slot.
    fn at(&self, slot: usize, offset: usize) -> *mut u8 {
        assert!(slot < self.count && offset < self.len_bytes, "byte {offset} of slot {slot}");
        // SAFETY: the mapping has `count` times `len_bytes` and a page, and both indexes are below theirs.
        unsafe { self.base.add(slot * (self.len_bytes + PAGE) + offset) }
    }
}

/// What byte `offset` of a source holds: no two sources agree anywhere, nor two pages within 256.
fn content(source: usize, offset: usize) -> u8 {
    (source * 89 + offset / PAGE * 7 + offset) as u8
}

#[derive(Clone, Copy)]
enum Order {
    Sequential,
    Random,
}

/// The copies of a pass over `count` destinations: destination and source of each.
fn copies(order: Order, pass: usize, count: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut rng = Xorshift::new(pass as u64 + 1);
    (0..count).map(move |i| {
        let target = match order {
            Order::Sequential => i,
            // The upper half scaled to the count: a division would be part of what is measured.
            Order::Random => (((rng.next_u64() >> 32) * count as u64) >> 32) as usize,
        };
        (target, (i + pass) % SOURCES)
    })
}

/// Sources that were received, and destinations.
struct Bench {
    sources: Slots,
    targets: Slots,
}

impl Bench {
    fn new(args: ChildArgs) -> Result<Bench, Failure> {
        if args.extents == 0 {
            return Err(Failure::new("no destinations"));
        }
        let sources = Slots::map(SOURCES, args.size)?;
        let (mut writer, reader) = UnixStream::pair().map_err(|e| Failure::io("making a socket pair", e))?;
        // Where a socket's buffer is smaller than a message, this makes an error of what would hang.
        writer.set_nonblocking(true).map_err(|e| Failure::io("setting up the socket pair", e))?;
        let (pages, messages) = (args.size / PAGE, args.size.div_ceil(MESSAGE));
        let edge = |i: usize| pages * i / messages * PAGE;
        for source in (0..SOURCES).cycle().take(SOURCES * RECEIVES) {
            for i in 0..messages {
                let bytes: Vec<u8> = (edge(i)..edge(i + 1)).map(|o| content(source, o)).collect();
                writer.write_all(&bytes).map_err(|e| Failure::io("writing a message", e))?;
                read_message(&reader, &sources, source, edge(i)..edge(i + 1))?;
            }
        }
        Ok(Bench { sources, targets: Slots::map(args.extents, args.size)? })
    }

    /// Nanoseconds per copy of one pass; `None` when the copies take memory.
    fn pass(&self, order: Order, pass: usize) -> Option<f64> {
        let len = self.sources.len_bytes;
        let mut left = copies(order, pass, self.targets.count).peekable();
        let mut spent = Duration::ZERO;
        while left.peek().is_some() {
            let start = Instant::now();
            for (target, source) in left.by_ref().take(CHUNK) {
                // SAFETY: both slots have `len` bytes, and lie in different mappings.
                unsafe { program_copy(self.targets.at(target, 0), self.sources.at(source, 0), len) };
            }
            spent += start.elapsed();
            if most_memory() > MEMORY_MOST {
                return None;
            }
        }
        Some(spent.as_nanos() as f64 / self.targets.count as f64)
    }

    /// Medians of sequential and of random passes, nanoseconds per copy; `None` when the copies take memory.
    fn run(&self) -> Option<(f64, f64)> {
        // Arms the destinations' pages, or without the library populates them.
        self.pass(Order::Sequential, 0)?;
        let (mut sequential, mut random) = (Vec::new(), Vec::new());
        for p in 1..=PASSES {
            sequential.push(self.pass(Order::Sequential, p)?);
            random.push(self.pass(Order::Random, p)?);
        }
        Some((median(&sequential), median(&random)))
    }

    /// Compares a few bytes of a few destinations with what the last copy of a whole run brought.
    fn check(&self) -> Result<(), Failure> {
        let (count, len) = (self.targets.count, self.targets.len_bytes);
        for target in [0, count / 2, count - 1] {
            let last_passes = copies(Order::Sequential, PASSES, count).chain(copies(Order::Random, PASSES, count));
            let (_, source) = last_passes.filter(|c| c.0 == target).last().unwrap_or_default();
            for offset in [0, len / 2, len - 1] {
                // SAFETY: a byte of a live mapping; volatile, as the compiler must not think it knows it.
                let got = unsafe { self.targets.at(target, offset).read_volatile() };
                let expected = content(source, offset);
                if got != expected {
                    let place = format!("destination {target} of {count}, byte {offset}");
                    return Err(Failure::new(format!("WRONG BYTE: {place}: {got}, copied was {expected}")));
                }
            }
        }
        Ok(())
    }
}

fn read_message(from: &UnixStream, to: &Slots, slot: usize, range: Range<usize>) -> Result<(), Failure> {
    let mut at = range.start;
    while at < range.end {
        // SAFETY: `range` lies in the slot: its end is at most the slot's length.
        let n = unsafe { libc::read(from.as_raw_fd(), to.at(slot, at).cast(), range.end - at) };
        if n <= 0 {
            return Err(Failure::io("reading a message", std::io::Error::last_os_error()));
        }
        at += n as usize;
    }
    Ok(())
}

/// The most memory that this process has had in use, bytes.
fn most_memory() -> usize {
    // SAFETY: rusage is plain data, for which zeros are a value; the kernel writes to this live local only.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    usize::try_from(usage.ru_maxrss).unwrap_or(0) << 10
}

/// Measures in this process and prints nanoseconds per copy, in sequential and in random order: NaN both when
/// it gave up, which is for the parent to explain from the library's counters.
pub fn child(args: ChildArgs) -> ExitCode {
    let measured = Bench::new(args).and_then(|bench| match bench.run() {
        Some(costs) => bench.check().map(|()| costs),
        None => Ok((f64::NAN, f64::NAN)),
    });
    match measured {
        Ok((sequential, random)) => {
            println!("{sequential} {random}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("zio bench server tracked: {e}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_child_measures_and_finds_a_wrong_byte() {
        let bench = Bench::new(ChildArgs { extents: 200, size: 80 << 10 }).unwrap();
        let (sequential, random) = bench.run().expect("little memory");
        bench.check().unwrap();
        assert!(sequential > 0.0 && random > 0.0, "{sequential} {random}");
        // SAFETY: a byte of the mapping, which only this test uses.
        unsafe { *bench.targets.at(100, 40 << 10) ^= 1 };
        let e = bench.check().unwrap_err().to_string();
        assert!(e.contains("destination 100 of 200, byte 40960"), "{e}");
    }

    #[test]
    fn sizes_are_whole_pages() {
        assert_eq!(parse_tracked_size("68K"), Ok(68 << 10));
        for bad in ["8K", "16385", "8M", "x"] {
            assert!(parse_tracked_size(bad).unwrap_err().contains("accepted"), "{bad}");
        }
    }
}
