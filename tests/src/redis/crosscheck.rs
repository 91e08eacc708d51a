//! Traffic against a server under zio and an independent counting shim: both must have seen the same copies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Failure;
use super::content::{Kind, Rng, fill};
use super::resp::{Conn, Reply};
use super::server::{FaultMode, Launch, Server, Stats, TempDir};

/// Compiles the shim from its C source into `dir`.
///
/// # Errors
/// When the source or a C compiler is missing, or it does not compile.
pub fn compile_shim(source: &Path, dir: &Path) -> Result<PathBuf, Failure> {
    if !source.exists() {
        return Err(Failure(format!("the counting shim's source {} is missing", source.display())));
    }
    let lib = dir.join("count.so");
    let out = Command::new("cc")
        .args(["-O2", "-g", "-fPIC", "-shared", "-fno-builtin", "-o"])
        .arg(&lib)
        .arg(source)
        .args(["-ldl", "-lpthread"])
        .output()
        .map_err(|e| Failure(format!("cc can't be run ({e}); remedy: apt-get install gcc")))?;
    match out.status.success() {
        true => Ok(lib),
        false => Err(Failure(format!("cc: {}", String::from_utf8_lossy(&out.stderr)))),
    }
}

/// Bytes of copies of 4 KiB and more that the program asked for in one run: as the shim counted them, and as zio did.
///
/// The shim is preloaded before libzio.so, so that both see the same calls: two runs differ by some percent, because
/// reads split as the scheduler likes and the server's own copies with them.
///
/// # Errors
/// As [`compile_shim`], on a wrong reply, or when either leaves no count.
pub fn count_both(shim_source: &Path, lib: &Path, mode: FaultMode, ops: u32, seed: u64) -> Result<Counts, Failure> {
    let dir = TempDir::new()?;
    let mut preload = compile_shim(shim_source, dir.path())?.into_os_string();
    preload.push(":");
    preload.push(lib);
    let out = dir.path().join("count.json");
    let stats = dir.path().join("stacked.json");
    let variables =
        [("COUNT_OUT", out.as_os_str()), ("ZIO_STATS", stats.as_os_str()), ("ZIO_FAULT", mode.name().as_ref())];
    let env = variables.map(|(k, v)| (k.into(), v.to_os_string())).to_vec();
    serve(&Launch::Shim { preload, env }, &dir, ops, seed)?;
    let zio = Stats::read(&stats)?;
    zio.check(mode)?;
    Ok(Counts { shim: read_count(&out)?, zio: zio.requested, elided: zio.elided })
}

/// What [`count_both`] found, bytes.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// Counted by the shim.
    pub shim: u64,
    /// zio's `bytes_requested`.
    pub zio: u64,
    /// zio's `bytes_elided`.
    pub elided: u64,
}

fn read_count(out: &Path) -> Result<u64, Failure> {
    let bad = |e: &dyn std::fmt::Display| Failure(format!("the counting shim's output: {e}"));
    let text = fs::read_to_string(out).map_err(|e| bad(&e))?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|e| bad(&e))?;
    json["bytes_requested"].as_u64().ok_or_else(|| bad(&"no bytes_requested"))
}

fn serve(launch: &Launch, dir: &TempDir, ops: u32, seed: u64) -> Result<(), Failure> {
    let mut server = Server::start(launch, dir.path(), &[])?;
    let mut conn = server.connect()?;
    talk(&mut conn, ops, seed).map_err(|e| server.explain(e))?;
    server.stop().map(|_| ())
}

/// One request at a time, sizes around and far above the counting limit.
fn talk(conn: &mut Conn, ops: u32, seed: u64) -> Result<(), Failure> {
    let mut rng = Rng::new(seed, 77);
    for n in 0..ops {
        let key = format!("key:{}", n % 40);
        let mut data = fill(seed, 0, n, Kind::Random, rng.log_uniform(2 << 10, 1 << 20));
        expect(conn, &[b"SET", key.as_bytes(), &data], &Reply::Status("OK".into()))?;
        if n % 3 == 0 {
            let more = fill(seed, 1, n, Kind::Random, rng.log_uniform(2 << 10, 128 << 10));
            data.extend_from_slice(&more);
            let len = Reply::Int(data.len() as i64);
            expect(conn, &[b"APPEND", key.as_bytes(), &more], &len)?;
        }
        expect(conn, &[b"GET", key.as_bytes()], &Reply::Bulk(Some(data)))?;
    }
    Ok(())
}

fn expect(conn: &mut Conn, args: &[&[u8]], want: &Reply) -> Result<(), Failure> {
    let got = conn.call(args)?;
    match got == *want {
        true => Ok(()),
        false => Err(Failure(format!("{}: want {}, got {}", args[0].escape_ascii(), want.brief(), got.brief()))),
    }
}
