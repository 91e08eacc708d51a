//! Commands on several keys, lists and hashes, scripts, messages, and commands that must fail.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::{CHANNEL, Planner, range};
use crate::redis::check::{Expect, Fix};
use crate::redis::content::LARGEST;
use crate::redis::model::{Bytes, Value};

/// Reads KEYS[1], writes it with ARGV[1] behind it to KEYS[2], reads a part of that.
const SCRIPT: &str = "local v=redis.call('GET',KEYS[1]) or '' \
    redis.call('SET',KEYS[2],v..ARGV[1]) \
    return {#v,redis.call('GETRANGE',KEYS[2],ARGV[2],ARGV[3])}";

impl Planner<'_> {
    pub(super) fn mget(&mut self) -> Option<()> {
        let n = 2 + self.space.rng.below(7);
        let keys: Vec<String> = (0..n).filter_map(|_| self.key('s')).collect();
        if keys.is_empty() {
            return None;
        }
        let wants: Vec<Expect> = keys.iter().map(|k| Expect::whole(k, self.space.string(k))).collect();
        let mut args: Vec<&[u8]> = vec![b"MGET"];
        args.extend(keys.iter().map(String::as_bytes));
        let text = format!("MGET {}", keys.join(" "));
        self.send(&args, text, &[], Expect::Array(wants));
        Some(())
    }

    pub(super) fn mset(&mut self) -> Option<()> {
        let n = 2 + self.space.rng.below(3);
        let keys: Vec<String> = (0..n).filter_map(|_| self.key('s')).collect();
        if keys.is_empty() {
            return None;
        }
        let mut text = String::from("MSET");
        let mut data: Vec<Bytes> = Vec::new();
        for key in &keys {
            let (bytes, version) = self.space.fresh(key, 1 << 20);
            text += &format!(" {key} (version {version}, {} bytes)", bytes.len());
            self.space.put(key, Some(Value::Str(bytes.clone())));
            data.push(bytes);
        }
        let mut args: Vec<&[u8]> = vec![b"MSET"];
        for (key, bytes) in keys.iter().zip(&data) {
            args.extend([key.as_bytes(), bytes.as_slice()]);
        }
        let noted: Vec<&str> = keys.iter().map(String::as_str).collect();
        self.send(&args, text, &noted, Expect::Status("OK"));
        Some(())
    }

    pub(super) fn eval(&mut self) -> Option<()> {
        let (from, to) = (self.key('s')?, self.key('s')?);
        let old = self.space.string(&from);
        let len = old.as_ref().map_or(0, |b| b.len());
        if len >= LARGEST || self.space.is_full() {
            return None;
        }
        let (piece, version) = self.space.fresh(&to, LARGEST - len);
        let mut whole = old.clone().unwrap_or_default();
        Arc::make_mut(&mut whole).extend_from_slice(&piece);
        let a = self.space.rng.below(whole.len());
        let b = a + self.space.rng.below(whole.len());
        let reply = |len: usize, data: &Bytes| {
            let range = range(data.len(), a, b);
            let part = Expect::Bulk { key: to.clone(), data: data.clone(), range };
            Expect::Array(vec![Expect::Int(len as i64), part])
        };
        let fixes = vec![
            Fix { key: from.clone(), value: None },
            Fix { key: to.clone(), value: Some(Value::Str(piece.clone())) },
        ];
        let gone = old.map(|_| (reply(0, &piece), fixes));
        let expect = reply(len, &whole);
        self.space.put(&to, Some(Value::Str(whole)));
        let text =
            format!("EVAL SET {to} = GET {from} .. (version {version}, {} bytes); GETRANGE {a} {b}", piece.len());
        let (a, b) = (a.to_string(), b.to_string());
        let args: [&[u8]; 8] =
            [b"EVAL", SCRIPT.as_bytes(), b"2", from.as_bytes(), to.as_bytes(), &piece, a.as_bytes(), b.as_bytes()];
        self.send_or(&args, text, &[&from, &to], expect, gone);
        Some(())
    }

    /// Drops the key first, so that what follows does not depend on whether it was evicted.
    pub(super) fn del(&mut self, key: &str) {
        let had = self.space.put(key, None).is_some();
        let args: [&[u8]; 2] = [b"DEL", key.as_bytes()];
        let gone = Some((Expect::Int(0), vec![]));
        self.send_or(&args, format!("DEL {key}"), &[key], Expect::Int(i64::from(had)), gone);
    }

    pub(super) fn needs_del(&mut self, key: &str) -> bool {
        let len = self.space.get(key).map_or(0, Value::len_bytes);
        self.space.shape.evicting || len > LARGEST / 2 || self.space.rng.one_in(8)
    }

    pub(super) fn lpush(&mut self) -> Option<()> {
        let key = self.key('l')?;
        if self.needs_del(&key) {
            self.del(&key);
        }
        let mut list = match self.space.get(&key) {
            Some(Value::List(l)) => l.clone(),
            _ => VecDeque::new(),
        };
        let mut text = format!("LPUSH {key}");
        let mut data: Vec<Bytes> = Vec::new();
        for _ in 0..1 + self.space.rng.below(3) {
            let (bytes, version) = self.space.fresh(&key, 1 << 20);
            text += &format!(" (version {version}, {} bytes)", bytes.len());
            list.push_front(bytes.clone());
            data.push(bytes);
        }
        let expect = Expect::Int(list.len() as i64);
        self.space.put(&key, Some(Value::List(list)));
        let mut args: Vec<&[u8]> = vec![b"LPUSH", key.as_bytes()];
        args.extend(data.iter().map(|b| b.as_slice()));
        self.send(&args, text, &[&key], expect);
        Some(())
    }

    pub(super) fn lrange(&mut self) -> Option<()> {
        let key = self.key('l')?;
        let list = match self.space.get(&key) {
            Some(Value::List(l)) => l.clone(),
            _ => VecDeque::new(),
        };
        let from = if self.space.rng.one_in(2) { 0 } else { self.space.rng.below(list.len()) };
        let wants: Vec<Expect> = list.iter().skip(from).map(|b| Expect::whole(&key, Some(b.clone()))).collect();
        let gone = (Expect::Array(vec![]), vec![Fix { key: key.clone(), value: None }]);
        let start = from.to_string();
        let args: [&[u8]; 4] = [b"LRANGE", key.as_bytes(), start.as_bytes(), b"-1"];
        let text = format!("LRANGE {key} {from} -1");
        self.send_or(&args, text, &[&key], Expect::Array(wants), Some(gone));
        Some(())
    }

    pub(super) fn hset(&mut self) -> Option<()> {
        let key = self.key('h')?;
        if self.needs_del(&key) {
            self.del(&key);
        }
        let mut hash = match self.space.get(&key) {
            Some(Value::Hash(h)) => h.clone(),
            _ => BTreeMap::new(),
        };
        let mut text = format!("HSET {key}");
        let mut data: Vec<(String, Bytes)> = Vec::new();
        let mut added = 0;
        for _ in 0..1 + self.space.rng.below(3) {
            let field = format!("field{}", self.space.rng.below(6));
            let (bytes, version) = self.space.fresh(&key, 1 << 20);
            text += &format!(" {field} (version {version}, {} bytes)", bytes.len());
            added += i64::from(hash.insert(field.clone(), bytes.clone()).is_none());
            data.push((field, bytes));
        }
        self.space.put(&key, Some(Value::Hash(hash)));
        let mut args: Vec<&[u8]> = vec![b"HSET", key.as_bytes()];
        for (field, bytes) in &data {
            args.extend([field.as_bytes(), bytes.as_slice()]);
        }
        self.send(&args, text, &[&key], Expect::Int(added));
        Some(())
    }

    pub(super) fn hgetall(&mut self) -> Option<()> {
        let key = self.key('h')?;
        let fields = match self.space.get(&key) {
            Some(Value::Hash(h)) => h.clone(),
            _ => BTreeMap::new(),
        };
        let gone = (Expect::Array(vec![]), vec![Fix { key: key.clone(), value: None }]);
        let expect = Expect::Fields { key: key.clone(), fields };
        let text = format!("HGETALL {key}");
        self.send_or(&[b"HGETALL", key.as_bytes()], text, &[&key], expect, Some(gone));
        Some(())
    }

    /// A command that must fail, and change nothing.
    pub(super) fn error(&mut self) -> Option<()> {
        let key = self.key('s')?;
        let (big, _) = self.space.fresh(&key, LARGEST);
        let present = !self.space.shape.evicting && self.space.get(&key).is_some();
        let k = key.as_bytes();
        let t = self.texts;
        let (args, text): (Vec<&[u8]>, &str) = match self.space.rng.below(4) {
            0 if present => (vec![b"LPUSH", k, &big], &t.wrong_type),
            1 => (vec![b"SETRANGE", k, b"-1", &big], &t.offset),
            2 => (vec![b"SETRANGE", k, b"536870912", &big], &t.too_long),
            _ => (vec![b"SET", k, &big, b"BADOPTION"], &t.syntax),
        };
        let what = format!("(must fail) {} {key} with {} bytes", args[0].escape_ascii(), big.len());
        let expect = Expect::Error(text.to_owned());
        self.send(&args, what, &[&key], expect);
        Some(())
    }

    pub(super) fn publish(&mut self) -> Option<()> {
        let key = format!("message:{}", self.space.id);
        let (body, version) = self.space.fresh(&key, LARGEST);
        let kind = self.space.written().next_back()?.kind;
        let mut message = format!("{} {version} {} {kind:?}\n", self.space.id, body.len()).into_bytes();
        message.extend_from_slice(&body);
        self.batch.published_bytes += message.len();
        self.batch.published += 1;
        let text = format!("PUBLISH (version {version}, {} bytes)", body.len());
        self.send(&[b"PUBLISH", CHANNEL.as_bytes(), &message], text, &[], Expect::Int(1));
        Some(())
    }

    pub(super) fn report(&mut self) -> Option<()> {
        match self.space.rng.below(3) {
            0 => self.send(&[b"CLIENT", b"LIST"], "CLIENT LIST".into(), &[], Expect::Contains("addr=")),
            1 => self.send(&[b"INFO"], "INFO".into(), &[], Expect::Contains("redis_version:")),
            _ => self.send(&[b"PING"], "PING".into(), &[], Expect::Status("PONG")),
        }
        Some(())
    }
}
