//! As much of the Redis protocol as filling, counting and reading back needs.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::Failure;

/// A larger value than any server here holds: a length beyond it is a broken reply.
const LONGEST_BULK: usize = 1 << 30;

/// A reply.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+…`
    Simple(String),
    /// `-…`
    Error(String),
    /// `:…`
    Integer(i64),
    /// `$…`; `None` for a missing value.
    Bulk(Option<Vec<u8>>),
}

impl Reply {
    /// Refuses anything but OK.
    ///
    /// # Errors
    /// With the reply and the command's name.
    pub fn expect_ok(self, command: &str) -> Result<(), Failure> {
        match self {
            Reply::Simple(s) if s == "OK" => Ok(()),
            other => Err(Failure::new(format!("{command} answered {other:?}"))),
        }
    }

    /// The value of a bulk reply.
    ///
    /// # Errors
    /// When it is something else, or missing.
    pub fn bulk(self, command: &str) -> Result<Vec<u8>, Failure> {
        match self {
            Reply::Bulk(Some(bytes)) => Ok(bytes),
            other => Err(Failure::new(format!("{command} answered {other:?}"))),
        }
    }
}

/// A connection to a local server.
pub struct Connection {
    input: BufReader<TcpStream>,
    output: TcpStream,
}

impl Connection {
    /// Connects to 127.0.0.1.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(port: u16) -> Result<Connection, Failure> {
        let open = || -> std::io::Result<Connection> {
            let output = TcpStream::connect(("127.0.0.1", port))?;
            output.set_nodelay(true)?;
            output.set_read_timeout(Some(Duration::from_secs(30)))?;
            let input = BufReader::with_capacity(256 << 10, output.try_clone()?);
            Ok(Connection { input, output })
        };
        open().map_err(|e| Failure::io("connecting to redis-server", e))
    }

    /// Sends a command and reads its reply.
    ///
    /// # Errors
    /// When the connection fails or the reply does not parse.
    pub fn command(&mut self, words: &[&[u8]]) -> Result<Reply, Failure> {
        self.send_only(words)?;
        self.reply()
    }

    /// Sends a command whose reply is read later, or never.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn send_only(&mut self, words: &[&[u8]]) -> Result<(), Failure> {
        let mut message = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            message.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            message.extend_from_slice(word);
            message.extend_from_slice(b"\r\n");
        }
        self.output.write_all(&message).map_err(|e| Failure::io("sending to redis-server", e))
    }

    /// Reads one reply.
    ///
    /// # Errors
    /// When the connection fails or the reply does not parse.
    pub fn reply(&mut self) -> Result<Reply, Failure> {
        read_reply(&mut self.input)
    }
}

fn read_reply(input: &mut impl BufRead) -> Result<Reply, Failure> {
    let broken = |line: &str| Failure::new(format!("redis-server answered {line:?}"));
    let failed = |e| Failure::io("reading from redis-server", e);
    let mut line = String::new();
    input.read_line(&mut line).map_err(failed)?;
    let text = line.trim_end();
    let (kind, rest) = text.split_at_checked(1).ok_or_else(|| broken(text))?;
    match kind {
        "+" => Ok(Reply::Simple(rest.to_string())),
        "-" => Ok(Reply::Error(rest.to_string())),
        ":" => Ok(Reply::Integer(rest.parse().map_err(|_| broken(text))?)),
        "$" if rest == "-1" => Ok(Reply::Bulk(None)),
        "$" => {
            let len: usize = rest.parse().map_err(|_| broken(text))?;
            if len > LONGEST_BULK {
                return Err(broken(text));
            }
            let mut bytes = vec![0; len + 2];
            input.read_exact(&mut bytes).map_err(failed)?;
            if !bytes.ends_with(b"\r\n") {
                return Err(broken(text));
            }
            bytes.truncate(len);
            Ok(Reply::Bulk(Some(bytes)))
        }
        _ => Err(broken(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies() {
        let parse = |mut b: &[u8]| read_reply(&mut b);
        assert_eq!(parse(b"+OK\r\n").unwrap(), Reply::Simple("OK".into()));
        assert_eq!(parse(b":12\r\n").unwrap(), Reply::Integer(12));
        assert_eq!(parse(b"$-1\r\n").unwrap(), Reply::Bulk(None));
        assert_eq!(parse(b"$3\r\na\r\n\r\n").unwrap(), Reply::Bulk(Some(b"a\r\n".to_vec())));
        for bad in [&b""[..], b"\r\n", b"$5\r\nabc\r\n", b"$2\r\nabcd", b"$99999999999\r\n", b"?\r\n"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
