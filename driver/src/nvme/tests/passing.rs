//! Failures that may pass: what is sent again, when, how often, and what is told of the rest.

use std::time::Duration;

use super::ladder::{results, wait};
use super::*;
use crate::block::Cancel;
use crate::error::{IoError, IoErrorKind};
use crate::nvme::model::Lie;
use crate::nvme::spec::{Opcode, Status};
use crate::nvme::{ErrorStatistics, Event};

const INTERRUPTED: Status = Status::COMMAND_INTERRUPTED;

fn delays() -> ModelOptions {
    ModelOptions { retry_delays: [3, 0, 100], ..Default::default() }
}

/// The status with a Command Retry Delay.
fn with_delay(status: Status, delay: u16) -> Lie {
    Lie::Status(Status(status.0 | delay << 11))
}

fn device(status: Status) -> IoError {
    IoError { kind: IoErrorKind::Device, status: status.0, do_not_retry: false }
}

#[test]
fn a_request_whose_failure_passes_is_done() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.lie([Lie::Status(Status::INTERNAL_ERROR), Lie::Status(INTERRUPTED)]);
    send(&mut *queue, [rig.write(16, 9, true), rig.read(1)]);
    assert_eq!(results(&drain(&mut *queue)), [(1, Ok(())), (16, Ok(()))]);
    let want = ErrorStatistics { failed: 2, sent_again: 2, ..ErrorStatistics::NONE };
    assert_eq!(rig.controller.error_statistics(), want);
    assert_eq!(rig.controller.take_events(), []);
    let seen = rig.model.take_seen();
    assert_eq!((seen.commands[&Opcode::WRITE.0], seen.fua), (1, 1), "as it was asked");
    let (result, data) = one(&mut *queue, rig.read(2));
    let mut bytes = [0; 4096];
    data.copy_to_slice(0, &mut bytes);
    assert_eq!((result, bytes), (Ok(()), [9; 4096]));
}

#[test]
fn a_request_is_sent_again_as_often_as_is_allowed_and_then_failed() {
    for retries_max in [0, 1, 3] {
        let how = ControllerOptions { retries_max, ..Default::default() };
        let rig = Rig::driven(ModelOptions::default(), how).unwrap();
        let namespace = rig.namespace();
        let mut queue = open(&namespace, 4);
        rig.model.lie((0..=retries_max).map(|_| Lie::Status(INTERRUPTED)));
        let result = one(&mut *queue, rig.read(1)).0;
        assert_eq!(result, Err(device(INTERRUPTED)), "{retries_max}");
        assert_eq!(rig.controller.error_statistics().sent_again, u64::from(retries_max));
        let [Event::RequestFailed { nsid: 1, op: Op::Read, lba: Lba(8), blocks: 8, error }] =
            rig.controller.take_events()[..]
        else {
            panic!("not told of")
        };
        assert_eq!(error, device(INTERRUPTED));
        assert_eq!(one(&mut *queue, rig.read(2)).0, Ok(()), "the queue goes on");
    }
}

#[test]
fn what_the_controller_says_will_fail_again_or_is_wrong_is_not_sent_again() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    let wrong = [0x4006, 0x4281, 0x0002, 0x000b, 0x0020, 0x0080, 0x0081, 0x0083];
    for status in wrong {
        rig.model.lie([Lie::Status(Status(status))]);
        let error = one(&mut *queue, rig.write(8, 1, false)).0.unwrap_err();
        assert_eq!((error.status, error.do_not_retry), (status, status & 0x4000 != 0));
    }
    let statistics = rig.controller.error_statistics();
    assert_eq!((statistics.sent_again, statistics.failed), (0, wrong.len() as u64));
}

/// A second flush of a controller that has dropped what it could not write would succeed.
#[test]
fn a_flush_that_failed_is_sent_again_only_when_nothing_of_it_was_done() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    let begun = [Status::INTERNAL_ERROR, Status::WRITE_FAULT, Status::DATA_TRANSFER_ERROR];
    let not_begun = [INTERRUPTED, Status::TRANSIENT_TRANSPORT_ERROR, Status::NAMESPACE_NOT_READY];
    for status in begun {
        rig.model.lie([Lie::Status(status)]);
        assert_eq!(one(&mut *queue, flush()).0, Err(status.to_io_error()), "{status:?}");
    }
    for status in not_begun {
        rig.model.lie([Lie::Status(status)]);
        assert_eq!(one(&mut *queue, flush()).0, Ok(()), "{status:?}");
    }
    assert_eq!(rig.controller.error_statistics().sent_again, 3);
}

#[test]
fn what_changes_a_shared_namespace_is_not_sent_again_when_it_failed() {
    let rig = Rig::new(ModelOptions { shared_namespaces: true, ..Default::default() });
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.lie([Lie::Status(INTERRUPTED), Lie::Status(INTERRUPTED)]);
    send(&mut *queue, [rig.write(16, 9, false), rig.read(1)]);
    let error = Err(device(INTERRUPTED));
    assert_eq!(results(&drain(&mut *queue)), [(1, Ok(())), (16, error)]);
}

#[test]
fn the_delay_that_a_status_names_is_kept_also_after_a_reset() {
    let rig = Rig::new(delays());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    let cases = [(0, 0), (1, 300), (2, 0), (3, 10_000)];
    for reset in [false, true] {
        if reset {
            rig.model.fail_fatally();
            send(&mut *queue, [rig.read(1)]);
            wait(&rig, &mut *queue);
            assert_eq!(rig.controller.error_statistics().resets_done, 1);
        }
        for (delay, ms) in cases {
            rig.model.lie([with_delay(INTERRUPTED, delay)]);
            send(&mut *queue, [rig.read(1)]);
            let (done, took) = wait(&rig, &mut *queue);
            assert_eq!(results(&done), [(1, Ok(()))]);
            let took = took.as_millis() as u64;
            assert!((ms..ms + 4).contains(&took), "delay {delay}: {took} ms, reset {reset}");
        }
    }
}

#[test]
fn while_a_request_waits_its_slot_is_taken_and_others_are_not_held_up() {
    let rig = Rig::new(delays());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 2);
    rig.model.lie([with_delay(INTERRUPTED, 3)]);
    send(&mut *queue, [rig.read(1)]);
    let mut out = Vec::new();
    assert_eq!(queue.poll(4, &mut out), 0);
    assert_eq!((queue.in_flight(), queue.arm()), (1, crate::Armed::MustPoll));
    for token in 2..100 {
        send(&mut *queue, [rig.read(token)]);
        let reason = queue.submit(rig.read(100)).unwrap_err().reason;
        assert_eq!(reason, crate::request::Refusal::Full);
        assert_eq!(queue.poll(4, &mut out), 1);
    }
    assert_eq!(queue.in_flight(), 1);
    rig.clock.advance(Duration::from_secs(10));
    out.extend(drain(&mut *queue));
    assert_eq!(out.len(), 99);
    assert!(out.iter().all(|done| done.result.is_ok()));
}

/// Nine seconds and more of delay each time: three fit into thirty, the fourth would not.
#[test]
fn no_delay_is_begun_that_ends_beyond_the_deadline() {
    let how = ControllerOptions { retries_max: 200, ..Default::default() };
    let rig = Rig::driven(delays(), how).unwrap();
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.lie([with_delay(INTERRUPTED, 3); 5]);
    send(&mut *queue, [rig.read(1)]);
    let (done, took) = wait(&rig, &mut *queue);
    assert_eq!(results(&done), [(1, Err(device(INTERRUPTED)))]);
    super::ladder::within(took, 20, 31);
    let statistics = rig.controller.error_statistics();
    assert!((2..=3).contains(&statistics.sent_again), "{statistics:?}");
}

#[test]
fn a_request_that_waits_can_be_cancelled() {
    let rig = Rig::new(delays());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.lie([with_delay(INTERRUPTED, 3)]);
    send(&mut *queue, [rig.read(1)]);
    let mut out = Vec::new();
    queue.poll(4, &mut out);
    assert_eq!(queue.cancel(Token::from_u64(7)), Cancel::NotFound);
    assert_eq!(queue.cancel(Token::from_u64(1)), Cancel::Asked);
    assert_eq!(queue.poll(0, &mut out), 0);
    assert_eq!(queue.poll(4, &mut out), 1);
    assert_eq!(results(&out), [(1, Err(IoError::new(IoErrorKind::Cancelled)))]);
    assert_eq!(out[0].data.frames.len(), 1);
    assert_eq!(rig.model.take_seen().commands.get(&Opcode::READ.0), None);
}

#[test]
fn a_reset_while_a_request_waits_sends_it_again() {
    for gone in [false, true] {
        let rig = Rig::new(delays());
        let namespace = rig.namespace();
        let mut queue = open(&namespace, 4);
        rig.model.lie([with_delay(INTERRUPTED, 3); 2]);
        send(&mut *queue, [rig.write(8, 1, false), rig.write(16, 2, false)]);
        let mut out = Vec::new();
        assert_eq!(queue.poll(4, &mut out), 0);
        match gone {
            true => rig.model.remove(),
            false => rig.model.fail_fatally(),
        }
        let (done, _) = wait(&rig, &mut *queue);
        let want = if gone { Err(IoErrorKind::Gone) } else { Ok(()) };
        let results = results(&done).into_iter().map(|(token, it)| (token, it.map_err(|e| e.kind)));
        assert_eq!(results.collect::<Vec<_>>(), [(8, want), (16, want)], "gone {gone}");
    }
}

#[test]
fn dropping_a_queue_lets_go_of_what_waits() {
    let rig = Rig::new(delays());
    let free = rig.pool.free_frames();
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.lie([with_delay(INTERRUPTED, 3)]);
    send(&mut *queue, [rig.read(1)]);
    queue.poll(4, &mut Vec::new());
    drop(queue);
    assert_eq!(rig.pool.free_frames(), free);
}

/// Discards that share a command are sent again each, with the range that was its own.
#[test]
fn discards_that_share_a_command_are_sent_again_together() {
    let rig = Rig::new(delays());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 8);
    rig.model.lie([with_delay(INTERRUPTED, 1)]);
    send(&mut *queue, (0..5).map(|index| discard(index * 10, 3)));
    let (done, _) = wait(&rig, &mut *queue);
    assert_eq!(results(&done), [0, 10, 20, 30, 40].map(|token| (token, Ok(()))));
    let seen = rig.model.take_seen();
    assert_eq!(seen.commands[&Opcode::DATASET_MANAGEMENT.0], 1);
    let mut ranges = seen.ranges;
    ranges.sort_unstable();
    assert_eq!(ranges, [0, 10, 20, 30, 40].map(|lba| (lba, 3)));
    rig.model.lie([Lie::Status(INTERRUPTED); 40]);
    send(&mut *queue, (0..5).map(|index| discard(index * 10, 3)));
    let mut out = Vec::new();
    while queue.in_flight() > 0 {
        assert!(queue.poll(1, &mut out) <= 1, "the budget");
    }
    let error = Err(device(INTERRUPTED));
    assert_eq!(results(&out), [0, 10, 20, 30, 40].map(|token| (token, error)));
}

#[test]
fn a_media_error_names_its_blocks() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 8);
    rig.model.spoil(1, 18);
    rig.model.spoil(1, 21);
    rig.model.spoil(1, 47);
    send(&mut *queue, (0..8).map(|token| rig.read(token)));
    let failed = drain(&mut *queue).into_iter().filter(|done| done.result.is_err()).count();
    assert_eq!(failed, 2);
    let mut events = rig.controller.take_events();
    events.extend(rig.controller.take_events());
    let error = IoError { kind: IoErrorKind::Media, status: 0x281, do_not_retry: false };
    let request = |lba| Event::RequestFailed { nsid: 1, op: Op::Read, lba, blocks: 8, error };
    let bad = |lba| Event::BadBlock { nsid: 1, lba };
    let want = [request(Lba(16)), request(Lba(40)), bad(Lba(18)), bad(Lba(47))];
    assert_eq!(events, want);
    let text =
        "read of namespace 1 failed, 8 blocks from 16: unrecovered media error (status 0x281)";
    assert_eq!(
        (events[0].to_string(), events[2].to_string()),
        (text.to_owned(), "block 18 of namespace 1 is bad".to_owned())
    );
}

/// A log that names a block which was not asked for is not believed.
#[test]
fn an_error_log_that_names_other_blocks_names_nothing() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 8);
    // The block is good: the log says 0, which is outside of what was read.
    rig.model.lie([Lie::Status(Status(0x4281))]);
    assert!(one(&mut *queue, rig.read(1)).0.is_err());
    let mut events = rig.controller.take_events();
    events.extend(rig.controller.take_events());
    assert!(matches!(events[..], [Event::RequestFailed { lba: Lba(8), .. }]), "{events:?}");
}
