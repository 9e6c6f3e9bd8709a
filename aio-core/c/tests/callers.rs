//! Callers in C that do what they should not, or at the wrong time: an errno, nothing lost, nothing of
//! theirs touched.
#![expect(unsafe_code, reason = "forks, and looks at memory that another thread must not write")]

mod set;

use std::ffi::{CString, c_void};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{null, null_mut};
use std::time::{Duration, Instant};

use set::{Endless, NOT_MAPPED, Set, iocb, noop, read};
use uaio::exports::{
    uaio_cancel, uaio_destroy, uaio_getevents, uaio_listio, uaio_open, uaio_refresh_credentials,
    uaio_setup, uaio_size, uaio_submit, uaio_suspend,
};
use uaio::layout::{
    F_LINK, F_NOTIFY, F_RESFD, F_VOLUME, LIST_NOWAIT, LIST_WAIT, O_DIRECT, UaioEvent, UaioIocb,
    UaioNotify, UaioWait, opcode,
};

fn eventfd(flags: i32) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: makes a descriptor.
    let fd = unsafe { libc::eventfd(0, flags) };
    assert!(fd >= 0);
    // SAFETY: it has just been made.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A pointer that cannot be written to says nothing of itself, stops nothing else, and holds no slot.
#[test]
fn a_bad_pointer_in_a_list_stops_nothing_else_and_takes_no_slot() {
    let set = Set::up(4);
    let (mut one, mut two) = (noop(1), noop(2));
    for _ in 0..10 {
        let mut list = [&raw mut one, NOT_MAPPED, &raw mut two];
        assert_eq!(uaio_listio(set.0, LIST_WAIT, list.as_mut_ptr(), 3, null()), 2);
        assert_eq!(set.data(2, 4), [1, 2]);
    }
    let mut four = [noop(1), noop(2), noop(3), noop(4)];
    let mut list = four.each_mut().map(std::ptr::from_mut);
    assert_eq!(uaio_listio(set.0, LIST_NOWAIT, list.as_mut_ptr(), 4, null()), 4);
    assert_eq!(set.data(4, 4), [1, 2, 3, 4]);
}

/// Bytes that a waiting thread still has to copy when the context goes are not copied after it is gone.
#[test]
fn no_byte_of_the_callers_is_written_once_destroy_has_returned() {
    const PIECE: usize = 256 << 10;
    for _ in 0..2 {
        let mut context = 0;
        assert_eq!(uaio_setup(4, &raw mut context), 0);
        let url = CString::new("ram:256M").unwrap();
        assert_eq!(uaio_open(context, url.as_ptr(), O_DIRECT, 1 << 20), 1);
        let mut bytes = vec![1; PIECE];
        // All to the same place: it takes long to copy.
        let piece = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: PIECE };
        let mut pieces = vec![piece; 1024];
        let buf = pieces.as_mut_ptr().cast::<c_void>();
        let mut big = UaioIocb { buf, nbytes: 1024, flags: F_VOLUME, ..iocb(1, opcode::PREADV) };
        let mut list = [&raw mut big];
        assert_eq!(uaio_submit(context, 1, list.as_mut_ptr()), 1);
        let iocb = list[0];
        while uaio_suspend([UaioWait { context, iocb }].as_ptr(), 1, 1, null()) != 0 {}
        let waiting = std::thread::spawn(move || {
            let mut events = [UaioEvent { data: 0, obj: null_mut(), res: 0, res2: 0 }];
            uaio_getevents(context, 1, 1, events.as_mut_ptr(), null())
        });
        // It copies by now.
        std::thread::sleep(Duration::from_millis(4));
        assert_eq!(uaio_destroy(context), 0);
        bytes.fill(0xaa);
        let answer = waiting.join().unwrap();
        assert!(answer == 1 || answer == -libc::EINVAL, "{answer}");
        // SAFETY: reads memory of ours; volatile, because somebody else may have written it.
        let written = bytes.iter().filter(|byte| unsafe { std::ptr::read_volatile(*byte) } != 0xaa);
        assert_eq!(written.count(), 0, "written after it was the caller's again");
    }
}

/// What has positions in name only gives less than was asked for, and that is all there is.
#[test]
fn a_read_of_an_eventfd_or_a_timer_is_done_when_it_has_read_what_there_was() {
    let set = Set::up(4);
    let fd = eventfd(0);
    let five = 5u64;
    // SAFETY: writes 8 bytes of ours.
    let wrote = unsafe { libc::write(fd.as_raw_fd(), (&raw const five).cast(), 8) };
    assert_eq!(wrote, 8);
    let mut bytes = [0; 64];
    let mut one = UaioIocb { fd: fd.as_raw_fd(), flags: 0, ..read(1, &mut bytes) };
    assert_eq!(set.submit(&mut [&raw mut one]), 1);
    let events = set.events(1, 1, Some(Duration::from_secs(5))).unwrap();
    assert_eq!(events.first().map(|event| event.res), Some(8));
    assert_eq!(bytes[0], 5);
}

/// As many as the context has events are in progress, none waits behind those that wait for it.
#[test]
fn reads_that_never_end_do_not_keep_the_write_waiting_that_would_end_them() {
    const MANY: usize = 6000;
    let set = Set::up(MANY as u32 + 1);
    let (reader, writer) = std::io::pipe().unwrap();
    let mut bytes = vec![0u8; MANY];
    let mut reads: Vec<_> = bytes
        .iter_mut()
        .enumerate()
        .map(|(at, byte)| UaioIocb {
            fd: reader.as_raw_fd(),
            flags: 0,
            ..read(at as u64, std::slice::from_mut(byte))
        })
        .collect();
    let mut list: Vec<*mut UaioIocb> = reads.iter_mut().map(std::ptr::from_mut).collect();
    let mut taken = 0;
    while taken < MANY {
        let count = set.submit(&mut list[taken..]);
        assert!(count > 0, "{count}");
        taken += count as usize;
    }
    let mut all = vec![7u8; MANY];
    let mut write = UaioIocb {
        fd: writer.as_raw_fd(),
        flags: 0,
        opcode: opcode::PWRITE,
        ..read(u64::MAX, &mut all)
    };
    assert_eq!(set.submit(&mut [&raw mut write]), 1);
    let events = set.events(MANY as i64 + 1, MANY + 1, Some(Duration::from_secs(20))).unwrap();
    assert_eq!(events.len(), MANY + 1);
}

/// An eventfd that its owner closed is gone from its epoll sets once no notice on it is to come: a name
/// of the library's would keep it there, readable, for ever.
#[test]
fn an_eventfd_is_held_no_longer_than_a_notice_on_it_is_to_come() {
    let set = Set::up(8);
    let fd = eventfd(libc::EFD_NONBLOCK);
    // SAFETY: makes a descriptor.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    assert!(epoll >= 0);
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
    // SAFETY: the address of a structure of ours.
    let added =
        unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event) };
    assert_eq!(added, 0);
    // SAFETY: room for one event.
    let mut ready = |timeout_ms| unsafe { libc::epoll_wait(epoll, &raw mut event, 1, timeout_ms) };
    let mut one = UaioIocb { flags: F_RESFD, resfd: fd.as_raw_fd(), ..noop(5) };
    assert_eq!(set.submit(&mut [&raw mut one]), 1);
    assert_eq!(set.data(1, 1), [5]);
    assert_eq!(ready(20_000), 1, "no notice");
    drop(fd);
    let start = Instant::now();
    while ready(0) != 0 {
        assert!(start.elapsed() < Duration::from_secs(5), "it is held");
        std::thread::sleep(Duration::from_millis(1));
    }
    // SAFETY: made above, and nobody else's.
    unsafe { libc::close(epoll) };
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Gives the number of a descriptor to another file. Not by closing it and opening another: other tests open
/// descriptors meanwhile.
fn becomes(fd: &OwnedFd, file: &impl AsRawFd) {
    // SAFETY: two open descriptors; the first is still owned by who owned it.
    let number = unsafe { libc::dup3(file.as_raw_fd(), fd.as_raw_fd(), libc::O_CLOEXEC) };
    assert_eq!(number, fd.as_raw_fd());
}

/// One eventfd for all of them is one descriptor for all of them, and another one with its number is
/// another.
#[test]
fn an_eventfd_that_many_commands_name_is_held_once() {
    let set = Set::up(256);
    let mut endless = Endless::new();
    let fd = eventfd(libc::EFD_NONBLOCK);
    let before = descriptors();
    let template = endless.read(1);
    let mut bytes = [0u8; 200];
    let mut waits: Vec<_> = bytes
        .iter_mut()
        .map(|byte| UaioIocb {
            buf: std::ptr::from_mut(byte).cast::<c_void>(),
            flags: F_RESFD,
            resfd: fd.as_raw_fd(),
            ..template
        })
        .collect();
    let mut list: Vec<*mut UaioIocb> = waits.iter_mut().map(std::ptr::from_mut).collect();
    assert_eq!(set.submit(&mut list), 200);
    assert!(descriptors() < before + 20, "{} of them", descriptors() - before);
    for iocb in &list {
        assert!(uaio_cancel(set.0, *iocb) >= 0);
    }
    assert_eq!(set.events(200, 200, Some(Duration::from_secs(20))).unwrap().len(), 200);
    let count = |fd: &OwnedFd| {
        let mut count = 0u64;
        // SAFETY: reads 8 bytes into a word of ours.
        let read = unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) };
        if read == 8 { count } else { 0 }
    };
    let (start, mut seen) = (Instant::now(), 0);
    while seen < 200 {
        assert!(start.elapsed() < Duration::from_secs(20), "{seen} notices");
        seen += count(&fd);
    }
    // The same number, another eventfd.
    let number = fd.as_raw_fd();
    becomes(&fd, &eventfd(libc::EFD_NONBLOCK));
    let mut one = UaioIocb { flags: F_RESFD, resfd: number, ..noop(5) };
    assert_eq!(set.submit(&mut [&raw mut one]), 1);
    assert_eq!(set.data(1, 1), [5]);
    let start = Instant::now();
    while count(&fd) != 1 {
        assert!(start.elapsed() < Duration::from_secs(20), "no notice");
    }
    // And no eventfd at all.
    becomes(&fd, &std::io::pipe().unwrap().0);
    assert_eq!(set.submit(&mut [&raw mut one]), -libc::EINVAL);
}

/// Nothing of a context is there in the child, not even a lock that another thread may have had.
#[test]
fn every_call_in_the_child_of_a_fork_is_einval() {
    let set = Set::up(4);
    let mut one = noop(1);
    let mut list = [&raw mut one];
    let mut event = UaioEvent { data: 0, obj: null_mut(), res: 0, res2: 0 };
    let wait = [UaioWait { context: set.0, iocb: &raw mut one }];
    // SAFETY: the child makes only calls that must work after a fork, and ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let mut other = 0;
        let answers = [
            uaio_submit(set.0, 1, list.as_mut_ptr()),
            uaio_getevents(set.0, 0, 1, &raw mut event, null()),
            uaio_cancel(set.0, &raw mut one),
            uaio_suspend(wait.as_ptr(), 1, 1, null()),
            uaio_listio(set.0, LIST_WAIT, list.as_mut_ptr(), 1, null()),
            uaio_size(set.0, 1) as i32,
            uaio_destroy(set.0),
            uaio_setup(1, &raw mut other),
        ];
        let wrong = answers.iter().filter(|answer| **answer != -libc::EINVAL).count();
        // SAFETY: ends the child, without what the parent wants done at its end.
        unsafe { libc::_exit(wrong as i32) };
    }
    let (start, mut status) = (Instant::now(), 0);
    // SAFETY: asks for the child's status.
    while unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == 0 {
        if start.elapsed() > Duration::from_secs(10) {
            // SAFETY: ends our own child.
            unsafe { libc::kill(child, libc::SIGKILL) };
            panic!("the child hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(status, 0, "the child's calls were not all EINVAL");
    // The parent goes on.
    assert_eq!(set.submit(&mut list), 1);
    assert_eq!(set.data(1, 1), [1]);
    let mut sync = UaioIocb { flags: F_VOLUME, ..iocb(2, opcode::FSYNC) };
    assert_eq!(set.submit(&mut [&raw mut sync]), 1);
    assert_eq!(set.data(1, 1), [2]);
}

/// Who destroys may come when the first of a chain is done and the next is not begun yet.
#[test]
fn destroy_ends_chains_whose_next_command_would_wait_for_ever() {
    const CHAINS: usize = 16;
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    for _ in 0..200 {
        let set = Set::up(2 * CHAINS as u32);
        let mut bytes = [0u8; CHAINS];
        let mut iocbs: Vec<UaioIocb> = bytes
            .iter_mut()
            .flat_map(|byte| {
                let receive = UaioIocb {
                    fd: one.as_raw_fd(),
                    opcode: opcode::RECV,
                    flags: 0,
                    ..read(2, std::slice::from_mut(byte))
                };
                [UaioIocb { flags: F_LINK, ..noop(1) }, receive]
            })
            .collect();
        let mut list: Vec<*mut UaioIocb> = iocbs.iter_mut().map(std::ptr::from_mut).collect();
        assert_eq!(set.submit(&mut list), 2 * CHAINS as i32);
        drop(set);
    }
}

#[test]
fn nothing_is_called_back_once_destroy_has_returned_in_a_function_that_was() {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    static CONTEXT: AtomicU64 = AtomicU64::new(0);
    static CALLED: AtomicUsize = AtomicUsize::new(0);
    static DESTROYED: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn called(_: *mut c_void) {
        if CALLED.fetch_add(1, Ordering::SeqCst) == 0 {
            // The others are behind this one by then.
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(uaio_destroy(CONTEXT.load(Ordering::SeqCst)), 0);
            DESTROYED.store(1, Ordering::SeqCst);
        }
    }
    let mut context = 0;
    assert_eq!(uaio_setup(8, &raw mut context), 0);
    CONTEXT.store(context, Ordering::SeqCst);
    let notify =
        UaioNotify { kind: 2, signo: 0, tid: 0, fd: 0, value: null_mut(), function: Some(called) };
    let mut iocbs =
        [1, 2, 3, 4].map(|at| UaioIocb { flags: F_NOTIFY, notify: &raw const notify, ..noop(at) });
    let mut list = iocbs.each_mut().map(std::ptr::from_mut);
    assert_eq!(uaio_submit(context, 4, list.as_mut_ptr()), 4);
    let start = Instant::now();
    while DESTROYED.load(Ordering::SeqCst) == 0 {
        assert!(start.elapsed() < Duration::from_secs(20), "it was not destroyed");
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(CALLED.load(Ordering::SeqCst), 1);
}

#[test]
fn credentials_are_refreshed_by_the_name_of_the_context() {
    let set = Set::up(1);
    assert_eq!(uaio_refresh_credentials(set.0), 0);
    let name = set.0;
    drop(set);
    assert_eq!(uaio_refresh_credentials(name), -libc::EINVAL);
}
