//! Commands of the C face beyond those of libaio: sockets, ranges, links, and how each is told.
#![expect(unsafe_code, reason = "waits for signals")]

mod set;

use std::ffi::c_void;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use set::{Endless, Set, iocb, noop, read};
use uaio::exports::{uaio_cancel, uaio_listio};
use uaio::layout::{
    F_LINK, F_NOTIFY, F_RESFD, F_VOLUME, LIST_WAIT, UaioEvent, UaioIocb, UaioNotify, opcode,
};

const PATIENCE: Option<Duration> = Some(Duration::from_secs(20));

fn on(fd: &impl AsRawFd, opcode: u16, bytes: &mut [u8]) -> UaioIocb {
    let buf = bytes.as_mut_ptr().cast::<c_void>();
    UaioIocb { fd: fd.as_raw_fd(), buf, nbytes: bytes.len() as u64, ..iocb(0, opcode) }
}

/// One command from submission to event.
fn run(set: &Set, mut one: UaioIocb) -> i64 {
    match set.submit(&mut [&raw mut one]) {
        1 => set.events(1, 1, PATIENCE).unwrap()[0].res,
        errno => errno.into(),
    }
}

/// The address of a socket in the kernel's form.
fn address(port: u16) -> Vec<u8> {
    let mut bytes = (libc::AF_INET as u16).to_ne_bytes().to_vec();
    bytes.extend(port.to_be_bytes());
    bytes.extend([127, 0, 0, 1]);
    bytes.extend([0; 8]);
    bytes
}

#[test]
fn a_connection_is_made_accepted_used_and_shut_down() {
    let set = Set::up(4);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut accept = UaioIocb { data: 1, ..on(&listener, opcode::ACCEPT, &mut []) };
    assert_eq!(set.submit(&mut [&raw mut accept]), 1);
    // SAFETY: makes a socket.
    let client = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
    // SAFETY: it has just been made.
    let client = unsafe { OwnedFd::from_raw_fd(client) };
    let mut to = address(listener.local_addr().unwrap().port());
    let mut connect = UaioIocb { data: 2, ..on(&client, opcode::CONNECT, &mut to) };
    assert_eq!(set.submit(&mut [&raw mut connect]), 1);
    let mut events = set.events(2, 2, PATIENCE).unwrap();
    events.sort_by_key(|event| event.data);
    assert_eq!(events[1].res, 0);
    assert!(events[0].res > 2, "{}", events[0].res);
    // SAFETY: the connection is the caller's.
    let server = unsafe { OwnedFd::from_raw_fd(events[0].res as i32) };
    assert_eq!(run(&set, on(&client, opcode::SEND, &mut b"hello".to_vec())), 5);
    let mut bytes = [0; 16];
    assert_eq!(run(&set, on(&server, opcode::RECV, &mut bytes)), 5);
    assert_eq!(&bytes[..5], b"hello");
    let shutdown = UaioIocb { op_flags: libc::SHUT_RDWR as u32, ..iocb(0, opcode::SHUTDOWN) };
    assert_eq!(run(&set, UaioIocb { fd: client.as_raw_fd(), ..shutdown }), 0);
    assert_eq!(run(&set, on(&server, opcode::RECV, &mut bytes)), 0, "the end");
    // What is no address.
    assert_eq!(run(&set, on(&client, opcode::CONNECT, &mut [1])), -i64::from(libc::EINVAL));
    let long = on(&client, opcode::CONNECT, &mut [0; 200]);
    assert_eq!(run(&set, long), -i64::from(libc::EINVAL));
}

#[test]
fn a_datagram_comes_with_whom_it_is_from() {
    let set = Set::up(4);
    let [one, two] = [0; 2].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    let mut to = address(two.local_addr().unwrap().port());
    let mut text = *b"datagram";
    let mut piece = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    // SAFETY: a structure of numbers and addresses, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    (header.msg_name, header.msg_namelen) = (to.as_mut_ptr().cast(), to.len() as u32);
    (header.msg_iov, header.msg_iovlen) = (&raw mut piece, 1);
    let of = |fd: &UdpSocket, opcode, header: &mut libc::msghdr| UaioIocb {
        fd: fd.as_raw_fd(),
        buf: std::ptr::from_mut(header).cast(),
        ..iocb(0, opcode)
    };
    assert_eq!(run(&set, of(&one, opcode::SENDMSG, &mut header)), 8);
    let (mut from, mut got) = ([0u8; 16], [0u8; 32]);
    let mut piece = libc::iovec { iov_base: got.as_mut_ptr().cast(), iov_len: got.len() };
    (header.msg_name, header.msg_namelen) = (from.as_mut_ptr().cast(), 16);
    header.msg_iov = &raw mut piece;
    assert_eq!(run(&set, of(&two, opcode::RECVMSG, &mut header)), 8);
    assert_eq!(&got[..8], b"datagram");
    assert_eq!(from[..8], address(one.local_addr().unwrap().port())[..8]);
    let nowhere = UaioIocb { buf: null_mut(), ..of(&one, opcode::SENDMSG, &mut header) };
    assert_eq!(run(&set, nowhere), -i64::from(libc::EFAULT));
}

#[test]
fn ranges_are_made_stable_and_read_ahead_on_volumes_and_files() {
    let set = Set::up(4);
    let mut bytes = [7; 8192];
    let write = UaioIocb { opcode: opcode::PWRITE, ..read(0, &mut bytes) };
    assert_eq!(run(&set, write), 8192);
    let ranged = |opcode| UaioIocb { nbytes: 4096, offset: 4096, ..iocb(0, opcode) };
    for opcode in [opcode::SYNC_RANGE, opcode::READAHEAD] {
        let volume = UaioIocb { flags: F_VOLUME, ..ranged(opcode) };
        assert!(run(&set, volume) >= 0, "{opcode}");
        let wrong = UaioIocb { offset: -1, ..volume };
        assert_eq!(run(&set, wrong), -i64::from(libc::EINVAL));
        let wrong = UaioIocb { op_flags: 1, ..volume };
        assert_eq!(run(&set, wrong), -i64::from(libc::EINVAL));
    }
    let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
    let file = UaioIocb { fd: file.as_raw_fd(), ..ranged(opcode::READAHEAD) };
    assert_eq!(run(&set, file), 0);
    let sync = UaioIocb { opcode: opcode::SYNC_RANGE, op_flags: 7, ..file };
    assert_eq!(run(&set, sync), 0);
    let long = UaioIocb { nbytes: 1 << 40, ..sync };
    assert_eq!(run(&set, long), -i64::from(libc::EINVAL));
}

/// A list of memory by address is as long as what it names, also for a chain.
#[test]
fn what_is_linked_to_a_vectored_transfer_begins_when_all_of_it_was_moved_and_not_before() {
    let set = Set::up(4);
    let path = std::env::temp_dir().join(format!("uaio-linked-{}", std::process::id()));
    let options = std::fs::File::options().read(true).write(true).create_new(true).open(&path);
    let file = options.unwrap();
    std::fs::remove_file(&path).unwrap();
    let mut bytes = [7; 300];
    let (first, second) = bytes.split_at_mut(100);
    let vector = |bytes: &mut [u8]| libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let mut parts = [vector(first), vector(second)];
    let list = UaioIocb {
        fd: file.as_raw_fd(),
        buf: parts.as_mut_ptr().cast(),
        nbytes: 2,
        flags: F_LINK,
        ..iocb(1, opcode::PWRITEV)
    };
    let mut iocbs = [list, UaioIocb { fd: file.as_raw_fd(), ..iocb(2, opcode::FSYNC) }];
    let mut chain = |first: UaioIocb| {
        iocbs[0] = first;
        set.submit(&mut iocbs.each_mut().map(std::ptr::from_mut))
    };
    assert_eq!(chain(list), 2);
    let events = set.events(2, 4, PATIENCE).unwrap();
    assert_eq!(data_and_results(&events), [(1, 300), (2, 0)]);
    // Short at the end of the file.
    assert_eq!(chain(UaioIocb { opcode: opcode::PREADV, offset: 100, ..list }), 2);
    let events = set.events(2, 4, PATIENCE).unwrap();
    assert_eq!(data_and_results(&events), [(1, 200), (2, -i64::from(libc::ECANCELED))]);
    let unmapped = std::ptr::without_provenance_mut(4096);
    assert_eq!(chain(UaioIocb { buf: unmapped, ..list }), -libc::EFAULT);
}

fn data_and_results(events: &[UaioEvent]) -> Vec<(u64, i64)> {
    events.iter().map(|event| (event.data, event.res)).collect()
}

#[test]
fn linked_commands_go_one_after_the_other_and_end_with_the_first_that_fails() {
    let set = Set::up(4);
    let (mut bytes, mut back) = ([9; 4096], [0; 4096]);
    let mut write =
        UaioIocb { flags: F_VOLUME | F_LINK, opcode: opcode::PWRITE, ..read(1, &mut bytes) };
    let mut sync = UaioIocb { flags: F_VOLUME | F_LINK, ..iocb(2, opcode::FSYNC) };
    let mut last = read(3, &mut back);
    let mut other = noop(4);
    let mut list = [&raw mut write, &raw mut sync, &raw mut last, &raw mut other];
    assert_eq!(set.submit(&mut list), 4);
    let mut events = set.events(4, 4, PATIENCE).unwrap();
    events.retain(|event| event.data != 4);
    assert_eq!(data_and_results(&events), [(1, 4096), (2, 0), (3, 4096)]);
    assert_eq!(back, [9; 4096]);
    // Past the end: short, so those behind it are not begun.
    write.offset = (1 << 20) - 100;
    assert_eq!(set.submit(&mut list[..3]), 3);
    let events = set.events(3, 4, PATIENCE).unwrap();
    let cancelled = -i64::from(libc::ECANCELED);
    assert_eq!(data_and_results(&events), [(1, 100), (2, cancelled), (3, cancelled)]);
    // So also when it is a block, and when a read is.
    let mut long = [3; 8192];
    write.offset = (1 << 20) - 4096;
    (write.buf, write.nbytes) = (long.as_mut_ptr().cast(), 8192);
    for opcode in [opcode::PWRITE, opcode::PREAD] {
        let mut list = [&raw mut write, &raw mut last];
        write.opcode = opcode;
        assert_eq!(set.submit(&mut list), 2);
        let events = set.events(2, 4, PATIENCE).unwrap();
        assert_eq!(data_and_results(&events), [(1, 4096), (3, cancelled)]);
    }
    // All of them or none.
    let mut endless = Endless::new();
    let mut waits = [endless.read(7), endless.read(8)];
    waits[0].flags = F_LINK;
    let mut chain = waits.each_mut().map(std::ptr::from_mut);
    assert_eq!(set.submit(&mut chain), 2);
    assert_eq!(set.submit(&mut list[..3]), -libc::EAGAIN);
    assert!(uaio_cancel(set.0, chain[1]) >= 0, "by any of them");
    let events = set.events(2, 4, PATIENCE).unwrap();
    assert_eq!(data_and_results(&events), [(7, cancelled), (8, cancelled)]);
    // A list goes each by itself.
    assert_eq!(uaio_listio(set.0, LIST_WAIT, list.as_mut_ptr(), 4, std::ptr::null()), 2);
    assert_eq!((write.status, sync.status), (-libc::EINVAL, -libc::EINVAL));
    assert_eq!(set.data(2, 4), [3, 4]);
}

#[test]
fn an_event_is_told_by_a_signal_with_its_value_to_the_process_or_a_thread() {
    let set = Set::up(4);
    // SAFETY: a set of signals is numbers, for which zero is a value.
    let mut signals: libc::sigset_t = unsafe { std::mem::zeroed() };
    let signo = libc::SIGRTMIN() + 3;
    // SAFETY: the address of a set of ours.
    unsafe { libc::sigaddset(&raw mut signals, signo) };
    // SAFETY: blocks a signal of this thread, which waits for it below.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, null_mut()) };
    // SAFETY: asks who this thread is.
    let thread = unsafe { libc::gettid() };
    let value = std::ptr::without_provenance_mut(4711);
    let notify = UaioNotify { kind: 1, signo, tid: thread, fd: 0, value, function: None };
    let mut one = UaioIocb { flags: F_NOTIFY, notify: &raw const notify, ..noop(5) };
    assert_eq!(set.submit(&mut [&raw mut one]), 1);
    // SAFETY: a structure of numbers, for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let patience = set::timespec(Duration::from_secs(20));
    // SAFETY: three addresses of ours.
    let got = unsafe { libc::sigtimedwait(&raw const signals, &raw mut info, &raw const patience) };
    assert_eq!((got, info.si_code), (signo, libc::SI_ASYNCIO));
    // SAFETY: it is a signal with a value.
    assert_eq!(unsafe { info.si_value() }.sival_ptr.addr(), 4711);
    assert_eq!(set.data(1, 1), [5]);
    let wrong = UaioNotify { signo: 99, ..notify };
    one.notify = &raw const wrong;
    assert_eq!(set.submit(&mut [&raw mut one]), -libc::EINVAL);
    one.flags = F_NOTIFY | F_RESFD;
    assert_eq!(set.submit(&mut [&raw mut one]), -libc::EINVAL);
}

#[test]
fn an_event_is_told_by_a_function_on_a_thread_of_the_librarys() {
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn told(value: *mut c_void) {
        TOLD.store(value.addr(), Ordering::SeqCst);
    }
    let set = Set::up(4);
    let value = std::ptr::without_provenance_mut(6);
    let notify = UaioNotify { kind: 2, signo: 0, tid: 0, fd: 0, value, function: Some(told) };
    let mut endless = Endless::new();
    let mut wait = UaioIocb { flags: F_NOTIFY, notify: &raw const notify, ..endless.read(5) };
    assert_eq!(set.submit(&mut [&raw mut wait]), 1);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(TOLD.load(Ordering::SeqCst), 0);
    endless.end();
    let start = Instant::now();
    while TOLD.load(Ordering::SeqCst) != 6 {
        assert!(start.elapsed() < Duration::from_secs(20), "it was not told");
        std::thread::yield_now();
    }
    assert_eq!(set.data(1, 1), [5]);
}
