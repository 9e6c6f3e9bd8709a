//! A small key-value store: a log on a volume, with group commit.
//!
//! `kv_log FILE put KEY VALUE`, `kv_log FILE get KEY`, `kv_log FILE list`, and `kv_log FILE load N`, which
//! puts N keys from 64 tasks at once and says each that is stable. FILE is made with 64 MiB if it is not
//! there.
//!
//! # The log
//!
//! Records one after the other: length of key and value (4 bytes each, little endian), a CRC-32 of those
//! and of the rest, key, value. A length of 0 for the key ends it. A put is acknowledged when its record
//! is stable, and all before it: whoever has something to put leaves it in a queue, and one task takes
//! all there is, writes it in one stable write (O_DSYNC), and tells them all. While that write is on its
//! way the next group gathers.
//!
//! # Opening
//!
//! Reads from the beginning until a record does not fit its CRC: that is where the last write was when
//! the power went. Nothing behind it was acknowledged, since a group begins when the one before it is
//! stable.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use uaio_core::{AsyncContext, ContextOptions, Handle, OpenOptions, Reactor, VolumeOptions};
use uaio_driver::url::Backend;
use uaio_driver::{DmaPool, PoolOptions, SystemClock};
use uaio_page_cache::{Cache, CacheOptions};

/// Bytes before key and value.
const HEAD: usize = 12;
/// The longest key or value in bytes.
const LEN_MAX: usize = 1 << 20;
/// Tasks of `load`.
const TASKS: usize = 64;

type Answer = Result<(), String>;

/// An open store.
pub(crate) struct Store {
    aio: AsyncContext,
    handle: Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Where each value lies.
    index: BTreeMap<Vec<u8>, (u64, usize)>,
    /// The first byte after the log.
    end: u64,
    /// What is to be written next, and who is told.
    group: Vec<u8>,
    keys: Vec<(Vec<u8>, usize, usize)>,
    waiting: Vec<smol::channel::Sender<Answer>>,
    /// Somebody writes.
    writing: bool,
    /// A write failed: what the log has behind its end is not known, so nothing more is put there.
    failed: Option<String>,
}

impl Store {
    /// Reads the log.
    pub(crate) async fn open(aio: AsyncContext, handle: Handle) -> Result<Self, Box<dyn Error>> {
        let mut state = State::default();
        let size = handle.volume().size_bytes();
        while size - state.end >= HEAD as u64 {
            let (read, head) = aio.pread(&handle, state.end, vec![0; HEAD]).await;
            read?;
            let number =
                |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| head[at + n])) as usize;
            let (key_len, value_len) = (number(0), number(4));
            let len = key_len + value_len;
            if key_len == 0
                || key_len.max(value_len) > LEN_MAX
                || len as u64 > size - state.end - HEAD as u64
            {
                break;
            }
            let (read, body) = aio.pread(&handle, state.end + HEAD as u64, vec![0; len]).await;
            read?;
            if number(8) != checksum(&head[..8], &body) as usize {
                break;
            }
            let value = state.end + (HEAD + key_len) as u64;
            state.index.insert(body[..key_len].to_vec(), (value, value_len));
            state.end += (HEAD + len) as u64;
        }
        Ok(Self { aio, handle, state: Mutex::new(state) })
    }

    /// Puts a value; it is stable when this is done. Not to be dropped before that: it may be the one
    /// that writes for others.
    pub(crate) async fn put(&self, key: &[u8], value: &[u8]) -> Answer {
        if key.is_empty() || key.len().max(value.len()) > LEN_MAX {
            return Err(format!("a key has 1 to {LEN_MAX} bytes, a value at most that"));
        }
        let (told, answer) = smol::channel::bounded(1);
        let leads = {
            let mut state = self.state.lock().map_err(|error| error.to_string())?;
            let at = state.group.len() + HEAD + key.len();
            let size = self.handle.volume().size_bytes();
            if state.end + (at + value.len() + HEAD) as u64 > size {
                return Err(format!("the log is full: it has {size} bytes"));
            }
            let mut head =
                [(key.len() as u32).to_le_bytes(), (value.len() as u32).to_le_bytes()].concat();
            let body = [key, value].concat();
            head.extend(checksum(&head, &body).to_le_bytes());
            state.group.extend(head);
            state.group.extend(body);
            state.keys.push((key.to_vec(), at, value.len()));
            state.waiting.push(told);
            !std::mem::replace(&mut state.writing, true)
        };
        if leads {
            self.write_groups().await?;
        }
        answer.recv().await.map_err(|_| "the one that wrote the group was dropped".to_owned())?
    }

    /// Writes one group after the other until there is none. One task at a time.
    async fn write_groups(&self) -> Answer {
        loop {
            let (mut bytes, keys, waiting, end, failed) = {
                let mut state = self.state.lock().map_err(|error| error.to_string())?;
                let group = std::mem::take(&mut state.group);
                if group.is_empty() {
                    state.writing = false;
                    return Ok(());
                }
                let (keys, waiting) =
                    (std::mem::take(&mut state.keys), std::mem::take(&mut state.waiting));
                // Room for this group and those that have checked against it is there.
                let end = state.end;
                state.end += group.len() as u64;
                (group, keys, waiting, end, state.failed.clone())
            };
            if let Some(why) = failed {
                tell(waiting, &Err(why)).await;
                continue;
            }
            let len = bytes.len();
            // What lies behind it from before must not be taken for a record.
            bytes.extend([0; HEAD]);
            let (written, _) = self.aio.pwrite(&self.handle, end, bytes).await;
            let answer = match written {
                Ok(all) if all == len + HEAD => Ok(()),
                Ok(_) => Err("the volume ended".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            {
                let mut state = self.state.lock().map_err(|error| error.to_string())?;
                match &answer {
                    Ok(()) => state.index.extend(
                        keys.into_iter().map(|(key, at, len)| (key, (end + at as u64, len))),
                    ),
                    Err(why) => state.failed = Some(why.clone()),
                }
            }
            tell(waiting, &answer).await;
        }
    }

    /// The value of a key, if it has one.
    pub(crate) async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Box<dyn Error>> {
        let found = self.state.lock().map_err(|error| error.to_string())?.index.get(key).copied();
        let Some((offset, len)) = found else { return Ok(None) };
        let (read, value) = self.aio.pread(&self.handle, offset, vec![0; len]).await;
        read?;
        Ok(Some(value))
    }

    /// The keys, in order.
    pub(crate) fn keys(&self) -> Vec<Vec<u8>> {
        self.state.lock().map(|state| state.index.keys().cloned().collect()).unwrap_or_default()
    }
}

async fn tell(waiting: Vec<smol::channel::Sender<Answer>>, answer: &Answer) {
    for told in waiting {
        // Whoever does not want to know any more has dropped the other end.
        let _ = told.send(answer.clone()).await;
    }
}

fn checksum(head: &[u8], body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(head);
    crc.update(body);
    crc.finalize()
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [file, command @ ..] = &arguments[..] else {
        return Err("usage: kv_log FILE put KEY VALUE | get KEY | list | load N".into());
    };
    let backend: Backend = format!("file:{file},size=64M").parse()?;
    let pool = DmaPool::new(PoolOptions::frames(2048))?;
    let clock = Arc::new(SystemClock::new());
    let cache = Cache::new(backend.open(&pool, clock.clone())?, CacheOptions::frames(1024))?;
    let reactor = Reactor::new(clock)?;
    let volume = reactor.attach(cache, VolumeOptions::default())?;
    let handle = volume.open(OpenOptions { dsync: true, ..OpenOptions::default() });
    let aio = AsyncContext::new(reactor.context(ContextOptions::events(2 * TASKS))?);
    let result = std::thread::scope(|threads| {
        threads.spawn(|| reactor.run());
        let result = smol::block_on(async {
            let store = Store::open(aio, handle).await?;
            run(&store, command).await
        });
        reactor.stop();
        result
    });
    if let Err(errors) = reactor.close() {
        return Err(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ").into());
    }
    result
}

async fn run(store: &Store, command: &[&str]) -> Result<(), Box<dyn Error>> {
    match command {
        ["put", key, value] => Ok(store.put(key.as_bytes(), value.as_bytes()).await?),
        ["get", key] => {
            let value = store.get(key.as_bytes()).await?.ok_or("no such key")?;
            println!("{}", String::from_utf8_lossy(&value));
            Ok(())
        }
        ["list"] => {
            for key in store.keys() {
                println!("{}", String::from_utf8_lossy(&key));
            }
            Ok(())
        }
        ["load", count] => {
            let count: usize = count.parse().map_err(|_| format!("`{count}` is not a number"))?;
            let tasks = (0..TASKS).map(|task| async move {
                for number in (task..count).step_by(TASKS) {
                    store.put(format!("key{number}").as_bytes(), &value_of(number)).await?;
                    println!("{number}");
                }
                Ok::<(), String>(())
            });
            for result in join_all(tasks).await {
                result?;
            }
            Ok(())
        }
        _ => Err("usage: kv_log FILE put KEY VALUE | get KEY | list | load N".into()),
    }
}

/// What `load` puts.
pub(crate) fn value_of(number: usize) -> Vec<u8> {
    format!("value{number}-").repeat(number % 50 + 1).into_bytes()
}
