//! Worker threads, the subscriber, and the final reading of every key.

use std::collections::HashMap;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::check::{Expect, Pending, check};
use super::content::{Kind, fill};
use super::errors::ErrorTexts;
use super::model::{Space, Value};
use super::ops::{Batch, CHANNEL, plan};
use super::resp::{Conn, Reply, encode};
use super::server::Server;
use super::{Failure, sys};

/// Published bytes on their way to the subscriber before publishers wait.
const IN_FLIGHT_BYTES: usize = 16 << 20;

/// Receive buffer of one client in eight, so that the server's writes stop midway. Much smaller than a
/// few segments of the loopback device (64 KiB each), and the kernel's timers set the pace.
const RECEIVE_BUFFER_BYTES: i32 = 256 << 10;

/// What was done, summed over threads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Commands answered and checked.
    pub ops: u64,
    /// Payload bytes compared.
    pub bytes: u64,
}

impl std::ops::AddAssign for Done {
    fn add_assign(&mut self, other: Done) {
        self.ops += other.ops;
        self.bytes += other.bytes;
    }
}

/// Traffic of a number of workers, as seen by whoever watches it.
pub struct Traffic {
    stop: AtomicBool,
    deadline: Instant,
    ops: AtomicU64,
    published: AtomicU64,
    target: u64,
    in_flight: Mutex<usize>,
    drained: Condvar,
}

impl Traffic {
    /// Commands answered so far.
    pub fn ops(&self) -> u64 {
        self.ops.load(Ordering::Relaxed)
    }

    /// Whether the workers are still at it.
    pub fn is_running(&self) -> bool {
        !self.stopped() && self.ops() < self.target
    }

    /// Whether the workers have been told to stop.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || Instant::now() > self.deadline
    }

    fn publish(&self, batch: &Batch) -> Result<(), Failure> {
        let deadline = Instant::now() + super::resp::PATIENCE;
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        while *in_flight > IN_FLIGHT_BYTES {
            if self.stop.load(Ordering::Relaxed) || Instant::now() > deadline {
                return Err(Failure("published messages do not arrive".into()));
            }
            let wait = Duration::from_millis(100);
            in_flight = self.drained.wait_timeout(in_flight, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
        *in_flight += batch.published_bytes;
        self.published.fetch_add(batch.published, Ordering::Relaxed);
        Ok(())
    }

    fn arrived(&self, len: usize) {
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        *in_flight = in_flight.saturating_sub(len);
        self.drained.notify_all();
    }
}

/// Runs one worker per space until they have done `ops` commands in all, the deadline passes, or one
/// fails; `beside` runs on the calling thread meanwhile.
///
/// # Errors
/// The first mismatch or broken connection, of a worker, the subscriber or `beside`.
pub fn drive<R>(
    server: &Server,
    spaces: &mut [Space],
    ops: u64,
    deadline: Instant,
    beside: impl FnOnce(&Traffic) -> Result<R, Failure>,
) -> Result<(Done, R), Failure> {
    let texts = ErrorTexts::reference()?;
    let each = ops / spaces.len().max(1) as u64;
    let traffic = Traffic {
        stop: AtomicBool::new(false),
        deadline,
        ops: AtomicU64::new(0),
        published: AtomicU64::new(0),
        target: each * spaces.len() as u64,
        in_flight: Mutex::new(0),
        drained: Condvar::new(),
    };
    let mut subscriber = server.connect()?;
    subscriber.call(&["SUBSCRIBE", CHANNEL])?;
    // It may have nothing to hear for long; it is hung up on in the end.
    subscriber.stream().set_read_timeout(None)?;
    let hang_up = subscriber.stream().try_clone()?;
    let seed = spaces.first().map_or(0, |s| s.seed);
    let port = server.port();
    thread::scope(|scope| {
        let traffic = &traffic;
        let listener = scope.spawn(move || {
            let heard = listen(&mut subscriber, seed, traffic);
            if heard.is_err() {
                traffic.stop.store(true, Ordering::Relaxed);
            }
            heard
        });
        let workers: Vec<_> = spaces
            .iter_mut()
            .map(|space| {
                scope.spawn(move || {
                    let worked = work(port, space, each, texts, traffic);
                    if worked.is_err() {
                        traffic.stop.store(true, Ordering::Relaxed);
                    }
                    worked
                })
            })
            .collect();
        let beside = beside(traffic);
        if beside.is_err() {
            traffic.stop.store(true, Ordering::Relaxed);
        }
        let results: Vec<Result<Done, Failure>> = workers.into_iter().map(join).collect();
        let failed = beside.is_err() || results.iter().any(Result::is_err);
        let until = Instant::now() + if failed { Duration::ZERO } else { Duration::from_secs(30) };
        while *traffic.in_flight.lock().unwrap_or_else(PoisonError::into_inner) > 0
            && Instant::now() < until
            && !listener.is_finished()
        {
            thread::sleep(Duration::from_millis(2));
        }
        // It may be gone already.
        let _ = hang_up.shutdown(Shutdown::Both);
        let heard = join(listener);
        let mut done = Done::default();
        let mut failures: Vec<String> = Vec::new();
        for result in results {
            match result {
                Ok(d) => done += d,
                Err(e) => failures.push(e.0),
            }
        }
        failures.extend(beside.as_ref().err().map(|e| e.0.clone()));
        failures.extend(heard.as_ref().err().map(|e| e.0.clone()));
        if !failures.is_empty() {
            // The longest is a mismatch; what follows from it is short.
            failures.sort_by_key(|f| std::cmp::Reverse(f.len()));
            return Err(Failure(failures.join("\n")));
        }
        let (beside, (messages, bytes)) = (beside?, heard?);
        let published = traffic.published.load(Ordering::Relaxed);
        if messages != published {
            return Err(Failure(format!("{published} messages published, {messages} arrived")));
        }
        done.bytes += bytes;
        Ok((done, beside))
    })
}

fn join<T>(handle: thread::ScopedJoinHandle<'_, Result<T, Failure>>) -> Result<T, Failure> {
    handle.join().unwrap_or_else(|_| Err(Failure("a client thread panicked".into())))
}

fn work(port: u16, space: &mut Space, ops: u64, texts: &ErrorTexts, traffic: &Traffic) -> Result<Done, Failure> {
    let mut conn = Conn::open(port)?;
    if space.id.is_multiple_of(8) {
        sys::set_receive_buffer(conn.stream(), RECEIVE_BUFFER_BYTES)?;
    }
    let mut done = Done::default();
    while done.ops < ops && !traffic.stopped() {
        let most = usize::try_from(ops - done.ops).unwrap_or(usize::MAX);
        let batch = plan(space, texts, most);
        if batch.published > 0 {
            traffic.publish(&batch)?;
        }
        send(&mut conn, space, &batch)
            .map_err(|e| Failure(format!("{} (while sending {})", Failure::from(e), first(&batch))))?;
        for pending in &batch.pending {
            let reply = conn.reply().map_err(|e| Failure(format!("{e} (waiting for {})", pending.text)))?;
            done += settle(pending, &reply, space)?;
            traffic.ops.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(done)
}

fn first(batch: &Batch) -> &str {
    batch.pending.first().map_or("", |p| &p.text)
}

/// Checks one reply and corrects the model where eviction explains it.
fn settle(pending: &Pending, reply: &Reply, space: &mut Space) -> Result<Done, Failure> {
    match check(pending, reply, space.shape.evicting) {
        Ok(checked) => {
            for fix in checked.fixes {
                space.note(&fix.key, format!("was evicted, {} shows", pending.text));
                space.put(&fix.key, fix.value);
            }
            Ok(Done { ops: 1, bytes: checked.bytes })
        }
        Err(wrong) => Err(Failure(wrong.explain(&pending.text, space))),
    }
}

fn send(conn: &mut Conn, space: &mut Space, batch: &Batch) -> std::io::Result<()> {
    let rng = &mut space.rng;
    if rng.one_in(40) {
        conn.read_slowly(6, 1 + rng.below(100_000), Duration::from_micros(300));
    }
    if rng.one_in(12) {
        let mut cuts: Vec<usize> = (0..1 + rng.below(4)).map(|_| rng.below(batch.out.len())).collect();
        // Cuts in the first bytes split the framing, not the payload.
        cuts.push(rng.below(batch.out.len().min(40)));
        cuts.sort_unstable();
        conn.send_split(&batch.out, &cuts, Duration::from_micros(200))?;
    } else {
        conn.send(&batch.out)?;
    }
    if rng.one_in(40) {
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Verifies messages until the connection ends; gives their number and payload bytes.
fn listen(conn: &mut Conn, seed: u64, traffic: &Traffic) -> Result<(u64, u64), Failure> {
    let mut last: HashMap<usize, u32> = HashMap::new();
    let (mut messages, mut bytes) = (0, 0);
    loop {
        let reply = match conn.reply() {
            Ok(reply) => reply,
            // The end of the connection is how the listener is told to stop; lost messages show in
            // the count.
            Err(Failure(e)) if e == super::CLOSED => return Ok((messages, bytes)),
            Err(e) => return Err(Failure(format!("subscriber: {e}"))),
        };
        let Reply::Array(Some(parts)) = &reply else {
            return Err(Failure(format!("subscriber: unexpected {}", reply.brief())));
        };
        let [Reply::Bulk(Some(kind)), _, Reply::Bulk(Some(message))] = &parts[..] else {
            return Err(Failure(format!("subscriber: unexpected {}", reply.brief())));
        };
        if kind != b"message" {
            continue;
        }
        let (space, version, body) = verify_message(seed, message)?;
        if last.insert(space, version).is_some_and(|before| before >= version) {
            return Err(Failure(format!("message {version} of space {space} is out of order")));
        }
        messages += 1;
        bytes += body;
        traffic.arrived(message.len());
    }
}

fn verify_message(seed: u64, message: &[u8]) -> Result<(usize, u32, u64), Failure> {
    let bad = |why: &str| {
        let head = &message[..message.len().min(64)];
        Failure(format!(
            "published message of {} bytes: {why}; it starts with \"{}\"",
            message.len(),
            head.escape_ascii()
        ))
    };
    let end = message.iter().position(|&b| b == b'\n').ok_or_else(|| bad("no header"))?;
    let header = std::str::from_utf8(&message[..end]).map_err(|_| bad("header is not text"))?;
    let words: Vec<&str> = header.split(' ').collect();
    let [space, version, len, kind] = words[..] else {
        return Err(bad("header is wrong"));
    };
    let space = space.parse().map_err(|_| bad("header is wrong"))?;
    let version = version.parse().map_err(|_| bad("header is wrong"))?;
    let len: usize = len.parse().map_err(|_| bad("header is wrong"))?;
    let kind = if kind == "Lines" { Kind::Lines } else { Kind::Random };
    let body = &message[end + 1..];
    if body.len() != len {
        return Err(bad("wrong length"));
    }
    let want = fill(seed, space, version, kind, len);
    match want.iter().zip(body).position(|(a, b)| a != b) {
        None => Ok((space, version, len as u64)),
        Some(at) => {
            let part = |b: &[u8]| b[at..(at + 32).min(len)].escape_ascii().to_string();
            Err(bad(&format!("first difference at offset {at}: expected \"{}\", got \"{}\"", part(&want), part(body))))
        }
    }
}

/// Reads every key of the spaces and compares it with the model; without eviction, checks also that
/// there is no further key.
///
/// # Errors
/// On a mismatch or a broken connection.
pub fn verify_all(server: &Server, spaces: &mut [Space]) -> Result<Done, Failure> {
    let mut conn = server.connect()?;
    let mut done = Done::default();
    let mut total = 0;
    for space in spaces.iter_mut() {
        let keys: Vec<(String, Value)> = space.all().map(|(k, v)| (k.clone(), v.clone())).collect();
        total += keys.len();
        for chunk in keys.chunks(8) {
            let mut out = Vec::new();
            for (key, value) in chunk {
                match value {
                    Value::Str(_) => encode(&mut out, &["GET", key]),
                    Value::List(_) => encode(&mut out, &["LRANGE", key, "0", "-1"]),
                    Value::Hash(_) => encode(&mut out, &["HGETALL", key]),
                }
            }
            conn.send(&out)?;
            for (key, value) in chunk {
                let pending = reading(key, value);
                done += settle(&pending, &conn.reply()?, space)?;
            }
        }
    }
    let evicting = spaces.iter().any(|s| s.shape.evicting);
    match conn.call(&["DBSIZE"])? {
        Reply::Int(n) if evicting || n == total as i64 => Ok(done),
        other => Err(Failure(format!("DBSIZE: {total} keys expected, got {}", other.brief()))),
    }
}

fn reading(key: &str, value: &Value) -> Pending {
    let expect = match value {
        Value::Str(b) => Expect::whole(key, Some(b.clone())),
        Value::List(l) => Expect::Array(l.iter().map(|b| Expect::whole(key, Some(b.clone()))).collect()),
        Value::Hash(h) => Expect::Fields { key: key.to_owned(), fields: h.clone() },
    };
    let fix = super::check::Fix { key: key.to_owned(), value: None };
    let evicted = Some((Expect::Array(vec![]), vec![fix]));
    Pending { text: format!("final reading of {key}"), expect, evicted }
}
