//! The echo workload: starts the example server in a column, keeps it busy, checks what comes back.
//!
//! Messages are pseudo-random and differ from one to the next, so that a stale or misplaced page shows.
//! In the timed part one cache line of every page is compared (all columns pay for it, so that the client
//! costs the same); every 64th message, and those outside the window, are compared whole.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Failure;
use super::columns::{Column, Server, pin_this_thread};
use super::echo_server::Buffers;
use super::pairs::{Plan, Sample, Workload};
use super::probe::Snapshot;
use super::size::show_size;
use super::stats_math::Xorshift;

/// Messages start at different places of the random pool, within this many bytes.
const POOL_SLIDE: usize = 64 << 10;
/// Every how many messages the timed part compares all bytes.
const WHOLE_EVERY: u64 = 64;
/// Bytes compared per page of the other messages.
const LINE: usize = 64;
const PAGE: usize = 4096;
/// A reply that takes longer means that the server hangs.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// One echo row.
#[derive(Clone, Copy, Debug)]
pub struct Echo {
    /// Chained copies in the server.
    pub copies: usize,
    /// Message size, bytes.
    pub size: usize,
    /// Buffer life cycle in the server.
    pub buffers: Buffers,
    /// Connections that are kept busy.
    pub connections: usize,
}

impl Workload for Echo {
    fn name(&self) -> String {
        let fresh = match self.buffers {
            Buffers::Fixed => "",
            Buffers::PerMessage => ", fresh buffers",
        };
        let size = show_size(self.size);
        format!("echo {size}, {} copies{fresh}", self.copies)
    }

    fn bytes_per_request(&self) -> u64 {
        self.size as u64
    }

    fn run_side(&self, column: &Column, plan: &Plan) -> Result<Sample, Failure> {
        let (server, port) = self.start_server(column, plan)?;
        let load = Load::start(self, port, column.verified(), plan.pinning.client)?;
        std::thread::sleep(plan.warm_up);
        load.shared.timed.store(true, Ordering::Relaxed);
        let done_before = load.done();
        let before = Snapshot::take(server.pid());
        std::thread::sleep(plan.window);
        let done_after = load.done();
        let after = Snapshot::take(server.pid());
        // The clients know best what went wrong: their error comes before a failed snapshot's.
        load.finish()?;
        let sample = Sample::between(&before?, &after?, done_after - done_before)?;
        server.stop()?;
        Ok(sample)
    }
}

impl Echo {
    fn start_server(&self, column: &Column, plan: &Plan) -> Result<(Server, u16), Failure> {
        let exe = std::env::current_exe().map_err(|e| Failure::io("finding this program", e))?;
        let child = column
            .command(&exe, plan.pinning.server)
            .args(["bench", "server", "echo"])
            .args(["--copies", &self.copies.to_string()])
            .args(["--size", &self.size.to_string()])
            .args(["--buffers", self.buffers.word()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| Failure::io("starting the echo server", e))?;
        let mut server = Server::new(child, "the echo server".into());
        let out = server.child().stdout.take();
        let mut line = String::new();
        if let Some(out) = out {
            BufReader::new(out).read_line(&mut line).map_err(|e| Failure::io("reading the echo server's port", e))?;
        }
        match line.trim().parse() {
            Ok(port) => Ok((server, port)),
            Err(_) => {
                let how = match server.ended() {
                    Some(status) => format!(" ({status})"),
                    None => String::new(),
                };
                Err(Failure::new(format!("the echo server did not start{how}")))
            }
        }
    }
}

struct Shared {
    stop: AtomicBool,
    timed: AtomicBool,
    done: AtomicU64,
}

/// Connections under way.
struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<(), Failure>>>,
}

impl Load {
    fn start(work: &Echo, port: u16, verify: bool, cpu: Option<usize>) -> Result<Load, Failure> {
        let shared =
            Arc::new(Shared { stop: AtomicBool::new(false), timed: AtomicBool::new(false), done: AtomicU64::new(0) });
        let mut threads = Vec::new();
        for i in 0..work.connections {
            let stream =
                TcpStream::connect(("127.0.0.1", port)).map_err(|e| Failure::io("connecting to the echo server", e))?;
            let mut talk = Talk::new(stream, work.size, verify, i as u64)?;
            let shared = Arc::clone(&shared);
            threads.push(std::thread::spawn(move || {
                pin_this_thread(cpu);
                talk.run(&shared)
            }));
        }
        Ok(Load { shared, threads })
    }

    fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    fn finish(self) -> Result<(), Failure> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut first = Ok(());
        for t in self.threads {
            let result = t.join().unwrap_or_else(|_| Err(Failure::new("a client thread panicked")));
            first = first.and(result);
        }
        first
    }
}

/// One connection.
struct Talk {
    stream: TcpStream,
    pool: Vec<u8>,
    reply: Vec<u8>,
    verify: bool,
    sent: u64,
}

impl Talk {
    fn new(stream: TcpStream, size: usize, verify: bool, seed: u64) -> Result<Talk, Failure> {
        let set_up = |e| Failure::io("setting up a connection", e);
        stream.set_nodelay(true).map_err(set_up)?;
        stream.set_read_timeout(Some(REPLY_TIMEOUT)).map_err(set_up)?;
        stream.set_write_timeout(Some(REPLY_TIMEOUT)).map_err(set_up)?;
        Ok(Talk { stream, pool: random_bytes(size + POOL_SLIDE, seed + 1), reply: vec![0; size], verify, sent: 0 })
    }

    fn run(&mut self, shared: &Shared) -> Result<(), Failure> {
        while !shared.stop.load(Ordering::Relaxed) {
            let timed = shared.timed.load(Ordering::Relaxed);
            self.exchange(!timed || self.sent.is_multiple_of(WHOLE_EVERY))?;
            shared.done.fetch_add(1, Ordering::Relaxed);
        }
        self.exchange(true)
    }

    fn exchange(&mut self, whole: bool) -> Result<(), Failure> {
        // An odd step: every byte offset comes up.
        let at = (self.sent as usize).wrapping_mul(8209) % POOL_SLIDE;
        let message = &self.pool[at..at + self.reply.len()];
        self.stream.write_all(message).map_err(|e| Failure::io("sending a message", e))?;
        self.stream.read_exact(&mut self.reply).map_err(|e| Failure::io("receiving a reply", e))?;
        let wrong = if whole {
            first_difference(message, &self.reply)
        } else {
            sampled_difference(message, &self.reply, self.sent as usize)
        };
        self.sent += 1;
        match wrong {
            Some(offset) if self.verify => {
                Err(Failure::new(format!("WRONG DATA: message {} differs from offset {offset} on", self.sent)))
            }
            _ => Ok(()),
        }
    }
}

/// Reproducible random bytes.
pub fn random_bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = Xorshift::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&rng.next_u64().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Offset of the first byte that differs.
pub fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    let common = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    Some(common)
}

/// Compares one line of every page, at a place that moves with `turn`, and the last line.
fn sampled_difference(a: &[u8], b: &[u8], turn: usize) -> Option<usize> {
    let within = (turn * LINE) % PAGE;
    let last = a.len().saturating_sub(LINE);
    let places = (within..a.len()).step_by(PAGE).chain([0, last]);
    for at in places {
        let end = (at + LINE).min(a.len());
        if a[at..end] != b[at..end] {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found() {
        let a = random_bytes(20_000, 3);
        assert_eq!(first_difference(&a, &a), None);
        let mut b = a.clone();
        b[12_345] ^= 1;
        assert_eq!(first_difference(&a, &b), Some(12_345));
        let seen = (0..64).any(|turn| sampled_difference(&a, &b, turn).is_some());
        assert!(seen, "64 turns cover every line");
        b = a.clone();
        b[8192..12_288].fill(0);
        for turn in 0..64 {
            assert!(sampled_difference(&a, &b, turn).is_some(), "a lost page shows at once");
        }
        assert_eq!(sampled_difference(&a[..10], &a[..10], 5), None);
    }

    #[test]
    fn pools_differ_and_repeat() {
        assert_eq!(random_bytes(100, 1), random_bytes(100, 1));
        assert_ne!(random_bytes(100, 1), random_bytes(100, 2));
    }
}
