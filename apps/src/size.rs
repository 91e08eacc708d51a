//! Sizes as people write them: `16384`, `16K`, `16KiB`, `1M`, `1MiB`.

/// Smallest threshold that makes sense, bytes: a page is the smallest thing that can be elided.
pub const MIN_THRESHOLD_BYTES: u64 = 4096;

/// What a size may look like, for error messages.
const ACCEPTED: &str = "accepted: a number of bytes (16384), or a number with K, KiB, M, MiB, G or GiB \
     (powers of 1024: 16K, 1MiB)";

/// Parses a size in bytes. Units are powers of 1024 and may be in either case.
///
/// # Errors
/// A sentence that names the accepted forms; also for a value that does not fit 64 bits. `KB` and `MB`
/// are refused rather than guessed at.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return Err(format!("not a size; {ACCEPTED}")),
    };
    if digits.is_empty() {
        return Err(format!("not a size; {ACCEPTED}"));
    }
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| format!("too large for 64 bits; {ACCEPTED}"))
}

/// Parses a `--threshold`.
///
/// # Errors
/// As [`parse_size`], and for values under [`MIN_THRESHOLD_BYTES`].
pub fn parse_threshold(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if bytes < MIN_THRESHOLD_BYTES {
        return Err("smaller than a page, and nothing smaller than a page can be elided; accepted: 4K \
             and up, as bytes (16384) or with K, KiB, M, MiB, G or GiB"
            .into());
    }
    Ok(bytes)
}

/// `bytes` for people: three digits and a binary unit, exact below 1 KiB.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for name in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = name;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_forms() {
        for (text, bytes) in [
            ("0", 0),
            ("16384", 16384),
            ("16K", 16384),
            ("16k", 16384),
            ("16KiB", 16384),
            ("1M", 1 << 20),
            ("1MiB", 1 << 20),
            ("2GiB", 2 << 30),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refused_forms_say_what_is_accepted() {
        for text in [
            "",
            "K",
            "16KB",
            "16 K",
            "-1",
            "+1",
            "1.5M",
            "0x10",
            "16KiBs",
            "١٦",
            "lots",
            "18446744073709551616",
            "17179869184G",
        ] {
            let why = parse_size(text).expect_err(text);
            assert!(why.contains("accepted") && why.contains("16K"), "{text}: {why}");
        }
    }

    #[test]
    fn threshold_has_a_floor() {
        assert_eq!(parse_threshold("4096"), Ok(4096));
        assert!(parse_threshold("4095").is_err());
        assert!(parse_threshold("0").is_err());
    }

    #[test]
    fn human_sizes() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(1023), "1023 B");
        assert_eq!(human(16384), "16.0 KiB");
        assert_eq!(human(u64::MAX), "16.0 EiB");
    }
}
