//! A controller that lies: one test a lie, with exactly what comes of it.

use std::time::Duration;

use super::*;
use crate::block::Health;
use crate::error::{IoError, IoErrorKind};
use crate::nvme::model::Lie;
use crate::nvme::{Failure, Violation};
use crate::request::Refusal;

const BROKEN: IoError = IoError { kind: IoErrorKind::Device, status: 0, do_not_retry: true };

/// Two reads, the first answered with a lie, on one queue and one read held on another. What the
/// driver makes of it: the failure, and what each of the reads in flight is answered with.
fn after(lie: Lie) -> (Option<Failure>, Vec<(u64, IoResult)>) {
    after_these([lie, Lie::Honest])
}

/// The same with a lie for each of the two reads.
fn after_these(lies: [Lie; 2]) -> (Option<Failure>, Vec<(u64, IoResult)>) {
    let rig = Rig::new(ModelOptions::default());
    let free = rig.pool.free_frames();
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    let mut other = open(&namespace, 4);
    rig.model.lie([Lie::Stuck]);
    send(&mut *other, [rig.read(9)]);
    rig.model.lie(lies);
    send(&mut *queue, [rig.read(1), rig.read(2)]);
    let mut answers: Vec<_> =
        drain(&mut *queue).into_iter().map(|done| (done.token.to_u64(), done.result)).collect();
    answers.sort_by_key(|answer| answer.0);
    let failure = rig.controller.failure();
    if let Some(failure) = failure {
        // The whole controller is ended: its other queue is answered too, and nothing is taken.
        let error = failure.io_error();
        assert_eq!(namespace.health(), Health::Failed(error));
        let others = drain(&mut *other);
        assert_eq!(others.iter().map(|done| done.result).collect::<Vec<_>>(), [Err(error)]);
        drop(others);
        for queue in [&mut queue, &mut other] {
            let refused = queue.submit(rig.read(3)).unwrap_err();
            assert_eq!(refused.reason, Refusal::Failed);
        }
        let error = namespace.open_queue(QueueOptions::polled(1)).err().unwrap().to_string();
        assert_eq!(error, format!("model: {failure}"));
        assert!(!rig.model.is_enabled());
        drop((queue, other));
        assert_eq!(rig.pool.free_frames(), free, "all memory is back, for the device is quiet");
    }
    (failure, answers)
}

fn protocol(violation: Violation) -> Option<Failure> {
    Some(Failure::Protocol(violation))
}

#[test]
fn honesty_is_not_punished() {
    assert_eq!(after(Lie::Honest), (None, vec![(1, Ok(())), (2, Ok(()))]));
}

#[test]
fn an_unknown_identifier_ends_the_controller() {
    let (failure, answers) = after(Lie::UnknownCommand);
    assert_eq!(failure, protocol(Violation::UnknownCommand { qid: 1, cid: 0x8000 }));
    assert_eq!(answers, [(1, Err(BROKEN)), (2, Err(BROKEN))]);
}

#[test]
fn a_repeated_identifier_ends_the_controller_and_the_first_answer_stands() {
    let (failure, answers) = after(Lie::RepeatedCommand);
    assert_eq!(failure, protocol(Violation::UnknownCommand { qid: 1, cid: 0 }));
    assert_eq!(answers, [(1, Ok(())), (2, Err(BROKEN))]);
}

#[test]
fn a_completion_of_another_queue_ends_the_controller() {
    let (failure, answers) = after(Lie::WrongQueue);
    assert_eq!(failure, protocol(Violation::WrongQueue { qid: 1, sqid: 2 }));
    assert_eq!(answers, [(1, Err(BROKEN)), (2, Err(BROKEN))]);
}

/// The head counts once a batch, in its last completion: it says which entries of the ring may be used
/// again. The requests were completed by their own identifiers, and are answered.
#[test]
fn a_head_past_the_tail_ends_the_controller() {
    let (failure, answers) = after_these([Lie::Honest, Lie::BadHead]);
    assert_eq!(failure, protocol(Violation::BadHead { qid: 1, sqhd: 3 }));
    assert_eq!(answers, [(1, Ok(())), (2, Ok(()))]);
}

#[test]
fn a_head_that_a_later_completion_of_the_batch_corrects_is_used_for_nothing() {
    assert_eq!(after(Lie::BadHead), (None, vec![(1, Ok(())), (2, Ok(()))]));
}

/// A command that was built and not committed is not the controller's to complete.
#[test]
fn completing_what_was_not_committed_ends_the_controller() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.hold(true);
    rig.model.lie([Lie::NextToo]);
    send(&mut *queue, [rig.read(1)]);
    queue.submit(rig.read(2)).unwrap();
    rig.model.hold(false);
    drain(&mut *queue);
    assert_eq!(rig.controller.failure(), protocol(Violation::Unfetched { qid: 1 }));
}

#[test]
fn completing_what_was_not_fetched_ends_the_controller_before_a_ring_entry_is_used_again() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 3);
    rig.model.lie([Lie::Unfetched; 3]);
    let mut out = Vec::new();
    for token in 0..3 {
        send(&mut *queue, [rig.read(token)]);
        queue.poll(4, &mut out);
        if rig.controller.failure().is_some() {
            break;
        }
    }
    assert_eq!(out.len(), 1, "the first one already shows it");
    assert_eq!(rig.controller.failure(), protocol(Violation::Unfetched { qid: 1 }));
    assert_eq!(queue.submit(rig.read(5)).unwrap_err().reason, Refusal::Failed);
}

/// Without a phase that is new there is no completion, so the command is late.
#[test]
fn a_completion_with_the_old_phase_is_never_seen_and_the_command_times_out() {
    late(Lie::BadPhase, 0);
}

#[test]
fn a_command_that_is_stuck_times_out_and_the_others_are_answered() {
    late(Lie::Stuck, 1);
}

fn late(lie: Lie, answered: usize) {
    let rig = Rig::new(ModelOptions::default());
    let free = rig.pool.free_frames();
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.lie([lie]);
    send(&mut *queue, [rig.read(1), rig.read(2)]);
    let mut out = Vec::new();
    let mut passed = Duration::ZERO;
    while queue.in_flight() > 0 {
        queue.poll(4, &mut out);
        rig.clock.advance(Duration::from_millis(1));
        passed += Duration::from_millis(1);
        assert!(passed < Duration::from_secs(40), "a command waits for ever");
        if rig.controller.failure().is_none() {
            assert_eq!(out.len(), answered);
        }
    }
    assert!(passed > Duration::from_secs(30), "{passed:?} is too early");
    assert_eq!(rig.controller.failure(), Some(Failure::TimedOut { qid: 1, waited_ms: 30_000 }));
    let error = IoError { kind: IoErrorKind::TimedOut, status: 0, do_not_retry: true };
    let late: Vec<_> = out.iter().filter(|done| done.result == Err(error)).collect();
    assert_eq!((late.len(), out.len()), (2 - answered, 2));
    assert!(out.iter().all(|done| done.data.frames.len() == 1), "every frame came back");
    out.clear();
    drop(queue);
    assert_eq!(rig.pool.free_frames(), free);
}

#[test]
fn a_queue_nobody_polls_is_not_late() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.hold(true);
    send(&mut *queue, [rig.read(1)]);
    rig.clock.advance(Duration::from_secs(3600));
    let mut out = Vec::new();
    (0..10_000).for_each(|_| assert_eq!(queue.poll(4, &mut out), 0));
    rig.model.hold(false);
    assert_eq!(drain(&mut *queue)[0].result, Ok(()));
}

/// Polls for two seconds of the test's clock, in which the status is looked at.
fn look(rig: &Rig, queue: &mut dyn IoQueue, out: &mut Vec<Completion>) {
    for _ in 0..2000 {
        queue.poll(4, out);
        rig.clock.advance(Duration::from_millis(1));
    }
}

#[test]
fn a_fatal_status_is_found_within_two_seconds() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.fail_fatally();
    send(&mut *queue, [rig.read(1)]);
    let mut out = Vec::new();
    look(&rig, &mut *queue, &mut out);
    assert_eq!(out.iter().map(|done| done.result).collect::<Vec<_>>(), [Err(BROKEN)]);
    assert_eq!(rig.controller.failure(), Some(Failure::Fatal));
}

#[test]
fn a_removed_controller_is_found_within_two_seconds_and_cut_off() {
    let rig = Rig::new(ModelOptions::default());
    let free = rig.pool.free_frames();
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.hold(true);
    send(&mut *queue, [rig.read(1)]);
    rig.model.remove();
    let mut out = Vec::new();
    look(&rig, &mut *queue, &mut out);
    let gone = IoError { kind: IoErrorKind::Gone, status: 0, do_not_retry: true };
    assert_eq!(out.iter().map(|done| done.result).collect::<Vec<_>>(), [Err(gone)]);
    assert_eq!(rig.controller.failure(), Some(Failure::Removed));
    assert!(rig.model.is_cut_off(), "what cannot be asked is kept from memory by the IOMMU");
    out.clear();
    drop(queue);
    assert_eq!(rig.pool.free_frames(), free);
}

#[test]
fn frames_stay_back_until_a_failing_controller_is_quiet() {
    let rig = Rig::new(ModelOptions { never_disables: true, to: 4, ..Default::default() });
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.hold(true);
    rig.model.lie([Lie::Honest, Lie::WrongQueue]);
    send(&mut *queue, [rig.read(1)]);
    rig.model.hold(false);
    rig.model.hold(true);
    send(&mut *queue, [rig.read(2), rig.read(3)]);
    // Only the second one is let out, with its lie.
    let mut out = Vec::new();
    assert_eq!(queue.poll(4, &mut out), 1);
    rig.model.hold(false);
    queue.poll(4, &mut out);
    assert_eq!(out.len(), 1, "RDY is still 1");
    assert!(rig.controller.failure().is_some());
    rig.clock.advance(Duration::from_millis(1999));
    queue.poll(4, &mut out);
    assert_eq!(out.len(), 1, "CAP.TO is not over");
    rig.clock.advance(Duration::from_millis(1));
    queue.poll(4, &mut out);
    assert_eq!(out.len(), 3);
    assert!(rig.model.is_cut_off());
    assert!(out.iter().all(|done| done.data.frames.len() == 1));
}

#[test]
fn frames_of_a_controller_that_nothing_stops_are_leaked() {
    let options =
        ModelOptions { never_disables: true, can_be_cut_off: false, ..Default::default() };
    let rig = Rig::new(options);
    let free = rig.pool.free_frames();
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 1);
    rig.model.lie([Lie::WrongQueue]);
    send(&mut *queue, [rig.read(1)]);
    queue.poll(1, &mut Vec::new());
    rig.clock.advance(Duration::from_secs(3));
    let mut out = Vec::new();
    assert_eq!(queue.poll(1, &mut out), 1);
    assert_eq!(out[0].result, Err(BROKEN));
    assert!(out[0].data.frames.is_empty(), "nobody may use them again");
    drop(queue);
    drop(namespace);
    let leaked = NvmeController::frames_for_queue(1) + 1;
    assert_eq!(rig.pool.free_frames(), free - leaked);
}
