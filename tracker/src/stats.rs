//! The statistics page: counters that a process under zio publishes about itself.
//!
//! One private mapping of a memfd called `zio-stats`, so that `zio stats PID` finds it in
//! `/proc/PID/maps` and reads it with `process_vm_readv`: no descriptor and no file stays behind, and a
//! program that closes every descriptor, or sits in another mount namespace, is still readable.
//!
//! ```text
//!   StatsPage (repr(C), versioned)
//!   +--------+--------+------------------+---------------------------------------+
//!   | header | gauges | text (reason...) | SHARDS x Shard { counters[COUNTERS] } |
//!   +--------+--------+------------------+---------------------------------------+
//! ```
//!
//! A counter's value is the sum over the shards. A shard belongs to one thread, which adds without a
//! locked instruction; the last shard is shared by all threads past the limit and is added to atomically.
//! A reader treats the content as untrusted: it checks `magic`, `version` and `page_len` and never
//! follows anything in it.

use core::sync::atomic::{AtomicU64, Ordering};

/// First eight bytes of the page: `ZIOSTAT` and a NUL, little-endian.
pub const MAGIC: u64 = u64::from_le_bytes(*b"ZIOSTAT\0");
/// Layout version; changes when a field moves. Counters are only ever appended.
pub const VERSION: u32 = 1;
/// Name given to `memfd_create`; `/proc/PID/maps` shows `/memfd:zio-stats (deleted)`.
pub const MEMFD_NAME: &str = "zio-stats";
/// Version of the JSON that `--stats` and `zio stats --json` write.
pub const JSON_SCHEMA: u32 = 1;
/// Number of counter shards; the last is shared.
pub const SHARDS: usize = 64;

macro_rules! counters {
    ($($variant:ident = $name:literal, $doc:literal;)*) => {
        /// Monotonic event and byte counters.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum Counter { $(#[doc = $doc] $variant,)* }

        /// The JSON key of each counter, in the order of [`Counter`].
        pub const COUNTER_NAMES: &[&str] = &[$($name),*];
        /// What each counter counts, in the order of [`Counter`].
        pub const COUNTER_DOCS: &[&str] = &[$($doc),*];
        /// Number of counters in a shard.
        pub const COUNTERS: usize = COUNTER_NAMES.len();
    };
}

counters! {
    BytesReceived = "bytes_received", "bytes returned by hooked receive and read calls";
    BytesSent = "bytes_sent", "bytes accepted by hooked send and write calls";
    CopyCalls = "copy_calls", "program copies of 4 KiB or more";
    BytesRequested = "bytes_requested", "bytes that program copies of 4 KiB or more asked for";
    CopiedByProgram = "copied_by_program", "bytes of those copies that were really moved";
    BytesElided = "bytes_elided", "bytes of those copies that were only renamed";
    CopiedFringe = "copied_fringe", "bytes zio moved between cores and resident program pages around a receive";
    CopiedGather = "copied_gather", "bytes zio moved to hand named bytes to a call that cannot take cores";
    CopiedCompaction = "copied_compaction", "bytes zio moved out of sparsely named core pages";
    BytesMaterialised = "bytes_materialised", "bytes given back to elided program pages";
    Faults = "faults", "touches of elided or vacant pages that reached the fault handler";
    PageTableCalls = "page_table_calls", "calls by zio that change mappings, page tables or registrations";
    HookedCalls = "hooked_calls", "calls that entered the tracker (not the ones a length test let through)";
    Renames = "renames", "copies resolved in the extent map";
    CoreReceives = "core_receives", "receive calls that landed in core memory";
    CoreSends = "core_sends", "send calls that took bytes from core memory";
    SignalsDeferred = "signals_deferred", "signals held back until a critical section ended";
    PagesRearmed = "pages_rearmed", "resident pages that were armed (again)";
    PassBelowThreshold = "pass.below_threshold", "large enough to look at, below the threshold";
    PassBackoff = "pass.backoff", "elisions of the call site, or of the whole process, did not pay";
    PassPredictedSmall = "pass.predicted_small", "a read that was expected to return little";
    PassUnknownMemory = "pass.unknown_memory", "destination outside the mappings whose life cycle is seen";
    PassCoreCap = "pass.core_cap", "the core arena's cap is reached";
    PassPieces = "pass.too_many_pieces", "more pieces than one call can carry";
    PassFlags = "pass.flags", "flags or descriptor kind that need the program's own buffer";
    PassKernel = "pass.kernel_error", "the kernel refused to arm pages";
    PassUnnamed = "pass.unnamed_source", "the source of a copy is ordinary memory";
    PassResident = "pass.resident_destination", "the destination's pages are in use and stay resident";
    PassMapFull = "pass.map_full", "no room for another extent";
    PagesHealed = "pages_healed", "resident pages next to elided ones that were moved to cores";
}

/// Prefix of the counters that make up the `passthrough` object (reason -> count) of the JSON.
pub const PASS_PREFIX: &str = "pass.";

/// One thread's counters, on cache lines of its own.
#[repr(C, align(64))]
pub struct Shard {
    /// Values in the order of [`Counter`].
    pub counters: [AtomicU64; COUNTERS],
}

/// What the process is doing, as `mode` in the JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Mode {
    /// Before the constructor ran.
    Bootstrap = 0,
    /// Loaded, hooks installed, nothing is elided; `reason` says why.
    Passthrough = 1,
    /// Eliding, elided pages carry guard markers.
    Guard = 2,
    /// Eliding, elided pages are missing pages of ranges registered for missing faults.
    Sigbus = 3,
    /// Switched off by the user or by `--follow`.
    Disabled = 4,
}

impl Mode {
    /// The word used on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Bootstrap => "bootstrap",
            Mode::Passthrough => "passthrough",
            Mode::Guard => "guard",
            Mode::Sigbus => "sigbus",
            Mode::Disabled => "disabled",
        }
    }

    /// The mode with this number, if it is one.
    pub const fn from_u32(n: u32) -> Option<Mode> {
        Some(match n {
            0 => Mode::Bootstrap,
            1 => Mode::Passthrough,
            2 => Mode::Guard,
            3 => Mode::Sigbus,
            4 => Mode::Disabled,
            _ => return None,
        })
    }
}

/// The whole page. Every field is plain data: any bit pattern is safe to read.
#[repr(C)]
pub struct StatsPage {
    /// [`MAGIC`].
    pub magic: AtomicU64,
    /// [`VERSION`].
    pub version: u32,
    /// `size_of::<StatsPage>()`.
    pub page_len: u32,
    /// Process id of the writer.
    pub pid: AtomicU64,
    /// A [`Mode`] as a number.
    pub mode: AtomicU64,
    /// Smallest receive or copy that is considered, bytes.
    pub threshold: AtomicU64,
    /// Gauge: extents in the map.
    pub extents: AtomicU64,
    /// Gauge: bytes of core pages that have, or may have, physical memory.
    pub core_bytes_held: AtomicU64,
    /// Gauge: bytes of core pages that at least one extent names, bytewise where pages are shared.
    pub core_bytes_named: AtomicU64,
    /// Cap on `core_bytes_held`.
    pub core_bytes_cap: AtomicU64,
    /// Gauge: threads that have used the tracker and are alive as far as is known.
    pub threads: AtomicU64,
    /// Length of `reason` in bytes.
    pub reason_len: AtomicU64,
    /// Why the mode is what it is (UTF-8, not terminated).
    pub reason: [u8; 192],
    /// Counters, by thread.
    pub shards: [Shard; SHARDS],
}

impl StatsPage {
    /// Sum of one counter over all shards.
    ///
    /// # Context
    /// Any.
    pub fn total(&self, c: Counter) -> u64 {
        let mut sum = 0u64;
        for s in &self.shards {
            sum = sum.wrapping_add(s.counters[c as usize].load(Ordering::Relaxed));
        }
        sum
    }

    /// Every byte moved in user space: by the program's own copies of 4 KiB or more, and by zio.
    pub fn bytes_copied(&self) -> u64 {
        [
            Counter::CopiedByProgram,
            Counter::CopiedFringe,
            Counter::CopiedGather,
            Counter::CopiedCompaction,
            Counter::BytesMaterialised,
        ]
        .iter()
        .fold(0u64, |a, &c| a.wrapping_add(self.total(c)))
    }
}
