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

/// A shard of `frames` frames, two of them pinned for good, with pages in every state, and those who wait for
/// some of them.
struct Crowd {
    pool: DmaPool,
    shard: Shard,
    run: Arc<RunQueue>,
    entries: Arc<Entries>,
    pins: Vec<DmaBuf>,
    /// Handles that a device has.
    requests: Vec<DmaBuf>,
    /// Frames of reads in flight, by the page.
    reads: Vec<(u64, DmaBuf)>,
    wakes: Wakes,
}

const ALL: Blocks = Blocks::range(0, 8);

impl Crowd {
    fn new(frames: usize, rng: &mut fastrand::Rng) -> Self {
        let pool = DmaPool::new(PoolOptions::frames(frames)).unwrap();
        let frames: Vec<DmaBuf> = std::iter::from_fn(|| pool.take()).collect();
        let count = frames.len() as u64;
        let stability = Stability::new(false, 512);
        let mut shard = Shard::new(0, frames, Arc::new(Wanted::default()), stability);
        let run = RunQueue::new(64, Arc::new(PollsAnyway));
        let entries = Entries::new(0, 64, run.clone());
        shard.waiters().join(&entries);
        let (pins, requests, reads) = (Vec::new(), Vec::new(), Vec::new());
        let wakes = Wakes::default();
        let mut crowd = Self { pool, shard, run, entries, pins, requests, reads, wakes };
        let mut keys: Vec<u64> = (0..count).collect();
        rng.shuffle(&mut keys);
        for key in keys {
            crowd.bring_in(key, rng.u8(..20));
        }
        crowd
    }

    fn bring_in(&mut self, key: u64, kind: u8) {
        let Some(frame) = self.shard.take_frame(None) else { return };
        if kind == 0 {
            let slot = self.shard.add(key, &frame);
            self.change(slot, |page| page.begin_read().unwrap_or_else(|_| panic!("busy")));
            self.reads.push((key, frame));
            return;
        }
        install(&mut self.shard, key, frame, &mut self.wakes);
        let slot = self.shard.find(key).unwrap();
        let writing = |page: Page| page.begin_write(None).unwrap_or_else(|_| panic!("busy")).0;
        match kind {
            1 => self.change(slot, |page| writing(page).end_write(Blocks(1), key)),
            2 => {
                let mut request = None;
                self.change(slot, |page| {
                    let dirty = writing(page).end_write(Blocks(3), key);
                    let (page, frame) = dirty.begin_writeback(Blocks(1)).unwrap();
                    request = Some(frame);
                    page
                });
                self.requests.extend(request);
            }
            3 if self.pins.len() < 2 => {
                self.pins.push(self.shard.page(slot).readable().unwrap().frame.share());
            }
            4 => self.shard.reserve(slot),
            _ => (0..kind % 4).for_each(|_| self.shard.used(slot)),
        }
    }

    fn change(&mut self, slot: u32, change: impl FnOnce(Page) -> Page) {
        let ((), _) = self.shard.transition(slot, &mut self.wakes, |page| (change(page), ()));
    }

    /// Leaves entries for pages that somebody is busy with, of both kinds.
    fn wait(&mut self, operations: u32, rng: &mut fastrand::Rng) -> Vec<(u32, u64, Wants)> {
        let busy = |(_, slot): &(u64, u32)| !self.shard.page(*slot).is_quiet();
        let busy: Vec<(u64, u32)> = self.shard.present().filter(busy).collect();
        let mut waiting = Vec::new();
        for operation in 0..operations {
            let (key, slot) = busy[rng.usize(..busy.len())];
            let wants = if rng.bool() { Wants::Turn } else { Wants::Quiet };
            let token = Token { slot: operation, generation: 0 };
            self.shard.wait_page(slot, Waiter::new(&self.entries, token, wants));
            waiting.push((operation, key, wants));
        }
        waiting
    }

    fn keys(&self, slots: impl Iterator<Item = u32>) -> Vec<u64> {
        slots.map(|slot| self.shard.key(slot)).collect()
    }

    fn woken(&mut self) -> Vec<u32> {
        self.wakes.run();
        std::iter::from_fn(|| self.run.pop())
            .map(|(token, _)| {
                self.entries.arrived(token.slot);
                token.slot
            })
            .collect()
    }
}

#[test]
fn tables_shrink_with_the_frames_and_pages_keep_their_places_and_their_waiters() {
    for seed in 0..40 {
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut crowd = Crowd::new(1000, &mut rng);
        let waiting = crowd.wait(60, &mut rng);
        let dirty = crowd.keys(crowd.shard.dirty());
        let writing = crowd.keys(crowd.shard.writing());
        let mut reserved = crowd.keys((0..1000).filter(|slot| crowd.shard.is_reserved(*slot)));
        reserved.sort_unstable();
        let before = crowd.shard.memory_bytes();
        assert_eq!(crowd.shard.retarget(300), 0);
        let mut wakes = Wakes::default();
        crowd.shard.hand_over(&mut wakes);
        crowd.shard.assert_sound();
        let slots = crowd.shard.slots();
        assert!(slots < 340 && slots >= crowd.shard.count().total, "{slots} slots");
        assert!(crowd.shard.memory_bytes() < before * 2 / 5, "of {before} bytes");
        assert_eq!(crowd.keys(crowd.shard.dirty()), dirty);
        assert_eq!(crowd.keys(crowd.shard.writing()), writing);
        let slots = 0..crowd.shard.slots() as u32;
        let mut still = crowd.keys(slots.filter(|slot| crowd.shard.is_reserved(*slot)));
        still.sort_unstable();
        assert_eq!(still, reserved);
        for (key, slot) in crowd.shard.present() {
            assert_eq!(crowd.shard.find(key), Some(slot));
            assert!(
                crowd.shard.page(slot).content().is_some_and(|it| it.valid == ALL)
                    || crowd.reads.iter().any(|(page, _)| *page == key)
            );
        }
        // One of those who wait leaves; what the others wait for ends, and they are woken in order.
        let (gone, ..) = waiting[rng.usize(..waiting.len())];
        assert!(crowd.shard.cancel_wait(&crowd.entries, gone));
        let waits = |key, wants| {
            let of_it = waiting
                .iter()
                .filter(move |(it, page, its)| *it != gone && *page == key && *its == wants);
            of_it.map(|(operation, ..)| *operation).collect::<Vec<u32>>()
        };
        for (key, frame) in std::mem::take(&mut crowd.reads) {
            let slot = crowd.shard.find(key).unwrap();
            crowd.change(slot, |page| page.end_read(Some(frame), ALL, true, 512).0);
            crowd.shard.installed();
            let turns = waits(key, Wants::Turn);
            let expected = [waits(key, Wants::Quiet), turns[..turns.len().min(1)].to_vec()];
            assert_eq!(crowd.woken(), expected.concat());
            for turn in 1..=turns.len() {
                crowd.shard.return_turn(key, &mut wakes);
                wakes.run();
                assert_eq!(
                    crowd.woken(),
                    turns[turn..].iter().take(1).copied().collect::<Vec<_>>()
                );
            }
        }
        crowd.shard.assert_sound();
        // And it grows again, into what it gave back, with pages to put in.
        let missing = crowd.shard.retarget(800);
        let more: Vec<DmaBuf> = std::iter::from_fn(|| crowd.pool.take()).take(missing).collect();
        assert_eq!(more.len(), missing);
        crowd.shard.grow(more);
        (2000..3000).for_each(|key| crowd.bring_in(key, 19));
        crowd.shard.assert_sound();
        let present = crowd.shard.present().count();
        assert!(present > 700, "{present} pages");
    }
}
