//! Error replies: what a plain server says is what a server under zio must say, byte for byte.

use std::sync::OnceLock;

use super::Failure;
use super::resp::{Conn, Reply, encode};
use super::server::{Launch, Server, TempDir};

/// The error lines that the workload meets, without the leading `-`.
#[derive(Clone, Debug)]
pub struct ErrorTexts {
    /// A command on a key of another type.
    pub wrong_type: String,
    /// An unknown option of SET.
    pub syntax: String,
    /// A negative offset.
    pub offset: String,
    /// A string past `proto-max-bulk-len`.
    pub too_long: String,
    /// RENAME of a missing key.
    pub no_such_key: String,
}

impl ErrorTexts {
    /// Asks a plain server of the installed version, once per process.
    ///
    /// # Errors
    /// When no server can be started.
    pub fn reference() -> Result<&'static ErrorTexts, Failure> {
        static TEXTS: OnceLock<Result<ErrorTexts, Failure>> = OnceLock::new();
        TEXTS.get_or_init(ask).as_ref().map_err(Clone::clone)
    }
}

fn ask() -> Result<ErrorTexts, Failure> {
    let dir = TempDir::new()?;
    let server = Server::start(&Launch::Plain, dir.path(), &[])?;
    let mut conn = server.connect()?;
    conn.call(&["SET", "k", "v"])?;
    let mut error = |args: &[&str]| match conn.call(args)? {
        Reply::Error(e) => Ok(e),
        other => Err(Failure(format!("{args:?}: wanted an error, got {}", other.brief()))),
    };
    let texts = ErrorTexts {
        wrong_type: error(&["LPUSH", "k", "x"])?,
        syntax: error(&["SET", "k", "v", "BADOPTION"])?,
        offset: error(&["SETRANGE", "k", "-1", "x"])?,
        too_long: error(&["SETRANGE", "k", "536870912", "x"])?,
        no_such_key: error(&["RENAME", "missing", "k"])?,
    };
    server.stop()?;
    Ok(texts)
}

/// Runs the whole table of failing commands and of broken requests; gives what came back, one text per
/// probe, for comparison with another server's.
///
/// # Errors
/// When a connection breaks where it should not.
pub fn probe(server: &Server) -> Result<Vec<(String, String)>, Failure> {
    let mut seen = Vec::new();
    let big = "x".repeat(300_000);
    let huge_count = "9".repeat(40);
    let mut conn = server.connect()?;
    for setup in [
        &["SET", "str", big.as_str()][..],
        &["RPUSH", "list", big.as_str(), "b"],
        &["HSET", "hash", "f", big.as_str()],
        &["SET", "number", "10"],
    ] {
        conn.call(setup)?;
    }
    let table: &[&[&str]] = &[
        &["GET", "list"],
        &["APPEND", "list", &big],
        &["SETRANGE", "hash", "5", &big],
        &["LPUSH", "str", &big],
        &["HSET", "str", "f", &big],
        &["HSET", "hash", "f"],
        &["HINCRBY", "hash", "f", "1"],
        &["INCR", "str"],
        &["INCRBY", "number", &big],
        &["INCRBYFLOAT", "str", "1"],
        &["SET", "str", &big, "EX", "abc"],
        &["SET", "str", &big, "NX", "XX"],
        &["SET", "str"],
        &["MSET", "a", &big, "b"],
        &["GETRANGE", "str", "a", "b"],
        &["SETRANGE", "str", "-1", &big],
        &["SETRANGE", "str", "536870911", &big],
        &["SETRANGE", "str", &huge_count, "x"],
        &["SETBIT", "str", "4294967296", "1"],
        &["LRANGE", "list", &big, "1"],
        &["RENAME", "missing", "str"],
        &["COPY", "str", "list"],
        &["EVAL", "return redis.call('GET',KEYS[1])", "1", "list"],
        &["EVAL", "return {err=ARGV[1]}", "0", "MY error"],
        &["EVAL", "error(ARGV[1])", "0", "text"],
        &["EVAL", "not lua", "0"],
        &["EVAL", "return 1", "5", "a"],
        &["EVALSHA", "ffffffffffffffffffffffffffffffffffffffff", "0"],
        &["NOSUCHCOMMAND", &big],
        &["CLIENT", "KILL", "ID", "abc"],
        &["CONFIG", "SET", "maxmemory", "abc"],
        &["OBJECT", "ENCODING", "missing"],
        &["EXEC"],
        &["STRLEN", "str"],
        &["GET", "number"],
    ];
    for &args in table {
        let reply = conn.call(args)?;
        let name: Vec<&str> = args.iter().map(|a| &a[..a.len().min(24)]).collect();
        seen.push((name.join(" "), format!("{reply:?}")));
    }
    for (name, raw) in broken_requests(&big) {
        let mut conn = Conn::open(server.port())?;
        // The server may close while we are still sending: that is what is compared.
        let _ = conn.send(&raw);
        let _ = conn.stream().shutdown(std::net::Shutdown::Write);
        let got = conn.rest()?;
        seen.push((name.to_owned(), got.escape_ascii().to_string()));
    }
    let alive = conn.call(&["GET", "str"])?;
    seen.push(("the value after all that".to_owned(), format!("{}", alive == Reply::Bulk(Some(big.into_bytes())))));
    Ok(seen)
}

/// Requests that break the protocol; each is sent on a connection of its own, which the server closes.
fn broken_requests(big: &str) -> Vec<(&'static str, Vec<u8>)> {
    let mut behind_a_large_set = Vec::new();
    encode(&mut behind_a_large_set, &["SET", "str2", big]);
    let with = |tail: &str| {
        let mut bytes = behind_a_large_set.clone();
        bytes.extend_from_slice(tail.as_bytes());
        bytes
    };
    vec![
        ("bulk length over the limit", with("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$600000000\r\n")),
        ("negative bulk length", with("*2\r\n$3\r\nGET\r\n$-5\r\n")),
        ("count over the limit", with("*99999999999\r\n")),
        ("no dollar", with("*2\r\n$3\r\nGET\r\n!1\r\n")),
        ("unbalanced quotes inline", with("GET \"str\r\n")),
        ("inline commands", with("PING\r\nSTRLEN str2\r\n")),
        ("half a command, then the end", with("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$100000\r\nabc")),
        ("inline line too long", "y".repeat(70_000).into_bytes()),
    ]
}
