//! The few lines that the library writes to standard error, and the end of the process on an internal error.

use crate::sys;

/// Assembles pieces into one write, so that lines of several processes do not mix.
pub fn line(parts: &[&[u8]]) {
    let mut buf = Text::<512>::new();
    for p in parts {
        buf.push(p);
    }
    sys::write_all(2, buf.bytes());
}

/// Says why and aborts. Only for what cannot happen: never on a path that could copy instead.
pub fn fatal(parts: &[&[u8]]) -> ! {
    line(parts);
    // SAFETY: ends the process without running its handlers.
    unsafe {
        zio_tracker::raw::syscall6(libc::SYS_exit_group, [134, 0, 0, 0, 0, 0]);
    }
    loop {
        core::hint::spin_loop();
    }
}

/// Text in fixed storage; what does not fit is cut off.
pub struct Text<const N: usize> {
    len: usize,
    buf: [u8; N],
}

impl<const N: usize> Text<N> {
    /// Empty.
    pub const fn new() -> Self {
        Text { len: 0, buf: [0; N] }
    }
    /// Appends bytes.
    pub fn push(&mut self, s: &[u8]) {
        for &b in s {
            if let Some(slot) = self.buf.get_mut(self.len) {
                *slot = b;
                self.len += 1;
            }
        }
    }
    /// Appends a number in decimal.
    pub fn number(&mut self, n: u64) {
        let mut digits = [0u8; 20];
        let (mut n, mut i) = (n, digits.len());
        loop {
            i -= 1;
            if let Some(d) = digits.get_mut(i) {
                *d = b'0' + (n % 10) as u8;
            }
            n /= 10;
            if n == 0 || i == 0 {
                break;
            }
        }
        self.push(digits.get(i..).unwrap_or(&[]));
    }
    /// What is there.
    pub fn bytes(&self) -> &[u8] {
        self.buf.get(..self.len).unwrap_or(&[])
    }
    /// As a C string, cut to fit.
    pub fn c_str(&mut self) -> *const u8 {
        let end = self.len.min(N - 1);
        if let Some(b) = self.buf.get_mut(end) {
            *b = 0;
        }
        self.buf.as_ptr()
    }
}
