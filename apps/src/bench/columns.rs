//! The columns that are compared, and how a server process is started in one of them.
//!
//! Unsafe code here is the child's set-up between fork and exec (async-signal-safe calls only), and calls
//! to `kill` and `sched_*affinity` with values of our own.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::Failure;

const NULLCOPY_C: &str = include_str!("../../shims/nullcopy.c");

/// Smallest copy that the null-copy column skips, bytes: zio renames from this length on.
const NULLCOPY_THRESHOLD: &str = "8192";

/// One way to run a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// As it is.
    Plain,
    /// With libzio.so preloaded.
    Zio,
    /// With large copies skipped outright: wrong data, the most that any elider can gain.
    Null,
}

/// A column: the kind and what is preloaded for it.
#[derive(Clone, Debug)]
pub struct Column {
    /// What this column is.
    pub kind: Kind,
    preload: Option<PathBuf>,
}

impl Column {
    /// Whether the data that comes back is right and gets verified.
    pub fn verified(&self) -> bool {
        self.kind != Kind::Null
    }

    /// A command for `program` in this column's environment, dying with us, on `cpu` when given.
    pub fn command(&self, program: &Path, cpu: Option<usize>) -> Command {
        let mut command = bound_command(program, cpu);
        for name in ["LD_PRELOAD", "ZIO_STATS", "ZIO_EXE", "COUNT_OUT"] {
            command.env_remove(name);
        }
        if let Some(lib) = &self.preload {
            command.env("LD_PRELOAD", lib);
        }
        if self.kind == Kind::Null && std::env::var_os("NULLCOPY_THRESHOLD").is_none() {
            command.env("NULLCOPY_THRESHOLD", NULLCOPY_THRESHOLD);
        }
        command
    }
}

/// Every column of one benchmark.
pub struct Columns {
    /// Nothing preloaded.
    pub plain: Column,
    /// libzio.so.
    pub zio: Column,
    /// The null-copy limit; absent without a C compiler.
    pub null: Option<Column>,
    _scratch: ScratchDir,
}

impl Columns {
    /// Finds libzio.so and builds the null-copy shim.
    ///
    /// # Errors
    /// When libzio.so is not found, or there is no place for temporary files. A missing C compiler only
    /// leaves the null-copy column out, with a line on standard error.
    pub fn prepare(lib: Option<&Path>) -> Result<Columns, Failure> {
        let lib = find_library(lib)?;
        let scratch = ScratchDir::create(&std::env::temp_dir())?;
        let null = match build_nullcopy(scratch.path()) {
            Ok(shim) => Some(Column { kind: Kind::Null, preload: Some(shim) }),
            Err(e) => {
                eprintln!("zio bench: no null-copy column: {e}");
                None
            }
        };
        Ok(Columns {
            plain: Column { kind: Kind::Plain, preload: None },
            zio: Column { kind: Kind::Zio, preload: Some(lib) },
            null,
            _scratch: scratch,
        })
    }
}

fn find_library(given: Option<&Path>) -> Result<PathBuf, Failure> {
    match given {
        Some(path) => path.canonicalize().map_err(|e| Failure::io(&format!("--lib {}", path.display()), e)),
        None => crate::library::find().map_err(|e| Failure::new(format!("{e}, or name the library with --lib"))),
    }
}

fn build_nullcopy(dir: &Path) -> Result<PathBuf, Failure> {
    let source = dir.join("nullcopy.c");
    let shim = dir.join("nullcopy.so");
    std::fs::write(&source, NULLCOPY_C).map_err(|e| Failure::io("writing the shim", e))?;
    let cc = std::env::var_os("CC").unwrap_or_else(|| OsString::from("cc"));
    let out = Command::new(&cc)
        .args(["-O2", "-fno-builtin", "-shared", "-fPIC", "-o"])
        .args([&shim, &source])
        .arg("-ldl")
        .env_remove("LD_PRELOAD")
        .output()
        .map_err(|e| Failure::new(format!("{}: {e} (install a C compiler)", cc.to_string_lossy())))?;
    if !out.status.success() {
        return Err(Failure::new(format!(
            "{} failed: {}",
            cc.to_string_lossy(),
            String::from_utf8_lossy(&out.stderr).trim()
        )));
    }
    Ok(shim)
}

/// The processors that servers and clients are pinned to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinning {
    /// The server's.
    pub server: Option<usize>,
    /// The load generator's.
    pub client: Option<usize>,
}

impl Pinning {
    /// The first two processors that we may run on; none when there is only one, or when not wanted.
    pub fn choose(wanted: bool) -> Pinning {
        let cpus = if wanted { allowed_cpus() } else { Vec::new() };
        match cpus[..] {
            [server, client, ..] => Pinning { server: Some(server), client: Some(client) },
            _ => Pinning { server: None, client: None },
        }
    }
}

fn allowed_cpus() -> Vec<usize> {
    // SAFETY: cpu_set_t is plain data, for which all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the passed size into `set`, which is that large.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } != 0 {
        return Vec::new();
    }
    (0..libc::CPU_SETSIZE as usize)
        // SAFETY: `cpu` is below CPU_SETSIZE, so the bit lies inside `set`.
        .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) })
        .collect()
}

/// Pins the calling thread to one processor; without one, or when refused, it stays where it is.
pub fn pin_this_thread(cpu: Option<usize>) {
    let Some(cpu) = cpu else { return };
    // SAFETY: cpu_set_t is plain data, for which all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` came from `allowed_cpus`, so it is below CPU_SETSIZE; the kernel only reads `set`.
    unsafe {
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

/// A command that ends when this process does, and runs on `cpu` when given.
///
/// # Context
/// Spawn from the main thread: the kernel ends the child when the *thread* that started it ends.
pub fn bound_command(program: &Path, cpu: Option<usize>) -> Command {
    let mut command = Command::new(program);
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            pin_this_thread(cpu);
            Ok(())
        });
    }
    command
}

/// A server process; killed when dropped without [`Server::stop`].
pub struct Server {
    child: Child,
    what: String,
}

impl Server {
    /// Takes over a child that was just spawned.
    pub fn new(child: Child, what: String) -> Server {
        Server { child, what }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its status if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Asks for a normal exit (SIGTERM) and waits for it.
    ///
    /// # Errors
    /// When the server does not end within ten seconds, or not with status 0.
    pub fn stop(mut self) -> Result<(), Failure> {
        // SAFETY: kill takes plain numbers; the child is not reaped yet, so the id is still its own.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        self.wait()
    }

    /// Waits for an exit that was asked for in the server's own way.
    ///
    /// # Errors
    /// As for [`Server::stop`].
    pub fn wait(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match self.ended() {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    return Err(Failure::new(format!("{} ended with {status}", self.what)));
                }
                None if Instant::now() > deadline => {
                    return Err(Failure::new(format!("{} does not end", self.what)));
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing to report to: the child has ended already, or ends now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory of our own that goes when dropped.
pub struct ScratchDir(PathBuf);

impl ScratchDir {
    /// Makes a new directory inside `parent`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(parent: &Path) -> Result<ScratchDir, Failure> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("zio-bench-{}-{n}", std::process::id()));
        std::fs::create_dir(&path).map_err(|e| Failure::io(&format!("creating {}", path.display()), e))?;
        Ok(ScratchDir(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        // A leftover in the temporary directory is not worth failing a measurement.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_names_the_flag() {
        let e = find_library(Some(Path::new("/nonexistent/libzio.so"))).unwrap_err();
        let text = e.to_string();
        assert!(text.contains("/nonexistent/libzio.so") && text.contains("--lib"), "{text}");
    }

    #[test]
    fn the_null_copy_shim_keeps_the_edges_and_skips_the_middle() {
        let dir = ScratchDir::create(&std::env::temp_dir()).unwrap();
        let Ok(shim) = build_nullcopy(dir.path()) else {
            return; // no compiler on this machine: the column is left out there too
        };
        let program = dir.path().join("t.c");
        std::fs::write(
            &program,
            "#include <string.h>\n#include <stdlib.h>\nint main(void){volatile size_t n=65536;\
             char*a=malloc(n),*b=malloc(n);for(size_t i=0;i<n;i++){a[i]=1;b[i]=0;}memcpy(b,a,n);\
             if(!b[0]||!b[4095]||b[4096]||b[n-4097]||!b[n-4096]||!b[n-1])return 1;\
             for(size_t i=0;i<n;i++)a[i]=(char)i;memmove(a+24,a,n-24);\
             return a[24]!=0||a[n-1]!=(char)(n-25);}",
        )
        .unwrap();
        let exe = dir.path().join("t");
        let built = Command::new("cc").args(["-O0", "-o"]).args([&exe, &program]).status();
        assert!(built.unwrap().success());
        let status = Command::new(&exe).env("LD_PRELOAD", &shim).status().unwrap();
        assert!(status.success(), "{status}");
    }

    #[test]
    fn a_server_that_fails_is_reported() {
        let child = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let mut s = Server::new(child, "test server".into());
        let e = s.wait().unwrap_err().to_string();
        assert!(e.contains("test server") && e.contains('3'), "{e}");
    }
}
