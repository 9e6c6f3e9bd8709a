//! Frames and slots of one shard.

use uaio_driver::block::PollsAnyway;
use uaio_driver::{DmaPool, IoError, IoErrorKind, PoolOptions, Token};

use super::*;
use crate::retry::RunQueue;
use crate::wait::{Waiter, Wakeup, Wants};

/// Puts a page in as a read does; the frame is in hand.
fn install(shard: &mut Shard, key: u64, frame: DmaBuf, wakes: &mut Wakes) {
    let slot = shard.add(key, &frame);
    let begin = |page: Page| match page.begin_read() {
        Ok(reading) => (reading, ()),
        Err((page, _)) => panic!("a read begins on {page:?}"),
    };
    let ((), _) = shard.transition(slot, wakes, begin);
    let end = |page: Page| page.end_read(Some(frame), Blocks::range(0, 8), true, 512);
    let (left, _) = shard.transition(slot, wakes, end);
    assert!(left.is_none());
    shard.installed();
}

#[test]
fn the_frame_of_a_slot_is_guessed_right_whatever_was_evicted() {
    for seed in 0..20 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let pool = DmaPool::new(PoolOptions::frames(200)).unwrap();
        let mut frames: Vec<DmaBuf> = std::iter::from_fn(|| pool.take()).collect();
        let frames = frames.split_off(100);
        let stability = Stability::new(false, 512);
        let mut shard = Shard::new(0, frames, Arc::new(Wanted::default()), stability);
        let mut wakes = Wakes::default();
        for _ in 0..1000 {
            let key = rng.u64(..300);
            if let Some(slot) = shard.find(key) {
                shard.used(slot);
                if rng.u8(..) < 50 {
                    let (_, done) = shard.forget(slot, &mut wakes, Blocks::range(0, 8), false);
                    assert!(done.is_ok());
                }
            } else if let Some(frame) = shard.take_frame(None) {
                install(&mut shard, key, frame, &mut wakes);
            }
            shard.assert_sound();
        }
        let mut present = 0;
        for (_, slot) in shard.present() {
            let content = shard.page(slot).readable().unwrap();
            assert_eq!(shard.likely_frame(slot), content.frame.index(), "seed {seed}");
            present += 1;
        }
        assert!(present > 50, "seed {seed}: {present} pages");
    }
}

#[test]
fn frames_that_a_device_keeps_do_not_make_anybody_wait_for_ever() {
    let pool = DmaPool::new(PoolOptions::frames(2)).unwrap();
    let frames = vec![pool.take().unwrap(), pool.take().unwrap()];
    let stability = Stability::new(false, 512);
    let mut shard = Shard::new(0, frames, Arc::new(Wanted::default()), stability);
    let run = RunQueue::new(1, Arc::new(PollsAnyway));
    let entries = Entries::new(0, 1, run.clone());
    shard.waiters().join(&entries);
    let lent = [shard.take_frame(None).unwrap(), shard.take_frame(None).unwrap()];
    let waiter = Waiter::new(&entries, Token { slot: 0, generation: 0 }, Wants::Anything);
    assert!(shard.wait_frame(None, waiter).is_none());
    let mut wakes = Wakes::default();
    let gone = IoError::new(IoErrorKind::Gone);
    shard.fail_frame_waiters(gone, &mut wakes);
    wakes.run();
    assert!(run.pop().is_none(), "they may come back");
    let [kept, other] = lent;
    drop(kept);
    shard.kept_by_device();
    shard.fail_frame_waiters(gone, &mut wakes);
    wakes.run();
    assert!(run.pop().is_none(), "one may come back");
    drop(other);
    shard.kept_by_device();
    shard.fail_frame_waiters(gone, &mut wakes);
    wakes.run();
    assert!(matches!(run.pop(), Some((_, Wakeup::Ended(Err(error)))) if error == gone));
}
