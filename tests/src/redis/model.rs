//! What one key space holds, as far as its only writer knows, and how it came to be.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::content::{Kind, Rng, Sizes, fill};

/// Bytes that may be shared with expectations in flight.
pub type Bytes = Arc<Vec<u8>>;

/// What a key holds.
#[derive(Clone, Debug)]
pub enum Value {
    /// A string.
    Str(Bytes),
    /// A list, head first.
    List(VecDeque<Bytes>),
    /// A hash.
    Hash(BTreeMap<String, Bytes>),
}

impl Value {
    /// Payload bytes.
    pub fn len_bytes(&self) -> usize {
        match self {
            Value::Str(b) => b.len(),
            Value::List(l) => l.iter().map(|b| b.len()).sum(),
            Value::Hash(h) => h.values().map(|b| b.len()).sum(),
        }
    }
}

/// A run of content that was written at some time.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its version, unique in the space.
    pub version: u32,
    /// Its look.
    pub kind: Kind,
    /// Bytes.
    pub len: usize,
    /// The key it was made for.
    pub key: String,
}

/// What a worker's traffic looks like.
#[derive(Clone, Debug)]
pub struct Shape {
    /// String keys; a tenth as many lists and hashes each.
    pub keys: usize,
    /// Payload bytes the space may hold before it only shrinks.
    pub budget_bytes: usize,
    /// Sizes of new content.
    pub sizes: Sizes,
    /// Whether the server may have evicted any key at any time.
    pub evicting: bool,
    /// Most commands in one write.
    pub longest_batch: usize,
}

const HISTORY: usize = 24;
const WRITTEN: usize = 4096;

/// One worker's keys. Only this worker writes them, so the content is known.
pub struct Space {
    /// Which space; part of each key's name.
    pub id: usize,
    /// The run's seed.
    pub seed: u64,
    /// Shape of the traffic.
    pub shape: Shape,
    /// Source of every choice.
    pub rng: Rng,
    /// Commands planned so far.
    pub planned: u64,
    values: BTreeMap<String, Value>,
    held_bytes: usize,
    next_version: u32,
    written: VecDeque<Written>,
    history: HashMap<String, VecDeque<String>>,
}

impl Space {
    /// An empty space.
    pub fn new(id: usize, seed: u64, shape: Shape) -> Space {
        Space {
            id,
            seed,
            shape,
            rng: Rng::new(seed, id as u64),
            planned: 0,
            values: BTreeMap::new(),
            held_bytes: 0,
            next_version: 1,
            written: VecDeque::new(),
            history: HashMap::new(),
        }
    }

    /// What `key` holds.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// The string at `key`, if it holds one.
    pub fn string(&self, key: &str) -> Option<Bytes> {
        match self.values.get(key) {
            Some(Value::Str(b)) => Some(b.clone()),
            _ => None,
        }
    }

    /// All keys, in order.
    pub fn all(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.values.iter()
    }

    /// Sets or removes a key; gives what it held.
    pub fn put(&mut self, key: &str, value: Option<Value>) -> Option<Value> {
        self.held_bytes += value.as_ref().map_or(0, Value::len_bytes);
        let old = match value {
            Some(v) => self.values.insert(key.to_owned(), v),
            None => self.values.remove(key),
        };
        self.held_bytes -= old.as_ref().map_or(0, Value::len_bytes);
        old
    }

    /// Whether the space holds as much as it may.
    pub fn is_full(&self) -> bool {
        self.held_bytes >= self.shape.budget_bytes
    }

    /// New content for `key`, of a size that fits the budget and `most` bytes.
    pub fn fresh(&mut self, key: &str, most: usize) -> (Bytes, u32) {
        let (len, kind) = self.shape.sizes.pick(&mut self.rng);
        let most = if self.is_full() { most.min(4 << 10) } else { most };
        self.fresh_sized(key, len.min(most).max(1), kind)
    }

    /// New content for `key` of exactly `len` bytes.
    pub fn fresh_sized(&mut self, key: &str, len: usize, kind: Kind) -> (Bytes, u32) {
        let version = self.next_version;
        self.next_version += 1;
        if self.written.len() == WRITTEN {
            self.written.pop_front();
        }
        self.written.push_back(Written { version, kind, len, key: key.to_owned() });
        (Arc::new(fill(self.seed, self.id, version, kind, len)), version)
    }

    /// Recent content, oldest first, for the search after a mismatch.
    pub fn written(&self) -> impl DoubleEndedIterator<Item = &Written> {
        self.written.iter()
    }

    /// Adds a line to a key's history.
    pub fn note(&mut self, key: &str, what: String) {
        let list = self.history.entry(key.to_owned()).or_default();
        if list.len() == HISTORY {
            list.pop_front();
        }
        list.push_back(what);
    }

    /// The last commands that concerned a key, oldest first.
    pub fn history(&self, key: &str) -> Vec<String> {
        self.history.get(key).map(|h| h.iter().cloned().collect()).unwrap_or_default()
    }
}
