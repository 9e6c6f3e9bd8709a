//! What the host engine does in the submitter's name: as it was when it submitted, whatever has become
//! of it, and with its signals sent to it.
//!
//! Umask, working directory, limits and signal handlers are the whole process's, so the tests of this
//! program take turns.
#![expect(unsafe_code, reason = "changes umask, limits, credentials and signals of the process")]

mod host;

use std::ffi::CString;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use host::{Bench, errno};
use uaio_core::host::{
    Argument, Call, Descriptor, Directory, Disabled, Engine, EngineError, EngineOptions, HostOp,
    HostRequest, Message, Open, Position, Vectored,
};
use uaio_core::{ContextOptions, HostOptions, Iocb, Reactor, Refusal};
use uaio_driver::SystemClock;

fn in_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open(path: &str, flags: i32, mode: u32) -> HostRequest {
    let (directory, path) = (Directory::Current, CString::new(path).unwrap());
    HostOp::Open(Box::new(Open { directory, path, flags, mode, opened: None })).into()
}

fn settled(mut request: HostRequest) -> HostRequest {
    request.settle().unwrap();
    request
}

fn set_umask(mask: u32) -> u32 {
    // SAFETY: the process's, and its tests take turns.
    unsafe { libc::umask(mask) }
}

#[test]
fn a_file_has_the_mode_and_umask_of_its_submission() {
    let _turn = in_turn();
    let mut bench = Bench::new(8);
    let at = |name: &str| bench.path().join(name).to_str().unwrap().to_owned();
    let (file, loose, sub) = (at("file"), at("loose"), at("sub"));
    let mode = |path: &str| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let mkdir = HostOp::Mkdir {
        directory: Directory::Current,
        path: CString::new(sub.as_str()).unwrap(),
        mode: 0o777,
    };
    let flags = libc::O_CREAT | libc::O_WRONLY;
    let old = set_umask(0o022);
    let request = settled(open(&file, flags, 0o666));
    let request_sub = settled(mkdir.into());
    set_umask(0o077);
    let request_loose = settled(open(&loose, flags, 0o666));
    bench.start(request);
    bench.start(request_sub);
    set_umask(0);
    bench.start(request_loose);
    let done = bench.wait(3);
    set_umask(old);
    assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    // Not the tighter one that came after, and not the looser one either.
    assert_eq!((mode(&file), mode(&sub), mode(&loose)), (0o644, 0o755, 0o600));
}

#[test]
fn a_name_begins_in_the_working_directory_of_its_submission() {
    let _turn = in_turn();
    let mut bench = Bench::new(8);
    let before = std::env::current_dir().unwrap();
    std::env::set_current_dir(bench.path()).unwrap();
    std::fs::write("there", b"x").unwrap();
    let requests = [
        settled(open("there", libc::O_RDONLY, 0)),
        settled(open("new", libc::O_CREAT | libc::O_WRONLY, 0o600)),
        settled(
            HostOp::Call(Box::new(
                Call::new(
                    libc::SYS_truncate,
                    vec![Argument::Path(c"there".into()), Argument::Value(7)],
                )
                .unwrap(),
            ))
            .into(),
        ),
    ];
    std::env::set_current_dir(&before).unwrap();
    for request in requests {
        bench.start(request);
    }
    let done = bench.wait(3);
    assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    assert!(bench.path().join("new").exists());
    assert_eq!(std::fs::metadata(bench.path().join("there")).unwrap().len(), 7);
    assert_eq!(bench.run(open("there", libc::O_RDONLY, 0)).result, Err(errno(libc::ENOENT)));
    // The workers' own working directory is nobody else's.
    assert_eq!(std::env::current_dir().unwrap(), before);
}

/// Its address is the name of a file, which is made where the submitter is and as his umask says.
#[test]
fn a_socket_is_bound_in_the_working_directory_and_with_the_umask_of_its_submission() {
    let _turn = in_turn();
    let mut bench = Bench::new(8);
    let before = std::env::current_dir().unwrap();
    let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let mut address = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    address.extend(b"socket\0");
    let arguments = vec![Argument::Descriptor(Descriptor::new(socket)), Argument::Bytes(address)];
    let bind = HostOp::Call(Box::new(Call::new(libc::SYS_bind, arguments).unwrap()));
    std::env::set_current_dir(bench.path()).unwrap();
    let old = set_umask(0o077);
    let request = settled(bind.into());
    set_umask(old);
    std::env::set_current_dir(&before).unwrap();
    assert_eq!(bench.run(request).result, Ok(0));
    let there = std::fs::metadata(bench.path().join("socket")).unwrap();
    assert_eq!(there.permissions().mode() & 0o777, 0o700);
    // And the worker's umask is nobody's again.
    let path = CString::new(bench.path().join("fifo").to_str().unwrap()).unwrap();
    let mode = Argument::Value(u64::from(libc::S_IFIFO | 0o666));
    let arguments = vec![
        Argument::Directory(Directory::Current),
        Argument::Path(path),
        mode,
        Argument::Value(0),
    ];
    let old = set_umask(0);
    let request =
        settled(HostOp::Call(Box::new(Call::new(libc::SYS_mknodat, arguments).unwrap())).into());
    set_umask(old);
    assert_eq!(bench.run(request).result, Ok(0));
    let there = std::fs::metadata(bench.path().join("fifo")).unwrap();
    assert_eq!(there.permissions().mode() & 0o777, 0o666);
}

/// Blocks a signal for this thread, and says afterwards whether it was sent to this thread.
struct Awaited(libc::sigset_t);

impl Awaited {
    fn new(signal: i32) -> Self {
        // SAFETY: a set of signals is numbers, for which zero is a value.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: the address of a set of ours.
        unsafe { libc::sigaddset(&raw mut set, signal) };
        // SAFETY: blocks a signal of this thread.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        Self(set)
    }

    /// Takes one that is pending: from whom, as si_code and si_pid.
    fn take(&self) -> Option<(i32, i32)> {
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: a structure of numbers, for which zero is a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // The C library's own call hides the difference between a signal of tgkill and others.
        // SAFETY: addresses of structures of ours, and the size of the kernel's set of signals.
        let got = unsafe {
            libc::syscall(
                libc::SYS_rt_sigtimedwait,
                &raw const self.0,
                &raw mut info,
                &raw const none,
                8,
            )
        };
        // SAFETY: a signal that was sent by tgkill has these.
        (got > 0).then(|| (info.si_code, unsafe { info.si_pid() }))
    }
}

/// Makes a signal do something but be ignored, which is what Rust does with SIGPIPE: one that is
/// ignored is never pending.
fn not_ignored(signal: i32) {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: a handler that does nothing.
    unsafe { libc::signal(signal, nothing as *const () as libc::sighandler_t) };
}

const SI_TKILL: i32 = -6;

#[test]
fn sigpipe_is_sent_to_the_submitter_and_to_nobody_else() {
    let _turn = in_turn();
    not_ignored(libc::SIGPIPE);
    let mut bench = Bench::new(8);
    let signals = Awaited::new(libc::SIGPIPE);
    let us = std::process::id() as i32;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(theirs);
    let (pipe, socket) = (Descriptor::new(writer), Descriptor::new(ours));
    let write = |fd: &Descriptor| {
        let (memory, at) = (vec![1].into(), Position::Current);
        HostOp::Write { fd: fd.clone(), memory, at, flags: 0 }
    };
    let send = |flags| HostOp::Send { fd: socket.clone(), memory: vec![1].into(), flags };
    let message = || Box::new(Message::new(vec![vec![1]]));
    let send_msg = |flags| HostOp::SendMsg { fd: socket.clone(), message: message(), flags };
    // A thread that is not the submitter commits and polls: it must get no signal.
    let requests: Vec<_> = [write(&pipe), write(&socket), send(0), send_msg(0)]
        .into_iter()
        .map(|op| settled(op.into()))
        .collect();
    for request in requests {
        let what = format!("{request:?}");
        let stray = std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let stray = Awaited::new(libc::SIGPIPE);
                assert_eq!(bench.run(request).result, Err(errno(libc::EPIPE)));
                stray.take()
            });
            worker.join().unwrap()
        });
        assert_eq!((stray, signals.take()), (None, Some((SI_TKILL, us))), "{what}");
        assert_eq!(signals.take(), None);
    }
    // A call that a worker makes.
    let file = Descriptor::new(bench.file(b"x"));
    let (to, len) = (Argument::Descriptor(pipe.clone()), Argument::Value(1));
    let arguments = vec![to, Argument::Descriptor(file), Argument::Null, len];
    let sendfile = Call::new(libc::SYS_sendfile, arguments).unwrap();
    let request = settled(HostOp::Call(Box::new(sendfile)).into());
    assert_eq!(bench.run(request).result, Err(errno(libc::EPIPE)));
    assert_eq!((signals.take(), signals.take()), (Some((SI_TKILL, us)), None));
    for op in [send(libc::MSG_NOSIGNAL), send_msg(libc::MSG_NOSIGNAL)] {
        assert_eq!(bench.run(settled(op.into())).result, Err(errno(libc::EPIPE)));
        assert_eq!(signals.take(), None);
    }
    // Not settled: nobody's.
    assert_eq!(bench.run(write(&pipe)).result, Err(errno(libc::EPIPE)));
    assert_eq!(signals.take(), None);
}

/// The offset of a write that appends does not count, so it is not held against the limit.
#[test]
fn what_is_appended_is_held_against_the_limit_where_it_goes() {
    const LIMIT: u64 = (1 << 30) + 4096;
    let _turn = in_turn();
    let mut bench = Bench::new(8);
    let signals = Awaited::new(libc::SIGXFSZ);
    let file = bench.file(&[0; 100]);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let appending = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    let write = |file: &std::fs::File, flags| -> HostRequest {
        let fd = Descriptor::new(file.try_clone().unwrap());
        let at = Position::At(2 * LIMIT);
        HostOp::Write { fd, memory: vec![1; 1000].into(), at, flags }.into()
    };
    let old = set_file_size_max(LIMIT);
    let done: Vec<_> = [write(&appending, 0), write(&file, libc::RWF_APPEND)]
        .into_iter()
        .map(|request| bench.run(settled(request)).result)
        .collect();
    set_file_size_max(old);
    assert_eq!(done, [Ok(1000), Ok(1000)]);
    assert_eq!((file.metadata().unwrap().len(), signals.take()), (2100, None));
}

fn set_file_size_max(max: libc::rlim_t) -> libc::rlim_t {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the address of a structure of ours.
    unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) };
    let old = std::mem::replace(&mut limit.rlim_cur, max);
    // SAFETY: the address of a structure of ours.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
    old
}

#[test]
fn the_file_size_limit_is_that_of_the_submission_and_sigxfsz_the_submitters() {
    // Far up, in a hole: the limit is the whole process's, and this test's own output may be a file.
    const LIMIT: u64 = (1 << 30) + 4096;
    let _turn = in_turn();
    let mut bench = Bench::new(8);
    let signals = Awaited::new(libc::SIGXFSZ);
    let file = bench.file(&[0; 100]);
    let len = || file.metadata().unwrap().len();
    let fd = Descriptor::new(file.try_clone().unwrap());
    let write = |at, flags| -> HostRequest {
        HostOp::Write { fd: fd.clone(), memory: vec![1; 1000].into(), at, flags }.into()
    };
    let old = set_file_size_max(LIMIT);
    let across = settled(write(Position::At(LIMIT - 96), 0));
    let past = settled(write(Position::At(LIMIT), 0));
    let inside = settled(write(Position::At(1000), 0));
    let appended = settled(write(Position::At(0), libc::RWF_APPEND));
    let grown = settled(HostOp::Ftruncate { fd: fd.clone(), len: LIMIT + 4096 }.into());
    let allocated =
        settled(HostOp::Fallocate { fd: fd.clone(), mode: 0, offset: 0, len: LIMIT + 4096 }.into());
    // Where bytes go at an offset, a limit that was lifted since does not count.
    set_file_size_max(old);
    assert_eq!(bench.run(inside).result, Ok(1000));
    assert_eq!(bench.run(across).result, Ok(96));
    assert_eq!((signals.take(), len()), (None, LIMIT));
    assert_eq!(bench.run(past).result, Err(errno(libc::EFBIG)));
    assert_eq!((signals.take().is_some(), signals.take(), len()), (true, None, LIMIT));
    // Where the kernel alone knows, it decides, and its signal is the submitter's all the same.
    set_file_size_max(LIMIT);
    let byte = [1u8; 8];
    let list = libc::iovec { iov_base: byte.as_ptr().cast_mut().cast(), iov_len: byte.len() };
    // SAFETY: the list and its byte outlive the operation, which ends below.
    let memory = unsafe { Vectored::raw(&raw const list, 1) };
    let at = Position::At(LIMIT);
    let listed = settled(HostOp::WriteV { fd: fd.clone(), memory, at, flags: 0 }.into());
    for request in [appended, grown, allocated, listed] {
        let what = format!("{request:?}");
        let stray = std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let stray = Awaited::new(libc::SIGXFSZ);
                assert_eq!(bench.run(request).result, Err(errno(libc::EFBIG)), "{what}");
                stray.take()
            });
            worker.join().unwrap()
        });
        assert_eq!((stray, signals.take().is_some()), (None, true), "{what}");
        assert_eq!((signals.take(), len()), (None, LIMIT), "{what}");
    }
    set_file_size_max(old);
}

/// Runs on a thread that is another user as far as files go; says whether it could become one.
fn as_nobody<R: Send>(what: impl FnOnce() -> R + Send) -> Option<R> {
    const NOBODY: libc::uid_t = 65_534;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the id of this thread alone, which ends here.
            unsafe { libc::setfsuid(NOBODY) };
            // SAFETY: changes nothing.
            let became = unsafe { libc::setfsuid(libc::uid_t::MAX) } == NOBODY as i32;
            became.then(what)
        });
        thread.join().unwrap()
    })
}

#[test]
fn an_operation_is_done_as_whoever_the_credentials_were_taken_of() {
    let _turn = in_turn();
    let mut bench = Bench::new(8);
    let secret = bench.path().join("secret");
    std::fs::write(&secret, b"x").unwrap();
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::set_permissions(bench.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let secret = secret.to_str().unwrap().to_owned();
    let Some(nobody) = as_nobody(|| bench.engine.take_credentials().unwrap()) else {
        eprintln!("skipped: only a privileged user can become another");
        return;
    };
    let ours = bench.engine.take_credentials().unwrap();
    let read = |who: &uaio_core::host::Credentials| {
        open(&secret, libc::O_RDONLY, 0).with_credentials(who.clone())
    };
    assert!(bench.run(read(&ours)).result.is_ok());
    assert_eq!(bench.run(read(&nobody)).result, Err(errno(libc::EACCES)));
    // What io_uring cannot do is done by a worker, which is nobody else than the process.
    let truncate = |who: &uaio_core::host::Credentials| {
        let path = Argument::Path(CString::new(secret.as_str()).unwrap());
        let call = Call::new(libc::SYS_truncate, vec![path, Argument::Value(3)]).unwrap();
        HostRequest::from(HostOp::Call(Box::new(call))).with_credentials(who.clone())
    };
    assert_eq!(bench.run(truncate(&nobody)).result, Err(errno(libc::EPERM)));
    assert_eq!(std::fs::metadata(&secret).unwrap().len(), 1);
    assert_eq!(bench.run(truncate(&ours)).result, Ok(0));
    // A file that nobody creates is nobody's, and they may not create one here.
    let new = bench.path().join("new").to_str().unwrap().to_owned();
    let flags = libc::O_CREAT | libc::O_WRONLY;
    let create = settled(open(&new, flags, 0o666).with_credentials(nobody.clone()));
    assert_eq!(bench.run(create).result, Err(errno(libc::EACCES)));
    let create = settled(open(&new, flags, 0o666).with_credentials(ours.clone()));
    assert!(bench.run(create).result.is_ok());
    // Another engine's mean something else there.
    let mut other = Engine::new(EngineOptions::depth(4)).unwrap();
    let refused = other.start(host::token(1), read(&ours)).unwrap_err();
    assert_eq!(refused.reason.errno(), libc::EINVAL);
    // Those that nobody holds are let go of when others are taken; those in use are not.
    drop(ours);
    for _ in 0..100_000 {
        drop(bench.engine.take_credentials().unwrap());
    }
    assert_eq!(bench.run(read(&nobody)).result, Err(errno(libc::EACCES)));
}

/// Forbids io_uring_setup(2) to this thread, as a container would.
fn forbid_io_uring(errno: i32) {
    let jump = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let give = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut steps = [
        step(load, 0, 0, 0),
        step(jump, 0, 1, libc::SYS_io_uring_setup as u32),
        step(give, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        step(give, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: of this thread alone, which ends here.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the address of a program of ours, which the kernel checks and copies.
    let set = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    };
    assert_eq!(set, 0);
}

#[test]
fn where_io_uring_is_not_to_be_had_the_error_says_why() {
    let made = |errno| {
        let thread = std::thread::spawn(move || {
            forbid_io_uring(errno);
            Engine::new(EngineOptions::depth(8)).map(drop)
        });
        thread.join().unwrap().unwrap_err()
    };
    let missing = made(libc::ENOSYS);
    assert!(matches!(missing, EngineError::Missing));
    assert_eq!(missing.errno(), libc::ENOSYS);
    let forbidden = made(libc::EPERM);
    let EngineError::Forbidden { disabled } = forbidden else { panic!("{forbidden:?}") };
    assert_eq!(forbidden.errno(), libc::EPERM);
    let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    let wanted = match sysctl.as_deref().map(str::trim) {
        Ok("1") => Disabled::ForMost,
        Ok("2") => Disabled::ForAll,
        _ => Disabled::ByFilter,
    };
    assert_eq!(disabled, wanted);
    assert!(made(libc::ENOMEM).errno() == libc::ENOMEM);
    for depth in [0, 1 << 20] {
        assert_eq!(Engine::new(EngineOptions::depth(depth)).unwrap_err().errno(), libc::EINVAL);
    }
}

/// Has every open refused to this thread but of a directory by path: the umask cannot be read then.
fn forbid_opening(errno: i32) {
    let jump = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let any_bit = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let give = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let allow = step(give, 0, 0, libc::SECCOMP_RET_ALLOW);
    // The number of the call, and the low half of its third argument (`struct seccomp_data`).
    let (number, flags) = (0, 16 + 2 * 8);
    let mut steps = [
        step(load, 0, 0, number),
        step(jump, 0, 2, libc::SYS_openat as u32),
        step(load, 0, 0, flags),
        step(any_bit, 0, 1, libc::O_PATH as u32),
        allow,
        step(give, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: of this thread alone, which ends here.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the address of a program of ours, which the kernel checks and copies.
    let set = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    };
    assert_eq!(set, 0);
}

/// Settles it on a thread that gets the directory and not the umask.
fn settle_halfway(mut request: HostRequest) -> HostRequest {
    let thread = std::thread::spawn(move || {
        forbid_opening(libc::EMFILE);
        assert_eq!(request.settle(), Err(errno(libc::EMFILE)));
        request
    });
    thread.join().unwrap()
}

#[test]
fn a_request_that_could_not_be_settled_keeps_nothing_of_whoever_tried() {
    let _turn = in_turn();
    let mut bench = Bench::new(8);
    let before = std::env::current_dir().unwrap();
    let (first, second) = (bench.path().join("first"), bench.path().join("second"));
    std::fs::create_dir(&first).unwrap();
    std::fs::create_dir(&second).unwrap();
    let mkdir = HostOp::Mkdir { directory: Directory::Current, path: c"sub".into(), mode: 0o777 };
    let at = Argument::Directory(Directory::Current);
    let node = vec![
        at,
        Argument::Path(c"node".into()),
        Argument::Value(u64::from(libc::S_IFIFO | 0o600)),
        Argument::Value(0),
    ];
    let mknod = HostOp::Call(Box::new(Call::new(libc::SYS_mknodat, node).unwrap()));
    let requests =
        [open("file", libc::O_CREAT | libc::O_WRONLY, 0o666), mkdir.into(), mknod.into()];
    std::env::set_current_dir(&first).unwrap();
    let requests = requests.map(settle_halfway);
    std::env::set_current_dir(&second).unwrap();
    for request in requests.map(settled) {
        bench.start(request);
    }
    let done = bench.wait(3);
    std::env::set_current_dir(&before).unwrap();
    assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    assert_eq!(std::fs::read_dir(first).unwrap().count(), 0);
    let mode = |name| std::fs::metadata(second.join(name)).unwrap().permissions().mode() & 0o600;
    assert_eq!(["file", "sub", "node"].map(mode), [0o600; 3]);
}

#[test]
fn a_chain_whose_second_could_not_be_settled_is_refused_with_the_reason() {
    let _turn = in_turn();
    let reactor = Reactor::new(Arc::new(SystemClock::new())).unwrap();
    let host = reactor.attach_host(HostOptions::default()).unwrap();
    let context = reactor.context(ContextOptions::events(2)).unwrap();
    let mkdir = HostOp::Mkdir { directory: Directory::Current, path: c"sub".into(), mode: 0o777 };
    let chain = Iocb::host(&host, HostOp::Nop).then(Iocb::host(&host, mkdir));
    let refused = std::thread::scope(|threads| {
        let thread = threads.spawn(|| {
            forbid_opening(libc::EMFILE);
            context.submit(chain).unwrap_err()
        });
        thread.join().unwrap()
    });
    assert_eq!(refused.reason, Refusal::Submitter(errno(libc::EMFILE)));
    assert_eq!((refused.reason.errno(), context.outstanding()), (libc::EMFILE, 0));
}

/// Whoever unmounts a file system gets EBUSY while a thread is in a directory of it.
#[test]
fn a_worker_stays_in_no_directory_of_its_jobs() {
    let _turn = in_turn();
    let mut bench = Bench::new(8);
    let before = std::env::current_dir().unwrap();
    // Also the directory of whoever started the worker.
    std::env::set_current_dir(bench.path()).unwrap();
    std::fs::write("there", b"x").unwrap();
    let name = Argument::Path(c"there".into());
    let truncate = Call::new(libc::SYS_truncate, vec![name, Argument::Value(7)]).unwrap();
    let result = bench.run(settled(HostOp::Call(Box::new(truncate)).into())).result;
    let ours = std::env::current_dir().unwrap();
    std::env::set_current_dir(&before).unwrap();
    assert_eq!(result, Ok(0));
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        // A thread may have ended since.
        if let Ok(there) = std::fs::read_link(task.unwrap().path().join("cwd")) {
            assert_ne!(there, ours);
        }
    }
}

/// Others that the workers do go on meanwhile, such as the one that would open the other end.
#[test]
fn opens_of_a_fifo_that_wait_hold_nothing_else_up() {
    const OPENS: usize = 8;
    let _turn = in_turn();
    let mut bench = Bench::new(16);
    let fifo = bench.path().join("fifo").to_str().unwrap().to_owned();
    let name = CString::new(fifo.as_str()).unwrap();
    // SAFETY: the path is a string that ends with a zero.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    for _ in 0..OPENS {
        bench.start(settled(open(&fifo, libc::O_CREAT | libc::O_WRONLY, 0o600)));
    }
    let path = CString::new(bench.path().join("sub").to_str().unwrap()).unwrap();
    let mkdir = HostOp::Mkdir { directory: Directory::Current, path, mode: 0o700 };
    assert_eq!(bench.run_other(settled(mkdir.into())).result, Ok(0));
    let reader = std::fs::File::open(&fifo).unwrap();
    assert!(bench.wait(OPENS).iter().all(|done| done.result.is_ok()));
    drop(reader);
}
