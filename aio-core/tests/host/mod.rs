//! What the tests of the host engine share: an engine with a directory of its own.
#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses a part of it")]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use uaio_core::host::{Engine, EngineOptions, HostDone, HostRequest, OpId};
use uaio_driver::Token;

/// No answer takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn errno(raw: i32) -> Errno {
    Errno::from_raw_os_error(raw)
}

pub(crate) fn token(word: u64) -> Token {
    Token::from_u64(word)
}

pub(crate) struct Bench {
    pub(crate) engine: Engine,
    directory: PathBuf,
    files: u32,
    next: u64,
    /// Answers that came while another was waited for.
    early: Vec<HostDone>,
}

impl Bench {
    pub(crate) fn new(depth: usize) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = format!("uaio-host-{}-{count}", std::process::id());
        let directory = std::env::temp_dir().join(directory);
        std::fs::create_dir(&directory).unwrap();
        let engine = Engine::new(EngineOptions::depth(depth)).unwrap();
        Self { engine, directory, files: 0, next: 0, early: Vec::new() }
    }

    /// The directory, which is empty but for files that were named.
    pub(crate) fn path(&self) -> &Path {
        &self.directory
    }

    /// A file without a name.
    pub(crate) fn file(&mut self, contents: &[u8]) -> File {
        self.files += 1;
        let path = self.directory.join(format!("file{}", self.files));
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.write_all(contents).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file
    }

    pub(crate) fn start(&mut self, request: impl Into<HostRequest>) -> OpId {
        self.next += 1;
        self.engine.start(token(self.next), request.into()).unwrap()
    }

    /// The word of the operation that was started last.
    pub(crate) fn last(&self) -> u64 {
        self.next
    }

    /// Turns the engine until there are `count` answers.
    pub(crate) fn wait(&mut self, count: usize) -> Vec<HostDone> {
        let (mut done, begin) = (Vec::new(), Instant::now());
        done.extend(self.early.drain(..count.min(self.early.len())));
        while done.len() < count {
            self.engine.commit_and_wait(Duration::from_millis(100));
            self.engine.poll(count - done.len(), &mut done);
            assert!(begin.elapsed() < PATIENCE, "{} of {count} answers", done.len());
        }
        done
    }

    /// One operation from start to answer, while others wait: answers of theirs that come first are kept.
    pub(crate) fn run_other(&mut self, request: impl Into<HostRequest>) -> HostDone {
        assert!(self.early.is_empty());
        self.start(request);
        let (name, begin) = (token(self.next), Instant::now());
        loop {
            self.engine.commit_and_wait(Duration::from_millis(100));
            let mut done = Vec::new();
            self.engine.poll(usize::MAX, &mut done);
            let found = done.iter().position(|done| done.token == name);
            let found = found.map(|at| done.remove(at));
            self.early.append(&mut done);
            if let Some(found) = found {
                return found;
            }
            assert!(begin.elapsed() < PATIENCE, "no answer");
        }
    }

    /// One operation from start to answer.
    pub(crate) fn run(&mut self, request: impl Into<HostRequest>) -> HostDone {
        self.start(request);
        let done = self.wait(1).pop().unwrap();
        assert_eq!(done.token, token(self.next));
        done
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
