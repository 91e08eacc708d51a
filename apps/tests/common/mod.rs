//! What the tests of the `zio` command share.
//!
//! Where a test needs a library to preload, a trivial one is compiled: these tests are about the command.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

pub const ZIO: &str = env!("CARGO_BIN_EXE_zio");

/// A directory that is removed when the test ends.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("zio-cli-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a temporary directory");
        Scratch(path)
    }

    pub fn file(&self, name: &str, content: &str, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        path
    }

    /// Compiles a C program; `None` where there is no compiler or it lacks what `flags` needs.
    pub fn compile(&self, name: &str, source: &str, flags: &[&str]) -> Option<PathBuf> {
        let source = self.file(&format!("{name}.c"), source, 0o644);
        let out = self.0.join(name);
        let done = Command::new("cc").args(["-o"]).arg(&out).arg(source).args(flags).output().ok()?;
        done.status.success().then_some(out)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A library that does nothing, made once for all tests.
pub fn trivial_library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("lib-{}", std::process::id()));
        let path = dir.join("libzio.so");
        fs::create_dir_all(&dir).expect("mkdir");
        let mut cc = Command::new("cc")
            .args(["-shared", "-fPIC", "-x", "c", "-", "-o"])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .expect("a C compiler is needed: apt-get install gcc");
        cc.stdin.take().expect("piped").write_all(b"int zio_trivial;\n").expect("write");
        assert!(cc.wait().expect("cc").success());
        path
    })
}

/// `zio` with a library to preload and nothing of zio's in the environment.
pub fn zio() -> Command {
    let mut zio = Command::new(ZIO);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ZIO_") {
            zio.env_remove(name);
        }
    }
    zio.env_remove("LD_PRELOAD").env("ZIO_LIB", trivial_library());
    zio
}

/// Exit code (-1 for a signal), standard output and standard error.
pub fn output(command: &mut Command) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    loop {
        let Output { status, stdout, stderr } = command.output().expect("zio starts");
        let stderr = text(stderr);
        // Another test's child, between fork and exec, may still have a file open that was just written.
        if !stderr.contains("Text file busy") {
            return (status.code().unwrap_or(-1), text(stdout), stderr);
        }
    }
}
