//! Who is told that something is stable, on a drive that loses what it should not have promised.
//!
//! Two writers on lanes and threads of their own meet the flusher: each comes to wait just before a device flush
//! is sent, or just after, or as it ends, well or by losing what the drive's cache held. The oracle is the drive:
//! when somebody is told that a write is stable, its bytes are on the medium, in that moment.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use uaio_driver::sim::{Effect, Fault, FaultOn, SimDevice, SimOptions};
use uaio_driver::{
    Armed, BlockDevice, Capabilities, Completion, DeviceError, Geometry, Health, IoError, IoQueue,
    QueueOptions, Refused, Request,
};

use super::*;
use crate::sync::Mutex;

/// The simulated drive, whose steps loom sees: it puts them in every order, too.
struct Drive {
    drive: SimDevice,
    step: Arc<Mutex<()>>,
}

struct Queue {
    queue: Box<dyn IoQueue>,
    step: Arc<Mutex<()>>,
}

impl BlockDevice for Drive {
    fn name(&self) -> &str {
        self.drive.name()
    }

    fn geometry(&self) -> Geometry {
        self.drive.geometry()
    }

    fn capabilities(&self) -> Capabilities {
        self.drive.capabilities()
    }

    fn pool(&self) -> &DmaPool {
        self.drive.pool()
    }

    fn health(&self) -> Health {
        self.drive.health()
    }

    fn open_queue(&self, options: QueueOptions) -> Result<Box<dyn IoQueue>, DeviceError> {
        let (queue, step) = (self.drive.open_queue(options)?, Arc::clone(&self.step));
        Ok(Box::new(Queue { queue, step }))
    }

    fn close(&self) -> Result<(), DeviceError> {
        self.drive.close()
    }
}

impl IoQueue for Queue {
    fn submit(&mut self, request: Request) -> Result<(), Refused> {
        let _step = self.step.lock();
        self.queue.submit(request)
    }

    /// Nothing is submitted here without being committed soon, and nothing else is a step.
    fn commit(&mut self) {
        self.queue.commit();
    }

    fn poll(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        if self.queue.in_flight() == 0 {
            return 0;
        }
        let _step = self.step.lock();
        self.queue.poll(budget, out)
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    fn depth(&self) -> usize {
        self.queue.depth()
    }

    fn arm(&mut self) -> Armed {
        self.queue.arm()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.queue.event_fd()
    }
}

/// All of them are millions. Each of the mistakes that the scenes are to find needs one or two.
const PREEMPTIONS_MAX: Option<usize> = Some(2);

const MEDIA: IoError = IoError::new(IoErrorKind::Media);

/// A cache on a drive without FUA, so that every stable write takes a device flush; the first of those does
/// what is said. The seed says what a flush that fails loses.
fn lossy_cache(first_flush: Option<Effect>, seed: u64) -> (SimDevice, Arc<Cache>) {
    let frames = CacheOptions::FRAMES_MIN;
    let pool = DmaPool::new(PoolOptions::frames(frames)).unwrap();
    let sized = SimOptions::sized(32 * PAGE, 4096);
    let capabilities = Capabilities { fua: false, ..sized.capabilities };
    let drive =
        SimDevice::new(SimOptions { capabilities, latency_steps: 0..=0, ..sized }, seed, pool);
    let drive = drive.unwrap();
    if let Some(effect) = first_flush {
        drive.set_fault(Fault::new(FaultOn::Flushes, effect).times(1));
    }
    let below = Drive { drive: drive.clone(), step: Arc::default() };
    let options = CacheOptions { shards: 1, ..CacheOptions::frames(frames) };
    (drive, Cache::new(Arc::new(below), options).unwrap())
}

/// Whether the pages that hold this are on the medium.
fn is_stable(drive: &SimDevice, pages: Range<u64>, byte: u8) -> bool {
    let bytes = (pages.start * PAGE) as usize..(pages.end * PAGE) as usize;
    drive.durable_image()[bytes].iter().all(|have| *have == byte)
}

/// Turns a user; what it is told to be stable then is.
fn turn_and_check(user: &mut User, drive: &SimDevice, id: u64, page: u64) {
    let told = user.finished.len();
    user.turn();
    let told = user.finished[told..].iter().any(|(of, result, _)| *of == id && result.is_ok());
    assert!(
        !told || is_stable(drive, page..page + 1, id as u8),
        "{id} was told, and is not stable"
    );
}

/// Both writers wait for their flush in any order with the flusher that sends it.
fn two_writers_and_a_flusher(first_flush: Option<Effect>, second: OpKind, seed: u64) {
    let (drive, cache) = lossy_cache(first_flush, seed);
    let mut flusher = flusher(&cache);
    let (mut one, mut two) = (User::new(&cache), User::new(&cache));
    one.start(1, STABLE, 3, 1);
    if second == STABLE {
        two.start(2, STABLE, 5, 2);
    } else {
        two.start(0, WRITE, 5, 2);
        two.start(2, second, 5, 2);
    }
    two.turn();
    flusher.turn(Duration::ZERO);
    let medium = drive.clone();
    let other = thread::spawn(move || {
        (0..2).for_each(|_| turn_and_check(&mut one, &medium, 1, 3));
        one
    });
    (0..3).for_each(|_| _ = flusher.turn(Duration::ZERO));
    turn_and_check(&mut two, &drive, 2, 5);
    let mut one = other.join().unwrap();
    for _ in 0..TURNS {
        turn_and_check(&mut one, &drive, 1, 3);
        turn_and_check(&mut two, &drive, 2, 5);
        flusher.turn(Duration::ZERO);
    }
    for (user, id) in [(&one, 1), (&two, 2)] {
        let result = user.result(id);
        assert!(result == Ok(()) || first_flush.is_some() && result == Err(MEDIA), "{result:?}");
    }
    // What was lost, and told or not, is made good by the next flush that succeeds.
    one.start(10, OpKind::Flush, 0, 0);
    one.start(11, OpKind::Flush, 0, 0);
    let mut users = [one, two];
    settle(&cache, &mut users, Some(&mut flusher));
    assert_eq!(users[0].result(11), Ok(()));
    assert!(is_stable(&drive, 3..4, 1) && is_stable(&drive, 5..6, 2), "a flush has lied");
}

/// The first flush succeeds, or fails and loses.
fn succeeds_or_loses(second: OpKind) {
    explore_with(PREEMPTIONS_MAX, move || two_writers_and_a_flusher(None, second, 0));
    for seed in 0..4 {
        let loses = Some(Effect::FailAndLose(MEDIA));
        explore_with(PREEMPTIONS_MAX, move || two_writers_and_a_flusher(loses, second, seed));
    }
}

#[test]
fn a_stable_write_joins_before_or_after_the_flush_of_another_is_sent() {
    succeeds_or_loses(STABLE);
}

#[test]
fn a_stable_write_joins_before_or_after_the_flush_of_a_range_is_sent() {
    succeeds_or_loses(OpKind::FlushRange);
}
