//! Waits of the C face: epoll in the same loop, and polls that have an event each time.
#![expect(unsafe_code, reason = "makes epoll descriptors and eventfds")]

mod set;

use std::ffi::c_void;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use set::{Set, iocb, read};
use uaio::exports::{uaio_cancel, uaio_getevents, uaio_suspend};
use uaio::layout::{EVENT_MORE, F_LINK, F_RESFD, F_VOLUME, UaioEvent, UaioIocb, UaioWait, opcode};

const PATIENCE: Option<Duration> = Some(Duration::from_secs(20));

fn eventfd() -> File {
    // SAFETY: makes a descriptor.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    assert!(fd >= 0);
    // SAFETY: it has just been made.
    File::from(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn count_up(mut fd: &File) {
    fd.write_all(&1u64.to_ne_bytes()).unwrap();
}

fn empty(mut fd: &File) {
    let mut count = [0; 8];
    fd.read_exact(&mut count).unwrap();
}

/// An epoll descriptor that looks at these; each comes with its place in the list.
fn epoll(of: &[&File]) -> OwnedFd {
    // SAFETY: makes a descriptor.
    let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: it has just been made.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    for (at, file) in of.iter().enumerate() {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: at as u64 };
        // SAFETY: two descriptors of ours, and an event of ours that is read.
        let added = unsafe {
            libc::epoll_ctl(fd.as_raw_fd(), libc::EPOLL_CTL_ADD, file.as_raw_fd(), &raw mut event)
        };
        assert_eq!(added, 0);
    }
    fd
}

fn waits(epoll: &impl AsRawFd, events: &mut [libc::epoll_event]) -> UaioIocb {
    let buf = events.as_mut_ptr().cast::<c_void>();
    let nbytes = events.len() as u64;
    UaioIocb { fd: epoll.as_raw_fd(), buf, nbytes, ..iocb(5, opcode::EPOLL_WAIT) }
}

const NONE: libc::epoll_event = libc::epoll_event { events: 77, u64: 77 };

fn seen(events: &[libc::epoll_event]) -> Vec<(u32, u64)> {
    events.iter().map(|event| ({ event.events }, { event.u64 })).collect()
}

fn submit(set: &Set, one: &mut UaioIocb) -> i32 {
    set.submit(&mut [std::ptr::from_mut(one)])
}

fn polls(fd: &File) -> UaioIocb {
    let nbytes = libc::POLLIN as u64;
    UaioIocb { fd: fd.as_raw_fd(), nbytes, ..iocb(6, opcode::POLL_MULTISHOT) }
}

fn next(set: &Set) -> UaioEvent {
    set.events(1, 1, PATIENCE).unwrap()[0]
}

#[test]
fn an_epoll_descriptor_and_a_volume_are_waited_for_in_one_loop() {
    let set = Set::up(4);
    let files = [eventfd(), eventfd(), eventfd()];
    let epoll = epoll(&files.each_ref());
    let mut events = [NONE; 4];
    let mut wait = waits(&epoll, &mut events);
    assert_eq!(submit(&set, &mut wait), 1);
    let mut bytes = [0; 64];
    let mut other = read(1, &mut bytes);
    assert_eq!(submit(&set, &mut other), 1);
    assert_eq!((next(&set).data, set.data(0, 4)), (1, vec![]), "there are no epoll events yet");
    count_up(&files[2]);
    let event = next(&set);
    assert_eq!((event.data, event.obj, event.res, event.res2), (5, &raw mut wait, 1, 0));
    assert_eq!(seen(&events), [(1, 2), (77, 77), (77, 77), (77, 77)]);
    // Those that are there come at once, and no more than there is room for.
    count_up(&files[0]);
    let mut events = [NONE; 2];
    let mut wait = waits(&epoll, &mut events[..1]);
    assert_eq!(submit(&set, &mut wait), 1);
    assert_eq!(next(&set).res, 1);
    assert_eq!(seen(&events[1..]), [(77, 77)]);
    assert_ne!(seen(&events[..1]), [(77, 77)]);
}

#[test]
fn an_epoll_wait_is_cancelled_and_its_time_may_be_up() {
    let set = Set::up(4);
    let file = eventfd();
    let epoll = epoll(&[&file]);
    let mut events = [NONE; 2];
    let mut wait = waits(&epoll, &mut events);
    assert_eq!(submit(&set, &mut wait), 1);
    assert!((0..=1).contains(&uaio_cancel(set.0, &raw mut wait)));
    assert_eq!(next(&set).res, -i64::from(libc::ECANCELED));
    wait.timeout_ms = 10;
    assert_eq!(submit(&set, &mut wait), 1);
    assert_eq!(next(&set).res, -i64::from(libc::ETIMEDOUT));
    assert_eq!(seen(&events), [(77, 77), (77, 77)]);
    // What comes afterwards is the next one's.
    count_up(&file);
    assert_eq!(submit(&set, &mut wait), 1);
    assert_eq!(next(&set).res, 1);
}

#[test]
fn what_is_wrong_with_an_epoll_wait_has_the_errno_of_the_man_page() {
    let set = Set::up(4);
    let file = eventfd();
    let epoll = epoll(&[&file]);
    let mut events = [NONE; 2];
    let right = waits(&epoll, &mut events);
    let refused = |one: UaioIocb| {
        let mut one = one;
        submit(&set, &mut one)
    };
    let most = (i32::MAX as usize / size_of::<libc::epoll_event>()) as u64;
    let kernel = std::ptr::without_provenance_mut(0xffff_8000_0000_0000);
    for (wrong, errno) in [
        (UaioIocb { nbytes: 0, ..right }, libc::EINVAL),
        (UaioIocb { nbytes: most + 1, ..right }, libc::EINVAL),
        (UaioIocb { nbytes: u64::MAX, ..right }, libc::EINVAL),
        (UaioIocb { op_flags: 1, ..right }, libc::EINVAL),
        (UaioIocb { buf: null_mut(), ..right }, libc::EFAULT),
        (UaioIocb { buf: kernel, ..right }, libc::EFAULT),
        (UaioIocb { fd: -1, ..right }, libc::EBADF),
        (UaioIocb { fd: 0x7fff_ffff, ..right }, libc::EBADF),
        (UaioIocb { fd: 1, flags: F_VOLUME, ..right }, libc::EOPNOTSUPP),
        (UaioIocb { fd: 1, flags: F_VOLUME, ..polls(&file) }, libc::EOPNOTSUPP),
    ] {
        assert_eq!(refused(wrong), -errno, "{wrong:?}");
    }
    let mut none = UaioIocb { fd: file.as_raw_fd(), ..right };
    assert_eq!(submit(&set, &mut none), 1);
    assert_eq!(next(&set).res, -i64::from(libc::EINVAL), "no epoll descriptor");
    count_up(&file);
    let mut lost = UaioIocb { buf: std::ptr::without_provenance_mut(4096), ..right };
    assert_eq!(submit(&set, &mut lost), 1);
    assert_eq!(next(&set).res, -i64::from(libc::EFAULT), "there is no memory");
    // A program may have room for more than one answer brings.
    let mut many = vec![NONE; 5000];
    let mut wait = waits(&epoll, &mut many);
    assert_eq!(submit(&set, &mut wait), 1);
    assert_eq!(next(&set).res, 1);
    assert_eq!(seen(&many[..2]), [(1, 0), (77, 77)]);
}

#[test]
fn a_multishot_poll_has_an_event_each_time_until_it_is_cancelled() {
    let set = Set::up(8);
    let (file, told) = (eventfd(), eventfd());
    let mut poll = UaioIocb { flags: F_RESFD, resfd: told.as_raw_fd(), ..polls(&file) };
    assert_eq!(submit(&set, &mut poll), 1);
    for _ in 0..20 {
        count_up(&file);
        let event = next(&set);
        assert_eq!((event.data, event.obj), (6, &raw mut poll));
        assert_eq!((event.res, event.res2), (i64::from(libc::POLLIN), EVENT_MORE));
        empty(&file);
    }
    assert!((&told).read(&mut [0; 8]).is_err(), "its notice comes with the last");
    assert!((0..=1).contains(&uaio_cancel(set.0, &raw mut poll)));
    let event = next(&set);
    assert_eq!((event.data, event.obj), (6, &raw mut poll));
    assert_eq!((event.res, event.res2), (-i64::from(libc::ECANCELED), 0));
    // Told just after its event is there.
    let start = Instant::now();
    while (&told).read(&mut [0; 8]).is_err() {
        assert!(start.elapsed() < Duration::from_secs(20), "nobody was told");
        std::thread::yield_now();
    }
    // It is the caller's again, and over.
    assert_eq!(uaio_cancel(set.0, &raw mut poll), -libc::EINVAL);
    count_up(&file);
    assert_eq!(set.events(1, 1, Some(Duration::from_millis(20))).unwrap().len(), 0);
}

#[test]
fn a_multishot_poll_ends_when_there_is_no_slot_and_what_is_linked_begins_then() {
    let set = Set::up(4);
    let file = eventfd();
    let mut bytes = [0; 8];
    let mut poll = UaioIocb { flags: F_LINK, ..polls(&file) };
    let mut after = read(7, &mut bytes);
    assert_eq!(set.submit(&mut [&raw mut poll, &raw mut after]), 2);
    // Two have slots; what comes then is in the last.
    let wait = [UaioWait { context: set.0, iocb: &raw mut poll }];
    let soon = libc::timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    let mut rounds = 0;
    loop {
        count_up(&file);
        let over = uaio_suspend(wait.as_ptr(), 1, 1, &raw const soon);
        empty(&file);
        if over == 0 {
            break;
        }
        rounds += 1;
        assert!(over == -libc::EAGAIN && rounds < 1000, "{over} after {rounds} rounds");
    }
    let events = set.events(4, 4, PATIENCE).unwrap();
    let told: Vec<_> = events.iter().map(|event| (event.data, event.res, event.res2)).collect();
    let pollin = i64::from(libc::POLLIN);
    let expected = [(6, pollin, EVENT_MORE), (6, pollin, EVENT_MORE), (6, pollin, 0), (7, 8, 0)];
    assert_eq!(told, expected);
    // All slots are there again.
    let mut polls: Vec<UaioIocb> = (0..4).map(|_| polls(&file)).collect();
    let mut list: Vec<_> = polls.iter_mut().map(std::ptr::from_mut).collect();
    assert_eq!(set.submit(&mut list), 4);
}

/// Threads take the events of one poll out in any order, and the place of its iocb is used again at once.
#[test]
fn threads_take_the_events_of_multishot_polls_each_with_its_own_data() {
    const ROUNDS: u64 = 300;
    let set = Set::up(8);
    let (lasts, mores) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let mut iocbs = Vec::with_capacity(ROUNDS as usize);
    std::thread::scope(|threads| {
        for _ in 0..3 {
            let (set, lasts, mores) = (&set, &lasts, &mores);
            threads.spawn(move || {
                while lasts.load(Ordering::SeqCst) < ROUNDS as usize {
                    let mut events =
                        [const { UaioEvent { data: 0, obj: null_mut(), res: 0, res2: 0 } }; 2];
                    let soon = libc::timespec { tv_sec: 0, tv_nsec: 5_000_000 };
                    let taken = uaio_getevents(set.0, 1, 2, events.as_mut_ptr(), &raw const soon);
                    for event in &events[..usize::try_from(taken).unwrap()] {
                        // SAFETY: the iocbs are there until all threads have ended, and are not changed.
                        assert_eq!(event.data, unsafe { (*event.obj).data });
                        match event.res2 {
                            EVENT_MORE => mores.fetch_add(1, Ordering::SeqCst),
                            _ => lasts.fetch_add(1, Ordering::SeqCst),
                        };
                    }
                }
            });
        }
        for round in 0..ROUNDS {
            let file = eventfd();
            iocbs.push((UaioIocb { data: round, ..polls(&file) }, file));
            let (poll, file) = iocbs.last_mut().unwrap();
            let poll = std::ptr::from_mut(poll);
            while set.submit(&mut [poll]) != 1 {
                std::thread::yield_now();
            }
            for _ in 0..3 {
                count_up(file);
                empty(file);
            }
            assert!(uaio_cancel(set.0, poll) != -libc::EFAULT);
        }
        while lasts.load(Ordering::SeqCst) < ROUNDS as usize {
            std::thread::yield_now();
        }
    });
    assert_eq!(lasts.load(Ordering::SeqCst), ROUNDS as usize);
    assert!(mores.load(Ordering::SeqCst) > 0, "no poll had more than one event");
}
