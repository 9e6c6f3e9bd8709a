//! Stable writes, many at once: what makes them so, and what they share.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::rig::{MEDIA, PAGE, Rig, STABLE, page};
use uaio_driver::block::PollsAnyway;
use uaio_driver::sim::{Effect, Fault, FaultOn, SimDevice, SimOptions};
use uaio_driver::{BlockDevice, Capabilities, DmaPool, PoolOptions};
use uaio_page_cache::{Cache, CacheMode, CacheOptions, Flusher, Lane, OpKind};

#[test]
fn stable_writes_do_not_block_and_share_flushes_and_are_stable_when_they_end() {
    let mut rig = Rig::new(CacheMode::Writeback);
    rig.device.set_fault(Fault::new(FaultOn::Flushes, Effect::Slow { steps: 20 }));
    for id in 0..24 {
        rig.start(id, STABLE, id * PAGE, page(id as u8 + 1));
        assert_eq!(rig.result(id), None);
    }
    let mut told = 0;
    while told < 24 {
        rig.turn_lanes();
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
        rig.turn_lanes();
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
fn a_flush_that_is_due_has_the_next_slot_before_writers_that_never_stop() {
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
        rig.turn_lanes();
        if rig.result(1).is_some() && rig.result(2).is_some() {
            return;
        }
        refill(&mut rig);
    }
    panic!("stable writes starved: {:?}", rig.device.counts());
}

#[test]
fn a_device_without_a_volatile_cache_is_sent_neither_flush_nor_fua() {
    let pool = DmaPool::new(PoolOptions::frames(64)).unwrap();
    let sized = SimOptions::sized(1 << 20, 512);
    let capabilities = Capabilities { volatile_cache: false, ..sized.capabilities };
    let device = SimDevice::new(SimOptions { capabilities, ..sized }, 1, pool).unwrap();
    let below: Arc<dyn BlockDevice> = Arc::new(device.clone());
    let cache = Cache::new(below, CacheOptions::frames(64)).unwrap();
    let mut flusher = Flusher::new(Arc::clone(&cache), 4, Arc::new(PollsAnyway)).unwrap();
    let mut lane = Lane::new(Arc::clone(&cache), 8, 8, Arc::new(PollsAnyway)).unwrap();
    for id in 0..8 {
        let operation = uaio_page_cache::Operation {
            token: uaio_driver::Token::from_u64(id),
            kind: STABLE,
            offset: id * PAGE,
            len: PAGE,
            buffer: uaio_page_cache::Buffer::Bytes(page(3)),
            handle: cache.open(),
        };
        assert!(lane.start(operation).is_ok());
    }
    let mut finished = 0;
    while finished < 8 {
        lane.turn();
        flusher.turn(Duration::ZERO);
        while let Some(done) = lane.pop_finished() {
            assert_eq!(done.result, Ok(()));
            finished += 1;
        }
    }
    let counts = device.counts();
    assert_eq!((counts.writes, counts.fua_writes, counts.flushes), (8, 0, 0));
    assert_eq!(device.crash()[..32768], [3; 32768]);
}
