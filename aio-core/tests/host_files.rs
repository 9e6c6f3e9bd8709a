//! The host engine on files, names and memory of the kernel: every operation against what the same
//! system call says, on a directory of its own.
#![expect(unsafe_code, reason = "hands the kernel addresses and descriptors that are bad")]

mod host;

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use host::{Bench, errno};
use uaio_core::host::{
    Argument, Between, Call, Descriptor, Directory, HostDone, HostOp, HostRequest, Memory, Names,
    Open, Position, Statx, Symlink, Vectored,
};

fn name(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn read(fd: &Descriptor, at: Position, len: usize) -> HostOp {
    HostOp::Read { fd: fd.clone(), memory: vec![0; len].into(), at, flags: 0 }
}

fn write(fd: &Descriptor, at: Position, bytes: &[u8]) -> HostOp {
    HostOp::Write { fd: fd.clone(), memory: bytes.to_vec().into(), at, flags: 0 }
}

fn bytes(done: HostDone) -> Vec<u8> {
    match done.op {
        Some(
            HostOp::Read { memory, .. }
            | HostOp::Recv { memory, .. }
            | HostOp::Write { memory, .. },
        ) => memory.into_vec(),
        other => panic!("{other:?} has no memory"),
    }
}

fn opened(done: HostDone) -> OwnedFd {
    match done.op {
        Some(HostOp::Open(open)) => open.opened.unwrap(),
        Some(HostOp::Call(call)) => call.opened.unwrap(),
        other => panic!("{other:?} opened nothing"),
    }
}

fn open(path: &Path, flags: i32, mode: u32) -> HostOp {
    let (directory, path) = (Directory::Current, name(path));
    HostOp::Open(Box::new(Open { directory, path, flags, mode, opened: None }))
}

fn data(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256) as u8).collect()
}

#[test]
fn a_file_is_read_and_written_at_an_offset_and_where_it_is() {
    let mut bench = Bench::new(8);
    let mut file = bench.file(&data(10_000));
    let fd = Descriptor::new(file.try_clone().unwrap());
    let done = bench.run(read(&fd, Position::At(100), 5000));
    assert_eq!(done.result, Ok(5000));
    assert_eq!(bytes(done), data(10_000)[100..5100]);
    // The descriptor did not move; reading where it is moves it.
    assert_eq!(file.stream_position().unwrap(), 0);
    let done = bench.run(read(&fd, Position::Current, 10));
    assert_eq!((done.result, file.stream_position().unwrap()), (Ok(10), 10));
    let done = bench.run(write(&fd, Position::Current, b"here"));
    assert_eq!((done.result, bytes(done)), (Ok(4), b"here".to_vec()));
    let done = bench.run(write(&fd, Position::At(20_000), b"past"));
    assert_eq!(done.result, Ok(4));
    let mut all = data(10_000);
    all[10..14].copy_from_slice(b"here");
    all.resize(20_000, 0);
    all.extend(b"past");
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut got = Vec::new();
    file.read_to_end(&mut got).unwrap();
    assert_eq!(got, all);
}

#[test]
fn a_transfer_over_the_end_of_a_file_says_how_much_there_was() {
    let mut bench = Bench::new(8);
    let fd = Descriptor::new(bench.file(&data(1000)));
    assert_eq!(bench.run(read(&fd, Position::At(900), 500)).result, Ok(100));
    assert_eq!(bench.run(read(&fd, Position::At(1000), 500)).result, Ok(0));
    assert_eq!(bench.run(read(&fd, Position::At(0), 0)).result, Ok(0));
    let memory = Vectored::new(vec![vec![0; 600], vec![], vec![0; 600]]);
    let done = bench.run(HostOp::ReadV { fd, memory, at: Position::At(0), flags: 0 });
    assert_eq!(done.result, Ok(1000));
    let Some(HostOp::ReadV { memory, .. }) = done.op else { panic!("another operation") };
    let buffers = memory.into_buffers();
    assert_eq!(buffers[0], data(1000)[..600]);
    assert_eq!(buffers[2][..400], data(1000)[600..]);
}

#[test]
fn vectors_of_any_number_and_length_are_written_as_one_run() {
    let mut bench = Bench::new(8);
    let file = bench.file(b"");
    let fd = Descriptor::new(file.try_clone().unwrap());
    let buffers: Vec<Vec<u8>> = (0..300).map(|at| vec![at as u8; at % 7]).collect();
    let all = buffers.concat();
    let memory = Vectored::new(buffers);
    let done = bench.run(HostOp::WriteV { fd, memory, at: Position::At(5), flags: 0 });
    assert_eq!(done.result, Ok(all.len() as u64));
    let mut got = vec![0; all.len()];
    file.read_exact_at(&mut got, 5).unwrap();
    assert_eq!(got, all);
}

#[test]
fn flags_of_a_write_reach_the_kernel() {
    let mut bench = Bench::new(8);
    let file = bench.file(b"12345");
    let fd = Descriptor::new(file.try_clone().unwrap());
    let append = |flags| HostOp::Write {
        fd: fd.clone(),
        memory: b"678".to_vec().into(),
        at: Position::At(0),
        flags,
    };
    let result = bench.run(append(libc::RWF_APPEND | libc::RWF_DSYNC)).result;
    assert_eq!((result, file.metadata().unwrap().len()), (Ok(3), 8));
    assert_eq!(bench.run(append(0x4000_0000)).result, Err(errno(libc::EOPNOTSUPP)));
}

/// A class that there is not is refused by the kernel, so it has been looked at.
#[test]
fn reads_and_writes_go_to_the_disk_with_their_io_priority() {
    let mut bench = Bench::new(8);
    let fd = Descriptor::new(bench.file(&data(4096)));
    let at = Position::At(0);
    let ops = || {
        let (one, many) = (|| data(100).into(), || Vectored::new(vec![data(50), data(50)]));
        let fd = || fd.clone();
        [
            HostOp::Read { fd: fd(), memory: one(), at, flags: 0 },
            HostOp::Write { fd: fd(), memory: one(), at, flags: 0 },
            HostOp::ReadV { fd: fd(), memory: many(), at, flags: 0 },
            HostOp::WriteV { fd: fd(), memory: many(), at, flags: 0 },
        ]
    };
    let (best_effort, idle, none) = (2 << 13, 3 << 13, 7 << 13);
    for (priority, result) in
        [(0, Ok(100)), (best_effort, Ok(100)), (idle, Ok(100)), (none, Err(errno(libc::EINVAL)))]
    {
        for op in ops() {
            let request = HostRequest::from(op).with_io_priority(priority);
            assert_eq!(bench.run(request).result, result, "{priority:#x}");
        }
    }
}

#[test]
fn a_file_is_made_stable_as_a_whole_and_by_range() {
    let mut bench = Bench::new(8);
    let fd = Descriptor::new(bench.file(&data(9000)));
    for data_only in [false, true] {
        assert_eq!(bench.run(HostOp::Fsync { fd: fd.clone(), data_only }).result, Ok(0));
    }
    let flags = libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let range = |flags| HostOp::SyncFileRange { fd: fd.clone(), offset: 4096, len: 4096, flags };
    assert_eq!(bench.run(range(flags)).result, Ok(0));
    assert_eq!(bench.run(range(0x80)).result, Err(errno(libc::EINVAL)));
    let pipe = Descriptor::new(std::io::pipe().unwrap().0);
    let fsync = HostOp::Fsync { fd: pipe, data_only: false };
    assert_eq!(bench.run(fsync).result, Err(errno(libc::EINVAL)));
}

#[test]
fn names_are_made_moved_linked_and_removed() {
    let mut bench = Bench::new(8);
    let at = |path: &str| bench.path().join(path);
    let (first, second, third, sub) = (at("first"), at("second"), at("third"), at("sub"));
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    let mut file = File::from(opened(bench.run(open(&first, flags, 0o640))));
    file.write_all(b"contents").unwrap();
    assert_eq!(bench.run(open(&first, flags, 0o640)).result, Err(errno(libc::EEXIST)));
    let names = |from: &Path, to: &Path, flags| {
        Box::new(Names {
            old_directory: Directory::Current,
            old_path: name(from),
            new_directory: Directory::Current,
            new_path: name(to),
            flags,
        })
    };
    assert_eq!(bench.run(HostOp::Link(names(&first, &second, 0))).result, Ok(0));
    assert_eq!(std::fs::metadata(&second).unwrap().nlink(), 2);
    let keep = libc::RENAME_NOREPLACE;
    let result = bench.run(HostOp::Rename(names(&first, &second, keep))).result;
    assert_eq!(result, Err(errno(libc::EEXIST)));
    assert_eq!(bench.run(HostOp::Rename(names(&first, &third, 0))).result, Ok(0));
    assert!(!first.exists());
    let link = Symlink { target: name(&third), directory: Directory::Current, path: name(&first) };
    assert_eq!(bench.run(HostOp::Symlink(Box::new(link))).result, Ok(0));
    assert_eq!(std::fs::read(&first).unwrap(), b"contents");
    let mkdir = HostOp::Mkdir { directory: Directory::Current, path: name(&sub), mode: 0o700 };
    assert_eq!(bench.run(mkdir).result, Ok(0));
    let unlink = |path: &Path, flags| HostOp::Unlink {
        directory: Directory::Current,
        path: name(path),
        flags,
    };
    assert_eq!(bench.run(unlink(&sub, 0)).result, Err(errno(libc::EISDIR)));
    assert_eq!(bench.run(unlink(&sub, libc::AT_REMOVEDIR)).result, Ok(0));
    for path in [&first, &second, &third] {
        assert_eq!(bench.run(unlink(path, 0)).result, Ok(0));
    }
    assert_eq!(std::fs::read_dir(bench.path()).unwrap().count(), 0);
}

#[test]
fn a_close_closes_and_says_so() {
    let mut bench = Bench::new(8);
    let (reader, writer) = std::io::pipe().unwrap();
    let done = bench.run(HostOp::Close { fd: Some(writer.into()) });
    assert!(matches!(done, HostDone { result: Ok(0), op: Some(HostOp::Close { fd: None }), .. }));
    // Nobody can write any more: the end of the pipe.
    assert_eq!(bench.run(read(&Descriptor::new(reader), Position::Current, 1)).result, Ok(0));
    assert_eq!(bench.run(HostOp::Close { fd: None }).result, Err(errno(libc::EBADF)));
}

#[test]
fn statx_says_what_stat_says() {
    let mut bench = Bench::new(8);
    let file = bench.file(&data(12_345));
    let directory = Directory::At(Descriptor::new(file.try_clone().unwrap()));
    let statx = Statx::new(directory, c"".into(), libc::AT_EMPTY_PATH, libc::STATX_BASIC_STATS);
    let done = bench.run(HostOp::Statx(Box::new(statx)));
    let Some(HostOp::Statx(statx)) = done.op else { panic!("another operation") };
    let metadata = file.metadata().unwrap();
    assert_eq!((done.result, statx.status.stx_size), (Ok(0), 12_345));
    assert_eq!(statx.status.stx_ino, metadata.ino());
    assert_eq!(u32::from(statx.status.stx_mode), metadata.mode());
}

#[test]
fn space_is_allocated_punched_and_cut_off() {
    let mut bench = Bench::new(8);
    let file = bench.file(&data(8192));
    let fd = Descriptor::new(file.try_clone().unwrap());
    let fallocate = |mode, offset, len| HostOp::Fallocate { fd: fd.clone(), mode, offset, len };
    assert_eq!(bench.run(fallocate(0, 0, 65_536)).result, Ok(0));
    assert_eq!(file.metadata().unwrap().len(), 65_536);
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    assert_eq!(bench.run(fallocate(punch, 0, 4096)).result, Ok(0));
    let mut start = vec![1; 8192];
    file.read_exact_at(&mut start, 0).unwrap();
    assert_eq!((&start[..4096], &start[4096..]), (&[0; 4096][..], &data(8192)[4096..]));
    assert_eq!(bench.run(HostOp::Ftruncate { fd: fd.clone(), len: 10 }).result, Ok(0));
    assert_eq!(file.metadata().unwrap().len(), 10);
    let result = bench.run(HostOp::Ftruncate { fd, len: u64::MAX }).result;
    assert_eq!(result, Err(errno(libc::EINVAL)));
}

#[test]
fn advice_and_readahead_are_taken() {
    let mut bench = Bench::new(8);
    let fd = Descriptor::new(bench.file(&data(1 << 20)));
    let advise = |advice| HostOp::Fadvise { fd: fd.clone(), offset: 0, len: 0, advice };
    assert_eq!(bench.run(advise(libc::POSIX_FADV_SEQUENTIAL)).result, Ok(0));
    assert_eq!(bench.run(advise(77)).result, Err(errno(libc::EINVAL)));
    let readahead = HostOp::Readahead { fd, offset: 0, len: 1 << 20 };
    assert_eq!(bench.run(readahead).result, Ok(0));
    let fd = Descriptor::new(std::io::pipe().unwrap().0);
    assert!(bench.run(HostOp::Readahead { fd, offset: 0, len: 1 }).result.is_err());
}

#[test]
fn bytes_go_from_descriptor_to_descriptor() {
    let mut bench = Bench::new(8);
    let (from, to) = (bench.file(&data(50_000)), bench.file(b""));
    let fd = |file: &File| Descriptor::new(file.try_clone().unwrap());
    let copy = Between {
        from: fd(&from),
        from_offset: Some(100),
        to: fd(&to),
        to_offset: Some(7),
        len: 20_000,
        flags: 0,
    };
    assert_eq!(bench.run(HostOp::Copy(Box::new(copy))).result, Ok(20_000));
    let mut got = vec![0; 20_000];
    to.read_exact_at(&mut got, 7).unwrap();
    assert_eq!(got, data(50_000)[100..20_100]);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let splice = Between {
        from: fd(&from),
        from_offset: Some(5),
        to: Descriptor::new(writer),
        to_offset: None,
        len: 4000,
        flags: 0,
    };
    let done = bench.run(HostOp::Splice(Box::new(splice)));
    assert_eq!(done.result, Ok(4000));
    drop(done);
    let mut got = Vec::new();
    reader.read_to_end(&mut got).unwrap();
    assert_eq!(got, data(50_000)[5..4005]);
}

#[test]
fn a_system_call_is_made_with_what_its_arguments_own() {
    let mut bench = Bench::new(8);
    let file = bench.file(b"x");
    let fd = || Argument::Descriptor(Descriptor::new(file.try_clone().unwrap()));
    let mut run = |number, arguments| {
        bench.run(HostOp::Call(Box::new(Call::new(number, arguments).unwrap())))
    };
    let chmod = run(libc::SYS_fchmod, vec![fd(), Argument::Value(0o604)]);
    assert_eq!(chmod.result, Ok(0));
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o604);
    let done = run(libc::SYS_getrandom, vec![Argument::Bytes(vec![0; 64]), Argument::Value(0)]);
    assert_eq!(done.result, Ok(64));
    let Some(HostOp::Call(call)) = done.op else { panic!("another operation") };
    let [Argument::Bytes(bytes), _] = &call.into_arguments()[..] else { panic!("other arguments") };
    assert_ne!(bytes, &[0; 64]);
    let fd =
        opened(run(libc::SYS_memfd_create, vec![Argument::Path(c"m".into()), Argument::Value(1)]));
    // SAFETY: asks for flags.
    assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) }, libc::FD_CLOEXEC);
    let bad = Argument::Path(c"/does/not/exist".into());
    let done = run(libc::SYS_truncate, vec![bad, Argument::Value(0)]);
    assert_eq!(done.result, Err(errno(libc::ENOENT)));
}

#[test]
fn an_operation_for_a_worker_is_refused_where_there_is_none() {
    use uaio_core::host::{Engine, EngineOptions, HostRefusal};
    let options = EngineOptions { workers: 0, ..EngineOptions::depth(4) };
    let mut engine = Engine::new(options).unwrap();
    let call = Call::new(libc::SYS_sync, Vec::new()).unwrap();
    let request = HostRequest::from(HostOp::Call(Box::new(call)));
    let refused = engine.start(host::token(0), request).unwrap_err();
    assert_eq!(refused.reason, HostRefusal::NoWorkers);
    assert!(matches!(refused.request.op, HostOp::Call(_)));
}

#[test]
fn bad_input_gets_the_errno_of_the_system_call_and_loses_nothing() {
    let mut bench = Bench::new(8);
    let file = bench.file(&data(100));
    let fd = Descriptor::new(file.try_clone().unwrap());
    for at in [u64::MAX, u64::MAX - 1, 1 << 63] {
        let done = bench.run(read(&fd, Position::At(at), 10));
        assert_eq!(done.result, Err(errno(libc::EINVAL)), "offset {at:#x}");
        assert_eq!(bytes(done), [0; 10]);
    }
    let closed = {
        let (reader, _writer) = std::io::pipe().unwrap();
        reader.as_raw_fd()
    };
    // SAFETY: nobody owns the number; the kernel says so.
    let nobody = unsafe { Descriptor::raw(closed + 1000) };
    let done = bench.run(write(&nobody, Position::At(0), b"kept"));
    assert_eq!((done.result, bytes(done)), (Err(errno(libc::EBADF)), b"kept".to_vec()));
    let read_only = Descriptor::new(File::open("/proc/self/status").unwrap());
    assert_eq!(bench.run(write(&read_only, Position::At(0), b"x")).result, Err(errno(libc::EBADF)));
    // An address that is not ours is EFAULT, and no crash: page 0, and the kernel's half.
    for address in [8usize, 0xffff_8000_0000_0000] {
        let address = std::ptr::without_provenance_mut(address);
        // SAFETY: nothing is mapped there that anybody could use.
        let memory = unsafe { Memory::raw(address, 50) };
        let op = HostOp::Read { fd: fd.clone(), memory, at: Position::At(0), flags: 0 };
        assert_eq!(bench.run(op).result, Err(errno(libc::EFAULT)));
    }
}
