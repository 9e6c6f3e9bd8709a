//! A flush of the served device, from a thread that serves no queue.
//!
//! It has a queue of its own on the device, or a lane of its own on its cache, made at start. On a cache
//! it also is an opener of its own: an error that is reported once to each opener is not taken from under the nose of the
//! program that has the block device open.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uaio_driver::block::PollsAnyway;
use uaio_driver::{
    BlockDevice, Completion, IoError, IoErrorKind, IoQueue, IoResult, QueueOptions, Refusal,
    Request, Token,
};
use uaio_page_cache::{Buffer, Cache, Handle, Lane, OpKind, Operation};

use crate::exit::{Exit, Failure};

/// Flushes that may be under way at once: those that were given up waiting for count.
const DEPTH: u16 = 8;

/// How often to look whether a flush is done.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// A way for flushes.
pub(crate) struct Barrier {
    way: Way,
    next: u32,
}

/// Why a flush was not begun.
enum NotBegun {
    /// The queue has failed and takes nothing any more: an answer of the device.
    Failed,
    /// There is no room.
    Full(String),
}

enum Way {
    Queue { queue: Box<dyn IoQueue>, completions: Vec<Completion> },
    Cache { lane: Box<Lane>, handle: Arc<Handle> },
}

impl Barrier {
    /// Opens the queue.
    ///
    /// # Errors
    ///
    /// When the device has none left.
    pub(crate) fn open(device: &dyn BlockDevice) -> Result<Self, Failure> {
        let depth = DEPTH.min(device.capabilities().depth_max);
        let queue = device
            .open_queue(QueueOptions::polled(depth))
            .map_err(|error| Failure::device("open a queue for flushes", &error))?;
        let completions = Vec::with_capacity(usize::from(DEPTH));
        Ok(Self { way: Way::Queue { queue, completions }, next: 0 })
    }

    /// Opens a lane of a cache.
    ///
    /// # Errors
    ///
    /// When the device below has no queue left.
    pub(crate) fn on_cache(cache: &Arc<Cache>) -> Result<Self, Failure> {
        let lane = Lane::new(Arc::clone(cache), usize::from(DEPTH), DEPTH, Arc::new(PollsAnyway))
            .map_err(|error| Failure::device("open a queue for flushes", &error))?;
        let way = Way::Cache { lane: Box::new(lane), handle: cache.open() };
        Ok(Self { way, next: 0 })
    }

    /// Waits until all that was acknowledged before is stable, or of a cache what lies in a range of
    /// bytes; what the device said if it cannot.
    ///
    /// # Errors
    ///
    /// That it took longer than `deadline`: the flush goes on, the next call does not get its answer.
    pub(crate) fn flush(
        &mut self,
        range: Option<Range<u64>>,
        deadline: Instant,
    ) -> Result<IoResult, Failure> {
        let begun = Instant::now();
        let token = Token { slot: 0, generation: self.next };
        self.next = self.next.wrapping_add(1);
        // Answers to flushes that nobody waits for any more make room.
        self.take_answer(None);
        match self.start(range, token) {
            Ok(()) => {}
            Err(NotBegun::Failed) => return Ok(Err(IoError::new(IoErrorKind::Gone))),
            Err(NotBegun::Full(reason)) => {
                let what = format!("the flush was not taken: {reason}");
                return Err(Failure::new(Exit::Failure, what, "see `aioctl info`, then try again"));
            }
        }
        loop {
            if let Some(result) = self.take_answer(Some(token)) {
                return Ok(result);
            }
            if Instant::now() >= deadline {
                return Err(Failure::new(
                    Exit::TimedOut,
                    format!("the flush is not done after {} s", begun.elapsed().as_secs()),
                    "it goes on; try again",
                ));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn start(&mut self, range: Option<Range<u64>>, token: Token) -> Result<(), NotBegun> {
        match &mut self.way {
            // Nothing is kept back above a device, so there is nothing that a range would save.
            Way::Queue { queue, .. } => {
                queue.submit(Request::flush(token)).map_err(|refused| match refused.reason {
                    Refusal::Failed => NotBegun::Failed,
                    reason => NotBegun::Full(reason.to_string()),
                })
            }
            Way::Cache { lane, handle } => {
                let size = lane.cache().size_bytes();
                let (kind, offset, len) = match range {
                    None => (OpKind::Flush, 0, 0),
                    Some(range) => {
                        let (start, end) = (range.start.min(size), range.end.min(size));
                        (OpKind::FlushRange, start, end.saturating_sub(start))
                    }
                };
                let (buffer, handle) = (Buffer::None, Arc::clone(handle));
                lane.start(Operation { token, kind, offset, len, buffer, handle })
                    .map_err(|_| NotBegun::Full(format!("{DEPTH} are under way")))
            }
        }
    }

    fn take_answer(&mut self, token: Option<Token>) -> Option<IoResult> {
        let mut mine = None;
        match &mut self.way {
            Way::Queue { queue, completions } => {
                queue.commit();
                completions.clear();
                queue.poll(usize::from(DEPTH), completions);
                for completion in completions.iter().filter(|it| Some(it.token) == token) {
                    mine = Some(completion.result);
                }
            }
            Way::Cache { lane, .. } => {
                lane.turn();
                while let Some(finished) = lane.pop_finished() {
                    if Some(finished.token) == token {
                        mine = Some(finished.result);
                    }
                }
            }
        }
        mine
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;

    use uaio_driver::ram::RamDevice;
    use uaio_driver::{Armed, Cancel, DmaPool, PoolOptions, Refused};
    use uaio_page_cache::CacheOptions;

    use super::super::flusher::FlusherThread;
    use super::*;

    #[test]
    fn a_flush_of_a_healthy_device_is_done_each_time() {
        let options = PoolOptions { hugepages: false, ..PoolOptions::frames(16) };
        let pool = DmaPool::new(options).expect("a pool");
        let device = RamDevice::new(1 << 20, 4096, pool).expect("a device");
        let mut barrier = Barrier::open(&device).expect("a queue");
        for _ in 0..100 {
            let deadline = Instant::now() + Duration::from_secs(20);
            assert_eq!(barrier.flush(None, deadline), Ok(Ok(())));
            assert_eq!(barrier.flush(Some(0..4096), deadline), Ok(Ok(())));
        }
    }

    /// A queue of a drive that was pulled out.
    struct Failed;

    impl IoQueue for Failed {
        fn submit(&mut self, request: Request) -> Result<(), Refused> {
            Err(Refused { request, reason: Refusal::Failed })
        }
        fn commit(&mut self) {}
        fn poll(&mut self, _: usize, _: &mut Vec<Completion>) -> usize {
            0
        }
        fn cancel(&mut self, _: Token) -> Cancel {
            Cancel::NotFound
        }
        fn in_flight(&self) -> usize {
            0
        }
        fn depth(&self) -> usize {
            1
        }
        fn arm(&mut self) -> Armed {
            Armed::Yes
        }
        fn event_fd(&self) -> Option<BorrowedFd<'_>> {
            None
        }
    }

    /// Else nobody could be told that the data is lost, and stop serving all the same.
    #[test]
    fn a_queue_that_has_failed_is_the_devices_answer() {
        let way = Way::Queue { queue: Box::new(Failed), completions: Vec::new() };
        let gone = Err(IoError::new(IoErrorKind::Gone));
        assert_eq!(Barrier { way, next: 0 }.flush(None, Instant::now()), Ok(gone));
    }

    #[test]
    fn a_flush_of_a_range_of_a_cached_device_writes_that_range() {
        let options = PoolOptions { hugepages: false, ..PoolOptions::frames(80) };
        let pool = DmaPool::new(options).expect("a pool");
        let device = Arc::new(RamDevice::new(1 << 20, 4096, pool).expect("a device"));
        let cache = Cache::new(device, CacheOptions::frames(64)).expect("a cache");
        let flusher = FlusherThread::start(&cache, || ()).expect("a flusher");
        let mut barrier = Barrier::on_cache(&cache).expect("a lane");
        let mut lane = Lane::new(Arc::clone(&cache), 8, 8, Arc::new(PollsAnyway)).expect("a lane");
        for number in 0..4 {
            let write = Operation {
                token: Token::from_u64(number),
                kind: OpKind::Write { stable: false, direct: false },
                offset: number * 4096,
                len: 4096,
                buffer: Buffer::Bytes(vec![7; 4096]),
                handle: cache.open(),
            };
            assert!(lane.start(write).is_ok());
            assert_eq!(lane.pop_finished().map(|it| it.result), Some(Ok(())));
        }
        let mut flush = |range| {
            let deadline = Instant::now() + Duration::from_secs(20);
            assert_eq!(barrier.flush(range, deadline), Ok(Ok(())));
            cache.dirty_ranges()
        };
        // Up to where the device ends, and from behind it.
        let (first, second) = (0..8192, flush(Some(8192..u64::MAX)));
        assert_eq!(second, std::slice::from_ref(&first));
        assert_eq!(flush(Some(1 << 30..u64::MAX)), std::slice::from_ref(&first));
        assert_eq!(flush(None), []);
        drop((lane, barrier, flusher));
    }
}
