//! A RESP2 connection: requests can be split at any byte, replies can be read late and slowly.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::Failure;

/// How long a connection waits for the server before it calls it stuck.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One reply of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+…`
    Status(String),
    /// `-…`
    Error(String),
    /// `:…`
    Int(i64),
    /// `$…`; `None` is the nil reply.
    Bulk(Option<Vec<u8>>),
    /// `*…`; `None` is the nil array.
    Array(Option<Vec<Reply>>),
}

impl Reply {
    /// The reply in a few words, payloads shortened.
    pub fn brief(&self) -> String {
        match self {
            Reply::Status(s) => format!("+{s}"),
            Reply::Error(s) => format!("-{s}"),
            Reply::Int(n) => format!(":{n}"),
            Reply::Bulk(None) => "nil".into(),
            Reply::Bulk(Some(b)) => {
                let head = b.get(..b.len().min(48)).unwrap_or_default();
                format!("bulk of {} bytes \"{}\"", b.len(), head.escape_ascii())
            }
            Reply::Array(None) => "nil array".into(),
            Reply::Array(Some(a)) => {
                let parts: Vec<String> = a.iter().take(4).map(Reply::brief).collect();
                format!("array of {} [{}]", a.len(), parts.join(", "))
            }
        }
    }
}

/// Appends one command to `out`.
pub fn encode<A: AsRef<[u8]>>(out: &mut Vec<u8>, args: &[A]) {
    out.extend_from_slice(format!("*{}\r\n", args.len()).as_bytes());
    for arg in args {
        let arg = arg.as_ref();
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

/// Makes the next reads small and late, so that the server's writes fill the socket.
#[derive(Clone, Copy, Debug)]
struct Pace {
    reads_left: u32,
    chunk_bytes: usize,
    pause: Duration,
}

/// A client connection.
pub struct Conn {
    stream: TcpStream,
    buf: Vec<u8>,
    at: usize,
    pace: Option<Pace>,
}

impl Conn {
    /// Connects to a server on this machine.
    ///
    /// # Errors
    /// When nothing listens there or an option is refused.
    pub fn open(port: u16) -> io::Result<Conn> {
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let stream = TcpStream::connect_timeout(&addr, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Conn { stream, buf: Vec::new(), at: 0, pace: None })
    }

    /// The socket, for options and for closing it from another thread.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads the next `reads` pieces of at most `chunk_bytes`, each after a pause.
    pub fn read_slowly(&mut self, reads: u32, chunk_bytes: usize, pause: Duration) {
        self.pace = Some(Pace { reads_left: reads, chunk_bytes: chunk_bytes.max(1), pause });
    }

    /// Sends encoded bytes in one go.
    ///
    /// # Errors
    /// As write(2), or a timeout after [`PATIENCE`].
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends encoded bytes cut at the given offsets (ascending), with a pause at each cut.
    ///
    /// # Errors
    /// As [`Conn::send`].
    pub fn send_split(&mut self, bytes: &[u8], cuts: &[usize], pause: Duration) -> io::Result<()> {
        let mut from = 0;
        for &cut in cuts.iter().filter(|&&c| c < bytes.len()) {
            if cut > from {
                self.stream.write_all(&bytes[from..cut])?;
                std::thread::sleep(pause);
                from = cut;
            }
        }
        self.stream.write_all(&bytes[from..])
    }

    /// One command and its reply.
    ///
    /// # Errors
    /// When the connection breaks, or the reply is not RESP. An error reply is a value.
    pub fn call<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<Reply, Failure> {
        let mut out = Vec::new();
        encode(&mut out, args);
        self.send(&out)?;
        self.reply()
    }

    /// One command whose reply must be a bulk string or a status, as text.
    ///
    /// # Errors
    /// As [`Conn::call`], and for any other kind of reply.
    pub fn text<A: AsRef<[u8]>>(&mut self, args: &[A]) -> Result<String, Failure> {
        match self.call(args)? {
            Reply::Bulk(Some(b)) => Ok(String::from_utf8_lossy(&b).into_owned()),
            Reply::Status(s) => Ok(s),
            other => Err(Failure(format!(
                "{}: unexpected reply {}",
                String::from_utf8_lossy(args.first().map_or(&[][..], AsRef::as_ref)),
                other.brief()
            ))),
        }
    }

    /// One field of an INFO section, empty when it is not there.
    ///
    /// # Errors
    /// As [`Conn::text`].
    pub fn info(&mut self, section: &str, field: &str) -> Result<String, Failure> {
        let all = self.text(&["INFO", section])?;
        let found = all.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
        Ok(found.unwrap_or_default().trim().to_owned())
    }

    /// The next reply.
    ///
    /// # Errors
    /// When the connection breaks or stalls, or the bytes are not RESP.
    pub fn reply(&mut self) -> Result<Reply, Failure> {
        let line = self.line()?;
        let (kind, rest) = line.split_at_checked(1).unwrap_or_default();
        let number = || rest.parse::<i64>().map_err(|_| not_resp(&line));
        Ok(match kind {
            "+" => Reply::Status(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Int(number()?),
            "$" => match usize::try_from(number()?) {
                Ok(len) => Reply::Bulk(Some(self.payload(len)?)),
                Err(_) => Reply::Bulk(None),
            },
            "*" => match usize::try_from(number()?) {
                Ok(len) if len <= 1 << 20 => {
                    let mut items = Vec::with_capacity(len);
                    for _ in 0..len {
                        items.push(self.reply()?);
                    }
                    Reply::Array(Some(items))
                }
                Ok(_) => return Err(not_resp(&line)),
                Err(_) => Reply::Array(None),
            },
            _ => return Err(not_resp(&line)),
        })
    }

    /// All bytes until the server closes the connection.
    ///
    /// # Errors
    /// As read(2); a reset counts as the end.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut all = self.buf.split_off(self.at);
        self.buf.clear();
        self.at = 0;
        match self.stream.read_to_end(&mut all) {
            Ok(_) => Ok(all),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(all),
            Err(e) => Err(e),
        }
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut searched = self.at;
        loop {
            if let Some(n) = self.buf[searched..].iter().position(|&b| b == b'\n') {
                let end = searched + n;
                let text = self.buf[self.at..end].strip_suffix(b"\r").map(<[u8]>::to_vec);
                let text = text.ok_or_else(|| Failure("not RESP: a line without CR".into()))?;
                self.at = end + 1;
                return String::from_utf8(text).map_err(|e| not_resp(&String::from_utf8_lossy(e.as_bytes())));
            }
            if self.buf.len() - self.at > 1 << 20 {
                return Err(Failure("not RESP: no end of line in 1 MiB".into()));
            }
            searched = self.buf.len();
            let dropped = self.at;
            self.fill()?;
            searched -= dropped;
        }
    }

    /// Reads more bytes behind the unread ones, which move to the front.
    fn fill(&mut self) -> io::Result<()> {
        self.buf.drain(..self.at);
        self.at = 0;
        let old = self.buf.len();
        let want = self.chunk(64 << 10);
        self.buf.resize(old + want, 0);
        let got = self.stream.read(&mut self.buf[old..]);
        self.buf.truncate(old + *got.as_ref().unwrap_or(&0));
        match got {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn payload(&mut self, len: usize) -> Result<Vec<u8>, Failure> {
        if len > 1 << 30 {
            return Err(Failure(format!("not RESP: a bulk of {len} bytes")));
        }
        let mut body = vec![0u8; len + 2];
        let have = (self.buf.len() - self.at).min(body.len());
        body[..have].copy_from_slice(&self.buf[self.at..self.at + have]);
        self.at += have;
        let mut filled = have;
        while filled < body.len() {
            let want = self.chunk(body.len() - filled);
            match self.stream.read(&mut body[filled..filled + want])? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                n => filled += n,
            }
        }
        match body.strip_suffix(b"\r\n") {
            Some(_) => {
                body.truncate(len);
                Ok(body)
            }
            None => {
                Err(Failure(format!("not RESP: a bulk of {len} bytes ends with \"{}\"", body[len..].escape_ascii())))
            }
        }
    }

    fn chunk(&mut self, want: usize) -> usize {
        let Some(pace) = &mut self.pace else {
            return want;
        };
        std::thread::sleep(pace.pause);
        let chunk = pace.chunk_bytes.min(want);
        pace.reads_left = pace.reads_left.saturating_sub(1);
        if pace.reads_left == 0 {
            self.pace = None;
        }
        chunk
    }
}

fn not_resp(line: &str) -> Failure {
    let head: String = line.chars().take(80).collect();
    Failure(format!("not RESP: \"{}\"", head.escape_debug()))
}
