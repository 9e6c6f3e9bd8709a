//! What happens between two steps: the controller's fate changes, an Abort is late, a queue sleeps
//! through a reset, an owner never commits all. Each moment is tried, not one that was lucky.

use std::time::Duration;

use super::ladder::{results, wait};
use super::*;
use crate::block::{Armed, Cancel};
use crate::clock::Clock;
use crate::dma::FRAME_SIZE;
use crate::nvme::model::{Aborts, Lie};
use crate::nvme::{Event, Failure, Violation};
use crate::request::Refused;

/// Requests of every way through `submit`, on blocks of their own.
fn one_of_each(rig: &Rig) -> Vec<Request> {
    let large = rig.frames(2);
    large.copy_from_slice(0, &[5; 2 * FRAME_SIZE]);
    vec![
        rig.write(0, 1, false),
        discard(8, 8),
        discard(16, 8),
        Request::on_blocks(Token::from_u64(24), Op::WriteZeroes { may_unmap: true }, Lba(24), 8),
        Request::write(Token::from_u64(32), Lba(32), 16, large, true),
        Request::read(Token::from_u64(48), Lba(48), 8, rig.frames(1)),
        flush(),
    ]
}

const TOKENS: [u64; 7] = [0, 8, 16, 24, 32, 48, 999];

/// Everything is lost in a reset and sent again; at each look at the controller's state while that is
/// done, it fails once more. With a reset, everything is done in the end; with the end, answered so.
#[test]
fn whenever_the_fate_changes_while_requests_are_sent_again_each_is_answered_once() {
    let timed_out = Failure::TimedOut { qid: 0, waited_ms: 1 };
    for failure in [timed_out, Failure::Closed] {
        let mut tripped = 0;
        for looks in 0..80 {
            let rig = Rig::new(ModelOptions::default());
            let free = rig.pool.free_frames();
            let namespace = rig.namespace();
            let mut queue = open(&namespace, 7);
            rig.model.hold(true);
            send(&mut *queue, one_of_each(&rig));
            rig.controller.parts().fate.fail(timed_out);
            rig.model.hold(false);
            *rig.controller.parts().fate.trip.lock().unwrap() = Some((looks, failure));
            let (done, _) = wait(&rig, &mut *queue);
            let answered: Vec<_> = results(&done).iter().map(|one| one.0).collect();
            assert_eq!(answered, TOKENS, "at look {looks}, {failure:?}");
            let trip = rig.controller.parts().fate.trip.lock().unwrap().take();
            if trip.is_none() {
                tripped += 1;
            }
            if failure == timed_out {
                assert!(done.iter().all(|done| done.result.is_ok()), "at look {looks}: {done:?}");
            }
            drop((done, queue));
            assert_eq!(rig.pool.free_frames(), free, "at look {looks}, {failure:?}");
        }
        assert!((20..80).contains(&tripped), "{tripped} of the looks were there");
    }
}

/// Everything fails in passing, with a delay or without; at each look at the controller's state while
/// that waits, is due or is sent again, the controller fails. The owner takes every slot it is given.
#[test]
fn whenever_the_fate_changes_while_failures_pass_each_is_answered_once() {
    use crate::nvme::spec::Status;
    let reset = Failure::TimedOut { qid: 0, waited_ms: 1 };
    let delays = [2, 0, 0];
    let lies = |round: u64| {
        (0..6).map(move |index| {
            let delay = (round >> index) as u16 & 1;
            Lie::Status(Status(Status::COMMAND_INTERRUPTED.0 | delay << 11))
        })
    };
    let mut tripped = 0;
    // Every look at first, then those around the end of the delay of 200 ms.
    for (round, looks) in (0..40).chain((40..700).step_by(29)).enumerate() {
        for failure in [reset, Failure::Closed] {
            let options = ModelOptions { retry_delays: delays, ..Default::default() };
            // So many that it is never the last one that fails.
            let how = ControllerOptions { retries_max: 250, ..Default::default() };
            let rig = Rig::driven(options, how).unwrap();
            let free = rig.pool.free_frames();
            let namespace = rig.namespace();
            let mut queue = open(&namespace, 7);
            rig.model.lie(lies(round as u64));
            send(&mut *queue, one_of_each(&rig));
            *rig.controller.parts().fate.trip.lock().unwrap() = Some((looks, failure));
            let (mut out, mut asked) = (Vec::new(), TOKENS.to_vec());
            for token in 2000..2100 {
                // Also after a reset, which ends the waiting of those before.
                if token % 16 == 0 {
                    rig.model.lie(lies(token * round as u64));
                }
                queue.poll(3, &mut out);
                match queue.submit(rig.read(token)) {
                    Ok(()) => asked.push(token),
                    Err(Refused { request, .. }) => drop(request),
                }
                assert!(queue.in_flight() <= queue.depth(), "at look {looks}");
                queue.commit();
                rig.clock.advance(Duration::from_millis(5));
            }
            out.extend(wait(&rig, &mut *queue).0);
            let answered: Vec<_> = results(&out).iter().map(|one| one.0).collect();
            assert_eq!(answered, asked, "at look {looks}, {failure:?}");
            if failure == reset {
                assert!(out.iter().all(|done| done.result.is_ok()), "at look {looks}: {out:?}");
            }
            let trip = rig.controller.parts().fate.trip.lock().unwrap().take();
            tripped += u32::from(trip.is_none());
            drop((out, queue));
            assert_eq!(rig.pool.free_frames(), free, "at look {looks}, {failure:?}");
        }
    }
    assert!(tripped > 100, "{tripped} of the looks were there");
}

/// A reset comes between the look at the state and the sending again of what was aborted; the owner
/// fills the queue up meanwhile.
#[test]
fn what_waits_to_be_sent_again_keeps_its_slot() {
    for looks in 0..24 {
        let rig = Rig::new(ModelOptions::default());
        let namespace = rig.namespace();
        let mut queue = open(&namespace, 3);
        rig.model.lie([Lie::Stuck; 3]);
        send(&mut *queue, [rig.read(1), rig.read(2), rig.write(24, 1, false)]);
        let mut out = Vec::new();
        while rig.controller.error_statistics().aborts == 0 {
            queue.poll(4, &mut out);
            rig.clock.advance(Duration::from_millis(1));
        }
        let why = Failure::TimedOut { qid: 0, waited_ms: 1 };
        *rig.controller.parts().fate.trip.lock().unwrap() = Some((looks, why));
        let mut asked = 3;
        for token in 10..200 {
            queue.poll(4, &mut out);
            match queue.submit(rig.read(token)) {
                Ok(()) => asked += 1,
                Err(Refused { request, .. }) => drop(request),
            }
            assert!(queue.in_flight() <= queue.depth(), "at look {looks}");
            queue.commit();
            rig.clock.advance(Duration::from_millis(1));
        }
        out.extend(wait(&rig, &mut *queue).0);
        assert_eq!(out.len(), asked, "at look {looks}");
        assert!(out.iter().all(|done| done.result.is_ok()), "at look {looks}: {out:?}");
    }
}

/// The command that an Abort names completes by itself; the Abort is done only after so many others
/// were sent, one of which may have its identifier by then.
#[test]
fn a_late_abort_hits_no_command_that_came_later() {
    for tenants in 0..140 {
        let rig = Rig::new(ModelOptions { aborts: Aborts::Late, ..Default::default() });
        let namespace = rig.namespace();
        let mut queue = open(&namespace, 2);
        let mut out = Vec::new();
        send(&mut *queue, [rig.read(1)]);
        assert_eq!(queue.cancel(Token::from_u64(1)), Cancel::Asked);
        queue.poll(4, &mut out);
        for token in 0..tenants {
            send(&mut *queue, [rig.read(100 + token)]);
            queue.poll(4, &mut out);
        }
        rig.model.hold(true);
        send(&mut *queue, [rig.read(2)]);
        rig.model.do_late_aborts();
        rig.model.hold(false);
        out.extend(wait(&rig, &mut *queue).0);
        assert_eq!(out.len() as u64, tenants + 2);
        assert!(out.iter().all(|done| done.result.is_ok()), "{tenants}: {out:?}");
    }
}

/// An Abort that nobody asked for is not a failure of the medium: the request is sent again.
#[test]
fn a_command_that_ends_as_aborted_by_itself_is_sent_again() {
    use crate::nvme::spec::Status;
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 2);
    rig.model.lie([Lie::Status(Status::ABORT_REQUESTED)]);
    assert_eq!(one(&mut *queue, rig.read(1)).0, Ok(()));
    assert_eq!(rig.controller.error_statistics().sent_again, 1);
}

/// A queue has its completion queue again after a reset and sleeps; there is another reset; it goes on.
#[test]
fn a_queue_that_is_half_made_when_the_next_reset_comes_begins_again() {
    for polls in 0..12 {
        let rig = Rig::new(ModelOptions::default());
        let namespace = rig.namespace();
        let (mut queue, mut sleeper) = (open(&namespace, 4), open(&namespace, 4));
        rig.model.fail_fatally();
        send(&mut *queue, [rig.read(1)]);
        wait(&rig, &mut *queue);
        let mut out = Vec::new();
        for _ in 0..polls {
            sleeper.poll(4, &mut out);
        }
        rig.model.fail_fatally();
        send(&mut *queue, [rig.read(1)]);
        wait(&rig, &mut *queue);
        send(&mut *sleeper, [rig.write(8, 5, false)]);
        assert_eq!(wait(&rig, &mut *sleeper).0[0].result, Ok(()), "after {polls} polls");
        assert_eq!(rig.controller.error_statistics().resets, 2, "after {polls} polls");
    }
}

/// The ring has a completion and nothing is in flight that it could be of.
#[test]
fn a_completion_of_nothing_does_not_keep_an_idle_owner_awake() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.lie([Lie::RepeatedCommand]);
    assert_eq!(one(&mut *queue, rig.read(1)).0, Ok(()));
    let mut looks = 0;
    while queue.arm() == Armed::Ready {
        queue.poll(4, &mut Vec::new());
        looks += 1;
        assert!(looks < 10, "it is never idle");
    }
    let violation = Violation::UnknownCommand { qid: 1, cid: 0 };
    assert_eq!(rig.controller.take_events(), [Event::QueueFailed(violation)]);
}

/// Whenever the clock is looked at, something was submitted that is not committed yet.
#[test]
fn a_command_is_late_also_when_others_are_not_committed() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.lie([Lie::Stuck]);
    send(&mut *queue, [rig.read(1)]);
    let (mut out, mut token) = (Vec::new(), 2);
    while !out.iter().any(|done: &Completion| done.token.to_u64() == 1) {
        queue.submit(rig.read(token)).unwrap();
        token += 1;
        (0..256).for_each(|_| {
            queue.poll(4, &mut out);
        });
        queue.commit();
        queue.poll(4, &mut out);
        rig.clock.advance(Duration::from_millis(500));
        assert!(rig.clock.now() < Duration::from_secs(60), "it is never late");
    }
    assert!(out.iter().all(|done| done.result.is_ok()));
}

/// Discards that share a command are of different age: one may not be sent again, and others may.
#[test]
fn a_poll_counts_every_request_that_it_answers() {
    let how = ControllerOptions { retries_max: 1, ..Default::default() };
    let rig = Rig::driven(ModelOptions::default(), how).unwrap();
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.lie([Lie::Stuck; 2]);
    let mut out = Vec::new();
    send(&mut *queue, [discard(0, 8)]);
    let advance = |queue: &mut dyn IoQueue, out: &mut Vec<Completion>| {
        let before = out.len();
        let moved = queue.poll(1, out);
        assert_eq!((moved, moved <= 1), (out.len() - before, true));
        rig.clock.advance(Duration::from_millis(1));
    };
    while rig.controller.error_statistics().aborts == 0 {
        advance(&mut *queue, &mut out);
    }
    // They lead the command that the older one joins.
    queue.submit(discard(8, 8)).unwrap();
    queue.submit(discard(16, 8)).unwrap();
    while queue.in_flight() > 0 {
        advance(&mut *queue, &mut out);
    }
    let results = results(&out);
    assert!(results[0].1.is_err(), "it was sent as often as it may be");
    assert_eq!(results[1..], [(8, Ok(())), (16, Ok(()))]);
}

/// A head that lags behind at the end of a batch is no lie: the cores of a controller answer beside
/// each other.
#[test]
fn a_head_of_one_command_earlier_is_forgiven() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 7);
    for round in 0..40 {
        rig.model.lie([Lie::Honest, Lie::StaleHead]);
        send(&mut *queue, [rig.read(1), rig.read(2)]);
        assert!(drain(&mut *queue).iter().all(|done| done.result.is_ok()), "{round}");
    }
    assert_eq!(rig.controller.take_events(), []);
}

/// Between the look that finds RDY = 0 and the enabling, another thread closes the controller.
#[test]
fn a_controller_that_ends_while_it_is_reset_is_not_enabled_again() {
    for looks in 0..4 {
        let rig = Rig::new(ModelOptions::default());
        let namespace = rig.namespace();
        let mut queue = open(&namespace, 4);
        rig.model.hold(true);
        send(&mut *queue, [rig.read(1)]);
        rig.controller.parts().fate.fail(Failure::Fatal);
        for _ in 0..looks {
            queue.poll(4, &mut Vec::new());
        }
        let fate = Arc::clone(rig.controller.parts().fate);
        rig.model.at_next_look(move || fate.fail(Failure::AskedBack));
        let (done, _) = wait(&rig, &mut *queue);
        assert!(done[0].result.is_err());
        assert!(!rig.model.is_enabled(), "{looks}");
        assert!(!rig.model.is_cut_off(), "it stopped by itself, {looks}");
    }
}

/// A controller that says for ever that it is busy with new firmware.
#[test]
fn a_pause_is_believed_for_as_long_as_the_controller_said_and_no_longer() {
    for (mtfa, from_s, to_s) in [(0, 30, 80), (400, 70, 90), (u16::MAX, 300, 360)] {
        let rig = Rig::new(ModelOptions { mtfa, ..Default::default() });
        let namespace = rig.namespace();
        let mut queue = open(&namespace, 4);
        rig.model.lie([Lie::Stuck]);
        rig.model.pause(true);
        send(&mut *queue, [rig.read(1)]);
        let (done, took) = wait(&rig, &mut *queue);
        assert_eq!(done[0].result, Ok(()));
        super::ladder::within(took, from_s, to_s);
    }
    // What was late while it paused gets its time when it goes on.
    let rig = Rig::new(ModelOptions { mtfa: 600, ..Default::default() });
    let namespace = rig.namespace();
    let mut queue = open(&namespace, 4);
    rig.model.hold(true);
    rig.model.pause(true);
    send(&mut *queue, [rig.read(1)]);
    let mut out = Vec::new();
    for _ in 0..50_000 {
        queue.poll(4, &mut out);
        rig.clock.advance(Duration::from_millis(1));
    }
    rig.model.pause(false);
    for _ in 0..10_000 {
        queue.poll(4, &mut out);
        rig.clock.advance(Duration::from_millis(1));
    }
    rig.model.hold(false);
    out.extend(wait(&rig, &mut *queue).0);
    assert_eq!(out[0].result, Ok(()));
    let statistics = rig.controller.error_statistics();
    assert_eq!((statistics.aborts, statistics.resets), (0, 0));
}
