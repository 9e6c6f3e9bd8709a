//! The cache's own code under loom: every interleaving of its locks and atomics.
//!
//! Two threads meet at one thing that can be waited for: one lets go what the other waits for,
//! cancels, or comes for at that moment. Whatever the order, everybody is answered exactly once and
//! nothing is lost: a wake-up that went missing leaves an operation that never finishes, a frame that
//! did, one that is lent for ever.
//!
//! `cargo test -p uaio-page-cache --features loom --lib interleavings`

mod flushes;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use loom::thread;
use uaio_driver::block::PollsAnyway;
use uaio_driver::ram::RamDevice;
use uaio_driver::{DmaPool, FRAME_SIZE, IoErrorKind, IoResult, PoolOptions, Token};

use crate::{
    Buffer, Cache, CacheMode, CacheOptions, Cancelled, Finished, Flusher, Lane, OpKind, Operation,
};

const PAGE: u64 = FRAME_SIZE as u64;
const READ: OpKind = OpKind::Read { direct: false };
const WRITE: OpKind = OpKind::Write { stable: false, direct: false };
const STABLE: OpKind = OpKind::Write { stable: true, direct: false };
/// How many turns are enough for whatever has not been forgotten.
const TURNS: usize = 40;

fn explore(scene: impl Fn() + Send + Sync + 'static) {
    explore_with(None, scene);
}

/// With so many preemptions at most, or any number.
fn explore_with(preemptions_max: Option<usize>, scene: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemptions_max;
    model.max_branches = 20_000;
    let tried = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tried);
    model.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        scene();
    });
    let tried = tried.load(Ordering::Relaxed);
    println!("{tried} interleavings");
    assert!(tried > 2, "the threads never met");
}

fn cache(dirty_max_percent: u8) -> Arc<Cache> {
    let frames = CacheOptions::FRAMES_MIN;
    let pool = DmaPool::new(PoolOptions::frames(frames)).unwrap();
    let device = RamDevice::new(32 * PAGE, 4096, pool).unwrap();
    let mode = CacheMode::Writeback;
    let options =
        CacheOptions { mode, shards: 1, dirty_max_percent, ..CacheOptions::frames(frames) };
    Cache::new(Arc::new(device), options).unwrap()
}

fn flusher(cache: &Arc<Cache>) -> Flusher {
    Flusher::new(Arc::clone(cache), 2, Arc::new(PollsAnyway)).unwrap()
}

/// A lane and what came of its operations.
struct User {
    /// Some, but for a moment.
    lane: Option<Lane>,
    finished: Vec<(u64, IoResult, u8)>,
}

impl User {
    fn new(cache: &Arc<Cache>) -> Self {
        let lane = Lane::new(Arc::clone(cache), 4, 4, Arc::new(PollsAnyway)).unwrap();
        Self { lane: Some(lane), finished: Vec::new() }
    }

    fn lane(&mut self) -> &mut Lane {
        self.lane.as_mut().unwrap()
    }

    fn start(&mut self, id: u64, kind: OpKind, page: u64, byte: u8) {
        let data = matches!(kind, OpKind::Read { .. } | OpKind::Write { .. });
        let buffer = if data { Buffer::Bytes(vec![byte; FRAME_SIZE]) } else { Buffer::None };
        let len = if kind == OpKind::Flush { 0 } else { PAGE };
        let (token, handle) = (Token::from_u64(id), self.lane().cache().open());
        let operation = Operation { token, kind, offset: page * PAGE, len, buffer, handle };
        assert!(self.lane().start(operation).is_ok());
        self.collect();
    }

    fn collect(&mut self) {
        while let Some(Finished { token, result, buffer }) = self.lane().pop_finished() {
            let byte = if let Buffer::Bytes(bytes) = buffer { bytes[0] } else { 0 };
            let id = token.to_u64();
            assert!(self.finished.iter().all(|(known, ..)| *known != id), "answered twice");
            self.finished.push((id, result, byte));
        }
    }

    fn turn(&mut self) {
        self.lane().turn();
        self.collect();
    }

    fn cancel(&mut self, id: u64) -> Cancelled {
        let outcome = self.lane().cancel(Token::from_u64(id));
        self.collect();
        outcome
    }

    fn run(&mut self, id: u64, kind: OpKind, page: u64, byte: u8) -> u8 {
        self.start(id, kind, page, byte);
        (0..TURNS).for_each(|_| self.turn());
        let (_, result, byte) = self.finished.pop().unwrap();
        assert_eq!(result, Ok(()));
        byte
    }

    fn result(&self, id: u64) -> IoResult {
        let found = self.finished.iter().find(|(known, ..)| *known == id);
        found.unwrap_or_else(|| panic!("operation {id} was forgotten")).1
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Whoever was forgotten would be waited for.
            std::mem::forget(self.lane.take());
        }
    }
}

/// Turns everybody until whatever can finish has; then nothing is left over.
fn settle(cache: &Arc<Cache>, users: &mut [User], flusher: Option<&mut Flusher>) {
    let mut flusher = flusher;
    for _ in 0..TURNS {
        users.iter_mut().for_each(User::turn);
        if let Some(flusher) = &mut flusher {
            flusher.turn(Duration::ZERO);
        }
    }
    cache.assert_sound();
    assert_eq!(cache.frames_lent(), 0, "a frame was lost");
    assert!(users.iter_mut().all(|user| user.lane().in_flight() == 0), "somebody was forgotten");
}

/// Fills the cache, so that all but `free` of its frames hold pages 0 and up.
fn fill(user: &mut User, free: u64) {
    let pages = CacheOptions::FRAMES_MIN as u64 - free;
    (0..pages).for_each(|page| _ = user.run(0, READ, page, 1));
}

#[test]
fn a_pin_dropped_while_somebody_queues_for_a_frame_is_not_missed() {
    explore(|| {
        let cache = cache(50);
        let mut user = User::new(&cache);
        fill(&mut user, 0);
        // Every page is pinned, as by readers who copy, so no frame is to be had until one is not.
        let mut pins: Vec<_> = (0..16)
            .map(|page| (page, cache.share(page, cache.existing(page), u32::MAX).unwrap().0))
            .collect();
        let (page, pin) = pins.pop().unwrap();
        let readers = Arc::clone(&cache);
        let reader = thread::spawn(move || readers.unpin(page, pin));
        user.start(1, READ, 20, 1);
        user.turn();
        reader.join().unwrap();
        (0..TURNS).for_each(|_| user.turn());
        assert_eq!(user.result(1), Ok(()));
        pins.into_iter().for_each(|(page, pin)| cache.unpin(page, pin));
        settle(&cache, &mut [user], None);
    });
}

#[test]
fn a_waiter_for_a_page_is_woken_or_cancelled_never_both_never_neither() {
    explore(|| {
        let cache = cache(50);
        let (mut first, mut second) = (User::new(&cache), User::new(&cache));
        first.start(1, READ, 3, 1);
        second.start(2, READ, 3, 1);
        second.start(3, READ, 3, 1);
        // The first one's read ends while the second, who waits for it, is cancelled.
        let other = thread::spawn(move || {
            first.turn();
            first
        });
        assert_eq!(second.cancel(2), Cancelled::Finished);
        let first = other.join().unwrap();
        let mut users = [first, second];
        settle(&cache, &mut users, None);
        assert_eq!(users[0].result(1), Ok(()));
        assert_eq!(users[1].result(2).unwrap_err().kind, IoErrorKind::Cancelled);
        assert_eq!(users[1].result(3), Ok(()));
    });
}

#[test]
fn a_frame_handed_to_a_waiter_that_is_cancelled_goes_to_the_next() {
    explore(|| {
        let cache = cache(50);
        let (mut first, mut second) = (User::new(&cache), User::new(&cache));
        fill(&mut first, 0);
        let mut pins: Vec<_> = (0..16)
            .map(|page| (page, cache.share(page, cache.existing(page), u32::MAX).unwrap().0))
            .collect();
        second.start(2, READ, 20, 1);
        first.start(1, READ, 21, 1);
        let (page, pin) = pins.pop().unwrap();
        let unpins = Arc::clone(&cache);
        // One frame comes, and the first in the queue is cancelled.
        let other = thread::spawn(move || unpins.unpin(page, pin));
        assert_eq!(second.cancel(2), Cancelled::Finished);
        other.join().unwrap();
        let mut users = [first, second];
        (0..TURNS).for_each(|_| users.iter_mut().for_each(User::turn));
        assert_eq!(users[0].result(1), Ok(()), "the frame did not get to the next");
        pins.into_iter().for_each(|(page, pin)| cache.unpin(page, pin));
        settle(&cache, &mut users, None);
    });
}

#[test]
fn room_handed_to_a_writer_that_is_cancelled_goes_to_the_next() {
    explore(|| {
        // Room for one dirty page.
        let cache = cache(10);
        let mut flusher = flusher(&cache);
        let (mut first, mut second) = (User::new(&cache), User::new(&cache));
        first.start(0, WRITE, 0, 1);
        second.start(2, WRITE, 1, 2);
        first.start(1, WRITE, 2, 3);
        first.start(3, OpKind::Flush, 0, 0);
        flusher.turn(Duration::ZERO);
        let other = thread::spawn(move || {
            // The writeback ends and its room goes to the first in the queue.
            flusher.turn(Duration::ZERO);
            flusher
        });
        assert_eq!(second.cancel(2), Cancelled::Finished);
        let mut flusher = other.join().unwrap();
        let mut users = [first, second];
        settle(&cache, &mut users, Some(&mut flusher));
        assert_eq!((users[0].result(1), users[0].result(3)), (Ok(()), Ok(())));
        assert_eq!(users[1].run(9, READ, 1, 9), 0, "the cancelled write was done");
    });
}

#[test]
fn a_flush_is_answered_once_when_it_is_cancelled_as_it_ends() {
    explore(|| {
        let cache = cache(50);
        let mut flusher = flusher(&cache);
        let mut user = User::new(&cache);
        user.start(1, OpKind::Flush, 0, 0);
        user.start(2, OpKind::Flush, 0, 0);
        let other = thread::spawn(move || {
            flusher.turn(Duration::ZERO);
            flusher.turn(Duration::ZERO);
            flusher
        });
        assert_eq!(user.cancel(1), Cancelled::Finished);
        let mut flusher = other.join().unwrap();
        let mut users = [user];
        settle(&cache, &mut users, Some(&mut flusher));
        assert_eq!(users[0].result(1).unwrap_err().kind, IoErrorKind::Cancelled);
        assert_eq!(users[0].result(2), Ok(()));
    });
}

#[test]
fn a_flusher_that_goes_answers_all_who_wait_for_it_or_come_just_then() {
    explore(|| {
        let cache = cache(10);
        let mut flusher = flusher(&cache);
        let mut user = User::new(&cache);
        user.start(0, WRITE, 0, 1);
        user.start(1, OpKind::Flush, 0, 0);
        flusher.turn(Duration::ZERO);
        let other = thread::spawn(move || drop(flusher));
        // Both need the flusher: one waits for room, one for the flush.
        user.start(2, WRITE, 1, 2);
        user.start(3, OpKind::Flush, 0, 0);
        other.join().unwrap();
        (0..TURNS).for_each(|_| user.turn());
        cache.assert_sound();
        assert_eq!(user.finished.len(), 4, "somebody waits for a flusher that has gone");
    });
}

#[test]
fn a_lane_that_goes_takes_none_of_the_wakeups_of_others() {
    explore(|| {
        let cache = cache(50);
        let (mut first, mut second) = (User::new(&cache), User::new(&cache));
        first.start(1, READ, 3, 1);
        second.start(2, READ, 3, 1);
        // Its read ends as it goes; one waits for that already, another comes just then.
        let other = thread::spawn(move || drop(first));
        second.start(3, READ, 3, 1);
        other.join().unwrap();
        let mut users = [second];
        settle(&cache, &mut users, None);
        assert_eq!((users[0].result(2), users[0].result(3)), (Ok(()), Ok(())));
    });
}

#[test]
fn nothing_slips_into_a_range_under_bypass() {
    explore(|| {
        let cache = cache(50);
        let mut flusher = flusher(&cache);
        let (mut first, mut second) = (User::new(&cache), User::new(&cache));
        first.run(0, WRITE, 3, 1);
        let other = thread::spawn(move || {
            first.start(1, OpKind::WriteZeroes { may_unmap: false }, 3, 0);
            first.turn();
            first
        });
        second.start(2, READ, 3, 9);
        second.start(3, STABLE, 3, 7);
        let first = other.join().unwrap();
        let mut users = [first, second];
        settle(&cache, &mut users, Some(&mut flusher));
        assert!(users.iter().flat_map(|user| &user.finished).all(|(_, result, _)| result.is_ok()));
        let (_, _, read) = *users[1].finished.iter().find(|(id, ..)| *id == 2).unwrap();
        assert!([1, 0, 7].contains(&read), "a read gave {read}");
        // Cache and device agree on who was last.
        let cached = users[0].run(4, READ, 3, 9);
        let device = users[0].run(5, OpKind::Read { direct: true }, 3, 9);
        assert!([0, 7].contains(&cached) && cached == device, "{cached} and {device}");
    });
}

#[test]
fn a_pinned_page_is_neither_evicted_nor_written_under_its_reader() {
    explore(|| {
        let cache = cache(50);
        let mut user = User::new(&cache);
        fill(&mut user, 0);
        let reads = Arc::clone(&cache);
        let other = thread::spawn(move || {
            let Some(pin) = reads.try_pin(5 * PAGE) else { return };
            let (mut before, mut after) = ([9; 8], [9; 8]);
            pin.frame().read(0, &mut before);
            // A point at which the other thread may go on.
            _ = reads.stats();
            pin.frame().read(0, &mut after);
            assert_eq!(before, after, "written under its reader");
        });
        user.start(1, WRITE, 5, 7);
        // A read that needs somebody's frame.
        user.start(2, READ, 20, 9);
        user.turn();
        other.join().unwrap();
        (0..TURNS).for_each(|_| user.turn());
        assert_eq!((user.result(1), user.result(2)), (Ok(()), Ok(())));
        settle(&cache, &mut [user], None);
    });
}

/// Two stable writers of one page, each on a lane and thread of its own: whoever comes second waits for its
/// turn, or does not need to.
#[test]
fn a_turn_is_handed_to_a_writer_that_queues_as_the_page_becomes_quiet() {
    explore(|| {
        let cache = cache(50);
        let (mut first, mut second) = (User::new(&cache), User::new(&cache));
        first.start(1, STABLE, 3, 1);
        let other = thread::spawn(move || {
            (0..3).for_each(|_| first.turn());
            first
        });
        second.start(2, STABLE, 3, 2);
        second.start(3, STABLE, 3, 3);
        let first = other.join().unwrap();
        let mut users = [first, second];
        settle(&cache, &mut users, None);
        assert_eq!(users[0].result(1), Ok(()));
        assert_eq!((users[1].result(2), users[1].result(3)), (Ok(()), Ok(())));
        let page = users[0].run(9, OpKind::Read { direct: true }, 3, 0);
        assert!([1, 3].contains(&page), "{page} was last, and not first come");
    });
}

#[test]
fn a_turn_handed_to_a_writer_that_is_cancelled_goes_to_the_next() {
    explore(|| {
        let cache = cache(50);
        let (mut first, mut second, mut third) =
            (User::new(&cache), User::new(&cache), User::new(&cache));
        first.start(1, STABLE, 3, 1);
        second.start(2, STABLE, 3, 2);
        third.start(3, STABLE, 3, 3);
        // The page becomes quiet, and the turn is the second's, as that is cancelled.
        let other = thread::spawn(move || {
            (0..2).for_each(|_| first.turn());
            first
        });
        assert_eq!(second.cancel(2), Cancelled::Finished);
        let first = other.join().unwrap();
        let mut users = [first, second, third];
        settle(&cache, &mut users, None);
        assert_eq!((users[0].result(1), users[2].result(3)), (Ok(()), Ok(())));
        assert_eq!(users[0].run(9, OpKind::Read { direct: true }, 3, 0), 3);
    });
}

#[test]
fn a_lane_that_goes_passes_on_the_turn_it_is_handed_just_then() {
    explore(|| {
        let cache = cache(50);
        let (mut first, mut second, mut third) =
            (User::new(&cache), User::new(&cache), User::new(&cache));
        first.start(1, STABLE, 3, 1);
        second.start(2, STABLE, 3, 2);
        third.start(3, STABLE, 3, 3);
        _ = second.cancel(2);
        let other = thread::spawn(move || {
            (0..2).for_each(|_| first.turn());
            first
        });
        drop(second);
        third.start(4, READ, 3, 0);
        let first = other.join().unwrap();
        let mut users = [first, third];
        settle(&cache, &mut users, None);
        assert_eq!((users[1].result(3), users[1].result(4)), (Ok(()), Ok(())));
    });
}

#[test]
fn a_flusher_that_goes_passes_on_the_turn_it_is_handed_just_then() {
    explore(|| {
        let cache = cache(50);
        let mut flusher = flusher(&cache);
        let (mut first, mut second) = (User::new(&cache), User::new(&cache));
        // A page dirtied again under a stable write: a flush needs its turn.
        first.start(1, STABLE, 3, 1);
        second.start(2, WRITE, 3, 2);
        second.start(3, OpKind::Flush, 0, 0);
        flusher.turn(Duration::ZERO);
        second.start(4, STABLE, 3, 4);
        let other = thread::spawn(move || drop(flusher));
        (0..2).for_each(|_| first.turn());
        other.join().unwrap();
        let mut users = [first, second];
        settle(&cache, &mut users, None);
        assert_eq!((users[0].result(1), users[1].result(4)), (Ok(()), Ok(())));
        assert!(users[1].result(3).is_err(), "nobody flushed");
    });
}

#[test]
fn readers_look_at_a_page_whose_turn_another_has() {
    explore(|| {
        let cache = cache(50);
        let (mut first, mut second) = (User::new(&cache), User::new(&cache));
        first.start(1, READ, 3, 9);
        // Both wait for the same read; who writes takes turns, who reads does not.
        second.start(2, STABLE, 3, 2);
        let other = thread::spawn(move || {
            (0..2).for_each(|_| first.turn());
            first
        });
        second.start(3, READ, 3, 9);
        second.start(4, STABLE, 3, 4);
        let first = other.join().unwrap();
        let mut users = [first, second];
        settle(&cache, &mut users, None);
        for id in 2..5 {
            assert_eq!(users[1].result(id), Ok(()));
        }
        let read = users[1].finished.iter().find(|(id, ..)| *id == 3).unwrap().2;
        assert!([0, 2, 4].contains(&read), "a read gave {read}");
        assert_eq!(users[0].run(9, READ, 3, 0), 4, "not in their order");
    });
}

#[test]
fn ranges_are_entered_in_order_and_a_cancelled_one_holds_nobody_up() {
    explore(|| {
        let zeroes = OpKind::WriteZeroes { may_unmap: false };
        let cache = cache(50);
        let (mut first, mut second) = (User::new(&cache), User::new(&cache));
        first.run(0, WRITE, 3, 7);
        first.start(1, zeroes, 3, 0);
        second.start(2, zeroes, 3, 0);
        second.start(3, zeroes, 3, 0);
        second.start(4, READ, 3, 9);
        let other = thread::spawn(move || {
            (0..2).for_each(|_| first.turn());
            first
        });
        _ = second.cancel(2);
        let first = other.join().unwrap();
        let mut users = [first, second];
        settle(&cache, &mut users, None);
        assert_eq!((users[0].result(1), users[1].result(3)), (Ok(()), Ok(())));
        assert_eq!(users[1].result(4), Ok(()));
        assert_eq!(users[0].run(9, READ, 3, 9), 0);
    });
}
