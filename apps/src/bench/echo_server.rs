//! The example server: receives a message, copies it through a chain of buffers, sends the last one.
//!
//! Run as a process of its own (`zio bench server echo`), so that a library can be preloaded into it. It
//! behaves like a C program: `recv`, `memcpy`, `send`, `malloc` and `free` are called through their
//! dynamic symbols, with lengths known at run time only, so that a preloaded library sees each call.
//!
//! The unsafe code is those calls. It is sound because every buffer comes from `malloc` with the length
//! that is passed along, belongs to one connection's thread, and is not used after its `free`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use super::size::parse_size;

/// Distance in bytes between the page offsets of neighbouring buffers: no two agree, as in real programs.
const STAGGER: usize = 24;

/// When the server allocates its buffers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Buffers {
    /// Once per connection.
    Fixed,
    /// For each message, and freed after it.
    PerMessage,
}

impl Buffers {
    /// The word on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Buffers::Fixed => "fixed",
            Buffers::PerMessage => "per-message",
        }
    }
}

/// Arguments of the server process.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct ServerArgs {
    /// Copies between receive and send
    #[arg(long, default_value_t = 0)]
    pub copies: usize,
    /// Message size
    #[arg(long, value_parser = parse_size)]
    pub size: usize,
    /// Buffer life cycle
    #[arg(long, value_enum, default_value = "fixed")]
    pub buffers: Buffers,
}

mod c {
    use std::ffi::c_void;
    unsafe extern "C" {
        pub fn memcpy(dst: *mut c_void, src: *const c_void, n: usize) -> *mut c_void;
        pub fn malloc(n: usize) -> *mut c_void;
        pub fn free(p: *mut c_void);
        pub fn recv(fd: i32, buf: *mut c_void, n: usize, flags: i32) -> isize;
        pub fn send(fd: i32, buf: *const c_void, n: usize, flags: i32) -> isize;
    }
}

/// `memcpy` as the program's dynamic symbol: never inlined, so that no pass sees two copies of a chain at
/// once and forwards the first one's source.
///
/// # Safety
/// As for C's `memcpy`.
#[inline(never)]
pub unsafe fn program_copy(dst: *mut u8, src: *const u8, len_bytes: usize) {
    // SAFETY: the caller's contract is memcpy's own.
    unsafe { c::memcpy(dst.cast(), src.cast(), std::hint::black_box(len_bytes)) };
}

/// Serves on a free port of 127.0.0.1, which it prints; ends with status 0 on SIGTERM or when its
/// standard input closes.
pub fn serve(args: ServerArgs) -> ExitCode {
    exit_on_sigterm();
    let listener = match TcpListener::bind(("127.0.0.1", 0)) {
        Ok(l) => l,
        Err(e) => {
            eprintln!("zio bench server: {e}");
            return ExitCode::FAILURE;
        }
    };
    match listener.local_addr() {
        Ok(a) => println!("{}", a.port()),
        Err(e) => {
            eprintln!("zio bench server: {e}");
            return ExitCode::FAILURE;
        }
    }
    // Nobody to tell when standard output is closed: the client then fails to read the port.
    let _ = std::io::stdout().flush();
    std::thread::spawn(|| {
        let mut byte = [0u8; 1];
        while matches!(std::io::stdin().read(&mut byte), Ok(n) if n > 0) {}
        std::process::exit(0);
    });
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || serve_connection(&stream, args));
    }
    ExitCode::SUCCESS
}

/// A thread that waits for SIGTERM and leaves through `exit`, so that exit handlers run.
fn exit_on_sigterm() {
    // SAFETY: sigset_t is plain data and is initialised by sigemptyset; the mask is changed before any
    // other thread exists, so all of them inherit it.
    let set = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    };
    std::thread::spawn(move || {
        let mut got = 0;
        // SAFETY: both pointers are to live locals.
        if unsafe { libc::sigwait(&set, &mut got) } == 0 {
            std::process::exit(0);
        }
    });
}

fn serve_connection(stream: &TcpStream, args: ServerArgs) {
    // Without it the last part of each message waits for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let fd = stream.as_raw_fd();
    let fixed = match args.buffers {
        Buffers::Fixed => Chain::allocate(args.copies + 1, args.size),
        Buffers::PerMessage => None,
    };
    loop {
        let fresh;
        let chain = match (&fixed, args.buffers) {
            (Some(chain), _) => chain,
            (None, Buffers::PerMessage) => match Chain::allocate(args.copies + 1, args.size) {
                Some(chain) => {
                    fresh = chain;
                    &fresh
                }
                None => return,
            },
            (None, Buffers::Fixed) => return,
        };
        if !(chain.receive(fd) && chain.copy_through() && chain.send(fd)) {
            return;
        }
    }
}

/// Buffers of one length, each filled from the one before it.
struct Chain {
    /// What malloc gave, for free.
    blocks: Vec<*mut u8>,
    len_bytes: usize,
}

impl Chain {
    fn allocate(count: usize, len_bytes: usize) -> Option<Chain> {
        let mut chain = Chain { blocks: Vec::with_capacity(count), len_bytes };
        for i in 0..count {
            // SAFETY: malloc takes any size; the sum is far from overflow (sizes are bounded when parsed).
            let p = unsafe { c::malloc(len_bytes + i * STAGGER) };
            if p.is_null() {
                eprintln!("zio bench server: out of memory");
                return None;
            }
            chain.blocks.push(p.cast());
        }
        Some(chain)
    }

    fn buffer(&self, i: usize) -> *mut u8 {
        // SAFETY: block i was allocated with room for the offset and `len_bytes` after it.
        unsafe { self.blocks[i].add(i * STAGGER) }
    }

    /// Whether a whole message was received.
    fn receive(&self, fd: i32) -> bool {
        let mut got = 0;
        while got < self.len_bytes {
            // SAFETY: buffer 0 has `len_bytes` bytes, and `got` is below that.
            let n = unsafe { c::recv(fd, self.buffer(0).add(got).cast(), self.len_bytes - got, 0) };
            if n <= 0 {
                return false;
            }
            got += n as usize;
        }
        true
    }

    fn copy_through(&self) -> bool {
        for i in 1..self.blocks.len() {
            // SAFETY: both buffers have `len_bytes` bytes and belong to different blocks.
            unsafe { program_copy(self.buffer(i), self.buffer(i - 1), self.len_bytes) };
        }
        true
    }

    /// Whether the whole last buffer was sent.
    fn send(&self, fd: i32) -> bool {
        let last = self.buffer(self.blocks.len() - 1);
        let mut sent = 0;
        while sent < self.len_bytes {
            let rest = self.len_bytes - sent;
            // SAFETY: the last buffer has `len_bytes` bytes, and `sent` is below that.
            let n = unsafe { c::send(fd, last.add(sent).cast(), rest, libc::MSG_NOSIGNAL) };
            if n <= 0 {
                return false;
            }
            sent += n as usize;
        }
        true
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        for &p in &self.blocks {
            // SAFETY: p came from malloc and is freed once, here.
            unsafe { c::free(p.cast()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    #[test]
    fn the_binary_imports_what_a_preload_must_see() {
        // With this, the test binary holds the same code as the command.
        std::hint::black_box(super::serve as fn(super::ServerArgs) -> _);
        let exe = std::env::current_exe().unwrap();
        let Ok(out) = Command::new("nm").args(["-D", "--undefined-only"]).arg(exe).output() else {
            eprintln!("skipped: no nm");
            return;
        };
        let text = String::from_utf8_lossy(&out.stdout);
        for name in ["memcpy", "malloc", "free", "recv", "send"] {
            assert!(
                text.lines().any(|l| {
                    let symbol = l.split_ascii_whitespace().last().unwrap_or("");
                    symbol.split('@').next() == Some(name)
                }),
                "{name} is not a dynamic import"
            );
        }
    }
}
