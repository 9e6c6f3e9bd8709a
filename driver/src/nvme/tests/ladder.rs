//! From a late command to a controller given up: each rung, and exactly what comes of each request.

use std::time::Duration;

use super::*;
use crate::block::{Armed, Cancel, Health};
use crate::clock::Clock;
use crate::error::{IoError, IoErrorKind};
use crate::nvme::model::{Aborts, Lie};
use crate::nvme::spec::{Opcode, Status};
use crate::nvme::{ErrorStatistics, Event, Failure};
use crate::request::Refusal;

/// Polls, a millisecond of the test's clock each, until all is answered; how long that took.
pub(super) fn wait(rig: &Rig, queue: &mut dyn IoQueue) -> (Vec<Completion>, Duration) {
    let (before, mut out) = (rig.clock.now(), Vec::new());
    while queue.in_flight() > 0 {
        queue.poll(16, &mut out);
        rig.clock.advance(Duration::from_millis(1));
        assert!(rig.clock.now() - before < Duration::from_secs(600), "a request waits for ever");
    }
    (out, rig.clock.now() - before)
}

pub(super) fn results(done: &[Completion]) -> Vec<(u64, IoResult)> {
    let mut results: Vec<_> = done.iter().map(|one| (one.token.to_u64(), one.result)).collect();
    results.sort_by_key(|one| one.0);
    results
}

pub(super) fn within(took: Duration, from_s: u64, to_s: u64) {
    assert!(took >= Duration::from_secs(from_s), "{took:?} is too early");
    assert!(took <= Duration::from_secs(to_s), "{took:?} is too late");
}

const RESET: ErrorStatistics = {
    let mut statistics = ErrorStatistics::NONE;
    statistics.resets = 1;
    statistics.resets_done = 1;
    statistics
};

#[test]
fn a_late_command_is_aborted_and_sent_again() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.lie([Lie::Stuck]);
    send(&mut *queue, [rig.write(1, 7, false), rig.read(2)]);
    let (done, took) = wait(&rig, &mut *queue);
    assert_eq!(results(&done), [(1, Ok(())), (2, Ok(()))]);
    within(took, 30, 38);
    let want =
        ErrorStatistics { late: 1, aborts: 1, aborted: 1, sent_again: 1, ..ErrorStatistics::NONE };
    assert_eq!(rig.controller.error_statistics(), want);
    let seen = rig.model.take_seen();
    assert_eq!((seen.aborts, seen.commands[&Opcode::WRITE.0]), (vec![(1, 0)], 1), "done once");
}

#[test]
fn a_command_that_is_always_late_is_failed_in_the_end() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.lie([Lie::Stuck; 4]);
    send(&mut *queue, [rig.read(1)]);
    let (done, took) = wait(&rig, &mut *queue);
    let error = IoError {
        kind: IoErrorKind::TimedOut,
        status: Status::ABORT_REQUESTED.0,
        do_not_retry: false,
    };
    assert_eq!(results(&done), [(1, Err(error))]);
    within(took, 120, 152);
    let statistics = rig.controller.error_statistics();
    assert_eq!((statistics.sent_again, statistics.given_up, statistics.resets), (3, 1, 0));
    assert_eq!(one(&mut *queue, rig.read(2)).0, Ok(()), "the queue goes on");
}

/// Whatever an Abort does but end the command, the reset ends it, and everything is sent again.
#[test]
fn what_an_abort_does_not_end_a_reset_does() {
    for aborts in [Aborts::Refused, Aborts::Pretended, Aborts::Ignored] {
        let rig = Rig::new(ModelOptions { aborts, ..Default::default() });
        let free = rig.pool.free_frames();
        let namespace = rig.namespace();
        let (mut queue, mut other) = (open(&namespace, 8), open(&namespace, 8));
        rig.model.hold(true);
        send(&mut *other, [rig.write(96, 9, true), flush(), discard(80, 8), discard(88, 8)]);
        send(&mut *queue, [rig.write(1, 7, false), rig.read(2)]);
        queue.submit(rig.read(3)).unwrap();
        let mut out = Vec::new();
        while rig.controller.error_statistics().resets == 0 {
            assert_eq!(queue.poll(4, &mut out), 0);
            queue.commit();
            rig.clock.advance(Duration::from_millis(1));
        }
        rig.model.hold(false);
        let (done, _) = wait(&rig, &mut *queue);
        assert_eq!(results(&done), [(1, Ok(())), (2, Ok(())), (3, Ok(()))], "{aborts:?}");
        drop(done);
        let (done, _) = wait(&rig, &mut *other);
        assert_eq!(results(&done), [80, 88, 96, 999].map(|token| (token, Ok(()))), "{aborts:?}");
        let statistics = rig.controller.error_statistics();
        assert_eq!((statistics.resets, statistics.resets_done), (1, 1));
        assert_eq!((statistics.sent_again, statistics.given_up), (7, 0));
        // Done once each: what was held when the reset came never was.
        let seen = rig.model.take_seen();
        assert_eq!((seen.commands[&Opcode::WRITE.0], seen.fua), (2, 1));
        let events = rig.controller.take_events();
        let why = Failure::TimedOut { qid: 1, waited_ms: 35_000 };
        assert_eq!(events, [Event::Reset(why), Event::Back], "{aborts:?}");
        assert_eq!(rig.model.io_queues(), 2);
        drop((queue, other, done));
        assert_eq!(rig.pool.free_frames(), free, "{aborts:?}");
        namespace.close().unwrap();
        assert!(rig.model.is_shut_down());
    }
}

#[test]
fn what_changes_a_namespace_that_others_may_write_is_failed_and_not_sent_again() {
    let rig = Rig::new(ModelOptions { shared_namespaces: true, ..Default::default() });
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 8);
    rig.model.hold(true);
    send(&mut *queue, [rig.write(1, 7, false), rig.read(2), discard(80, 8)]);
    rig.model.fail_fatally();
    rig.model.hold(false);
    let (done, _) = wait(&rig, &mut *queue);
    let error = Err(IoError::new(IoErrorKind::Device));
    assert_eq!(results(&done), [(1, error), (2, Ok(())), (80, error)]);
    let statistics = rig.controller.error_statistics();
    assert_eq!((statistics.sent_again, statistics.given_up), (1, 2));
}

#[test]
fn a_fatal_status_is_found_within_two_seconds_and_reset() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.fail_fatally();
    send(&mut *queue, [rig.read(1)]);
    let (done, took) = wait(&rig, &mut *queue);
    assert_eq!(results(&done), [(1, Ok(()))]);
    within(took, 0, 2);
    assert_eq!(rig.controller.error_statistics(), ErrorStatistics { sent_again: 1, ..RESET });
    assert_eq!(namespace.health(), Health::Good);
}

#[test]
fn requests_are_taken_while_it_is_reset_and_done_after() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.set_deferred(true);
    rig.model.fail_fatally();
    let mut out = Vec::new();
    while rig.controller.error_statistics().resets == 0 {
        queue.poll(4, &mut out);
        rig.clock.advance(Duration::from_millis(1));
    }
    queue.poll(4, &mut out);
    assert_eq!(queue.arm(), Armed::Yes, "nothing is in flight");
    for lba in [0, 8, 16, 24] {
        queue.submit(rig.write(lba, 3, false)).unwrap();
    }
    assert_eq!(queue.submit(rig.write(32, 3, false)).unwrap_err().reason, Refusal::Full);
    assert_eq!((queue.in_flight(), queue.arm()), (4, Armed::MustPoll));
    queue.commit();
    rig.model.set_deferred(false);
    let (done, _) = wait(&rig, &mut *queue);
    assert_eq!(results(&done), [0, 8, 16, 24].map(|lba| (lba, Ok(()))));
    let statistics = rig.controller.error_statistics();
    assert_eq!(statistics, RESET, "sent for the first time is not sent again");
}

#[test]
fn a_queue_that_slept_through_a_reset_is_made_anew_when_it_is_used() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let (mut queue, mut sleeper) = (open(&namespace, 4), open(&namespace, 4));
    rig.model.fail_fatally();
    send(&mut *queue, [rig.read(1)]);
    wait(&rig, &mut *queue);
    assert_eq!(rig.model.io_queues(), 1);
    // Submitted into a ring that the controller does not know any more.
    send(&mut *sleeper, [rig.write(8, 5, false)]);
    let (done, _) = wait(&rig, &mut *sleeper);
    assert_eq!(results(&done), [(8, Ok(()))]);
    assert_eq!(rig.model.io_queues(), 2);
    rig.model.fail_fatally();
    send(&mut *queue, [rig.read(1)]);
    wait(&rig, &mut *queue);
    drop(sleeper);
    drop(queue);
    assert_eq!(rig.model.io_queues(), 0);
    namespace.close().unwrap();
}

#[test]
fn a_controller_that_fails_again_and_again_is_given_up() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    for round in 0..5 {
        rig.model.fail_fatally();
        send(&mut *queue, [rig.read(1)]);
        assert_eq!(wait(&rig, &mut *queue).0[0].result, Ok(()), "{round}");
    }
    rig.model.fail_fatally();
    send(&mut *queue, [rig.read(1)]);
    let error = IoError { do_not_retry: true, ..IoError::new(IoErrorKind::Device) };
    assert_eq!(wait(&rig, &mut *queue).0[0].result, Err(error));
    assert_eq!(rig.controller.failure(), Some(Failure::Fatal));
    assert_eq!(namespace.health(), Health::Failed(error));
    assert_eq!(queue.submit(rig.read(1)).unwrap_err().reason, Refusal::Failed);
}

#[test]
fn resets_that_are_far_apart_are_not_in_a_row() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    for _ in 0..20 {
        rig.clock.advance(Duration::from_secs(601));
        rig.model.fail_fatally();
        send(&mut *queue, [rig.read(1)]);
        assert_eq!(wait(&rig, &mut *queue).0[0].result, Ok(()));
    }
}

#[test]
fn a_controller_that_does_not_come_back_is_given_up_with_everything_answered() {
    let rig = Rig::new(ModelOptions { never_comes_back: true, ..Default::default() });
    let free = rig.pool.free_frames();
    let namespace = rig.namespace();
    let (mut queue, mut other) = (open(&namespace, 4), open(&namespace, 4));
    rig.model.hold(true);
    send(&mut *other, [rig.read(2)]);
    rig.model.fail_fatally();
    send(&mut *queue, [rig.read(1)]);
    let (done, took) = wait(&rig, &mut *queue);
    let error = IoError { do_not_retry: true, ..IoError::new(IoErrorKind::Device) };
    assert_eq!(results(&done), [(1, Err(error))]);
    // Five resets, two seconds of CAP.TO each.
    within(took, 10, 13);
    assert_eq!(results(&wait(&rig, &mut *other).0), [(2, Err(error))]);
    assert!(matches!(rig.controller.failure(), Some(Failure::NotBack { .. })));
    assert_eq!(rig.controller.error_statistics().resets, 5);
    drop((done, queue, other));
    assert_eq!(rig.pool.free_frames(), free);
}

#[test]
fn a_controller_that_comes_back_as_another_gets_nothing_of_what_was_in_flight() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.hold(true);
    send(&mut *queue, [rig.write(1, 7, false)]);
    rig.model.become_another();
    rig.model.fail_fatally();
    rig.model.hold(false);
    let (done, _) = wait(&rig, &mut *queue);
    let gone = IoError { do_not_retry: true, ..IoError::new(IoErrorKind::Gone) };
    assert_eq!(results(&done), [(1, Err(gone))]);
    assert_eq!(rig.controller.failure(), Some(Failure::Changed));
    assert_eq!(rig.model.take_seen().commands.get(&Opcode::WRITE.0), None);
}

#[test]
fn a_subsystem_reset_is_tried_when_it_is_allowed_and_nothing_else_helps() {
    for allowed in [false, true] {
        let options = ModelOptions {
            subsystem_reset: true,
            never_disables: true,
            can_be_cut_off: allowed,
            ..Default::default()
        };
        let how = ControllerOptions { subsystem_reset: allowed, ..Default::default() };
        let rig = Rig::driven(options, how).unwrap();
        let namespace = rig.namespace();
        let mut queue = open(&namespace, 4);
        rig.model.fail_fatally();
        send(&mut *queue, [rig.read(1)]);
        let (done, took) = wait(&rig, &mut *queue);
        assert_eq!(done[0].result.is_ok(), allowed);
        assert_eq!(rig.controller.error_statistics().subsystem_resets, u64::from(allowed));
        within(took, 2, 5);
        assert_eq!(done[0].data.frames.is_empty(), !allowed, "nobody may use them again");
    }
}

#[test]
fn without_resets_a_late_command_ends_the_controller() {
    let how = ControllerOptions { resets_max: 0, ..Default::default() };
    let rig =
        Rig::driven(ModelOptions { aborts: Aborts::Refused, ..Default::default() }, how).unwrap();
    let free = rig.pool.free_frames();
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.lie([Lie::BadPhase]);
    send(&mut *queue, [rig.read(1), rig.read(2)]);
    let (done, took) = wait(&rig, &mut *queue);
    let error = IoError { do_not_retry: true, ..IoError::new(IoErrorKind::TimedOut) };
    // Behind a completion that is never seen, none is.
    assert_eq!(results(&done), [(1, Err(error)), (2, Err(error))]);
    within(took, 35, 43);
    drop((done, queue));
    assert_eq!(rig.pool.free_frames(), free);
}

#[test]
fn frames_stay_back_until_a_failing_controller_is_quiet() {
    let rig = Rig::new(ModelOptions { never_disables: true, to: 4, ..Default::default() });
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.hold(true);
    send(&mut *queue, [rig.read(1)]);
    rig.model.fail_fatally();
    let (before, mut out) = (rig.clock.now(), Vec::new());
    while rig.controller.error_statistics().resets == 0 {
        queue.poll(4, &mut out);
        rig.clock.advance(Duration::from_millis(1));
    }
    for _ in 0..1990 {
        queue.poll(4, &mut out);
        assert_eq!(out.len(), 0, "RDY is still 1, and CAP.TO not over");
        rig.clock.advance(Duration::from_millis(1));
    }
    let (done, _) = wait(&rig, &mut *queue);
    within(rig.clock.now() - before, 3, 6);
    assert!(rig.model.is_cut_off());
    assert_eq!(done[0].data.frames.len(), 1, "the IOMMU keeps it from them");
}

#[test]
fn frames_of_a_controller_that_nothing_stops_are_leaked() {
    let options =
        ModelOptions { never_disables: true, can_be_cut_off: false, ..Default::default() };
    let rig = Rig::new(options);
    let free = rig.pool.free_frames();
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 1);
    rig.model.fail_fatally();
    send(&mut *queue, [rig.read(1)]);
    let (done, _) = wait(&rig, &mut *queue);
    assert!(done[0].result.is_err());
    assert!(done[0].data.frames.is_empty(), "nobody may use them again");
    drop(queue);
    drop(namespace);
    let leaked = NvmeController::frames_for_queue(1) + 1;
    assert_eq!(rig.pool.free_frames(), free - leaked);
}

/// A lie that the controller will not even delete the queue for.
#[test]
fn a_queue_that_it_would_not_delete_goes_with_a_reset_and_the_others_come_back() {
    for refusal in [Lie::Status(Status::INVALID_QUEUE_IDENTIFIER), Lie::Stuck] {
        let rig = Rig::new(ModelOptions::default());
        let namespace = rig.namespace();
        let (mut queue, mut other) = (open(&namespace, 4), open(&namespace, 4));
        rig.model.lie([Lie::WrongQueue]);
        rig.model.lie_admin([refusal]);
        send(&mut *queue, [rig.read(1)]);
        send(&mut *other, [rig.read(2)]);
        let (done, _) = wait(&rig, &mut *queue);
        assert_eq!(results(&done), [(1, Err(IoError::new(IoErrorKind::Device)))]);
        assert_eq!(queue.submit(rig.read(1)).unwrap_err().reason, Refusal::Failed);
        assert_eq!(results(&wait(&rig, &mut *other).0), [(2, Ok(()))]);
        assert_eq!(rig.controller.error_statistics().resets_done, 1, "{refusal:?}");
        drop((queue, other));
        assert_eq!(rig.model.io_queues(), 0);
    }
}

#[test]
fn a_cancelled_command_ends_at_once_or_with_its_own_result() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 8);
    rig.model.lie([Lie::Stuck, Lie::Honest]);
    send(&mut *queue, [rig.read(1), rig.read(2)]);
    assert_eq!(queue.cancel(Token::from_u64(1)), Cancel::Asked);
    assert_eq!(queue.cancel(Token::from_u64(2)), Cancel::Asked, "not polled out yet");
    assert_eq!(queue.cancel(Token::from_u64(3)), Cancel::NotFound);
    let done = drain(&mut *queue);
    let cancelled = IoError {
        kind: IoErrorKind::Cancelled,
        status: Status::ABORT_REQUESTED.0,
        do_not_retry: false,
    };
    assert_eq!(results(&done), [(1, Err(cancelled)), (2, Ok(()))]);
    // One of several discards in a command is not the others'.
    rig.model.hold(true);
    send(&mut *queue, [discard(0, 8), discard(8, 8)]);
    assert_eq!(queue.cancel(Token::from_u64(8)), Cancel::Cannot);
    rig.model.hold(false);
    assert_eq!(drain(&mut *queue).len(), 2);
    // No more at once than the controller takes (ACL).
    let rig = Rig::new(ModelOptions { aborts: Aborts::Ignored, acl: 1, ..Default::default() });
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 8);
    rig.model.hold(true);
    send(&mut *queue, [rig.read(1), rig.read(2), rig.read(3)]);
    let asked = [1, 2, 3].map(|token| queue.cancel(Token::from_u64(token)));
    assert_eq!(asked, [Cancel::Asked, Cancel::Asked, Cancel::Cannot]);
    // The one that was not asked for survives the reset that the Aborts end in.
    rig.model.lie_admin([]);
    let mut out = Vec::new();
    while rig.controller.error_statistics().resets == 0 {
        queue.poll(8, &mut out);
        rig.clock.advance(Duration::from_millis(1));
    }
    rig.model.hold(false);
    let (done, _) = wait(&rig, &mut *queue);
    let cancelled = Err(IoError::new(IoErrorKind::Cancelled));
    assert_eq!(results(&done), [(1, cancelled), (2, cancelled), (3, Ok(()))]);
}

#[test]
fn events_are_told_while_requests_are_in_flight_and_asked_for_again() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.controller.turn();
    assert_eq!(rig.model.event_requests(), 4, "as many as it takes, up to four");
    rig.model.hold(true);
    send(&mut *queue, [rig.read(1)]);
    rig.model.tell(0x0002_0101);
    rig.model.tell_changed([3, 7]);
    rig.model.tell(0x0003_0102);
    rig.model.tell(0x0081_0106);
    let mut out = Vec::new();
    for _ in 0..10_000 {
        queue.poll(4, &mut out);
        rig.clock.advance(Duration::from_millis(1));
    }
    let mut events = rig.controller.take_events();
    events.sort_by_key(|event| format!("{event:?}"));
    let want = [
        Event::FirmwareActivation,
        Event::Health(1),
        Event::NamespaceChanged(3),
        Event::NamespaceChanged(7),
        Event::Sanitized,
    ];
    assert_eq!(events, want);
    assert_eq!(rig.model.event_requests(), 4);
    // The same kind comes again: its log page was read.
    rig.model.tell(0x0002_0101);
    assert_eq!(rig.controller.take_events(), [Event::Health(1)]);
    rig.model.hold(false);
    assert_eq!(drain(&mut *queue)[0].result, Ok(()));
    // After a reset they are asked for again.
    rig.model.fail_fatally();
    send(&mut *queue, [rig.read(1)]);
    wait(&rig, &mut *queue);
    rig.controller.turn();
    assert_eq!(rig.model.event_requests(), 4);
    assert_eq!(rig.controller.error_statistics().events, 5);
}

#[test]
fn a_drive_that_the_kernel_wants_back_is_given_up_within_two_seconds() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.hold(true);
    send(&mut *queue, [rig.read(1)]);
    rig.model.ask_back();
    let (done, took) = wait(&rig, &mut *queue);
    let gone = IoError { do_not_retry: true, ..IoError::new(IoErrorKind::Gone) };
    assert_eq!(results(&done), [(1, Err(gone))]);
    within(took, 0, 2);
    assert_eq!(rig.controller.failure(), Some(Failure::AskedBack));
    assert!(!rig.model.is_enabled());
}
