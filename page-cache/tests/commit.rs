//! Stable writes, many at once: what makes them so, and what they share.

mod common;

use std::sync::Arc;

use common::rig::{CANCELLED, MEDIA, PAGE, READ, Rig, STABLE, page};
use common::user::{User, flusher};
use uaio_driver::sim::{Effect, Fault, FaultId, FaultOn, SimDevice, SimOptions};
use uaio_driver::{BlockDevice, Capabilities, DmaPool, PoolOptions};
use uaio_page_cache::{Cache, CacheMode, CacheOptions, Cancelled, OpKind};

#[test]
fn stable_writes_do_not_block_and_share_flushes_and_are_stable_when_they_end() {
    let mut rig = Rig::new(CacheMode::Writeback);
    rig.device.set_fault(Fault::new(FaultOn::Flushes, Effect::Slow { steps: 20 }));
    for id in 0..24 {
        rig.start(id, STABLE, id * PAGE, page(id as u8 + 1));
        assert_eq!(rig.result(id), None);
    }
    let mut told = 0;
    for _ in 0..1000 {
        rig.turn();
        if rig.finished.len() > told {
            let medium = rig.device.durable_image();
            for (id, result, _) in &rig.finished[told..] {
                assert_eq!(*result, Ok(()));
                let at = (id * PAGE) as usize;
                assert_eq!(medium[at..at + 4096], page(*id as u8 + 1), "write {id}");
            }
            told = rig.finished.len();
        }
    }
    assert_eq!(told, 24);
    let counts = rig.device.counts();
    assert_eq!(counts.writes, 24, "each was issued once");
    assert_eq!(counts.fua_writes, 1, "the first was alone");
    assert!(counts.flushes <= 4, "{} flushes for 23 writes", counts.flushes);
}

#[test]
fn a_stable_write_that_completes_after_the_flush_was_sent_takes_the_next() {
    let mut rig = Rig::new(CacheMode::Writeback);
    // One that does not end, so that those after it are not alone.
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Stuck).at(1600..1608));
    rig.start(9, STABLE, 200 * PAGE, page(9));
    rig.device.set_fault(Fault::new(FaultOn::Flushes, Effect::Slow { steps: 50 }).times(1));
    rig.start(1, STABLE, 0, page(1));
    while rig.device.counts().flushes == 0 {
        rig.turn();
    }
    rig.start(2, STABLE, PAGE, page(2));
    assert_eq!(rig.wait(1).0, Ok(()));
    assert_eq!(rig.result(2), None, "the flush was sent before it was on the device");
    assert_eq!(rig.wait(2).0, Ok(()));
    assert_eq!(rig.device.counts().flushes, 2);
    rig.device.clear_fault(stuck);
    assert_eq!(rig.wait(9).0, Ok(()));
}

#[test]
fn a_flush_that_fails_fails_the_writes_it_covers_and_no_others() {
    let mut rig = Rig::new(CacheMode::Writeback);
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Stuck).at(1600..1608));
    rig.start(9, STABLE, 200 * PAGE, page(9));
    rig.device.set_fault(Fault::new(FaultOn::Flushes, Effect::Fail(MEDIA)).times(1));
    rig.start(1, STABLE, 0, page(1));
    rig.start(2, STABLE, PAGE, page(2));
    let (first, second) = (rig.wait(1).0, rig.wait(2).0);
    assert!(first == Err(MEDIA) || second == Err(MEDIA));
    rig.start(3, STABLE, 2 * PAGE, page(3));
    assert_eq!(rig.wait(3).0, Ok(()));
    rig.device.clear_fault(stuck);
    assert_eq!(rig.wait(9).0, Ok(()));
    assert_eq!(rig.flush(), Err(MEDIA), "what was in the device's cache may be lost: told once");
    assert_eq!(rig.flush(), Ok(()));
}

#[test]
fn stable_writes_get_their_flush_beside_writers_that_never_stop() {
    let mut rig = Rig::new(CacheMode::Writethrough);
    let mut id = 100;
    let mut refill = |rig: &mut Rig| {
        while rig.lanes[0].in_flight() < 40 {
            id += 1;
            rig.start(id, OpKind::Write { stable: false, direct: false }, id % 200 * PAGE, page(7));
        }
    };
    refill(&mut rig);
    rig.start(1, STABLE, 201 * PAGE, page(1));
    rig.start(2, STABLE, 202 * PAGE, page(1));
    for _ in 0..60 {
        rig.turn();
        if rig.result(1).is_some() && rig.result(2).is_some() {
            return;
        }
        refill(&mut rig);
    }
    panic!("stable writes starved: {:?}", rig.device.counts());
}

/// Two stable writes on lane 0, the second of which takes a device flush, turned until it waits for that: to be
/// sent while another is under way, or to end.
fn waiting_for_a_flush(sent: bool) -> (Rig, FaultId) {
    let mut rig = Rig::new(CacheMode::Writeback);
    let held = rig.device.set_fault(Fault::new(FaultOn::Flushes, Effect::Stuck).times(1));
    if !sent {
        rig.start_on(1, 3, OpKind::FlushRange, 100 * PAGE, page(0));
        rig.turns(3);
    }
    rig.start(1, STABLE, 0, page(1));
    rig.start(2, STABLE, PAGE, page(2));
    rig.turns(5);
    assert_eq!((rig.result(1), rig.result(2)), (Some(Ok(())), None));
    assert_eq!(rig.device.counts().flushes, 1);
    (rig, held)
}

#[test]
fn a_stable_write_that_waits_for_a_flush_is_taken_back_at_once() {
    for sent in [true, false] {
        let (mut rig, held) = waiting_for_a_flush(sent);
        assert_eq!(rig.cancel(0, 2), Cancelled::Finished, "sent: {sent}");
        assert_eq!(rig.wait(2), (Err(CANCELLED), page(2)));
        rig.device.clear_fault(held);
        rig.turns(5);
        assert_eq!(rig.run(READ, PAGE, page(0)), (Ok(()), page(2)), "it is there like any other");
        assert_eq!(rig.flush(), Ok(()));
        assert_eq!(rig.device.crash()[4096..8192], page(2));
    }
}

#[test]
fn a_stable_write_whose_commands_run_on_is_not_known_to_be_stable() {
    let mut rig = Rig::new(CacheMode::Writeback);
    let stuck = rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Stuck));
    rig.start(1, STABLE, 0, page(1));
    rig.start(2, STABLE, PAGE, page(2));
    rig.turns(2);
    assert_eq!(rig.cancel(0, 2), Cancelled::RunsOn);
    rig.device.clear_fault(stuck);
    assert_eq!((rig.wait(2).0, rig.wait(1).0), (Err(CANCELLED), Ok(())));
    assert_eq!(rig.device.counts().flushes, 0, "nobody waits for one");
}

/// The flusher is of the same thread, so nobody turns it meanwhile.
#[test]
fn a_lane_that_goes_waits_for_no_flush_and_leaves_none_behind() {
    for sent in [true, false] {
        let (mut rig, held) = waiting_for_a_flush(sent);
        rig.start(4, OpKind::Flush, 0, Vec::new());
        let gone = rig.lanes.remove(0);
        drop(gone);
        rig.cache.assert_sound();
        rig.device.clear_fault(held);
        rig.turns(5);
        assert_eq!(rig.run(STABLE, 5 * PAGE, page(5)).0, Ok(()));
        assert_eq!(rig.flush(), Ok(()), "sent: {sent}");
        assert_eq!(rig.device.crash()[4096..8192], page(2));
    }
}

#[test]
fn a_flusher_that_goes_answers_stable_writes_that_wait_for_it_and_the_next_serves_those_that_come()
{
    for sent in [true, false] {
        let (mut rig, held) = waiting_for_a_flush(sent);
        rig.device.clear_fault(held);
        // It waits for the flush that the device has: who is covered by that is stable.
        rig.flusher = None;
        rig.turn_lanes();
        assert_eq!(rig.result(2), Some(if sent { Ok(()) } else { Err(CANCELLED) }));
        // Without one, what needs no flush is stable as ever; what does is told.
        rig.start(5, STABLE, 5 * PAGE, page(5));
        rig.start(6, STABLE, 6 * PAGE, page(6));
        rig.start(7, OpKind::Flush, 0, Vec::new());
        (0..10).for_each(|_| rig.turn_lanes());
        assert_eq!((rig.result(5), rig.result(6)), (Some(Ok(())), Some(Err(CANCELLED))));
        assert_eq!(rig.result(7), Some(Err(CANCELLED)));
        rig.flusher = Some(flusher(&rig.cache, 4));
        rig.start(8, STABLE, 5 * PAGE, page(8));
        rig.start(9, STABLE, 6 * PAGE, page(9));
        assert_eq!((rig.wait(8).0, rig.wait(9).0), (Ok(()), Ok(())));
        assert_eq!(rig.device.crash()[6 * 4096..7 * 4096], page(9));
    }
}

#[test]
fn a_device_without_a_volatile_cache_is_sent_neither_flush_nor_fua() {
    let pool = DmaPool::new(PoolOptions::frames(64)).unwrap();
    let sized = SimOptions::sized(1 << 20, 512);
    let capabilities = Capabilities { volatile_cache: false, ..sized.capabilities };
    let device = SimDevice::new(SimOptions { capabilities, ..sized }, 1, pool).unwrap();
    let below: Arc<dyn BlockDevice> = Arc::new(device.clone());
    let cache = Cache::new(below, CacheOptions::frames(64)).unwrap();
    let (mut flusher, mut user) = (flusher(&cache, 4), User::new(&cache, 8));
    (0..8).for_each(|id| user.start(id, STABLE, id * PAGE, page(3)));
    (0..8).for_each(|id| assert_eq!(user.wait(id, &mut flusher).0, Ok(())));
    let counts = device.counts();
    assert_eq!((counts.writes, counts.fua_writes, counts.flushes), (8, 0, 0));
    assert_eq!(device.crash()[..32768], [3; 32768]);
}
