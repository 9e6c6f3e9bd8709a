//! The host engine against a sequential oracle: random programs of operations on files of the host,
//! many in flight, each answer and each byte compared.
//!
//! Operations that are in flight together are on different files, or read only, so the oracle knows
//! what each must say; between rounds everything is compared with what the file system says.

mod host;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use host::{Bench, errno};
use rustix::io::Errno;
use uaio_core::host::{
    Between, Descriptor, Directory, HostDone, HostOp, HostRequest, Names, Open, Position, Vectored,
};

const FILES: usize = 6;
const LEN_MAX: u64 = 50_000;

fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    match number("UAIO_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("UAIO_SEEDS").unwrap_or(default),
    }
}

/// A file, and what it is to hold.
struct Modelled {
    fd: Descriptor,
    bytes: Vec<u8>,
}

/// What an answer is to be.
enum Expected {
    Read(Vec<u8>),
    Count(u64),
    Errno(i32),
    /// A read that may have been cancelled before it was done.
    ReadOrCancelled(Vec<u8>),
}

fn name(path: PathBuf) -> CString {
    CString::new(path.into_os_string().into_encoded_bytes()).unwrap()
}

fn read_bytes(done: HostDone) -> Vec<u8> {
    let mut bytes = match done.op.unwrap() {
        HostOp::Read { memory, .. } => memory.into_vec(),
        HostOp::ReadV { memory, .. } => memory.into_buffers().concat(),
        other => panic!("{other:?} is no read"),
    };
    bytes.truncate(done.result.unwrap() as usize);
    bytes
}

fn split(random: &mut fastrand::Rng, mut bytes: Vec<u8>) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let rest = bytes.split_off(random.usize(..=bytes.len()));
        pieces.push(std::mem::replace(&mut bytes, rest));
    }
    pieces
}

/// One operation on a file, done to the oracle at once; `other` is a file that nobody writes now.
fn operation(
    random: &mut fastrand::Rng,
    files: &mut [Modelled],
    at: usize,
    other: usize,
) -> (HostRequest, Expected) {
    let other_fd = files[other].fd.clone();
    let copied = files[other].bytes.clone();
    let Modelled { fd, bytes } = &mut files[at];
    let fd = fd.clone();
    let (offset, len) = (random.u64(..LEN_MAX), random.usize(..10_000));
    let start = (offset as usize).min(bytes.len());
    let end = (start + len).min(bytes.len());
    let put = |bytes: &mut Vec<u8>, data: &[u8], offset: usize| {
        if !data.is_empty() {
            bytes.resize(bytes.len().max(offset + data.len()), 0);
            bytes[offset..offset + data.len()].copy_from_slice(data);
        }
    };
    let (op, expected) = match random.u32(..12) {
        0..=2 => {
            let (memory, at) = (vec![0; len].into(), Position::At(offset));
            let op = HostOp::Read { fd, memory, at, flags: 0 };
            (op, Expected::Read(bytes[start..end].to_vec()))
        }
        3 => {
            let memory = Vectored::new(split(random, vec![0; len]));
            let op = HostOp::ReadV { fd, memory, at: Position::At(offset), flags: 0 };
            (op, Expected::Read(bytes[start..end].to_vec()))
        }
        kind @ 4..=7 => {
            let data: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
            put(bytes, &data, offset as usize);
            let flags = if random.u32(..8) == 0 { libc::RWF_DSYNC } else { 0 };
            let at = Position::At(offset);
            let op = if kind == 7 {
                let memory = Vectored::new(split(random, data));
                HostOp::WriteV { fd, memory, at, flags }
            } else {
                HostOp::Write { fd, memory: data.into(), at, flags }
            };
            (op, Expected::Count(len as u64))
        }
        8 => {
            bytes.resize(offset as usize, 0);
            (HostOp::Ftruncate { fd, len: offset }, Expected::Count(0))
        }
        9 => {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            bytes[start..end].fill(0);
            let op = HostOp::Fallocate { fd, mode, offset, len: len as u64 };
            (op, if len == 0 { Expected::Errno(libc::EINVAL) } else { Expected::Count(0) })
        }
        10 => {
            let from = (random.usize(..LEN_MAX as usize)).min(copied.len());
            let part = &copied[from..(from + len).min(copied.len())];
            put(bytes, part, offset as usize);
            let op = HostOp::Copy(Box::new(Between {
                from: other_fd,
                from_offset: Some(from as u64),
                to: fd,
                to_offset: Some(offset),
                len,
                flags: 0,
            }));
            (op, Expected::Count(part.len() as u64))
        }
        _ => (HostOp::Fsync { fd, data_only: random.bool() }, Expected::Count(0)),
    };
    let request = HostRequest::from(op);
    (if random.u32(..4) == 0 { request.away() } else { request }, expected)
}

fn check(done: HostDone, expected: Expected, what: &str) {
    match expected {
        Expected::Read(bytes) => {
            assert_eq!(done.result, Ok(bytes.len() as u64), "{what}");
            assert!(read_bytes(done) == bytes, "{what}: other bytes");
        }
        Expected::ReadOrCancelled(bytes) => {
            if done.result != Err(Errno::CANCELED) {
                let got = read_bytes(done);
                // A cancel between two transfers leaves a part.
                assert!(bytes.starts_with(&got), "{what}: other bytes");
            }
        }
        Expected::Count(count) => assert_eq!(done.result, Ok(count), "{what}"),
        Expected::Errno(raw) => assert_eq!(done.result, Err(errno(raw)), "{what}"),
    }
}

#[test]
fn random_programs_on_files_answer_as_one_call_after_the_other_would() {
    for seed in seeds(12) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bench = Bench::new(64);
        let mut owners: Vec<File> = Vec::new();
        let mut files = Vec::new();
        for _ in 0..FILES {
            let file = bench.file(b"");
            files.push(Modelled { fd: Descriptor::new(file.try_clone().unwrap()), bytes: vec![] });
            owners.push(file);
        }
        for round in 0..60 {
            let what = format!("seed {seed}, round {round}");
            let mut expected = BTreeMap::new();
            // Readers of one file, some of them cancelled, beside one operation on each of the others.
            let read_only = random.usize(..FILES);
            for _ in 0..random.usize(..8) {
                let Modelled { fd, bytes } = &files[read_only];
                let offset = random.usize(..LEN_MAX as usize);
                let part = bytes.iter().skip(offset).take(5000).copied().collect();
                let (memory, at) = (vec![0; 5000].into(), Position::At(offset as u64));
                let id = bench.start(HostOp::Read { fd: fd.clone(), memory, at, flags: 0 });
                let cancelled = random.u32(..3) == 0;
                if cancelled {
                    let _ = bench.engine.cancel(id);
                }
                let answer = match cancelled {
                    true => Expected::ReadOrCancelled(part),
                    false => Expected::Read(part),
                };
                expected.insert(bench.last(), answer);
            }
            for busy in (0..FILES).filter(|at| *at != read_only) {
                let (request, answer) = operation(&mut random, &mut files, busy, read_only);
                bench.start(request);
                expected.insert(bench.last(), answer);
            }
            let count = expected.len();
            for done in bench.wait(count) {
                let answer = expected.remove(&done.token.to_u64()).unwrap();
                check(done, answer, &what);
            }
            for (modelled, owner) in files.iter().zip(&owners) {
                let mut got = vec![0; modelled.bytes.len() + 1];
                let len = rustix::io::pread(owner.as_fd(), &mut got, 0).unwrap();
                assert!(got[..len] == modelled.bytes, "{what}: a file differs");
            }
        }
    }
}

/// What a name is to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Node {
    File,
    Directory,
}

#[test]
fn random_programs_on_names_answer_as_one_call_after_the_other_would() {
    for seed in seeds(12) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bench = Bench::new(16);
        let root = bench.path().to_owned();
        let mut model: BTreeMap<String, Node> = BTreeMap::new();
        for step in 0..150 {
            let a = format!("n{}", random.u32(..5));
            let b = format!("n{}", random.u32(..5));
            let path = |name_of: &str| name(root.join(name_of));
            let directory = || Directory::Current;
            let exists =
                |model: &BTreeMap<String, Node>, name_of: &str| model.get(name_of).copied();
            let names = |flags| {
                Box::new(Names {
                    old_directory: directory(),
                    old_path: path(&a),
                    new_directory: directory(),
                    new_path: path(&b),
                    flags,
                })
            };
            let (op, expected) = match random.u32(..6) {
                0 => {
                    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
                    let open = Open {
                        directory: directory(),
                        path: path(&a),
                        flags,
                        mode: 0o600,
                        opened: None,
                    };
                    let expected = match exists(&model, &a) {
                        Some(_) => Err(libc::EEXIST),
                        None => {
                            model.insert(a.clone(), Node::File);
                            Ok(())
                        }
                    };
                    (HostOp::Open(Box::new(open)), expected)
                }
                1 => {
                    let expected = match exists(&model, &a) {
                        Some(_) => Err(libc::EEXIST),
                        None => {
                            model.insert(a.clone(), Node::Directory);
                            Ok(())
                        }
                    };
                    (
                        HostOp::Mkdir { directory: directory(), path: path(&a), mode: 0o700 },
                        expected,
                    )
                }
                2 => {
                    let flags = if random.bool() { libc::AT_REMOVEDIR } else { 0 };
                    let expected = match (exists(&model, &a), flags) {
                        (None, _) => Err(libc::ENOENT),
                        (Some(Node::Directory), 0) => Err(libc::EISDIR),
                        (Some(Node::File), libc::AT_REMOVEDIR) => Err(libc::ENOTDIR),
                        (Some(_), _) => {
                            model.remove(&a);
                            Ok(())
                        }
                    };
                    (HostOp::Unlink { directory: directory(), path: path(&a), flags }, expected)
                }
                3 => {
                    let expected = match (exists(&model, &a), exists(&model, &b)) {
                        (None, _) => Err(libc::ENOENT),
                        (Some(_), Some(_)) => Err(libc::EEXIST),
                        (Some(node), None) => {
                            model.remove(&a);
                            model.insert(b.clone(), node);
                            Ok(())
                        }
                    };
                    (HostOp::Rename(names(libc::RENAME_NOREPLACE)), expected)
                }
                4 => {
                    let expected = match (exists(&model, &a), exists(&model, &b)) {
                        (None, _) => Err(libc::ENOENT),
                        // Linux looks for the new name first, and then at what the old one is.
                        (Some(_), Some(_)) => Err(libc::EEXIST),
                        (Some(Node::Directory), None) => Err(libc::EPERM),
                        (Some(Node::File), None) => {
                            model.insert(b.clone(), Node::File);
                            Ok(())
                        }
                    };
                    (HostOp::Link(names(0)), expected)
                }
                _ => {
                    let open = Open {
                        directory: directory(),
                        path: path(&a),
                        flags: libc::O_RDONLY | libc::O_DIRECTORY,
                        mode: 0,
                        opened: None,
                    };
                    let expected = match exists(&model, &a) {
                        None => Err(libc::ENOENT),
                        Some(Node::File) => Err(libc::ENOTDIR),
                        Some(Node::Directory) => Ok(()),
                    };
                    (HostOp::Open(Box::new(open)), expected)
                }
            };
            let mut request = HostRequest::from(op);
            if random.bool() {
                request.settle().unwrap();
            }
            let what = format!("seed {seed}, step {step}: {request:?}");
            let result = bench.run(request).result.map(|_| ());
            assert_eq!(result, expected.map_err(errno), "{what}");
        }
        let found: BTreeMap<String, Node> = std::fs::read_dir(&root)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let node =
                    if entry.file_type().unwrap().is_dir() { Node::Directory } else { Node::File };
                (entry.file_name().into_string().unwrap(), node)
            })
            .collect();
        assert!(found == model, "seed {seed}: other names");
    }
}
