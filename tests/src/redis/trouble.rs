//! Scenarios that fork, replicate and kill while the workers write.

use std::net::Shutdown;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Failure;
use super::content::{Kind, fill};
use super::resp::{Conn, PATIENCE, Reply, encode};
use super::scenario::{Run, spaces};
use super::server::Server;
use super::worker::{Traffic, drive, verify_all};

const MIB: usize = 1 << 20;

/// Polls until `done` says so.
fn wait_for(what: &str, mut done: impl FnMut() -> Result<bool, Failure>) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    while !done()? {
        if Instant::now() > deadline {
            return Err(Failure(format!("{what}: not done after {PATIENCE:?}")));
        }
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn bgsave(conn: &mut Conn) -> Result<(), Failure> {
    match conn.call(&["BGSAVE"])? {
        Reply::Status(_) => {}
        other => return Err(Failure(format!("BGSAVE: {}", other.brief()))),
    }
    wait_for("BGSAVE", || Ok(conn.info("persistence", "rdb_bgsave_in_progress")? == "0"))?;
    expect_ok(conn, "rdb_last_bgsave_status")
}

fn rewrite_aof(conn: &mut Conn) -> Result<(), Failure> {
    match conn.call(&["BGREWRITEAOF"])? {
        Reply::Status(_) => {}
        other => return Err(Failure(format!("BGREWRITEAOF: {}", other.brief()))),
    }
    wait_for("BGREWRITEAOF", || {
        Ok(conn.info("persistence", "aof_rewrite_in_progress")? == "0"
            && conn.info("persistence", "aof_rewrite_scheduled")? == "0")
    })?;
    expect_ok(conn, "aof_last_bgrewrite_status")?;
    expect_ok(conn, "aof_last_write_status")
}

fn expect_ok(conn: &mut Conn, field: &str) -> Result<(), Failure> {
    match conn.info("persistence", field)?.as_str() {
        "ok" => Ok(()),
        other => Err(Failure(format!("{field}: {other}"))),
    }
}

/// Children write snapshots while the parent's keys change; then the servers start from them.
pub(super) fn snapshots(run: &mut Run) -> Result<(), Failure> {
    let options = ["--appendonly", "yes", "--auto-aof-rewrite-percentage", "0"];
    let mut server = run.start(&options)?;
    let mut spaces = spaces(8, run.plan.seed, 160 * MIB);
    let mut admin = server.connect()?;
    let beside = |traffic: &Traffic| {
        let mut rounds = 0;
        while rounds == 0 || traffic.is_running() {
            sleep(Duration::from_millis(50));
            bgsave(&mut admin)?;
            rewrite_aof(&mut admin)?;
            rounds += 1;
        }
        Ok(rounds)
    };
    let driven = drive(&server, &mut spaces, run.plan.ops, run.deadline, beside);
    let (done, rounds) = driven.map_err(|e| server.explain(e))?;
    run.done += done;
    run.note = format!("{rounds} of each");
    run.verify(&mut server, &mut spaces)?;
    // Nothing changes any more: what the children write now is what must be there after a crash.
    let written = rewrite_aof(&mut admin).and_then(|()| bgsave(&mut admin));
    written.map_err(|e| server.explain(e))?;
    run.verify(&mut server, &mut spaces)?;
    // From the append-only file as the child rewrote it. The parent's counters are needed too, so the
    // server is asked to end here; SIGKILL is what `restart_aof` is for.
    run.stop(server)?;
    for options in [&options[..], &[]] {
        let mut server = run.start(options)?;
        run.verify(&mut server, &mut spaces)?;
        run.stop(server)?;
    }
    Ok(())
}

/// A replica that joins while the primary is written to, then again from a file.
pub(super) fn replication(run: &mut Run) -> Result<(), Failure> {
    let common = ["--client-output-buffer-limit", "replica 0 0 0", "--repl-diskless-sync-delay", "0"];
    let mut primary = run.start(&common)?;
    let options = [&common[..], &["--repl-diskless-load", "swapdb"]].concat();
    // A directory of its own: both would write dump.rdb.
    let replica_dir = run.dir.path().join("replica");
    std::fs::create_dir_all(&replica_dir)?;
    let mut replica = Server::start(run.launch, &replica_dir, &options)?;
    let mut spaces = spaces(8, run.plan.seed, 128 * MIB);
    let port = primary.port().to_string();
    for (first, diskless) in [(true, "yes"), (false, "no")] {
        primary.connect()?.call(&["CONFIG", "SET", "repl-diskless-sync", diskless])?;
        if !first {
            // Detached while more is written than the backlog holds: the next sync is a full one.
            replica.connect()?.call(&["REPLICAOF", "NO", "ONE"])?;
            run.traffic(&mut primary, &mut spaces, run.plan.ops / 4)?;
        }
        let beside = |_: &Traffic| {
            sleep(Duration::from_millis(300));
            attach(&mut replica, &port)
        };
        let ops = run.plan.ops / if first { 2 } else { 4 };
        let driven = drive(&primary, &mut spaces, ops, run.deadline, beside);
        run.done += driven.map_err(|e| primary.explain(e))?.0;
        caught_up(&primary, &replica)?;
        run.verify(&mut primary, &mut spaces)?;
        run.done +=
            verify_all(&replica, &mut spaces).map_err(|e| replica.explain(Failure(format!("on the replica: {e}"))))?;
    }
    let full = primary.connect()?.info("stats", "sync_full")?;
    run.note = format!("{full} full syncs");
    run.stop(replica)?;
    run.stop(primary)
}

fn attach(replica: &mut Server, port: &str) -> Result<(), Failure> {
    let mut conn = replica.connect()?;
    conn.call(&["REPLICAOF", "127.0.0.1", port])?;
    wait_for("the replica's first sync", || {
        Ok(conn.info("replication", "master_link_status")? == "up"
            && conn.info("replication", "master_sync_in_progress")? == "0")
    })
    .map_err(|e| replica.explain(e))
}

fn caught_up(primary: &Server, replica: &Server) -> Result<(), Failure> {
    let (mut a, mut b) = (primary.connect()?, replica.connect()?);
    wait_for("the replica's catching up", || {
        let offset = a.info("replication", "master_repl_offset")?;
        Ok(b.info("replication", "slave_repl_offset")? == offset
            && b.info("replication", "master_link_status")? == "up")
    })
}

/// Victims with half a request sent, or replies half read, are killed or hang up.
pub(super) fn client_kill(run: &mut Run) -> Result<(), Failure> {
    let mut server = run.start(&[])?;
    let mut spaces = spaces(4, run.plan.seed, 96 * MIB);
    let seed = run.plan.seed;
    let beside = |traffic: &Traffic| {
        let mut rounds = 0;
        while rounds < 8 || traffic.is_running() {
            victim_round(&server, seed, rounds)?;
            rounds += 1;
            sleep(Duration::from_millis(5));
        }
        let mut conn = server.connect()?;
        conn.call(&["DEL", "victim"])?;
        Ok(rounds)
    };
    let driven = drive(&server, &mut spaces, run.plan.ops, run.deadline, beside);
    let (done, rounds) = driven.map_err(|e| server.explain(e))?;
    run.done += done;
    run.note = format!("{} clients killed or hung up", 3 * rounds);
    run.verify(&mut server, &mut spaces)?;
    run.stop(server)
}

fn victim_round(server: &Server, seed: u64, round: u32) -> Result<(), Failure> {
    let mut admin = server.connect()?;
    let old = fill(seed, usize::MAX, 2 * round, Kind::Random, 700_000 + round as usize);
    let new = fill(seed, usize::MAX, 2 * round + 1, Kind::Random, 2_000_003);
    admin.call(&[b"SET" as &[u8], b"victim", &old])?;
    let mut request = Vec::new();
    encode(&mut request, &[b"SET" as &[u8], b"victim", &new]);

    // Killed with half a request sent.
    let (mut victim, id) = victim_of(server)?;
    victim.send(&request[..request.len() / 2])?;
    sleep(Duration::from_millis(2));
    kill(&mut admin, &id)?;
    drop(victim);

    // Killed with replies half read: they fill the socket and wait in the server.
    let (mut victim, id) = victim_of(server)?;
    let mut gets = Vec::new();
    for _ in 0..8 {
        encode(&mut gets, &["GET", "victim"]);
    }
    victim.send(&gets)?;
    if victim.reply()? != Reply::Bulk(Some(old.clone())) {
        return Err(Failure(format!("victim, round {round}: wrong bytes before the kill")));
    }
    kill(&mut admin, &id)?;
    // What the kernel already holds may still arrive; it must be whole and right, or cut off.
    while let Ok(reply) = victim.reply() {
        if reply != Reply::Bulk(Some(old.clone())) {
            return Err(Failure(format!("victim, round {round}: wrong bytes after the kill")));
        }
    }

    // Hangs up with a request half sent and replies unread.
    let (mut victim, _) = victim_of(server)?;
    victim.send(&gets)?;
    victim.send(&request[..request.len() - 5])?;
    victim.stream().shutdown(Shutdown::Both)?;
    drop(victim);

    match admin.call(&["GET", "victim"])? {
        Reply::Bulk(Some(b)) if b == old => Ok(()),
        other => Err(Failure(format!(
            "victim, round {round}: a request that was never finished took effect, or bytes are wrong: {}",
            other.brief()
        ))),
    }
}

fn victim_of(server: &Server) -> Result<(Conn, String), Failure> {
    let mut conn = server.connect()?;
    match conn.call(&["CLIENT", "ID"])? {
        Reply::Int(id) => Ok((conn, id.to_string())),
        other => Err(Failure(format!("CLIENT ID: {}", other.brief()))),
    }
}

fn kill(admin: &mut Conn, id: &str) -> Result<(), Failure> {
    match admin.call(&["CLIENT", "KILL", "ID", id])? {
        Reply::Int(1) => Ok(()),
        other => Err(Failure(format!("CLIENT KILL: {}", other.brief()))),
    }
}
