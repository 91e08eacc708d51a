//! Plans commands: picks one by weight, updates the model, and says what the server must answer.

use std::collections::HashSet;
use std::sync::Arc;

use super::check::{Expect, Fix, Pending};
use super::content::LARGEST;
use super::errors::ErrorTexts;
use super::model::{Space, Value};
use super::resp::encode;

mod more;

/// Channel of the published messages.
pub const CHANNEL: &str = "zio-channel";

/// Most request or expected reply bytes in one batch.
const BATCH_BYTES: usize = 8 << 20;

/// Commands that go out in one write, and what they must answer.
#[derive(Default)]
pub struct Batch {
    /// Encoded requests.
    pub out: Vec<u8>,
    /// One entry per request, in order.
    pub pending: Vec<Pending>,
    /// Bytes of messages to be published.
    pub published_bytes: usize,
    /// Number of messages to be published.
    pub published: u64,
    reply_bytes: usize,
}

struct Planner<'a> {
    space: &'a mut Space,
    batch: Batch,
    texts: &'a ErrorTexts,
    /// Keys that this command (or, under eviction, this batch) has used.
    used: HashSet<String>,
}

/// Plans up to `most` commands.
pub fn plan(space: &mut Space, texts: &ErrorTexts, most: usize) -> Batch {
    let longest = space.shape.longest_batch.max(1);
    let wanted = match space.rng.below(10) {
        0..5 => 1,
        5..9 => 1 + space.rng.below(8),
        _ => 1 + space.rng.below(24),
    };
    let wanted = wanted.min(longest).min(most).max(1);
    let mut p = Planner { space, batch: Batch::default(), texts, used: HashSet::new() };
    let mut tries = 0;
    while p.batch.pending.len() < wanted && tries < 2 * wanted + 8 {
        tries += 1;
        // A reply that says a key was evicted corrects the model too late for a second command on that
        // key in the same batch, so there a key is used once.
        if !p.space.shape.evicting {
            p.used.clear();
        }
        p.one();
        if p.batch.out.len() + p.batch.reply_bytes > BATCH_BYTES {
            break;
        }
    }
    p.batch
}

/// The bytes of GETRANGE with non-negative, inclusive bounds.
fn range(len: usize, from: usize, to: usize) -> std::ops::Range<usize> {
    let end = (to + 1).min(len);
    if from >= end { 0..0 } else { from..end }
}

impl Planner<'_> {
    /// Plans one command (or a DEL and one command); plans nothing when no key is free.
    fn one(&mut self) {
        let full = self.space.is_full();
        let draw = self.space.rng.below(1000);
        let _: Option<()> = match draw {
            0..300 if full => self.getdel(),
            0..220 => self.set(),
            220..470 => self.get(),
            470..530 => self.append(),
            530..590 => self.setrange(),
            590..650 => self.getrange(),
            650..680 => self.strlen(),
            680..705 => self.getdel(),
            705..740 => self.rename(),
            740..770 => self.copy(),
            770..810 => self.mget(),
            810..840 => self.mset(),
            840..865 => self.eval(),
            865..895 => self.lpush(),
            895..930 => self.lrange(),
            930..955 => self.hset(),
            955..975 => self.hgetall(),
            975..986 => self.error(),
            986..996 => self.publish(),
            _ => self.report(),
        };
    }

    fn key(&mut self, class: char) -> Option<String> {
        let n = match class {
            's' => self.space.shape.keys,
            _ => (self.space.shape.keys / 10).max(1),
        };
        (0..8).find_map(|_| {
            let key = format!("{class}:{}:{}", self.space.id, self.space.rng.below(n));
            self.used.insert(key.clone()).then_some(key)
        })
    }

    fn send(&mut self, args: &[&[u8]], text: String, keys: &[&str], expect: Expect) {
        self.send_or(args, text, keys, expect, None);
    }

    fn send_or(
        &mut self,
        args: &[&[u8]],
        text: String,
        keys: &[&str],
        expect: Expect,
        evicted: Option<(Expect, Vec<Fix>)>,
    ) {
        self.space.planned += 1;
        let text = format!("#{} {text}", self.space.planned);
        for key in keys {
            self.space.note(key, text.clone());
        }
        encode(&mut self.batch.out, args);
        self.batch.reply_bytes += expect_bytes(&expect);
        self.batch.pending.push(Pending { text, expect, evicted });
    }

    fn set(&mut self) -> Option<()> {
        let key = self.key('s')?;
        let (data, version) = self.space.fresh(&key, LARGEST);
        self.space.put(&key, Some(Value::Str(data.clone())));
        let text = format!("SET {key} (version {version}, {} bytes)", data.len());
        self.send(&[b"SET", key.as_bytes(), &data], text, &[&key], Expect::Status("OK"));
        Some(())
    }

    fn get(&mut self) -> Option<()> {
        let key = self.key('s')?;
        let data = self.space.string(&key);
        let expect = Expect::whole(&key, data);
        self.send(&[b"GET", key.as_bytes()], format!("GET {key}"), &[&key], expect);
        Some(())
    }

    fn append(&mut self) -> Option<()> {
        let key = self.key('s')?;
        let old = self.space.string(&key);
        let len = old.as_ref().map_or(0, |b| b.len());
        if len >= LARGEST || self.space.is_full() {
            return self.getdel();
        }
        let (piece, version) = self.space.fresh(&key, LARGEST - len);
        let mut whole = old.clone().unwrap_or_default();
        Arc::make_mut(&mut whole).extend_from_slice(&piece);
        self.space.put(&key, Some(Value::Str(whole)));
        let text = format!("APPEND {key} (version {version}, {} bytes at {len})", piece.len());
        let alone = Fix { key: key.clone(), value: Some(Value::Str(piece.clone())) };
        self.send_or(
            &[b"APPEND", key.as_bytes(), &piece],
            text,
            &[&key],
            Expect::Int((len + piece.len()) as i64),
            old.map(|_| (Expect::Int(piece.len() as i64), vec![alone])),
        );
        Some(())
    }

    fn setrange(&mut self) -> Option<()> {
        let key = self.key('s')?;
        let old = self.space.string(&key);
        let len = old.as_ref().map_or(0, |b| b.len());
        // Under eviction only strictly inside: else the reply would not tell whether the key was there.
        let evicting = self.space.shape.evicting;
        if evicting && len < 2 {
            return None;
        }
        let beyond = if evicting { 0 } else { 20 << 10 };
        let offset = self.space.rng.below(len.saturating_sub(1) + beyond).min(LARGEST - 1);
        let most = if evicting { len - 1 - offset } else { LARGEST - offset };
        let (piece, version) = self.space.fresh(&key, most.max(1));
        let end = offset + piece.len();
        let mut whole = old.unwrap_or_default();
        let bytes = Arc::make_mut(&mut whole);
        bytes.resize(len.max(end), 0);
        bytes[offset..end].copy_from_slice(&piece);
        let expect = Expect::Int(whole.len() as i64);
        self.space.put(&key, Some(Value::Str(whole)));
        let mut alone = vec![0; offset];
        alone.extend_from_slice(&piece);
        let alone = Fix { key: key.clone(), value: Some(Value::Str(Arc::new(alone))) };
        let text = format!("SETRANGE {key} {offset} (version {version}, {} bytes)", piece.len());
        self.send_or(
            &[b"SETRANGE", key.as_bytes(), offset.to_string().as_bytes(), &piece],
            text,
            &[&key],
            expect,
            Some((Expect::Int(end as i64), vec![alone])),
        );
        Some(())
    }

    fn getrange(&mut self) -> Option<()> {
        let key = self.key('s')?;
        let data = self.space.string(&key).unwrap_or_default();
        let len = data.len();
        let (from, to, range) = if len > 0 && self.space.rng.one_in(4) {
            let back = 1 + self.space.rng.below(len);
            (-(back as i64), -1, len - back..len)
        } else {
            let from = self.space.rng.below(len + 1);
            let to = from + self.space.shape.sizes.pick(&mut self.space.rng).0;
            (from as i64, to as i64, range(len, from, to))
        };
        let args: [&[u8]; 4] =
            [b"GETRANGE", key.as_bytes(), &from.to_string().into_bytes(), &to.to_string().into_bytes()];
        let expect = Expect::Bulk { key: key.clone(), data, range };
        self.send(&args, format!("GETRANGE {key} {from} {to}"), &[&key], expect);
        Some(())
    }

    fn strlen(&mut self) -> Option<()> {
        let key = self.key('s')?;
        let len = self.space.string(&key).map_or(0, |b| b.len());
        let gone = (Expect::Int(0), vec![Fix { key: key.clone(), value: None }]);
        let text = format!("STRLEN {key}");
        let args: [&[u8]; 2] = [b"STRLEN", key.as_bytes()];
        self.send_or(&args, text, &[&key], Expect::Int(len as i64), Some(gone));
        Some(())
    }

    fn getdel(&mut self) -> Option<()> {
        let key = self.key('s')?;
        let data = self.space.string(&key);
        self.space.put(&key, None);
        let expect = Expect::whole(&key, data);
        self.send(&[b"GETDEL", key.as_bytes()], format!("GETDEL {key}"), &[&key], expect);
        Some(())
    }

    fn rename(&mut self) -> Option<()> {
        let (from, to) = (self.key('s')?, self.key('s')?);
        let args: [&[u8]; 3] = [b"RENAME", from.as_bytes(), to.as_bytes()];
        let text = format!("RENAME {from} {to}");
        let missing = Expect::Error(self.texts.no_such_key.clone());
        let Some(value) = self.space.put(&from, None) else {
            self.send(&args, text, &[&from, &to], missing);
            return Some(());
        };
        let old = self.space.put(&to, Some(value));
        let fix = vec![Fix { key: to.clone(), value: old }];
        self.send_or(&args, text, &[&from, &to], Expect::Status("OK"), Some((missing, fix)));
        Some(())
    }

    fn copy(&mut self) -> Option<()> {
        let (from, to) = (self.key('s')?, self.key('s')?);
        let args: [&[u8]; 4] = [b"COPY", from.as_bytes(), to.as_bytes(), b"REPLACE"];
        let text = format!("COPY {from} {to} REPLACE");
        if self.space.is_full() {
            return None;
        }
        let Some(data) = self.space.string(&from) else {
            self.send(&args, text, &[&from, &to], Expect::Int(0));
            return Some(());
        };
        let old = self.space.put(&to, Some(Value::Str(data)));
        let fixes = vec![Fix { key: from.clone(), value: None }, Fix { key: to.clone(), value: old }];
        self.send_or(&args, text, &[&from, &to], Expect::Int(1), Some((Expect::Int(0), fixes)));
        Some(())
    }
}

fn expect_bytes(expect: &Expect) -> usize {
    match expect {
        Expect::Bulk { range, .. } => range.len(),
        Expect::Array(all) => all.iter().map(expect_bytes).sum(),
        Expect::Fields { fields, .. } => fields.values().map(|b| b.len()).sum(),
        _ => 0,
    }
}
