//! Cancellation: whoever is cancelled is told once, gets its memory back, and what was taken in its
//! name goes to the next.

mod common;

use common::rig::{MEDIA, PAGE, READ, Rig, STABLE, WRITE, page};
use uaio_driver::sim::{Effect, Fault, FaultOn};
use uaio_driver::{IoError, IoErrorKind};
use uaio_page_cache::{Advice, CacheMode, CacheOptions, Cancelled, OpKind};

const CANCELLED: IoError = IoError::new(IoErrorKind::Cancelled);

impl Rig {
    /// Nothing is left of what was cancelled: no frame, no entry.
    fn settle(&mut self) {
        self.device.clear_faults();
        self.turns(100);
        assert_eq!(self.cache.frames_lent(), 0, "a frame was lost");
        assert!(self.lanes.iter().all(|lane| lane.in_flight() == 0), "an operation was left over");
    }
}

#[test]
fn an_operation_that_the_lane_does_not_have_is_unknown() {
    let mut rig = Rig::new(CacheMode::Writeback);
    assert_eq!(rig.cancel(0, 1), Cancelled::Unknown);
    rig.start(1, READ, 0, page(1));
    assert_eq!(rig.cancel(1, 1), Cancelled::Unknown, "it is another lane's");
    assert_eq!(rig.cancel(0, 1), Cancelled::Finished);
    assert_eq!(rig.cancel(0, 1), Cancelled::Unknown, "it has finished");
    assert_eq!(rig.finished.len(), 1, "answered once");
    rig.settle();
}

#[test]
fn a_cancelled_waiter_of_a_page_leaves_the_others_waiting() {
    let mut rig = Rig::new(CacheMode::Writeback);
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Stuck));
    rig.start(1, READ, 0, page(1));
    for id in 2..6 {
        rig.start_on(1, id, READ, 0, page(1));
    }
    assert_eq!(rig.cancel(1, 3), Cancelled::Finished);
    assert_eq!(rig.wait(3), (Err(CANCELLED), page(1)), "its memory was not touched");
    rig.device.clear_fault(stuck);
    for id in [1, 2, 4, 5] {
        assert_eq!(rig.wait(id), (Ok(()), page(0)));
    }
    assert!(rig.finished.is_empty());
    rig.settle();
}

#[test]
fn a_cancelled_read_gives_its_memory_back_while_the_device_is_still_reading() {
    let mut rig = Rig::new(CacheMode::Writeback);
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Stuck));
    rig.start(1, READ, 0, page(1));
    rig.start_on(1, 2, READ, 0, page(1));
    rig.turns(3);
    assert_eq!(rig.cancel(0, 1), Cancelled::Finished);
    assert_eq!(rig.wait(1), (Err(CANCELLED), page(1)));
    rig.turns(3);
    assert_eq!(rig.lanes[0].in_flight(), 1, "its request is still the lane's to settle");
    // What the device reads is not lost on whoever else waits for it.
    rig.device.clear_fault(stuck);
    assert_eq!(rig.wait(2), (Ok(()), page(0)));
    assert_eq!(rig.device.counts().reads, 1);
    rig.settle();
}

#[test]
fn a_frame_that_was_handed_to_a_cancelled_operation_goes_to_the_next() {
    let mut rig = Rig::with(CacheOptions { shards: 1, ..CacheOptions::frames(16) });
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Stuck));
    for id in 0..16 {
        rig.start(id, READ, id * PAGE, page(1));
    }
    for id in 16..19 {
        rig.start_on(1, id, READ, id * PAGE, page(1));
    }
    rig.turns(2);
    assert_eq!(rig.cache.stats().frame_waits, 3);
    // The first is cancelled while it waits: it is taken off the queue.
    assert_eq!(rig.cancel(1, 16), Cancelled::Finished);
    // The second is cancelled when a frame is on its way to it: lane 0 is turned, lane 1 is not.
    rig.device.clear_fault(stuck);
    let fault = Fault::new(FaultOn::Reads, Effect::Stuck);
    while rig.finished.len() < 2 {
        rig.lanes[0].turn();
        rig.collect();
    }
    rig.device.set_fault(fault);
    assert_eq!(rig.cancel(1, 17), Cancelled::Finished);
    assert_eq!(rig.wait(17), (Err(CANCELLED), page(1)));
    assert!(rig.lanes[1].in_flight() >= 2, "the frame has not arrived, and is waited for");
    rig.device.clear_faults();
    assert_eq!(rig.wait(18), (Ok(()), page(0)));
    assert!(rig.device.log().iter().all(|entry| !(16 * 8..18 * 8).contains(&entry.lba.0)));
    rig.settle();
}

#[test]
fn room_that_was_handed_to_a_cancelled_writer_goes_to_the_next() {
    let mut rig = Rig::with(CacheOptions { dirty_max_percent: 10, ..CacheOptions::frames(64) });
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Stuck));
    for id in 0..6 {
        rig.start(id, WRITE, id * PAGE, page(1));
    }
    for id in 6..10 {
        rig.start_on(1, id, WRITE, id * PAGE, page(1));
    }
    rig.turns(3);
    assert_eq!((rig.finished.len(), rig.cache.stats().room_waits), (6, 4));
    assert_eq!(rig.cancel(1, 6), Cancelled::Finished);
    rig.device.clear_fault(stuck);
    while rig.cache.dirty_ranges().len() > 1 || !rig.cache.dirty_ranges().is_empty() {
        rig.turn_flusher();
    }
    // All that room was handed over; 7 has it and is cancelled before it looks.
    assert_eq!(rig.cancel(1, 7), Cancelled::Finished);
    for (id, result) in [(6, Err(CANCELLED)), (7, Err(CANCELLED)), (8, Ok(())), (9, Ok(()))] {
        assert_eq!(rig.wait(id).0, result);
    }
    // Nothing of the room was lost: as many fit as before.
    rig.settle();
    assert_eq!(rig.flush(), Ok(()));
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Stuck));
    for id in 20..26 {
        rig.start(id, WRITE, id * PAGE, page(2));
        assert_eq!(rig.result(id), Some(Ok(())));
    }
    rig.settle();
}

#[test]
fn a_cancelled_waiter_for_a_slot_lets_the_next_go_in_order() {
    let mut rig = Rig::new(CacheMode::Writeback);
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Stuck).times(16));
    for id in 0..24 {
        rig.start(id, READ, id * 2 * PAGE, page(1));
    }
    rig.turns(2);
    assert_eq!(rig.cancel(0, 16), Cancelled::Finished);
    assert_eq!(rig.cancel(0, 20), Cancelled::Finished);
    rig.device.clear_fault(stuck);
    for id in (0..24).filter(|id| ![16, 20].contains(id)) {
        assert_eq!(rig.wait(id), (Ok(()), page(0)));
    }
    assert_eq!(rig.device.counts().reads, 22);
    rig.settle();
}

#[test]
fn slots_are_given_in_order_and_newcomers_queue_behind() {
    let mut rig = Rig::new(CacheMode::Writeback);
    rig.handle.advise(0..u64::MAX, Advice::Random);
    // Each operation wants three pages of which the one in the middle is there: two commands.
    for id in 0..30 {
        assert_eq!(rig.run(READ, (id * 4 + 1) * PAGE, page(1)).0, Ok(()));
    }
    let wanted = |rig: &mut Rig, id| rig.start(id, READ, id * 4 * PAGE, page(1).repeat(3));
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Stuck));
    // The 16 slots are the first eight's.
    (0..20).for_each(|id| wanted(&mut rig, id));
    rig.turns(2);
    let before = rig.device.log().len();
    rig.device.clear_fault(stuck);
    for id in 20..30 {
        rig.turn();
        wanted(&mut rig, id);
    }
    for id in 0..30 {
        assert_eq!(rig.wait(id), (Ok(()), page(0).repeat(3)));
    }
    let log = rig.device.log().into_iter().skip(before);
    let arrived = log.filter(|entry| entry.event == uaio_driver::sim::Event::Arrived);
    let order: Vec<_> = arrived.map(|entry| (entry.lba.0 / 32, entry.lba.0 % 32 / 8)).collect();
    let firsts: Vec<_> = order.iter().filter(|(_, part)| *part == 0).map(|(id, _)| *id).collect();
    assert_eq!(firsts, (8..30).collect::<Vec<_>>(), "somebody overtook: {order:?}");
    // Whoever has had a slot and wants another goes behind those who waited before.
    let at = |wanted| order.iter().position(|command| *command == wanted).unwrap();
    assert!(at((8, 2)) > at((19, 0)), "the second command of one went before the first of another");
    rig.settle();
}

#[test]
fn a_cancelled_flush_is_answered_at_once_and_its_errors_are_told_to_the_next() {
    let mut rig = Rig::new(CacheMode::Writeback);
    assert_eq!(rig.run(WRITE, 0, page(1)).0, Ok(()));
    // Waiting for its data to be written.
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Stuck));
    rig.start(1, OpKind::Flush, 0, Vec::new());
    rig.turns(2);
    assert_eq!(rig.cancel(0, 1), Cancelled::Finished);
    assert_eq!(rig.wait(1).0, Err(CANCELLED));
    rig.device.clear_fault(stuck);
    rig.turns(3);
    // Waiting for the device flush, which then fails.
    rig.device.set_fault(Fault::new(FaultOn::Flushes, Effect::Slow { steps: 20 }).times(1));
    rig.start(2, OpKind::Flush, 0, Vec::new());
    rig.turns(3);
    assert_eq!(rig.device.counts().flushes, 1);
    assert_eq!(rig.cancel(0, 2), Cancelled::Finished);
    assert_eq!(rig.wait(2).0, Err(CANCELLED));
    rig.settle();
    rig.device.set_fault(Fault::new(FaultOn::Flushes, Effect::Fail(MEDIA)).times(1));
    rig.start(3, OpKind::Flush, 0, Vec::new());
    // The wake-up with the error is on its way when the flush is cancelled.
    (0..10).for_each(|_| rig.turn_flusher());
    assert_eq!(rig.cancel(0, 3), Cancelled::Finished);
    assert_eq!(rig.wait(3).0, Err(CANCELLED));
    assert_eq!(rig.flush(), Err(MEDIA), "the error was lost with the cancelled flush");
    assert_eq!(rig.flush(), Ok(()));
    rig.settle();
}

#[test]
fn a_write_that_the_device_is_at_runs_on_and_says_how_it_went() {
    let mut rig = Rig::new(CacheMode::Writeback);
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Slow { steps: 10 }));
    // All of it is at the device: it is what it would have been.
    rig.start(1, STABLE, 0, page(1));
    rig.turns(2);
    assert_eq!(rig.cancel(0, 1), Cancelled::RunsOn);
    assert_eq!(rig.result(1), None);
    assert_eq!(rig.wait(1).0, Ok(()));
    // The second page is somebody else's to write just now: that part is given up.
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Slow { steps: 30 }).at(8..16));
    rig.start_on(1, 2, STABLE, PAGE, page(2));
    rig.turns(2);
    rig.start(3, STABLE, 0, vec![3; 2 * PAGE as usize]);
    rig.turns(2);
    assert_eq!(rig.cancel(0, 3), Cancelled::RunsOn);
    assert_eq!(rig.cancel(0, 3), Cancelled::RunsOn, "it may be said again");
    assert_eq!(rig.wait(3).0, Err(CANCELLED));
    assert_eq!(rig.wait(2).0, Ok(()));
    let image = rig.device.crash();
    assert_eq!((image[0], image[4096]), (3, 2));
    assert_eq!(rig.finished.len(), 0);
    rig.settle();
}

#[test]
fn a_write_whose_block_is_being_filled_is_taken_back() {
    let mut rig = Rig::new(CacheMode::Writeback);
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Stuck));
    rig.start(1, WRITE, 100, vec![7; 50]);
    rig.turns(2);
    assert_eq!(rig.cancel(0, 1), Cancelled::Finished);
    assert_eq!(rig.wait(1), (Err(CANCELLED), vec![7; 50]));
    rig.device.clear_fault(stuck);
    assert_eq!(rig.run(READ, 0, page(1)).1, page(0));
    assert_eq!(rig.cache.dirty_ranges(), []);
    rig.settle();
}

#[test]
fn a_cancelled_discard_that_was_not_sent_has_done_nothing_and_blocks_nobody() {
    let mut rig = Rig::new(CacheMode::Writeback);
    let zeroes = OpKind::WriteZeroes { may_unmap: false };
    assert_eq!(rig.run(WRITE, 0, page(1)).0, Ok(()));
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Stuck));
    rig.start(1, OpKind::Flush, 0, Vec::new());
    rig.turns(2);
    // The first waits until the page is quiet, the second for the first.
    rig.start(2, zeroes, 512, vec![0; 1024]);
    rig.start_on(1, 3, zeroes, 0, vec![0; 512]);
    rig.start_on(1, 4, WRITE, 0, page(4));
    assert_eq!(rig.cancel(1, 3), Cancelled::Finished);
    assert_eq!(rig.cancel(0, 2), Cancelled::Finished);
    assert_eq!((rig.wait(2).0, rig.wait(3).0), (Err(CANCELLED), Err(CANCELLED)));
    assert_eq!(rig.wait(4).0, Ok(()));
    rig.device.clear_fault(stuck);
    assert_eq!(rig.wait(1).0, Ok(()));
    assert_eq!(rig.run(READ, 0, page(0)).1, page(4));
    // What the device is at runs on.
    rig.start(5, zeroes, 0, vec![0; 512]);
    rig.lanes[0].commit();
    assert_eq!(rig.cancel(0, 5), Cancelled::RunsOn);
    // It was asked to end it, and says whether that was in time; then it has done all of it, or nothing.
    let ended = rig.wait(5).0;
    let read = rig.run(READ, 0, page(9)).1;
    let done = ended == Ok(()) || (ended == Err(CANCELLED) && read[0] == 0);
    assert!(ended == Ok(()) || ended == Err(CANCELLED), "{ended:?}");
    assert_eq!(read, [vec![if done { 0 } else { 4 }; 512], vec![4; 4096 - 512]].concat());
    rig.settle();
}
