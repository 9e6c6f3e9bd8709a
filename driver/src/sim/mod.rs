//! A simulated device, from one seed: latency, order, faults, crash.
//!
//! [`SimDevice`] is a [`BlockDevice`] in memory that does what drives do on bad days. Everything it
//! decides comes from the seed and from the order of the calls, so one thread replays a run exactly.
//! It is for tests and takes their freedoms: it allocates for each request and locks in each call.
//!
//! * **Durable and volatile** bytes are held apart. A completed write without FUA lies in the
//!   volatile cache; a flush makes durable the writes that had completed when it was *submitted*,
//!   and nothing later; FUA makes durable its own blocks, and nothing else.
//! * **Time** passes by polling: each `poll` of any queue is one step. A request is answered a drawn
//!   number of steps after it was committed, in any order.
//! * **Power failure** ([`crash`](SimDevice::crash)) leaves the durable bytes and an arbitrary part
//!   of the rest, torn between 512-byte sectors: a sector is old or new, never mixed.
//!   [`crash_after`](SimDevice::crash_after) turns the power off after the n-th operation, so that a
//!   test can try every n.
//! * **Faults** ([`Fault`]) fail, delay or hold requests by block, operation and number of times; a
//!   flush that fails can take with it what the volatile cache holds.
//! * A drive that is **gone and cannot be stopped** keeps frames for ever ([`SimOptions::keeps_frames`]).
//! * **Ownership** is checked: a read's frames are noise until it ends, also when it fails; a write
//!   whose frames changed in flight panics.
//!
//! ```
//! use uaio_driver::sim::{SimDevice, SimOptions};
//! use uaio_driver::{BlockDevice, DmaPool, Lba, PoolOptions, QueueOptions, Request, SgList, Token};
//!
//! let pool = DmaPool::new(PoolOptions::frames(8))?;
//! let device = SimDevice::new(SimOptions::sized(1 << 20, 4096), 42, pool.clone())?;
//! let mut queue = device.open_queue(QueueOptions::polled(4))?;
//! let data = SgList::new(vec![pool.take().unwrap()]);
//! data.copy_from_slice(0, &[7; 4096]);
//! queue.submit(Request::write(Token::from_u64(1), Lba(0), 1, data, false)).unwrap();
//! queue.commit();
//! let mut out = Vec::new();
//! while queue.poll(1, &mut out) == 0 {}
//! assert_eq!(device.medium_image()[0], 7);
//! assert_eq!(device.durable_image()[0], 0); // no flush, no FUA: the write may be lost
//! # Ok::<(), uaio_driver::DeviceError>(())
//! ```
#![forbid(unsafe_code)]

mod fault;
mod machine;
mod medium;
mod queue;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;

pub use self::fault::{Effect, Fault, FaultId, FaultOn};
use self::machine::{Machine, Parts, QueueId};
use self::queue::SimQueue;
use crate::block::{BlockDevice, Capabilities, Geometry, Health, IoQueue, QueueOptions};
use crate::dma::{DmaPool, FRAME_SIZE};
use crate::error::{DeviceError, IoError, IoErrorKind, IoResult};
use crate::request::{Lba, Op, Request};

/// What a simulated device is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimOptions {
    /// Size and limits. The medium lies in memory, so keep it small.
    pub geometry: Geometry,
    /// What it does and what its acknowledgements mean. Without `fua`, a FUA write ends with a flush
    /// of everything; without `volatile_cache`, a completed write is durable.
    pub capabilities: Capabilities,
    /// How many steps a request takes; one poll is one step, and 0 is the next poll.
    pub latency_steps: RangeInclusive<u32>,
    /// How many operations [`SimDevice::log`] remembers.
    pub log_max: usize,
    /// When it is [unplugged](SimDevice::unplug) it cannot be stopped, as a drive that no reset reaches and that
    /// no IOMMU keeps from memory: of what it has then, a drawn half of the requests end without their frames,
    /// and it writes into those of reads for as long as it lives.
    pub keeps_frames: bool,
}

impl SimOptions {
    /// A drive of `size_bytes` with a volatile cache, native FUA, transfers up to 128 KiB, up to 16
    /// queues of 256, latencies of 0 to 8 steps.
    pub fn sized(size_bytes: u64, block_size: u32) -> Self {
        let blocks = size_bytes / u64::from(block_size.max(1));
        let most_blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        Self {
            geometry: Geometry {
                block_size,
                blocks,
                transfer_max_bytes: 128 << 10,
                discard_max_blocks: most_blocks,
                write_zeroes_max_blocks: most_blocks,
            },
            capabilities: Capabilities {
                volatile_cache: true,
                fua: true,
                read_only: false,
                queues_max: 16,
                depth_max: 256,
            },
            latency_steps: 0..=8,
            log_max: 1024,
            keeps_frames: false,
        }
    }

    fn check(&self, image_bytes: u64) -> Result<(), DeviceError> {
        let Geometry { block_size, blocks, transfer_max_bytes, .. } = self.geometry;
        let size_bytes = blocks.checked_mul(u64::from(block_size));
        let wrong = if !matches!(block_size, 512 | 1024 | 2048 | 4096) {
            format!("a block size of {block_size} bytes")
        } else if blocks == 0 || size_bytes != Some(image_bytes) {
            format!("{blocks} blocks of {block_size} bytes in an image of {image_bytes} bytes")
        } else if transfer_max_bytes == 0
            || !(transfer_max_bytes as usize).is_multiple_of(FRAME_SIZE)
        {
            format!("a transfer limit of {transfer_max_bytes} bytes")
        } else if self.capabilities.queues_max == 0 || self.capabilities.depth_max == 0 {
            "a device without queues".to_owned()
        } else if self.latency_steps.is_empty() {
            format!("a latency of {:?} steps", self.latency_steps)
        } else {
            return Ok(());
        };
        Err(DeviceError::Invalid(format!("{wrong} is not possible")))
    }
}

/// How many requests reached the device, by kind, and how many failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Blocks in them.
    pub blocks_read: u64,
    /// Writes, with and without FUA.
    pub writes: u64,
    /// Blocks in them.
    pub blocks_written: u64,
    /// Writes with FUA; they are among `writes`.
    pub fua_writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// Write-zeroes.
    pub write_zeroes: u64,
    /// Requests of any kind that ended with an error.
    pub failed: u64,
}

impl Counts {
    fn count(&mut self, request: &Request) {
        let blocks = u64::from(request.blocks);
        match request.op {
            Op::Read => {
                self.reads += 1;
                self.blocks_read += blocks;
            }
            Op::Write { fua } => {
                self.writes += 1;
                self.blocks_written += blocks;
                self.fua_writes += u64::from(fua);
            }
            Op::Flush => self.flushes += 1,
            Op::Discard => self.discards += 1,
            Op::WriteZeroes { .. } => self.write_zeroes += 1,
        }
    }
}

/// What happened to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The device took it: it was committed.
    Arrived,
    /// It took effect and its completion was moved out.
    Completed(IoResult),
}

/// One operation of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// When, in polls.
    pub step: u64,
    /// On which queue, counted from 0 in the order of opening.
    pub queue: u64,
    /// What happened.
    pub event: Event,
    /// To what kind of request.
    pub op: Op,
    /// Its first block.
    pub lba: Lba,
    /// Its number of blocks.
    pub blocks: u32,
}

#[derive(Debug)]
struct Shared {
    name: String,
    geometry: Geometry,
    capabilities: Capabilities,
    pool: DmaPool,
    machine: Mutex<Machine>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Machine> {
        // A failed ownership check panics under the lock; the queues must still be dropped.
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A simulated block device. A clone is another handle to the same device, for the test to keep.
#[derive(Clone, Debug)]
pub struct SimDevice {
    shared: Arc<Shared>,
}

impl SimDevice {
    /// A device of zeroes.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Invalid`] for options that no device can have.
    pub fn new(options: SimOptions, seed: u64, pool: DmaPool) -> Result<Self, DeviceError> {
        let size_bytes = options.geometry.blocks.checked_mul(options.geometry.block_size.into());
        let size_bytes = size_bytes.and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
        Self::from_image(options, vec![0; size_bytes], seed, pool)
    }

    /// A device that starts with `image` on stable media: what boots after a crash.
    ///
    /// # Errors
    ///
    /// As [`SimDevice::new`]; also when the image is not as long as the geometry says.
    pub fn from_image(
        options: SimOptions,
        image: Vec<u8>,
        seed: u64,
        pool: DmaPool,
    ) -> Result<Self, DeviceError> {
        options.check(image.len() as u64)?;
        let SimOptions { geometry, capabilities, latency_steps, log_max, keeps_frames } = options;
        let machine = Mutex::new(Machine::new(Parts {
            geometry,
            volatile_cache: capabilities.volatile_cache,
            fua: capabilities.fua,
            latency_steps,
            log_max,
            keeps_frames,
            image,
            seed,
        }));
        let name = format!("sim:{}", geometry.size_bytes());
        Ok(Self { shared: Arc::new(Shared { name, geometry, capabilities, pool, machine }) })
    }

    /// Turns the power off now and says what is left: the bytes to boot from. The device answers
    /// nothing any more. Each call draws anew: several outcomes of one crash.
    pub fn crash(&self) -> Vec<u8> {
        let mut machine = self.shared.lock();
        machine.stopped = true;
        let mut random = machine.random.fork();
        machine.crash_image(&mut random)
    }

    /// What a power failure at this moment would leave, drawn from `seed`. Changes nothing.
    pub fn crash_image(&self, seed: u64) -> Vec<u8> {
        self.shared.lock().crash_image(&mut Rng::with_seed(seed))
    }

    /// Turns the power off right after operation `last`, counted as [`operations`] does; 0 is now. A
    /// completion that is that operation is still delivered. What is committed later is lost without
    /// an answer, and [`crash`](SimDevice::crash) says what is left.
    ///
    /// [`operations`]: SimDevice::operations
    pub fn crash_after(&self, last: u64) {
        let mut machine = self.shared.lock();
        machine.stop_at = Some(last);
        machine.stopped |= machine.operations >= last;
    }

    /// Whether the power is off.
    pub fn is_stopped(&self) -> bool {
        self.shared.lock().stopped
    }

    /// How many operations there were: each arrival of a request and each completion is one.
    pub fn operations(&self) -> u64 {
        self.shared.lock().operations
    }

    /// Sets a fault for the requests committed from now on.
    pub fn set_fault(&self, fault: Fault) -> FaultId {
        self.shared.lock().faults.set(fault)
    }

    /// Ends a fault and lets go of what it holds. A fault that has ended already is fine.
    pub fn clear_fault(&self, id: FaultId) {
        self.shared.lock().faults.clear(id);
    }

    /// Ends every fault.
    pub fn clear_faults(&self) {
        self.shared.lock().faults.clear_all();
    }

    /// The device is unplugged: whatever is in flight, held or sent later fails with
    /// [`IoErrorKind::Gone`], for good.
    pub fn unplug(&self) {
        self.shared.lock().unplug();
    }

    /// How many frames it [keeps](SimOptions::keeps_frames).
    pub fn frames_kept(&self) -> usize {
        self.shared.lock().frames_kept()
    }

    /// How many requests of each kind reached the device.
    pub fn counts(&self) -> Counts {
        self.shared.lock().counts
    }

    /// The last operations, oldest first.
    pub fn log(&self) -> Vec<LogEntry> {
        self.shared.lock().log.iter().copied().collect()
    }

    /// The bytes that no power failure can take.
    pub fn durable_image(&self) -> Vec<u8> {
        self.shared.lock().medium.durable_image()
    }

    /// The bytes as reads see them.
    pub fn medium_image(&self) -> Vec<u8> {
        self.shared.lock().medium.image()
    }
}

impl BlockDevice for SimDevice {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities
    }

    fn pool(&self) -> &DmaPool {
        &self.shared.pool
    }

    fn health(&self) -> Health {
        match self.shared.lock().gone {
            true => Health::Failed(IoError::new(IoErrorKind::Gone)),
            false => Health::Good,
        }
    }

    fn open_queue(&self, options: QueueOptions) -> Result<Box<dyn IoQueue>, DeviceError> {
        let Capabilities { depth_max, queues_max, .. } = self.shared.capabilities;
        if options.depth == 0 || options.depth > depth_max {
            return Err(DeviceError::Invalid(format!(
                "a queue depth of {} is not possible: take 1 to {depth_max}",
                options.depth
            )));
        }
        let mut machine = self.shared.lock();
        if machine.queues.len() == usize::from(queues_max) {
            return Err(DeviceError::NoMoreQueues { max: queues_max });
        }
        let id = QueueId(machine.next_queue);
        machine.next_queue += 1;
        machine.queues.push(id);
        drop(machine);
        Ok(Box::new(SimQueue::new(Arc::clone(&self.shared), id, usize::from(options.depth))))
    }

    fn close(&self) -> Result<(), DeviceError> {
        let mut machine = self.shared.lock();
        match machine.queues.len() {
            0 => {
                machine.shut_down();
                Ok(())
            }
            open => Err(DeviceError::Failed {
                device: self.shared.name.clone(),
                reason: format!("{open} of its queues are still open"),
            }),
        }
    }
}
