//! The host engine on sockets, pipes, terminals and what is waited for: every operation with a peer
//! that checks it, on this machine only.
#![expect(unsafe_code, reason = "makes a terminal, epoll descriptors and control messages")]

mod host;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

use host::{Bench, errno};
use rustix::event::{EventfdFlags, epoll, eventfd};
use uaio_core::host::{
    Accept, Cancel, Descriptor, EpollWait, HostDone, HostOp, HostRequest, Message, Position,
    SocketAddress, Vectored,
};

fn read(fd: &Descriptor, len: usize) -> HostOp {
    HostOp::Read { fd: fd.clone(), memory: vec![0; len].into(), at: Position::Current, flags: 0 }
}

fn write(fd: &Descriptor, bytes: &[u8]) -> HostOp {
    HostOp::Write { fd: fd.clone(), memory: bytes.to_vec().into(), at: Position::Current, flags: 0 }
}

fn recv(fd: &Descriptor, len: usize) -> HostOp {
    HostOp::Recv { fd: fd.clone(), memory: vec![0; len].into(), flags: 0 }
}

fn bytes(done: HostDone) -> Vec<u8> {
    let len = done.result.unwrap() as usize;
    let mut bytes = match done.op {
        Some(HostOp::Read { memory, .. } | HostOp::Recv { memory, .. }) => memory.into_vec(),
        other => panic!("{other:?} has no memory"),
    };
    bytes.truncate(len);
    bytes
}

fn message(done: HostDone) -> (u64, Box<Message>) {
    match done {
        HostDone { result: Ok(len), op: Some(HostOp::RecvMsg { message, .. }), .. } => {
            (len, message)
        }
        other => panic!("{other:?} received nothing"),
    }
}

fn poll(fd: &Descriptor, events: i16, multishot: bool) -> HostOp {
    HostOp::Poll { fd: fd.clone(), events: events as u32, multishot }
}

fn with_timeout(op: HostOp, timeout: Duration) -> HostRequest {
    HostRequest::from(op).with_timeout(timeout)
}

const SHORT: Duration = Duration::from_millis(20);

#[test]
fn a_read_of_an_empty_pipe_waits_for_bytes_and_gets_those_that_are_there() {
    let mut bench = Bench::new(8);
    let (reader, mut writer) = std::io::pipe().unwrap();
    let reader = Descriptor::new(reader);
    bench.start(read(&reader, 100));
    bench.engine.commit_and_wait(SHORT);
    let mut done = Vec::new();
    assert_eq!(bench.engine.poll(10, &mut done), 0);
    writer.write_all(b"hello").unwrap();
    assert_eq!(bytes(bench.wait(1).remove(0)), b"hello");
    drop(writer);
    assert_eq!(bench.run(read(&reader, 100)).result, Ok(0));
}

#[test]
fn a_write_to_a_full_pipe_waits_for_room() {
    let mut bench = Bench::new(8);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let writer = Descriptor::new(writer);
    let room = 65_536;
    assert_eq!(bench.run(write(&writer, &vec![1; room])).result, Ok(room as u64));
    let memory = Vectored::new(vec![vec![2; 10], vec![3; 10]]);
    bench.start(HostOp::WriteV { fd: writer, memory, at: Position::Current, flags: 0 });
    bench.engine.commit_and_wait(SHORT);
    assert_eq!(bench.engine.poll(10, &mut Vec::new()), 0);
    let mut got = vec![0; room];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(bench.wait(1)[0].result, Ok(20));
    reader.read_exact(&mut got[..20]).unwrap();
    assert_eq!(got[..20], [[2; 10], [3; 10]].concat());
}

#[test]
fn an_eventfd_and_a_terminal_are_read_and_written() {
    let mut bench = Bench::new(8);
    let counter = Descriptor::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    assert_eq!(bench.run(write(&counter, &5u64.to_ne_bytes())).result, Ok(8));
    assert_eq!(bytes(bench.run(read(&counter, 8))), 5u64.to_ne_bytes());
    let (mut us, mut them) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: the addresses of two words of ours, and no name, settings or size.
    let made = unsafe { libc::openpty(&raw mut us, &raw mut them, none, none.cast(), none.cast()) };
    assert_eq!(made, 0);
    // SAFETY: made just now, for us.
    let us = unsafe { OwnedFd::from_raw_fd(us) };
    // SAFETY: the same.
    let them = unsafe { OwnedFd::from_raw_fd(them) };
    let (us, them) = (Descriptor::new(us), Descriptor::new(them));
    bench.start(read(&them, 100));
    assert_eq!(bench.run_other(write(&us, b"a line\n")).result, Ok(7));
    assert_eq!(bytes(bench.wait(1).remove(0)), b"a line\n");
}

#[test]
fn a_connection_is_accepted_and_made_and_carries_bytes_both_ways() {
    let mut bench = Bench::new(8);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let accept = Accept {
        fd: Descriptor::new(listener),
        flags: 0,
        address: SocketAddress::empty(),
        accepted: None,
    };
    bench.start(HostOp::Accept(Box::new(accept)));
    // SAFETY: makes a socket.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: it was made just now, for us.
    let ours = TcpStream::from(unsafe { OwnedFd::from_raw_fd(socket) });
    let fd = Descriptor::new(ours.try_clone().unwrap());
    bench.start(HostOp::Connect { fd: fd.clone(), address: Box::new(address.into()) });
    let mut accepted = None;
    for done in bench.wait(2) {
        match done.op {
            Some(HostOp::Accept(accept)) => accepted = Some(accept),
            _ => assert_eq!(done.result, Ok(0)),
        }
    }
    let accept = accepted.unwrap();
    assert_eq!(accept.address.to_inet(), Some(ours.local_addr().unwrap()));
    let theirs = Descriptor::new(accept.accepted.unwrap());
    bench.start(recv(&theirs, 100));
    let send = HostOp::Send { fd: fd.clone(), memory: b"ping".to_vec().into(), flags: 0 };
    assert_eq!(bench.run_other(send).result, Ok(4));
    assert_eq!(bytes(bench.wait(1).remove(0)), b"ping");
    assert_eq!(bench.run(HostOp::Shutdown { fd: fd.clone(), how: libc::SHUT_WR }).result, Ok(0));
    assert_eq!(bench.run(recv(&theirs, 1)).result, Ok(0));
    let refused = HostOp::Connect { fd, address: Box::new(address.into()) };
    assert_eq!(bench.run(refused).result, Err(errno(libc::EISCONN)));
}

#[test]
fn a_connection_to_nobody_is_refused() {
    let mut bench = Bench::new(8);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // SAFETY: makes a socket.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: it was made just now, for us.
    let fd = Descriptor::new(unsafe { OwnedFd::from_raw_fd(socket) });
    let connect = HostOp::Connect { fd, address: Box::new(nobody.into()) };
    assert_eq!(bench.run(connect).result, Err(errno(libc::ECONNREFUSED)));
}

#[test]
fn datagrams_come_with_whom_they_are_from_and_one_that_is_too_long_says_so() {
    let mut bench = Bench::new(8);
    let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("[::1]:0").unwrap());
    let c = UdpSocket::bind("127.0.0.1:0").unwrap();
    let fd = |socket: &UdpSocket| Descriptor::new(socket.try_clone().unwrap());
    let to = |address: SocketAddr, bytes: &[u8]| {
        Box::new(Message::new(vec![bytes[..1].to_vec(), bytes[1..].to_vec()]).to(address))
    };
    let receive = |socket: &UdpSocket| HostOp::RecvMsg {
        fd: fd(socket),
        message: Box::new(Message::new(vec![vec![0; 3], vec![0; 4]]).from_anybody()),
        flags: 0,
    };
    bench.start(receive(&a));
    let message_to = to(a.local_addr().unwrap(), b"abcdef");
    let send = HostOp::SendMsg { fd: fd(&c), message: message_to, flags: 0 };
    assert_eq!(bench.run_other(send).result, Ok(6));
    let (len, got) = message(bench.wait(1).remove(0));
    assert_eq!((len, got.flags), (6, 0));
    assert_eq!(got.buffers, [b"abc".to_vec(), b"def\0".to_vec()]);
    assert_eq!(got.address.unwrap().to_inet(), Some(c.local_addr().unwrap()));
    b.send_to(b"0123456789", b.local_addr().unwrap()).unwrap();
    let (len, got) = message(bench.run(receive(&b)));
    assert_eq!((len, got.flags), (7, libc::MSG_TRUNC));
    assert_eq!(got.address.unwrap().to_inet(), Some(b.local_addr().unwrap()));
}

#[test]
fn control_data_carries_a_descriptor() {
    let mut bench = Bench::new(8);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    // Sent with the only name that the other side will not have.
    let sent = Message::new(vec![b"x".to_vec()]).with_descriptors(vec![Descriptor::new(writer)]);
    let (fd, message_of) = (Descriptor::new(ours), Box::new(sent));
    assert_eq!(bench.run(HostOp::SendMsg { fd, message: message_of, flags: 0 }).result, Ok(1));
    let room = Box::new(Message::new(vec![vec![0]]).with_control_room(64));
    let fd = Descriptor::new(theirs);
    let (_, mut got) = message(bench.run(HostOp::RecvMsg { fd, message: room, flags: 0 }));
    assert_eq!((got.descriptors.len(), got.flags & libc::MSG_CTRUNC), (1, 0));
    let number = i32::from_ne_bytes(got.control()[16..20].try_into().unwrap());
    assert_eq!(got.descriptors[0].as_raw_fd(), number);
    let flags = rustix::io::fcntl_getfd(&got.descriptors[0]).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "no child has it");
    let mut writer = std::fs::File::from(got.descriptors.remove(0));
    writer.write_all(b"through").unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");
}

/// A server answers in the message that the question came in: what came with it is neither sent back,
/// by numbers that may be others' by now, nor is room for control data sent as such.
#[test]
fn a_message_that_was_received_into_is_sent_without_control_data() {
    let mut bench = Bench::new(8);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (ours, theirs) = (Descriptor::new(ours), Descriptor::new(theirs));
    let room = || Box::new(Message::new(vec![vec![0]]).with_control_room(64));
    let (reader, _writer) = std::io::pipe().unwrap();
    let rights = Message::new(vec![b"x".to_vec()]).with_descriptors(vec![Descriptor::new(reader)]);
    for (descriptors, sent) in [(1, Box::new(rights)), (0, room()), (0, room())] {
        let op = HostOp::SendMsg { fd: ours.clone(), message: sent, flags: 0 };
        assert_eq!(bench.run(op).result, Ok(1), "the question");
        let op = HostOp::RecvMsg { fd: theirs.clone(), message: room(), flags: 0 };
        let (_, received) = message(bench.run(op));
        assert_eq!(received.descriptors.len(), descriptors);
        let op = HostOp::SendMsg { fd: theirs.clone(), message: received, flags: 0 };
        assert_eq!(bench.run(op).result, Ok(1), "the answer");
        let op = HostOp::RecvMsg { fd: ours.clone(), message: room(), flags: 0 };
        let (_, answer) = message(bench.run(op));
        assert_eq!((answer.descriptors.len(), answer.control().len()), (0, 0));
    }
}

/// What nobody takes out of a message is closed with it.
#[test]
fn a_descriptor_that_came_with_a_message_is_closed_with_it() {
    let mut bench = Bench::new(8);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let sent = Message::new(vec![b"x".to_vec()]).with_descriptors(vec![Descriptor::new(writer)]);
    let (fd, sent) = (Descriptor::new(ours), Box::new(sent));
    assert_eq!(bench.run(HostOp::SendMsg { fd, message: sent, flags: 0 }).result, Ok(1));
    let message = Box::new(Message::new(vec![vec![0]]).with_control_room(64));
    let fd = Descriptor::new(theirs);
    drop(bench.run(HostOp::RecvMsg { fd, message, flags: 0 }));
    // The end of the pipe: nobody holds the other side.
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
}

#[test]
fn a_poll_says_what_is_there_once_or_each_time() {
    let mut bench = Bench::new(8);
    let (reader, mut writer) = std::io::pipe().unwrap();
    let fd = Descriptor::new(reader);
    bench.start(poll(&fd, libc::POLLIN, false));
    bench.engine.commit_and_wait(SHORT);
    assert_eq!(bench.engine.poll(10, &mut Vec::new()), 0);
    writer.write_all(b"1").unwrap();
    let done = bench.wait(1).remove(0);
    assert_eq!((done.result, done.more()), (Ok(libc::POLLIN as u64), false));
    let id = bench.start(poll(&fd, libc::POLLIN, true));
    let done = bench.wait(1).remove(0);
    assert_eq!((done.result, done.more()), (Ok(libc::POLLIN as u64), true));
    for _ in 0..3 {
        writer.write_all(b"2").unwrap();
        let done = bench.wait(1).remove(0);
        assert_eq!((done.result, done.more()), (Ok(libc::POLLIN as u64), true));
    }
    assert_eq!(bench.engine.cancel(id), Cancel::Asked);
    let done = bench.wait(1).remove(0);
    assert_eq!((done.result, done.more()), (Err(errno(libc::ECANCELED)), false));
    assert_eq!(bench.engine.in_flight(), 0);
}

#[test]
fn an_epoll_descriptor_delivers_its_events_in_the_same_loop() {
    let mut bench = Bench::new(8);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let pipes: Vec<_> = (0..3).map(|_| std::io::pipe().unwrap()).collect();
    for (at, (reader, _)) in (0u64..).zip(&pipes) {
        let data = epoll::EventData::new_u64(at);
        epoll::add(&epoll, reader, data, epoll::EventFlags::IN | epoll::EventFlags::ET).unwrap();
    }
    let fd = Descriptor::new(epoll);
    let wait = |events: usize| {
        let events = vec![libc::epoll_event { events: 0, u64: 0 }; events];
        HostOp::EpollWait(Box::new(EpollWait { fd: fd.clone(), events }))
    };
    let got = |done: HostDone| {
        let count = done.result.unwrap() as usize;
        let Some(HostOp::EpollWait(wait)) = done.op else { panic!("another operation") };
        let mut got: Vec<u64> = wait.events[..count].iter().map(|event| event.u64).collect();
        got.sort_unstable();
        got
    };
    // Nothing is there: it waits, beside a read of a file.
    bench.start(wait(8));
    let file = Descriptor::new(bench.file(b"disk"));
    let memory = vec![0; 4].into();
    let op = HostOp::Read { fd: file, memory, at: Position::At(0), flags: 0 };
    assert_eq!(bench.run_other(op).result, Ok(4));
    (&pipes[1].1).write_all(b"x").unwrap();
    assert_eq!(got(bench.wait(1).remove(0)), [1]);
    // Two are there at once; both are delivered, and, being edges, once only.
    (&pipes[0].1).write_all(b"x").unwrap();
    (&pipes[2].1).write_all(b"x").unwrap();
    assert_eq!(got(bench.run(wait(8))), [0, 2]);
    let begin = Instant::now();
    let done = bench.run(with_timeout(wait(8), SHORT));
    assert_eq!(done.result, Ok(0));
    assert!(begin.elapsed() >= SHORT);
    // A cancel takes no event along.
    let id = bench.start(wait(8));
    bench.engine.commit_and_wait(SHORT);
    assert_eq!(bench.engine.cancel(id), Cancel::Asked);
    assert_eq!(bench.wait(1)[0].result, Err(errno(libc::ECANCELED)));
    (&pipes[0].1).write_all(b"x").unwrap();
    assert_eq!(got(bench.run(wait(8))), [0]);
    // What epoll_wait(2) refuses.
    assert_eq!(bench.run(wait(0)).result, Err(errno(libc::EINVAL)));
    let events = vec![libc::epoll_event { events: 0, u64: 0 }];
    let not_epoll = EpollWait { fd: Descriptor::new(std::io::pipe().unwrap().0), events };
    let result = bench.run(HostOp::EpollWait(Box::new(not_epoll))).result;
    assert_eq!(result, Err(errno(libc::EINVAL)));
}

#[test]
fn a_sleep_takes_its_time_and_a_timeout_ends_what_takes_longer() {
    let mut bench = Bench::new(8);
    let begin = Instant::now();
    assert_eq!(bench.run(HostOp::Sleep(SHORT)).result, Ok(0));
    assert!(begin.elapsed() >= SHORT);
    let (reader, mut writer) = std::io::pipe().unwrap();
    let fd = Descriptor::new(reader);
    let begin = Instant::now();
    let done = bench.run(with_timeout(read(&fd, 10), SHORT));
    assert_eq!(done.result, Err(errno(libc::ETIMEDOUT)));
    assert!(begin.elapsed() >= SHORT);
    let done = bench.run(with_timeout(HostOp::Sleep(host::PATIENCE), SHORT));
    assert_eq!(done.result, Err(errno(libc::ETIMEDOUT)));
    // In time: the result, and no trace of the timer.
    writer.write_all(b"in time").unwrap();
    let done = bench.run(with_timeout(read(&fd, 10), host::PATIENCE));
    assert_eq!(bytes(done), b"in time");
    assert_eq!(bench.run(with_timeout(HostOp::Nop, Duration::MAX)).result, Ok(0));
    assert_eq!(bench.engine.in_flight(), 0);
}

#[test]
fn an_operation_that_is_not_to_wait_says_so() {
    let mut bench = Bench::new(8);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let fd = Descriptor::new(ours);
    let op = HostOp::Recv { fd: fd.clone(), memory: vec![0].into(), flags: libc::MSG_DONTWAIT };
    assert_eq!(bench.run(op).result, Err(errno(libc::EAGAIN)));
    let (memory, at, flags) = (vec![0].into(), Position::Current, libc::RWF_NOWAIT);
    let op = HostOp::Read { fd: fd.clone(), memory, at, flags };
    assert_eq!(bench.run(op).result, Err(errno(libc::EAGAIN)));
    // O_NONBLOCK is for those who would be kept waiting, which is nobody here.
    theirs.set_nonblocking(true).unwrap();
    bench.start(recv(&Descriptor::new(theirs), 1));
    bench.engine.commit_and_wait(SHORT);
    assert_eq!(bench.engine.poll(1, &mut Vec::new()), 0);
}

#[test]
fn a_flag_that_the_kernel_does_not_know_is_refused_and_the_next_write_is_not() {
    let mut bench = Bench::new(8);
    let (_reader, writer) = std::io::pipe().unwrap();
    let fd = Descriptor::new(writer);
    let (memory, at) = (b"x".to_vec().into(), Position::Current);
    let op = HostOp::Write { fd: fd.clone(), memory, at, flags: 0x4000_0000 };
    assert_eq!(bench.run(op).result, Err(errno(libc::EOPNOTSUPP)));
    assert_eq!(bench.run(write(&fd, b"x")).result, Ok(1));
}

#[test]
fn a_descriptor_stays_open_while_an_operation_is_on_it() {
    let mut bench = Bench::new(8);
    let (reader, mut writer) = std::io::pipe().unwrap();
    let fd = Descriptor::new(reader);
    bench.start(read(&fd, 10));
    bench.engine.commit();
    drop(fd);
    writer.write_all(b"still there").unwrap();
    assert_eq!(bytes(bench.wait(1).remove(0)), b"still ther");
    // The operation was its last owner, and is gone.
    assert_eq!(writer.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPIPE));
    let _ = writer.as_fd();
}

/// What was received where nothing can be put is lost, and no more than that: the next is still there.
#[test]
fn a_message_by_address_with_a_bad_address_in_it_is_answered_and_loses_one_datagram() {
    let mut bench = Bench::new(8);
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    for word in [b"one", b"two"] {
        theirs.send(word).unwrap();
    }
    ours.set_nonblocking(true).unwrap();
    let fd = Descriptor::new(ours.try_clone().unwrap());
    let bad = std::ptr::without_provenance_mut(8);
    let mut list = libc::iovec { iov_base: bad, iov_len: 3 };
    // SAFETY: a structure of numbers and addresses, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    (header.msg_iov, header.msg_iovlen) = (&raw mut list, 1);
    // SAFETY: the header and its list outlive the operation, which ends below; the kernel checks the rest.
    let message = Box::new(unsafe { Message::raw(&raw mut header) });
    let done = bench.run(HostOp::RecvMsg { fd, message, flags: 0 });
    assert_eq!(done.result, Err(errno(libc::EFAULT)));
    let mut next = [0; 3];
    assert_eq!((ours.recv(&mut next).unwrap(), &next), (3, b"two"));
}
