//! The signal by which a worker is got out of a call takes none away from the program.
//!
//! What a thread blocks it has from the one that started it, so each test runs in a process of its own
//! whose first thread blocks what is to be blocked in all of them, as a program does that waits for
//! signals.
#![expect(unsafe_code, reason = "blocks, sends and waits for signals")]

mod host;

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use host::{Bench, PATIENCE, errno};
use uaio_core::host::{Argument, Call, Cancel, Descriptor, HostOp};

/// How often each signal is sent.
const TIMES: usize = 5;

fn set(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: a set of signals is numbers, for which zero is a value.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    for signal in signals {
        // SAFETY: the address of a set of ours.
        unsafe { libc::sigaddset(&raw mut set, *signal) };
    }
    set
}

/// Runs `test` in a process that blocks `signals` in every thread.
fn where_blocked(name: &str, signals: &[i32], test: impl FnOnce()) {
    const CHILD: &str = "UAIO_SIGNALS_BLOCKED";
    if std::env::var_os(CHILD).is_some() {
        return test();
    }
    let set = set(signals);
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", name, "--nocapture"]).env(CHILD, "1");
    let block = move || {
        // SAFETY: of the only thread of the child; the mask is kept over the exec.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        Ok(())
    };
    // SAFETY: it makes one system call.
    unsafe { child.pre_exec(block) };
    assert!(child.status().unwrap().success());
}

/// How a signal is sent to this process, and the code that it comes with.
#[derive(Clone, Copy)]
enum Sent {
    Queued,
    Killed,
}

fn send(sent: Sent, signal: i32, value: usize) {
    if matches!(sent, Sent::Killed) {
        // SAFETY: sends a signal to this process, which blocks it.
        assert_eq!(unsafe { libc::kill(std::process::id().cast_signed(), signal) }, 0);
        return;
    }
    let value = libc::sigval { sival_ptr: std::ptr::without_provenance_mut(value) };
    // SAFETY: sends a signal to this process, which blocks it.
    let sent = unsafe { libc::sigqueue(std::process::id().cast_signed(), signal, value) };
    assert_eq!(sent, 0);
}

/// Which of the signals is next, its code and its value.
fn wait(signals: &[i32]) -> Option<(i32, i32, usize)> {
    let (set, time) = (set(signals), libc::timespec { tv_sec: 10, tv_nsec: 0 });
    // SAFETY: a structure of numbers, for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: addresses of structures of ours.
    let signal = unsafe { libc::sigtimedwait(&raw const set, &raw mut info, &raw const time) };
    // SAFETY: it was sent with a value, or with numbers in its place.
    (signal > 0).then(|| (signal, info.si_code, unsafe { info.si_value() }.sival_ptr.addr()))
}

fn flock(path: &std::path::Path) -> HostOp {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    let fd = Argument::Descriptor(Descriptor::new(file));
    let call = Call::new(libc::SYS_flock, vec![fd, Argument::Value(libc::LOCK_EX as u64)]);
    HostOp::Call(Box::new(call.unwrap()))
}

/// Waits until `count` threads of this process are in `flock`.
fn until_in_flock(count: usize) {
    let begin = Instant::now();
    let there = |task: std::fs::DirEntry| {
        let call = std::fs::read_to_string(task.path().join("syscall"));
        call.is_ok_and(|call| call.starts_with(&format!("{} ", libc::SYS_flock)))
    };
    let tasks = || std::fs::read_dir("/proc/self/task").unwrap().map(Result::unwrap);
    while tasks().filter_map(|task| there(task).then_some(())).count() < count {
        assert!(begin.elapsed() < PATIENCE, "the workers do not get to their calls");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Two calls wait at workers while every signal is sent to the process; what comes out, by signal.
fn values_that_arrive(sent: Sent, signals: &[i32]) -> BTreeMap<i32, Vec<usize>> {
    let mut bench = Bench::new(8);
    let path = bench.path().join("lock");
    let held = std::fs::File::create(&path).unwrap();
    held.lock().unwrap();
    let calls = [(); 2].map(|()| bench.start(flock(&path)));
    until_in_flock(2);
    for value in 0..TIMES {
        for signal in signals {
            send(sent, *signal, value);
            // The workers are back in their calls, and whoever is to take the next one away is ready.
            until_in_flock(2);
        }
    }
    let mut values: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    for _ in 0..TIMES * signals.len() {
        let (signal, code, value) = wait(signals).expect("a signal was taken by somebody else");
        let wanted = match sent {
            Sent::Queued => libc::SI_QUEUE,
            Sent::Killed => libc::SI_USER,
        };
        assert_eq!(code, wanted);
        values.entry(signal).or_default().push(value);
    }
    // And they can still be cancelled.
    for call in calls {
        assert_eq!(bench.engine.cancel(call), Cancel::Asked);
    }
    assert!(bench.wait(2).iter().all(|done| done.result == Err(errno(libc::ECANCELED))));
    values
}

#[test]
fn a_signal_that_the_program_blocks_and_waits_for_never_meets_a_worker() {
    let signals = [libc::SIGRTMAX(), libc::SIGRTMAX() - 2];
    let name = "a_signal_that_the_program_blocks_and_waits_for_never_meets_a_worker";
    where_blocked(name, &signals, || {
        let values = values_that_arrive(Sent::Queued, &signals);
        let in_order: Vec<_> = (0..TIMES).collect();
        assert!(values.values().all(|values| *values == in_order), "{values:?}");
    });
}

/// There is none that is not blocked, so a worker lets through what somebody waits for.
#[test]
fn a_signal_that_meets_a_worker_goes_on_to_who_waits_for_it_and_the_worker_can_still_be_reached() {
    let all: Vec<_> = (libc::SIGRTMIN()..=libc::SIGRTMAX()).collect();
    let name = "a_signal_that_meets_a_worker_goes_on_to_who_waits_for_it_and_the_worker_can_still_be_reached";
    where_blocked(name, &all, || {
        let signals = [libc::SIGRTMAX(), libc::SIGRTMAX() - 1, libc::SIGRTMIN()];
        let mut values = values_that_arrive(Sent::Queued, &signals);
        values.values_mut().for_each(|values| values.sort_unstable());
        let every: Vec<_> = (0..TIMES).collect();
        assert!(values.values().all(|values| *values == every), "{values:?}");
    });
}

/// kill(2) sends no value, and the kernel lets nobody else send what looks like it.
#[test]
fn a_signal_of_kill_that_meets_a_worker_goes_on_to_who_waits_for_it() {
    let all: Vec<_> = (libc::SIGRTMIN()..=libc::SIGRTMAX()).collect();
    let name = "a_signal_of_kill_that_meets_a_worker_goes_on_to_who_waits_for_it";
    where_blocked(name, &all, || {
        let signals = [libc::SIGRTMAX(), libc::SIGRTMAX() - 1, libc::SIGRTMIN()];
        let values = values_that_arrive(Sent::Killed, &signals);
        let counts: Vec<_> = values.values().map(Vec::len).collect();
        assert_eq!(counts, [TIMES; 3]);
    });
}

/// As a program may do before it runs another, or a test framework after each test.
#[test]
fn a_program_that_gives_every_signal_its_default_does_not_die_of_a_cancel() {
    let mut bench = Bench::new(8);
    let path = bench.path().join("lock");
    let held = std::fs::File::create(&path).unwrap();
    held.lock().unwrap();
    let call = bench.start(flock(&path));
    until_in_flock(1);
    for signal in libc::SIGRTMIN()..=libc::SIGRTMAX() {
        // SAFETY: no handler is of this test's.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    assert_eq!(bench.engine.cancel(call), Cancel::Asked);
    assert_eq!(bench.wait(1)[0].result, Err(errno(libc::ECANCELED)));
}
