//! Compares replies with what was expected, and says as much as can be said about a wrong one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;

use super::content::fill;
use super::model::{Bytes, Space, Value};
use super::resp::Reply;

/// What a reply must be.
#[derive(Clone, Debug)]
pub enum Expect {
    /// A status line.
    Status(&'static str),
    /// A number.
    Int(i64),
    /// The nil bulk string.
    Nil,
    /// `data[range]`, read from `key`.
    Bulk { key: String, data: Bytes, range: Range<usize> },
    /// These, in order.
    Array(Vec<Expect>),
    /// A hash's fields and values, in any order.
    Fields { key: String, fields: BTreeMap<String, Bytes> },
    /// Exactly this error line.
    Error(String),
    /// Text with this in it (INFO and the like).
    Contains(&'static str),
}

impl Expect {
    /// The whole of `data`, or nil.
    pub fn whole(key: &str, data: Option<Bytes>) -> Expect {
        match data {
            Some(data) => {
                let range = 0..data.len();
                Expect::Bulk { key: key.to_owned(), data, range }
            }
            None => Expect::Nil,
        }
    }
}

/// A correction of the model that a reply under eviction asks for.
#[derive(Clone, Debug)]
pub struct Fix {
    /// Which key.
    pub key: String,
    /// What it holds, as it turned out.
    pub value: Option<Value>,
}

/// A command in flight.
#[derive(Debug)]
pub struct Pending {
    /// The command in words.
    pub text: String,
    /// What it must answer.
    pub expect: Expect,
    /// What it may answer when a key has been evicted, and what that means.
    pub evicted: Option<(Expect, Vec<Fix>)>,
}

/// A reply that differs from what was expected.
#[derive(Debug)]
pub struct Mismatch {
    what: String,
    bytes: Option<(String, Vec<u8>, Vec<u8>)>,
}

/// What a check found.
#[derive(Default, Debug)]
pub struct Checked {
    /// Payload bytes compared and found equal.
    pub bytes: u64,
    /// Corrections of the model (eviction only).
    pub fixes: Vec<Fix>,
}

/// Compares a reply with the command's expectation.
///
/// # Errors
/// When it is neither what was expected nor what eviction can explain.
pub fn check(pending: &Pending, reply: &Reply, evicting: bool) -> Result<Checked, Mismatch> {
    let mut checked = Checked::default();
    let first = compare(&pending.expect, reply, evicting, &mut checked);
    match (first, &pending.evicted) {
        (Ok(()), _) => Ok(checked),
        (Err(wrong), Some((other, fixes))) if evicting => {
            let mut checked = Checked::default();
            compare(other, reply, evicting, &mut checked).map_err(|_| wrong)?;
            checked.fixes.extend(fixes.iter().cloned());
            Ok(checked)
        }
        (Err(wrong), _) => Err(wrong),
    }
}

fn compare(want: &Expect, reply: &Reply, evicting: bool, out: &mut Checked) -> Result<(), Mismatch> {
    let other = |want: String| Mismatch { what: format!("want {want}, got {}", reply.brief()), bytes: None };
    match (want, reply) {
        (Expect::Status(s), Reply::Status(r)) if r == s => Ok(()),
        (Expect::Int(n), Reply::Int(r)) if r == n => Ok(()),
        (Expect::Nil, Reply::Bulk(None)) => Ok(()),
        (Expect::Error(e), Reply::Error(r)) if r == e => Ok(()),
        (Expect::Contains(part), Reply::Bulk(Some(b))) if b.windows(part.len()).any(|w| w == part.as_bytes()) => Ok(()),
        (Expect::Bulk { key, data, range }, Reply::Bulk(Some(got))) => {
            let want = &data[range.clone()];
            if got == want {
                out.bytes += got.len() as u64;
                return Ok(());
            }
            if evicting && got.is_empty() {
                out.fixes.push(Fix { key: key.clone(), value: None });
                return Ok(());
            }
            let what = format!("wrong bytes of {key} [{}..{}]", range.start, range.end);
            Err(Mismatch { what, bytes: Some((key.clone(), want.to_vec(), got.clone())) })
        }
        (Expect::Bulk { key, .. }, Reply::Bulk(None)) if evicting => {
            out.fixes.push(Fix { key: key.clone(), value: None });
            Ok(())
        }
        (Expect::Bulk { key, range, .. }, _) => Err(other(format!("{} bytes of {key}", range.len()))),
        (Expect::Array(want), Reply::Array(Some(got))) if want.len() == got.len() => {
            want.iter().zip(got).try_for_each(|(w, g)| compare(w, g, evicting, out))
        }
        (Expect::Array(want), _) => Err(other(format!("an array of {}", want.len()))),
        (Expect::Fields { key, fields }, Reply::Array(Some(got))) => compare_fields(key, fields, got, out)
            .unwrap_or_else(|| Err(other(format!("the {} fields of {key}", fields.len())))),
        _ => Err(other(format!("{want:?}"))),
    }
}

/// `None` when the reply does not have the shape of these fields.
fn compare_fields(
    key: &str,
    fields: &BTreeMap<String, Bytes>,
    got: &[Reply],
    out: &mut Checked,
) -> Option<Result<(), Mismatch>> {
    if got.len() != 2 * fields.len() {
        return None;
    }
    let mut seen = std::collections::BTreeSet::new();
    for pair in got.chunks_exact(2) {
        let [Reply::Bulk(Some(name)), Reply::Bulk(Some(value))] = pair else {
            return None;
        };
        let name = std::str::from_utf8(name).ok()?;
        let want = fields.get(name)?;
        if !seen.insert(name) {
            return None;
        }
        if value != &**want {
            let what = format!("wrong bytes of field {name} of {key}");
            return Some(Err(Mismatch { what, bytes: Some((key.to_owned(), want.to_vec(), value.clone())) }));
        }
        out.bytes += value.len() as u64;
    }
    Some(Ok(()))
}

impl Mismatch {
    /// The whole story: the command, the bytes around the first difference, where the wrong bytes come
    /// from, and the key's history.
    pub fn explain(&self, command: &str, space: &Space) -> String {
        let mut text = format!("mismatch (seed {}, space {}): {}\n", space.seed, space.id, self.what);
        let _ = writeln!(text, "  command: {command}");
        let Some((key, want, got)) = &self.bytes else {
            // Name the history of each key that the command mentions.
            for word in command.split_whitespace().filter(|w| w.contains(':')) {
                history(&mut text, word, space);
            }
            return text;
        };
        let at = want.iter().zip(got).position(|(a, b)| a != b).unwrap_or(want.len().min(got.len()));
        let wrong = want.iter().zip(got).filter(|(a, b)| a != b).count();
        let _ = writeln!(
            text,
            "  key {key}: {} bytes expected, {} got; first difference at offset {at} ({at:#x}, \
             {} of a 4 KiB page from the value's start), {wrong} bytes differ",
            want.len(),
            got.len(),
            at % 4096
        );
        let from = at.saturating_sub(8);
        let part = |b: &[u8]| {
            let end = (from + 32).min(b.len());
            let hex: Vec<String> = b.get(from..end).unwrap_or_default().iter().map(|x| format!("{x:02x}")).collect();
            hex.join(" ")
        };
        let _ = writeln!(text, "  expected at {from}: {}", part(want));
        let _ = writeln!(text, "  got at {from}:      {}", part(got));
        let again =
            (at..want.len().min(got.len())).find(|&i| want[i..].iter().zip(&got[i..]).take(16).all(|(a, b)| a == b));
        let _ = match again {
            Some(i) => writeln!(text, "  the bytes agree again from offset {i} ({} wrong in a row)", i - at),
            None => writeln!(text, "  the bytes do not agree again"),
        };
        let _ = writeln!(text, "  the wrong bytes: {}", origin(want, got, at, space));
        history(&mut text, key, space);
        text
    }
}

fn history(text: &mut String, key: &str, space: &Space) {
    let lines = space.history(key);
    if !lines.is_empty() {
        let _ = writeln!(text, "  history of {key}, newest last:");
        for line in lines {
            let _ = writeln!(text, "    {line}");
        }
    }
}

/// Where wrong bytes may come from.
fn origin(want: &[u8], got: &[u8], at: usize, space: &Space) -> String {
    let rest = &got[at.min(got.len())..];
    if rest.is_empty() {
        return "the reply ends there".into();
    }
    let zeros = rest.iter().take_while(|&&b| b == 0).count();
    if zeros >= 8.min(rest.len()) {
        return format!("{zeros} zeros");
    }
    let needle = &rest[..rest.len().min(16)];
    if needle.len() < 8 {
        return "too few to search for".into();
    }
    if let Some(i) = find(want, needle) {
        return format!("the same value's bytes from offset {i}: shifted by {}", i as i64 - at as i64);
    }
    for w in space.written().rev() {
        let old = fill(space.seed, space.id, w.version, w.kind, w.len);
        if let Some(i) = find(&old, needle) {
            return format!(
                "offset {i} of version {} ({} bytes, {:?}, written for {})",
                w.version, w.len, w.kind, w.key
            );
        }
    }
    for (key, value) in space.all() {
        if let Value::Str(b) = value
            && let Some(i) = find(b, needle)
        {
            return format!("offset {i} of what {key} holds now");
        }
    }
    format!("not found among this space's content: \"{}\"", needle.escape_ascii())
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(n) = hay.get(from..)?.iter().position(|&b| b == first) {
        let at = from + n;
        if hay[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::content::{Kind, Sizes};
    use crate::redis::model::Shape;

    fn space() -> Space {
        let sizes = Sizes { middle: 280, large: 6 };
        Space::new(0, 9, Shape { keys: 4, budget_bytes: 1 << 20, sizes, evicting: false, longest_batch: 1 })
    }

    fn story(spoil: impl Fn(&mut Vec<u8>, &[u8])) -> String {
        let mut space = space();
        let (old, _) = space.fresh_sized("s:0:1", 50_000, Kind::Random);
        let (new, _) = space.fresh_sized("s:0:1", 50_000, Kind::Random);
        let mut got = new.to_vec();
        spoil(&mut got, &old);
        let pending = Pending { text: "GET s:0:1".into(), expect: Expect::whole("s:0:1", Some(new)), evicted: None };
        let wrong = check(&pending, &Reply::Bulk(Some(got)), false).expect_err("spoilt");
        wrong.explain(&pending.text, &space)
    }

    #[test]
    fn wrong_bytes_are_traced_to_their_origin() {
        let stale = story(|got, old| got[8192..12288].copy_from_slice(&old[8192..12288]));
        assert!(stale.contains("offset 8192 of version 1"), "{stale}");
        assert!(stale.contains("from offset 12288"), "{stale}");
        let zeros = story(|got, _| got[4096..8192].fill(0));
        assert!(zeros.contains("4096 zeros"), "{zeros}");
        let shifted = story(|got, _| got.copy_within(29..40_000, 0));
        assert!(shifted.contains("shifted by 29"), "{shifted}");
    }

    #[test]
    fn eviction_explains_nil_but_no_wrong_byte() {
        let pending =
            |evicted| Pending { text: "GET k".into(), expect: Expect::whole("k", Some(vec![7; 100].into())), evicted };
        let gone = check(&pending(None), &Reply::Bulk(None), true).expect("may be gone");
        assert_eq!(gone.fixes.len(), 1);
        assert!(check(&pending(None), &Reply::Bulk(None), false).is_err());
        assert!(check(&pending(None), &Reply::Bulk(Some(vec![7; 99])), true).is_err());
    }
}
