//! The environment that a program is started with.
//!
//! Kept as the raw `NAME=value` strings that this process got, so that entries which no library would
//! parse reach the program just the same.
//!
//! Unsafe code here reads the C `environ` once, in a process that has one thread and has not changed it,
//! and calls `execve` with arrays that outlive the call.

use std::ffi::{CStr, CString, OsStr, OsString, c_char};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::ptr;

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// An environment to exec with.
#[derive(Clone, Debug)]
pub struct Environment {
    entries: Vec<CString>,
}

impl Environment {
    /// This process's own environment, entry by entry.
    pub fn inherited() -> Environment {
        let mut entries = Vec::new();
        // SAFETY: `environ` is null or a null-terminated array of C strings; this command has one thread
        // here and never calls setenv, so nothing changes it while it is walked.
        unsafe {
            let mut at = environ;
            while !at.is_null() && !(*at).is_null() {
                entries.push(CStr::from_ptr(*at).to_owned());
                at = at.add(1);
            }
        }
        Environment { entries }
    }

    /// Value of `name`, as `getenv` would find it.
    pub fn get(&self, name: &str) -> Option<OsString> {
        self.entries.iter().find_map(|e| value_of(e, name)).map(|v| OsString::from_vec(v.to_vec()))
    }

    /// Sets `name` in place of every entry of that name. A value with a NUL in it cannot be set.
    ///
    /// # Errors
    /// `InvalidInput` for such a value.
    pub fn set(&mut self, name: &str, value: &OsStr) -> io::Result<()> {
        let mut text = Vec::with_capacity(name.len() + 1 + value.len());
        text.extend_from_slice(name.as_bytes());
        text.push(b'=');
        text.extend_from_slice(value.as_bytes());
        let text = CString::new(text).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        self.remove(name);
        self.entries.push(text);
        Ok(())
    }

    /// Removes every entry of that name.
    pub fn remove(&mut self, name: &str) {
        self.entries.retain(|e| value_of(e, name).is_none());
    }

    /// Replaces this process by `path`; returns only with the reason why not.
    pub fn exec(&self, path: &Path, argv: &[CString]) -> io::Error {
        let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
            return io::Error::from_raw_os_error(libc::ENOENT);
        };
        let argv = pointers(argv);
        let envp = pointers(&self.entries);
        // SAFETY: `path` is a C string; both arrays end with null and point to C strings that live in
        // `argv`'s and `self`'s owners until the call returns.
        unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
        io::Error::last_os_error()
    }
}

fn value_of<'a>(entry: &'a CString, name: &str) -> Option<&'a [u8]> {
    entry.as_bytes().strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(entries: &[&str]) -> Environment {
        let entries = entries.iter().map(|e| CString::new(*e).expect("no NUL")).collect();
        Environment { entries }
    }

    #[test]
    fn set_replaces_every_entry_and_keeps_odd_ones() {
        let mut e = environment(&["A=1", "odd", "AB=2", "A=3", "=x"]);
        assert_eq!(e.get("A"), Some("1".into()));
        assert_eq!(e.get("odd"), None);
        e.set("A", OsStr::new("4")).expect("set");
        let all: Vec<_> = e.entries.iter().map(|e| e.to_str().expect("text")).collect();
        assert_eq!(all, ["odd", "AB=2", "=x", "A=4"]);
        assert!(e.set("A", OsStr::new("nul\0")).is_err());
        assert_eq!(e.get("A"), Some("4".into()));
    }
}
