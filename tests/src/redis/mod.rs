//! A verifying Redis client: it knows what every key holds, and compares every byte that comes back.
//!
//! ```text
//!   scenario ── starts ──> server (plain, or with libzio.so preloaded)
//!      │                      ^ ^ ^
//!      ├── worker 0..n ───────┘ │ │    each owns a key space: plan (ops) -> send -> check (check)
//!      ├── subscriber ──────────┘ │    verifies published messages
//!      └── the scenario itself ───┘    snapshots, restarts, replicas, killed clients
//! ```
//!
//! A worker's keys are touched by no other worker, so the expected reply to each command is known when
//! it is planned. Content is a function of (seed, space, version): on a mismatch the report can say
//! whether the wrong bytes are zeros, a shifted piece, an older version or another key's.

pub mod check;
pub mod content;
pub mod crosscheck;
pub mod errors;
pub mod model;
pub mod ops;
pub mod resp;
pub mod scenario;
pub mod server;
mod sys;
mod trouble;
pub mod worker;

/// The text of the failure that the end of a connection gives.
pub const CLOSED: &str = "the server closed the connection";

/// What went wrong, ready to print.
#[derive(Clone, Debug)]
pub struct Failure(pub String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Failure {
        Failure(match e.kind() {
            std::io::ErrorKind::UnexpectedEof => CLOSED.into(),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
                format!("the server did not answer or read for {:?}", resp::PATIENCE)
            }
            _ => e.to_string(),
        })
    }
}
