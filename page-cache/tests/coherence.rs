//! What goes past the cache, or changes the device under it, agrees with what is cached: discards,
//! zeroes, direct reads and writes, in every order with reads, writes and writebacks. And what a read
//! asks the device for.

mod common;

use common::rig::{PAGE, READ, Rig, WRITE, page};
use uaio_driver::sim::{Effect, Event, Fault, FaultOn};
use uaio_page_cache::{CacheMode, CacheOptions, OpKind};

const DIRECT_READ: OpKind = OpKind::Read { direct: true };
const DIRECT_WRITE: OpKind = OpKind::Write { stable: false, direct: true };
const ZEROES: OpKind = OpKind::WriteZeroes { may_unmap: true };

fn read(rig: &mut Rig, at: u64) -> Vec<u8> {
    let (result, bytes) = rig.run(READ, at * PAGE, page(0xee));
    assert_eq!(result, Ok(()));
    bytes
}

#[test]
fn zeroes_and_discards_make_the_cache_forget_and_nothing_comes_back() {
    for kind in [ZEROES, OpKind::WriteZeroes { may_unmap: false }, OpKind::Discard] {
        let mut rig = Rig::new(CacheMode::Writeback);
        // Page 0 is clean, 1 dirty, 2 on its way to the device; 3 stays.
        for at in 0..4 {
            assert_eq!(rig.run(WRITE, at * PAGE, page(7)).0, Ok(()));
        }
        assert_eq!(rig.flush(), Ok(()));
        assert_eq!(rig.run(WRITE, PAGE, page(8)).0, Ok(()));
        assert_eq!(rig.run(WRITE, 2 * PAGE, page(9)).0, Ok(()));
        rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Slow { steps: 9 }).at(16..24));
        rig.start(1, OpKind::Flush, 0, Vec::new());
        rig.turns(2);
        rig.start(2, kind, 0, vec![0; 3 * PAGE as usize]);
        assert_eq!(rig.wait(2).0, Ok(()), "{kind:?}");
        assert_eq!(rig.wait(1).0, Ok(()));
        for at in 0..3 {
            assert_eq!(read(&mut rig, at), page(0), "{kind:?} of page {at}");
        }
        assert_eq!(read(&mut rig, 3), page(7));
        assert_eq!(rig.flush(), Ok(()));
        let medium = rig.device.crash();
        assert_eq!(medium[..3 * 4096], [0; 3 * 4096], "{kind:?}: old data was written after it");
    }
}

#[test]
fn zeroes_of_some_blocks_leave_the_dirty_blocks_beside_them() {
    let mut rig = Rig::new(CacheMode::Writeback);
    assert_eq!(rig.run(WRITE, 0, page(7)).0, Ok(()));
    assert_eq!(rig.run(ZEROES, 512, vec![0; 1024]).0, Ok(()));
    let expected = [vec![7; 512], vec![0; 1024], vec![7; 4096 - 1536]].concat();
    assert_eq!(read(&mut rig, 0), expected);
    assert_eq!(rig.flush(), Ok(()));
    assert_eq!(rig.device.crash()[..4096], expected);
}

#[test]
fn a_write_after_zeroes_have_begun_is_not_swallowed_by_them() {
    let mut rig = Rig::new(CacheMode::Writeback);
    rig.device.set_fault(Fault::new(FaultOn::Everything, Effect::Slow { steps: 9 }).times(1));
    rig.start(1, ZEROES, 0, vec![0; 4 * PAGE as usize]);
    rig.turns(2);
    rig.start(2, WRITE, PAGE, page(5));
    assert_eq!(rig.wait(2).0, Ok(()));
    assert!(rig.result(1).is_some(), "the write waited until they were done");
    assert_eq!(read(&mut rig, 1), page(5));
    assert_eq!(rig.flush(), Ok(()));
    assert_eq!(rig.device.crash()[4096..8192], page(5));
}

#[test]
fn a_direct_read_sees_what_is_dirty_and_leaves_nothing_in_the_cache() {
    let mut rig = Rig::new(CacheMode::Writeback);
    // Blocks 2 and 3 of page 1 are newer in the cache; the rest of three pages is the device's.
    assert_eq!(rig.run(WRITE, PAGE + 1024, vec![6; 1024]).0, Ok(()));
    let (result, bytes) = rig.run(DIRECT_READ, 0, vec![0xee; 3 * PAGE as usize]);
    assert_eq!(result, Ok(()));
    let expected = [vec![0; 5120], vec![6; 1024], vec![0; 6144]].concat();
    assert_eq!(bytes, expected);
    assert!(!rig.cache.try_read(0, &mut [0; 512]) && !rig.cache.try_read(2 * PAGE, &mut [0; 512]));
    assert_eq!(rig.device.counts().writes, 0, "nothing had to be written for it");
}

#[test]
fn a_direct_write_is_what_cached_readers_see_and_keeps_the_dirty_blocks_beside_it() {
    let mut rig = Rig::new(CacheMode::Writeback);
    assert_eq!(rig.run(WRITE, 0, page(1)).0, Ok(()));
    assert_eq!(read(&mut rig, 1), page(0));
    assert_eq!(rig.run(DIRECT_WRITE, 512, vec![2; 4096]).0, Ok(()));
    let expected = [vec![1; 512], vec![2; 4096], vec![0; 3584]].concat();
    let (_, bytes) = rig.run(READ, 0, vec![0; 8192]);
    assert_eq!(bytes, expected);
    assert_eq!(rig.flush(), Ok(()));
    assert_eq!(rig.device.crash()[..8192], expected);
}

#[test]
fn a_read_that_was_in_flight_does_not_install_what_a_direct_write_replaced() {
    let mut rig = Rig::new(CacheMode::Writeback);
    rig.device.set_fault(Fault::new(FaultOn::Reads, Effect::Slow { steps: 20 }).times(1));
    rig.start_on(1, 1, READ, 0, page(0xee));
    rig.turns(2);
    rig.start(2, DIRECT_WRITE, 0, page(4));
    assert_eq!(rig.wait(2).0, Ok(()));
    assert_eq!(read(&mut rig, 0), page(4), "after the write nobody sees what was before");
    assert_eq!(rig.run(DIRECT_READ, 0, page(0xee)), (Ok(()), page(4)));
    assert_eq!(rig.wait(1).0, Ok(()));
}

#[test]
fn a_direct_write_lands_after_a_writeback_that_was_under_way() {
    let mut rig = Rig::new(CacheMode::Writeback);
    assert_eq!(rig.run(WRITE, 0, page(1)).0, Ok(()));
    rig.device.set_fault(Fault::new(FaultOn::Writes, Effect::Slow { steps: 20 }).times(1));
    rig.start(1, OpKind::Flush, 0, Vec::new());
    rig.turns(3);
    rig.start(2, DIRECT_WRITE, 0, page(2));
    assert_eq!(rig.wait(2).0, Ok(()));
    assert_eq!(rig.wait(1).0, Ok(()));
    assert_eq!(read(&mut rig, 0), page(2));
    assert_eq!(rig.flush(), Ok(()));
    assert_eq!(rig.device.crash()[..4096], page(2));
}

#[test]
fn direct_and_cached_writers_of_one_page_agree_at_every_moment() {
    // The last write acknowledged before a read began, or a later one, is what the read shows; here
    // each writer waits for its own, so there is one answer.
    let mut rig = Rig::new(CacheMode::Writeback);
    let mut random = fastrand::Rng::with_seed(11);
    for round in 0..300 {
        let byte = (round % 250 + 1) as u8;
        let kind = if random.bool() { WRITE } else { DIRECT_WRITE };
        if random.u8(..4) == 0 {
            rig.start_on(1, 7, OpKind::Flush, 0, Vec::new());
        }
        assert_eq!(rig.run(kind, 5 * PAGE, page(byte)).0, Ok(()));
        let kind = if random.bool() { READ } else { DIRECT_READ };
        assert_eq!(rig.run(kind, 5 * PAGE, page(0)), (Ok(()), page(byte)), "round {round}");
    }
}

#[test]
fn neighbours_are_one_command_also_across_shards() {
    let mut rig = Rig::with(CacheOptions { shards: 4, ..CacheOptions::frames(128) });
    assert_eq!(rig.run(READ, 0, vec![1; 64 * PAGE as usize]).0, Ok(()));
    // 256 KiB; the device takes 128 at once.
    assert_eq!(rig.device.counts().reads, 2);
    // What is there already splits the rest in two.
    assert_eq!(rig.run(READ, 80 * PAGE, page(1)).0, Ok(()));
    assert_eq!(rig.run(READ, 70 * PAGE, vec![1; 20 * PAGE as usize]).0, Ok(()));
    assert_eq!(rig.device.counts().reads, 5);
}

#[test]
fn a_read_longer_than_the_cache_goes_in_as_large_commands_as_there_are_frames() {
    let mut rig = Rig::with(CacheOptions { shards: 1, ..CacheOptions::frames(16) });
    let (result, bytes) = rig.run(READ, 0, vec![1; 64 * PAGE as usize]);
    assert_eq!((result, bytes), (Ok(()), vec![0; 64 * PAGE as usize]));
    let log = rig.device.log().into_iter();
    let reads: Vec<_> = log
        .filter(|entry| entry.event == Event::Arrived && !entry.op.writes())
        .map(|entry| entry.blocks / 8)
        .collect();
    assert_eq!(reads.iter().sum::<u32>(), 64, "no page twice: {reads:?}");
    assert_eq!(reads[0], 16, "{reads:?}");
}
