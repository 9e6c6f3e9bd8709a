//! A controller that lies: one test a lie, with exactly what comes of it.

use std::time::Duration;

use super::*;
use crate::block::Health;
use crate::error::{IoError, IoErrorKind};
use crate::nvme::model::Lie;
use crate::nvme::{Event, Failure, Violation};
use crate::request::Refusal;

const BROKEN: IoError = IoError::new(IoErrorKind::Device);

/// Two reads, the first answered with a lie, on one queue and one read held on another. What the
/// driver makes of it: the violation, and what each of the reads in flight is answered with. The other
/// queue and the controller go on.
fn after(lie: Lie) -> (Option<Violation>, Vec<(u64, IoResult)>) {
    after_these([lie, Lie::Honest])
}

/// The same with a lie for each of the two reads.
fn after_these(lies: [Lie; 2]) -> (Option<Violation>, Vec<(u64, IoResult)>) {
    let rig = Rig::new(ModelOptions::default());
    let free = rig.pool.free_frames();
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    let mut other = open(&namespace, 4);
    rig.model.lie(lies);
    send(&mut *queue, [rig.read(1), rig.read(2)]);
    let mut answers: Vec<_> =
        drain(&mut *queue).into_iter().map(|done| (done.token.to_u64(), done.result)).collect();
    answers.sort_by_key(|answer| answer.0);
    let violation = violation_of(&rig);
    assert_eq!((namespace.health(), rig.controller.failure()), (Health::Good, None));
    assert_eq!(one(&mut *other, rig.read(9)).0, Ok(()), "the other queue goes on");
    let statistics = rig.controller.error_statistics();
    assert_eq!((statistics.queues_failed, statistics.resets), (u64::from(violation.is_some()), 0));
    if violation.is_some() {
        assert_eq!(queue.submit(rig.read(3)).unwrap_err().reason, Refusal::Failed);
        (0..10).for_each(|_| assert_eq!(queue.poll(4, &mut Vec::new()), 0));
        assert_eq!(rig.model.io_queues(), 1, "the controller has let go of it");
        drop(queue);
        assert_eq!(one(&mut *open(&namespace, 4), rig.read(4)).0, Ok(()), "another can be opened");
    } else {
        drop(queue);
    }
    drop(other);
    assert_eq!(rig.pool.free_frames(), free, "all memory is back");
    (violation, answers)
}

/// What the controller did wrong on the one queue that failed, if one did.
fn violation_of(rig: &Rig) -> Option<Violation> {
    let mut failed = rig.controller.take_events().into_iter().filter_map(|event| match event {
        Event::QueueFailed(violation) => Some(violation),
        _ => None,
    });
    let first = failed.next();
    assert_eq!(failed.next(), None);
    first
}

#[test]
fn honesty_is_not_punished() {
    assert_eq!(after(Lie::Honest), (None, vec![(1, Ok(())), (2, Ok(()))]));
}

#[test]
fn an_unknown_identifier_fails_the_queue() {
    let (failure, answers) = after(Lie::UnknownCommand);
    assert_eq!(failure, Some(Violation::UnknownCommand { qid: 1, cid: 0x8000 }));
    assert_eq!(answers, [(1, Err(BROKEN)), (2, Err(BROKEN))]);
}

#[test]
fn a_repeated_identifier_fails_the_queue_and_the_first_answer_stands() {
    let (failure, answers) = after(Lie::RepeatedCommand);
    assert_eq!(failure, Some(Violation::UnknownCommand { qid: 1, cid: 0 }));
    assert_eq!(answers, [(1, Ok(())), (2, Err(BROKEN))]);
}

#[test]
fn a_completion_of_another_queue_fails_the_queue() {
    let (failure, answers) = after(Lie::WrongQueue);
    assert_eq!(failure, Some(Violation::WrongQueue { qid: 1, sqid: 2 }));
    assert_eq!(answers, [(1, Err(BROKEN)), (2, Err(BROKEN))]);
}

/// The head counts once a batch, in its last completion: it says which entries of the ring may be used
/// again. The requests were completed by their own identifiers, and are answered.
#[test]
fn a_head_past_the_tail_fails_the_queue() {
    let (failure, answers) = after_these([Lie::Honest, Lie::BadHead]);
    assert_eq!(failure, Some(Violation::BadHead { qid: 1, sqhd: 3 }));
    assert_eq!(answers, [(1, Ok(())), (2, Ok(()))]);
}

#[test]
fn a_head_that_a_later_completion_of_the_batch_corrects_is_used_for_nothing() {
    assert_eq!(after(Lie::BadHead), (None, vec![(1, Ok(())), (2, Ok(()))]));
}

/// A command that was built and not committed is not the controller's to complete.
#[test]
fn completing_what_was_not_committed_fails_the_queue() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.hold(true);
    rig.model.lie([Lie::NextToo]);
    send(&mut *queue, [rig.read(1)]);
    queue.submit(rig.read(2)).unwrap();
    rig.model.hold(false);
    drain(&mut *queue);
    assert_eq!(violation_of(&rig), Some(Violation::Unfetched { qid: 1 }));
}

#[test]
fn completing_what_was_not_fetched_fails_the_queue_before_a_ring_entry_is_used_again() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 3);
    rig.model.lie([Lie::Unfetched; 3]);
    let mut out = Vec::new();
    for token in 0..3 {
        send(&mut *queue, [rig.read(token)]);
        queue.poll(4, &mut out);
        if rig.controller.error_statistics().queues_failed > 0 {
            break;
        }
    }
    assert_eq!(out.len(), 2, "one of them may be late to say so");
    assert_eq!(violation_of(&rig), Some(Violation::Unfetched { qid: 1 }));
    assert_eq!(queue.submit(rig.read(5)).unwrap_err().reason, Refusal::Failed);
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

/// It makes the completion queue and not the submission queue, and will not delete the first: so it
/// holds on to its memory, which only a reset ends.
#[test]
fn a_completion_queue_that_it_keeps_goes_with_a_reset() {
    use crate::nvme::spec::Status;
    let rig = Rig::new(ModelOptions::default());
    let free = rig.pool.free_frames();
    let namespace = rig.namespace();
    let mut other = open(&namespace, 4);
    let refusal = Lie::Status(Status::INVALID_QUEUE_IDENTIFIER);
    rig.model.lie_admin([Lie::Honest, refusal, refusal]);
    assert!(namespace.open_queue(crate::QueueOptions::polled(4)).is_err());
    assert_eq!(rig.controller.error_statistics().resets, 1, "it knows of no such queue now");
    let mut queue = open(&namespace, 4);
    assert_eq!(one(&mut *queue, rig.read(1)).0, Ok(()));
    assert_eq!(one(&mut *other, rig.read(2)).0, Ok(()));
    drop((queue, other));
    assert_eq!(rig.pool.free_frames(), free);
}
