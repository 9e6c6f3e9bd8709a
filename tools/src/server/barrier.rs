//! A flush of the served device, from a thread that serves no queue.
//!
//! It has a queue of its own on the device, opened at start. On a cached device it also is an opener
//! of its own: an error that is reported once to each opener is not taken from under the nose of the
//! program that has the block device open.

use std::time::{Duration, Instant};

use uaio_driver::{BlockDevice, Completion, IoQueue, IoResult, QueueOptions, Request, Token};

use crate::exit::{Exit, Failure};

/// Flushes that may be under way at once: those that were given up waiting for count.
const DEPTH: u16 = 8;

/// How often to look whether a flush is done.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// A queue for flushes.
pub(crate) struct Barrier {
    queue: Box<dyn IoQueue>,
    completions: Vec<Completion>,
    next: u32,
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
        Ok(Self { queue, completions: Vec::with_capacity(usize::from(DEPTH)), next: 0 })
    }

    /// Waits until all that was acknowledged before is stable; what the device said if it cannot.
    ///
    /// # Errors
    ///
    /// That it took longer than `deadline`: the flush goes on, the next call does not get its answer.
    pub(crate) fn flush(&mut self, deadline: Instant) -> Result<IoResult, Failure> {
        let begun = Instant::now();
        let token = Token { slot: 0, generation: self.next };
        self.next = self.next.wrapping_add(1);
        // Answers to flushes that nobody waits for any more make room.
        self.take_answer(None);
        if let Err(refused) = self.queue.submit(Request::flush(token)) {
            let what = format!("the flush was not taken: {}", refused.reason);
            return Err(Failure::new(Exit::Failure, what, "see `aioctl info`, then try again"));
        }
        loop {
            self.queue.commit();
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

    fn take_answer(&mut self, token: Option<Token>) -> Option<IoResult> {
        self.completions.clear();
        self.queue.poll(usize::from(DEPTH), &mut self.completions);
        let mine = self.completions.iter().find(|completion| Some(completion.token) == token);
        mine.map(|completion| completion.result)
    }
}

#[cfg(test)]
mod tests {
    use uaio_driver::ram::RamDevice;
    use uaio_driver::{DmaPool, PoolOptions};

    use super::*;

    #[test]
    fn a_flush_of_a_healthy_device_is_done_each_time() {
        let options = PoolOptions { hugepages: false, ..PoolOptions::frames(16) };
        let pool = DmaPool::new(options).expect("a pool");
        let device = RamDevice::new(1 << 20, 4096, pool).expect("a device");
        let mut barrier = Barrier::open(&device).expect("a queue");
        for _ in 0..100 {
            let deadline = Instant::now() + Duration::from_secs(20);
            assert_eq!(barrier.flush(deadline), Ok(Ok(())));
        }
    }
}
