//! Sizes on the command line.

/// Largest size that is accepted, bytes: above it a benchmark would only measure its own allocation.
const LARGEST: usize = 1 << 30;

/// Parses a size as the other subcommands do, and keeps it between 1 byte and 1 GiB.
///
/// # Errors
/// Says what is accepted.
pub fn parse_size(text: &str) -> Result<usize, String> {
    let bytes = crate::size::parse_size(text)?;
    match usize::try_from(bytes) {
        Ok(n) if (1..=LARGEST).contains(&n) => Ok(n),
        _ => Err("accepted: 1 byte to 1024M".into()),
    }
}

/// A size in the unit that divides it: `512 KiB`.
pub fn show_size(bytes: usize) -> String {
    match bytes {
        b if b >= 1 << 20 && b.is_multiple_of(1 << 20) => format!("{} MiB", b >> 20),
        b if b >= 1 << 10 && b.is_multiple_of(1 << 10) => format!("{} KiB", b >> 10),
        b => format!("{b} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("16K"), Ok(16384));
        assert_eq!(parse_size("16KiB"), Ok(16384));
        assert_eq!(parse_size("1M"), Ok(1 << 20));
        for bad in ["", "K", "0", "16X", "2000M"] {
            let e = parse_size(bad).unwrap_err();
            assert!(e.contains("accepted"), "{bad}: {e}");
        }
        assert_eq!(show_size(512 << 10), "512 KiB");
        assert_eq!(show_size(1 << 20), "1 MiB");
        assert_eq!(show_size(1000), "1000 B");
    }
}
