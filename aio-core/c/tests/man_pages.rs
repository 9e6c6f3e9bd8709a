//! Sentences of the man pages, each a test of its name: io_setup(2), io_submit(2), io_getevents(2),
//! io_cancel(2), io_destroy(2), lio_listio(3), aio_suspend(3), aio(7) (Linux man-pages 6.9). Those that
//! do not hold, on purpose, are in the table on the crate's page. Notification by a signal and by a thread
//! (`SIGEV_SIGNAL`, `SIGEV_THREAD` of aio(7)) is in `commands.rs`.

mod set;

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::{null, null_mut};
use std::time::{Duration, Instant};

use set::{Endless, NOT_MAPPED, Set, iocb, noop, read, timespec};
use uaio::exports::{
    uaio_cancel, uaio_destroy, uaio_getevents, uaio_listio, uaio_setup, uaio_size, uaio_submit,
    uaio_suspend,
};
use uaio::layout::{
    F_RESFD, LIST_NOWAIT, LIST_WAIT, UaioEvent, UaioIocb, UaioNotify, UaioWait, opcode,
};

/// A file without a name, at its beginning.
fn file(contents: &[u8]) -> File {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("uaio-pages-{}-{number}", std::process::id()));
    std::fs::write(&path, contents).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

/// A transfer of a file, or a command without bytes.
fn on(file: &File, opcode: u16, bytes: &mut [u8], offset: i64) -> UaioIocb {
    let (buf, nbytes) = (bytes.as_mut_ptr().cast::<c_void>(), bytes.len() as u64);
    UaioIocb { fd: file.as_raw_fd(), buf, nbytes, offset, ..iocb(1, opcode) }
}

// io_setup(2), io_destroy(2)

#[test]
fn io_setup_einval_nr_events_is_invalid() {
    let mut context = 0;
    assert_eq!(uaio_setup(0, &raw mut context), -libc::EINVAL);
    assert_eq!(uaio_setup(65537, &raw mut context), -libc::EINVAL);
    assert_eq!(context, 0);
}

#[test]
fn io_setup_efault_an_invalid_pointer_is_passed_for_ctx_idp() {
    assert_eq!(uaio_setup(1, null_mut()), -libc::EFAULT);
    assert_eq!(uaio_setup(1, NOT_MAPPED.cast()), -libc::EFAULT);
}

#[test]
fn io_destroy_will_attempt_to_cancel_all_outstanding_operations_and_wait_for_what_could_not_be() {
    let mut context = 0;
    assert_eq!(uaio_setup(4, &raw mut context), 0);
    let mut endless = Endless::new();
    let mut wait = endless.read(1);
    assert_eq!(uaio_submit(context, 1, &mut [&raw mut wait] as *mut _), 1);
    assert_eq!(uaio_destroy(context), 0);
    // Nobody reads there any more.
    endless.end();
    assert_eq!(*endless.byte, [0]);
}

#[test]
fn io_destroy_einval_the_aio_context_specified_is_invalid() {
    assert_eq!(uaio_destroy(0), -libc::EINVAL);
    assert_eq!(uaio_destroy(u64::MAX), -libc::EINVAL);
}

// io_submit(2)

#[test]
fn io_submit_returns_the_number_submitted_which_may_be_less_than_nr_or_0_if_nr_is_zero() {
    let set = Set::up(2);
    let (mut one, mut two, mut three) = (noop(1), noop(2), noop(3));
    assert_eq!(set.submit(&mut []), 0);
    assert_eq!(set.submit(&mut [&raw mut one, &raw mut two, &raw mut three]), 2);
    assert_eq!(set.data(2, 3), [1, 2]);
    // Also when a later one is wrong: it and those behind it are not submitted.
    let mut wrong = iocb(4, 99);
    assert_eq!(set.submit(&mut [&raw mut one, &raw mut wrong, &raw mut two]), 1);
    assert_eq!(set.data(1, 3), [1]);
}

#[test]
fn io_submit_eagain_insufficient_resources_are_available_to_queue_any_iocbs() {
    let set = Set::up(1);
    let (mut one, mut two) = (noop(1), noop(2));
    assert_eq!(set.submit(&mut [&raw mut one]), 1);
    assert_eq!(set.submit(&mut [&raw mut two]), -libc::EAGAIN);
    assert_eq!(set.data(1, 1), [1]);
    assert_eq!(set.submit(&mut [&raw mut two]), 1);
    assert_eq!(set.data(1, 1), [2]);
}

#[test]
fn io_submit_ebadf_the_file_descriptor_specified_in_the_first_iocb_is_invalid() {
    let set = Set::up(2);
    let mut byte = [0];
    let mut wrong = UaioIocb { flags: 0, fd: 0x7fff_fff0, ..read(1, &mut byte) };
    assert_eq!(set.submit(&mut [&raw mut wrong]), -libc::EBADF);
    wrong.fd = -1;
    assert_eq!(set.submit(&mut [&raw mut wrong]), -libc::EBADF);
    let mut wrong = UaioIocb { fd: 2, ..read(1, &mut byte) };
    assert_eq!(set.submit(&mut [&raw mut wrong]), -libc::EBADF);
}

#[test]
fn io_submit_efault_one_of_the_data_structures_points_to_invalid_data() {
    let set = Set::up(2);
    assert_eq!(uaio_submit(set.0, 1, null_mut()), -libc::EFAULT);
    assert_eq!(set.submit(&mut [null_mut()]), -libc::EFAULT);
    assert_eq!(set.submit(&mut [NOT_MAPPED]), -libc::EFAULT);
    let mut byte = [0];
    let mut wrong = UaioIocb { buf: null_mut(), ..read(1, &mut byte) };
    assert_eq!(set.submit(&mut [&raw mut wrong]), -libc::EFAULT);
    assert_eq!(set.events(0, 2, None).unwrap().len(), 0);
}

#[test]
fn io_submit_einval_the_context_is_invalid_nr_is_less_than_0_or_an_iocb_is_not_properly_initialized()
 {
    let set = Set::up(2);
    let mut good = noop(1);
    assert_eq!(uaio_submit(99, 1, &mut [&raw mut good] as *mut _), -libc::EINVAL);
    assert_eq!(uaio_submit(set.0, -1, &mut [&raw mut good] as *mut _), -libc::EINVAL);
    let mut byte = [0];
    for wrong in [
        iocb(1, 99),
        UaioIocb { offset: -1, ..read(1, &mut byte) },
        UaioIocb { nbytes: u64::MAX, ..read(1, &mut byte) },
        UaioIocb { flags: 1 << 9, ..noop(1) },
        UaioIocb { priority: -1, ..noop(1) },
    ] {
        let mut wrong = wrong;
        assert_eq!(set.submit(&mut [&raw mut wrong]), -libc::EINVAL, "{wrong:?}");
    }
}

#[test]
fn io_submit_aio_data_is_copied_into_the_data_field_of_the_event_and_obj_is_the_iocb() {
    let set = Set::up(2);
    let mut one = noop(u64::MAX);
    assert_eq!(set.submit(&mut [&raw mut one]), 1);
    let event = set.events(1, 2, None).unwrap()[0];
    assert_eq!((event.data, event.obj, event.res, event.res2), (u64::MAX, &raw mut one, 0, 0));
}

#[test]
fn io_submit_each_opcode_of_the_page_does_what_its_name_says() {
    let set = Set::up(2);
    let file = file(b"0123456789");
    let (mut one, mut two, mut ends) = ([b'a'; 2], [0; 6], Endless::new());
    let run = |mut one: UaioIocb| {
        assert_eq!(set.submit(&mut [&raw mut one]), 1);
        set.events(1, 2, Some(Duration::from_secs(20))).unwrap()[0].res
    };
    assert_eq!(run(on(&file, opcode::PWRITE, &mut one, 3)), 2);
    assert_eq!(run(on(&file, opcode::PREAD, &mut two, 1)), 6);
    assert_eq!(&two, b"12aa56");
    let mut vector = [&mut one[..], &mut two[..]]
        .map(|bytes| libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() });
    let list = vector.as_mut_ptr().cast();
    let vectored =
        |opcode, offset| UaioIocb { buf: list, nbytes: 2, ..on(&file, opcode, &mut [], offset) };
    assert_eq!(run(vectored(opcode::PWRITEV, 1)), 8);
    assert_eq!(run(vectored(opcode::PREADV, 0)), 8);
    assert_eq!((&one, &two), (b"0a", b"a12aa5"));
    assert_eq!(run(on(&file, opcode::FSYNC, &mut [], 0)), 0);
    assert_eq!(run(on(&file, opcode::FDSYNC, &mut [], 0)), 0);
    assert_eq!(run(noop(1)), 0);
    // A poll is for one time, when one of its events is there.
    ends.end();
    let events = UaioIocb { nbytes: libc::POLLIN as u64, ..ends.read(1) };
    let poll = UaioIocb { opcode: opcode::POLL, buf: null_mut(), ..events };
    assert_eq!(run(poll), i64::from(libc::POLLIN));
    assert_eq!(run(ends.read(2)), 1);
    assert_eq!(set.events(0, 2, Some(Duration::ZERO)).unwrap().len(), 0);
}

#[test]
fn io_submit_rwf_append_ignores_the_offset_and_does_not_change_the_file_offset() {
    let set = Set::up(1);
    let mut file = file(b"0123456789");
    let mut bytes = *b"end";
    let flags = libc::RWF_APPEND.cast_unsigned();
    let mut one = UaioIocb { op_flags: flags, ..on(&file, opcode::PWRITE, &mut bytes, 4) };
    assert_eq!(set.submit(&mut [&raw mut one]), 1);
    assert_eq!(set.events(1, 1, None).unwrap()[0].res, 3);
    let mut all = String::new();
    assert_eq!(std::io::Seek::stream_position(&mut file).unwrap(), 0);
    std::io::Read::read_to_string(&mut file, &mut all).unwrap();
    assert_eq!(all, "0123456789end");
}

/// Nobody polls for it here, so it is as any other, as it is with io_submit (`aio_prep_rw` in fs/aio.c).
#[test]
fn io_submit_rwf_dsync_rwf_sync_and_rwf_hipri_poll_if_possible() {
    let set = Set::up(1);
    let file = file(b"0123456789");
    for flag in [libc::RWF_DSYNC, libc::RWF_SYNC, libc::RWF_HIPRI] {
        for opcode in [opcode::PWRITE, opcode::PREAD] {
            let mut bytes = *b"xyz";
            let mut one = on(&file, opcode, &mut bytes, 0);
            one.op_flags = flag.cast_unsigned();
            assert_eq!(set.submit(&mut [&raw mut one]), 1);
            assert_eq!(set.events(1, 1, None).unwrap()[0].res, 3, "{flag:#x}");
        }
    }
}

#[test]
fn io_submit_rwf_nowait_eagain_in_the_res_field_if_it_would_block() {
    let set = Set::up(1);
    let mut endless = Endless::new();
    let flags = libc::RWF_NOWAIT.cast_unsigned();
    let mut one = UaioIocb { op_flags: flags, ..endless.read(1) };
    assert_eq!(set.submit(&mut [&raw mut one]), 1);
    assert_eq!(set.events(1, 1, None).unwrap()[0].res, -i64::from(libc::EAGAIN));
}

#[test]
fn io_submit_iocb_flag_resfd_signals_the_descriptor_upon_completion() {
    let set = Set::up(2);
    let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    let resfd = eventfd.as_raw_fd();
    let mut iocbs = [1, 2].map(|data| UaioIocb { flags: F_RESFD, resfd, ..noop(data) });
    let mut list = iocbs.each_mut().map(std::ptr::from_mut);
    assert_eq!(set.submit(&mut list), 2);
    assert_eq!(set.data(2, 2), [1, 2]);
    let (mut count, start) = (0, Instant::now());
    while count < 2 {
        assert!(start.elapsed() < Duration::from_secs(20), "{count} of 2");
        let mut value = [0; 8];
        if rustix::io::read(&eventfd, &mut value).is_ok() {
            count += u64::from_ne_bytes(value);
        }
    }
    assert_eq!(count, 2);
}

// io_getevents(2)

#[test]
fn io_getevents_attempts_to_read_at_least_min_nr_events_and_up_to_nr() {
    let set = Set::up(4);
    let (mut one, mut two, mut three) = (noop(1), noop(2), noop(3));
    assert_eq!(set.submit(&mut [&raw mut one, &raw mut two, &raw mut three]), 3);
    let mut data = set.data(2, 2);
    data.extend(set.data(1, 4));
    data.sort_unstable();
    assert_eq!(data, [1, 2, 3]);
}

#[test]
fn io_getevents_may_return_less_than_min_nr_if_the_timeout_expired() {
    let set = Set::up(4);
    let mut endless = Endless::new();
    let (mut one, mut wait) = (noop(1), endless.read(2));
    assert_eq!(set.submit(&mut [&raw mut one, &raw mut wait]), 2);
    let start = Instant::now();
    let events = set.events(2, 2, Some(Duration::from_millis(60))).unwrap();
    assert_eq!(events.iter().map(|event| event.data).collect::<Vec<_>>(), [1]);
    assert!(start.elapsed() >= Duration::from_millis(60));
    endless.end();
    assert_eq!(set.data(1, 2), [2]);
}

#[test]
fn io_getevents_may_return_0_if_the_timeout_expired_which_it_does_not_do_early() {
    let set = Set::up(1);
    for time in [Duration::ZERO, Duration::from_micros(1), Duration::from_millis(3)] {
        let start = Instant::now();
        assert_eq!(set.events(1, 1, Some(time)).unwrap().len(), 0);
        assert!(start.elapsed() >= time);
    }
}

#[test]
fn io_getevents_a_timeout_of_null_means_to_wait_until_there_are_min_nr() {
    let set = Set::up(1);
    let mut endless = Endless::new();
    let mut wait = endless.read(7);
    assert_eq!(set.submit(&mut [&raw mut wait]), 1);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            std::thread::sleep(Duration::from_millis(120));
            endless.end();
        });
        assert_eq!(set.events(1, 1, None).unwrap()[0].data, 7);
    });
}

#[test]
fn io_getevents_efault_events_or_timeout_is_an_invalid_pointer() {
    let set = Set::up(1);
    assert_eq!(uaio_getevents(set.0, 0, 1, null_mut(), null()), -libc::EFAULT);
    let mut event = UaioEvent { data: 0, obj: null_mut(), res: 0, res2: 0 };
    let timeout = NOT_MAPPED.cast_const().cast();
    assert_eq!(uaio_getevents(set.0, 0, 1, &raw mut event, timeout), -libc::EFAULT);
}

#[test]
fn io_getevents_einval_the_context_is_invalid_or_min_nr_or_nr_is_out_of_range() {
    let set = Set::up(1);
    assert_eq!(set.events(2, 1, None).unwrap_err(), libc::EINVAL);
    assert_eq!(set.events(-1, 1, None).unwrap_err(), libc::EINVAL);
    let mut event = UaioEvent { data: 0, obj: null_mut(), res: 0, res2: 0 };
    assert_eq!(uaio_getevents(99, 0, 1, &raw mut event, null()), -libc::EINVAL);
    assert_eq!(uaio_getevents(set.0, 0, -1, &raw mut event, null()), -libc::EINVAL);
}

#[test]
fn io_getevents_einval_when_its_context_is_destroyed_meanwhile() {
    let set = Set::up(1);
    std::thread::scope(|threads| {
        let waiting = threads.spawn(|| set.events(1, 1, None).map(|events| events.len()));
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(uaio_destroy(set.0), 0);
        assert_eq!(waiting.join().unwrap(), Err(libc::EINVAL));
    });
}

// io_cancel(2)

#[test]
fn io_cancel_attempts_to_cancel_an_operation_previously_submitted() {
    let set = Set::up(2);
    let mut endless = Endless::new();
    let mut wait = endless.read(5);
    assert_eq!(set.submit(&mut [&raw mut wait]), 1);
    assert!((0..=1).contains(&uaio_cancel(set.0, &raw mut wait)));
    let events = set.events(1, 2, Some(Duration::from_secs(20))).unwrap();
    assert_eq!((events[0].data, events[0].res), (5, -i64::from(libc::ECANCELED)));
    assert_eq!(events[0].obj, &raw mut wait);
    // Decided once.
    endless.end();
    assert_eq!(set.events(1, 2, Some(Duration::from_millis(30))).unwrap().len(), 0);
}

#[test]
fn io_cancel_of_what_is_over_changes_nothing() {
    let set = Set::up(2);
    let mut byte = [9];
    let mut done = read(5, &mut byte);
    assert_eq!(set.submit(&mut [&raw mut done]), 1);
    let list = [UaioWait { context: set.0, iocb: &raw mut done }];
    assert_eq!(uaio_suspend(list.as_ptr(), 1, 1, null()), 0);
    assert_eq!(uaio_cancel(set.0, &raw mut done), 2);
    assert_eq!(set.events(1, 2, None).unwrap()[0].res, 1);
}

#[test]
fn io_cancel_efault_one_of_the_data_structures_points_to_invalid_data() {
    let set = Set::up(1);
    assert_eq!(uaio_cancel(set.0, null_mut()), -libc::EFAULT);
    assert_eq!(uaio_cancel(set.0, NOT_MAPPED), -libc::EFAULT);
}

#[test]
fn io_cancel_einval_the_context_is_invalid_and_so_is_an_iocb_that_is_not_submitted() {
    let set = Set::up(1);
    let mut one = noop(1);
    assert_eq!(uaio_cancel(99, &raw mut one), -libc::EINVAL);
    assert_eq!(uaio_cancel(set.0, &raw mut one), -libc::EINVAL);
    assert_eq!(set.submit(&mut [&raw mut one]), 1);
    // Another one with its key.
    let mut other = one;
    assert_eq!(uaio_cancel(set.0, &raw mut other), -libc::EINVAL);
    assert_eq!(set.data(1, 1), [1]);
    assert_eq!(uaio_cancel(set.0, &raw mut one), -libc::EINVAL);
}

// lio_listio(3)

#[test]
fn lio_listio_wait_blocks_until_all_operations_are_complete() {
    let set = Set::up(4);
    let mut endless = Endless::new();
    let (mut one, mut wait) = (noop(1), endless.read(2));
    let mut list = [&raw mut one, &raw mut wait];
    std::thread::scope(|threads| {
        threads.spawn(|| {
            std::thread::sleep(Duration::from_millis(60));
            endless.end();
        });
        let start = Instant::now();
        assert_eq!(uaio_listio(set.0, LIST_WAIT, list.as_mut_ptr(), 2, null()), 2);
        assert!(start.elapsed() >= Duration::from_millis(60));
    });
    assert_eq!(set.events(2, 4, Some(Duration::ZERO)).unwrap().len(), 2);
}

#[test]
fn lio_listio_wait_ignores_sevp_and_nowait_notifies_nobody_if_it_is_null() {
    let set = Set::up(2);
    let mut one = noop(1);
    let mut list = [&raw mut one];
    let bad = NOT_MAPPED.cast_const().cast();
    assert_eq!(uaio_listio(set.0, LIST_WAIT, list.as_mut_ptr(), 1, bad), 1);
    assert_eq!(set.data(1, 2), [1]);
    assert_eq!(uaio_listio(set.0, LIST_NOWAIT, list.as_mut_ptr(), 1, bad), -libc::EFAULT);
    assert_eq!(uaio_listio(set.0, LIST_NOWAIT, list.as_mut_ptr(), 1, null()), 1);
    assert_eq!(set.data(1, 2), [1]);
}

#[test]
fn lio_listio_the_fields_of_each_control_block_can_specify_notifications_of_their_own() {
    let set = Set::up(2);
    let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    let (mut one, mut two) = (noop(1), noop(2));
    (two.flags, two.resfd) = (F_RESFD, eventfd.as_raw_fd());
    let mut list = [&raw mut one, &raw mut two];
    assert_eq!(uaio_listio(set.0, LIST_WAIT, list.as_mut_ptr(), 2, null()), 2);
    let mut value = [0; 8];
    assert_eq!(rustix::io::read(&eventfd, &mut value), Ok(8));
    assert_eq!(u64::from_ne_bytes(value), 1);
    assert_eq!(set.data(2, 2), [1, 2]);
}

#[test]
fn lio_listio_nowait_returns_immediately_and_notifies_when_all_are_complete() {
    let set = Set::up(4);
    let mut endless = Endless::new();
    let (mut one, mut wait) = (noop(1), endless.read(2));
    let mut list = [&raw mut one, &raw mut wait];
    extern "C" fn told(value: *mut c_void) {
        TOLD.store(value.addr(), std::sync::atomic::Ordering::SeqCst);
    }
    static TOLD: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let value = std::ptr::without_provenance_mut(6);
    let notify = UaioNotify { kind: 2, signo: 0, tid: 0, fd: 0, value, function: Some(told) };
    assert_eq!(uaio_listio(set.0, LIST_NOWAIT, list.as_mut_ptr(), 2, &raw const notify), 2);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(TOLD.load(std::sync::atomic::Ordering::SeqCst), 0);
    endless.end();
    let start = Instant::now();
    while TOLD.load(std::sync::atomic::Ordering::SeqCst) != 6 {
        assert!(start.elapsed() < Duration::from_secs(20), "it was not told");
        std::thread::yield_now();
    }
    assert_eq!(set.data(2, 4), [1, 2]);
}

#[test]
fn lio_listio_null_pointers_are_ignored_and_a_failure_does_not_stop_the_others() {
    let set = Set::up(4);
    let (mut one, mut wrong, mut two) = (noop(1), iocb(9, 99), noop(2));
    let mut list = [null_mut(), &raw mut one, &raw mut wrong, null_mut(), &raw mut two];
    assert_eq!(uaio_listio(set.0, LIST_WAIT, list.as_mut_ptr(), 5, null()), 2);
    assert_eq!((one.status, wrong.status, two.status), (0, -libc::EINVAL, 0));
    assert_eq!(set.data(2, 4), [1, 2]);
}

#[test]
fn lio_listio_eagain_out_of_resources_is_said_of_each_that_had_none() {
    let set = Set::up(1);
    let (mut one, mut two) = (noop(1), noop(2));
    let mut list = [&raw mut one, &raw mut two];
    assert_eq!(uaio_listio(set.0, LIST_WAIT, list.as_mut_ptr(), 2, null()), 1);
    assert_eq!((one.status, two.status), (0, -libc::EAGAIN));
    assert_eq!(set.data(1, 1), [1]);
}

#[test]
fn lio_listio_einval_mode_is_invalid_or_nitems_exceeds_the_limit() {
    let set = Set::up(1);
    assert_eq!(uaio_listio(set.0, 2, null_mut(), 0, null()), -libc::EINVAL);
    assert_eq!(uaio_listio(set.0, LIST_WAIT, null_mut(), 65537, null()), -libc::EINVAL);
    assert_eq!(uaio_listio(set.0, LIST_WAIT, null_mut(), 0, null()), 0);
}

// aio_suspend(3)

#[test]
fn aio_suspend_returns_immediately_if_an_operation_has_already_completed() {
    let set = Set::up(2);
    let mut byte = [9];
    let mut done = read(5, &mut byte);
    assert_eq!(set.submit(&mut [&raw mut done]), 1);
    let list = [UaioWait { context: set.0, iocb: &raw mut done }];
    assert_eq!(uaio_suspend(list.as_ptr(), 1, 1, null()), 0);
    assert_eq!(set.data(1, 1), [5]);
    // Also when its event has been taken out.
    assert_eq!(uaio_suspend(list.as_ptr(), 1, 1, null()), 0);
}

#[test]
fn aio_suspend_suspends_until_at_least_one_of_the_requests_has_completed() {
    let set = Set::up(2);
    let mut endless = Endless::new();
    let mut wait = endless.read(5);
    let mut never = Endless::new();
    let mut other = never.read(6);
    assert_eq!(set.submit(&mut [&raw mut wait, &raw mut other]), 2);
    let list = [&raw mut wait, &raw mut other].map(|iocb| UaioWait { context: set.0, iocb });
    std::thread::scope(|threads| {
        threads.spawn(|| {
            std::thread::sleep(Duration::from_millis(40));
            endless.end();
        });
        assert_eq!(uaio_suspend(list.as_ptr(), 2, 1, null()), 0);
    });
    assert_eq!(set.data(1, 2), [5]);
}

#[test]
fn aio_suspend_null_entries_are_ignored() {
    let set = Set::up(2);
    let mut one = noop(1);
    assert_eq!(set.submit(&mut [&raw mut one]), 1);
    let list = [null_mut(), &raw mut one].map(|iocb| UaioWait { context: set.0, iocb });
    assert_eq!(uaio_suspend(list.as_ptr(), 2, 1, null()), 0);
    assert_eq!(uaio_suspend(list.as_ptr(), 2, 2, null()), -libc::EINVAL);
    assert_eq!(set.data(1, 2), [1]);
}

#[test]
fn aio_suspend_a_timeout_of_zero_asks_and_does_not_wait() {
    let set = Set::up(2);
    let mut endless = Endless::new();
    let mut wait = endless.read(5);
    assert_eq!(set.submit(&mut [&raw mut wait]), 1);
    let list = [UaioWait { context: set.0, iocb: &raw mut wait }];
    let zero = timespec(Duration::ZERO);
    assert_eq!(uaio_suspend(list.as_ptr(), 1, 1, &raw const zero), -libc::EAGAIN);
    endless.end();
    assert_eq!(set.data(1, 2), [5]);
    assert_eq!(uaio_suspend(list.as_ptr(), 1, 1, &raw const zero), 0);
}

#[test]
fn aio_suspend_eagain_the_call_timed_out_before_any_of_the_operations_had_completed() {
    let set = Set::up(2);
    let mut endless = Endless::new();
    let mut wait = endless.read(5);
    assert_eq!(set.submit(&mut [&raw mut wait]), 1);
    let list = [UaioWait { context: set.0, iocb: &raw mut wait }];
    let timeout = timespec(Duration::from_millis(20));
    assert_eq!(uaio_suspend(list.as_ptr(), 1, 1, &raw const timeout), -libc::EAGAIN);
    endless.end();
    assert_eq!(set.data(1, 2), [5]);
}

// aio(7)

#[test]
fn aio_the_control_block_and_buffer_are_the_callers_again_when_its_event_has_been_taken_out() {
    let set = Set::up(1);
    let mut bytes = vec![1; 512];
    for round in 0..100 {
        let mut one = read(round, &mut bytes);
        assert_eq!(set.submit(&mut [&raw mut one]), 1);
        assert_eq!(set.data(1, 1), [round]);
        drop(std::mem::replace(&mut bytes, vec![1; 512]));
    }
    assert_eq!(uaio_size(set.0, 1), 1 << 20);
}
