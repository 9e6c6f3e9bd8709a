//! A block device in memory: the reference implementation.
//!
//! Read this one first: it is the whole contract of [`crate::block`] and nothing else. A request
//! waits in the queue until `commit`; `poll` does the committed ones in the order they came.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use vm_memory::{GuestAddress, GuestMemoryRegion, GuestRegionMmap, MmapRegion, VolatileSlice};

use crate::block::{
    Armed, BlockDevice, Cancel, Capabilities, Geometry, Health, IoQueue, QueueOptions,
};
use crate::dma::{DmaPool, FRAME_SIZE};
use crate::error::{DeviceError, IoError, IoErrorKind};
use crate::request::{Completion, Op, Refusal, Refused, Request};
use crate::slots::Token;

const QUEUES_MAX: u16 = 64;
const DEPTH_MAX: u16 = 4096;

/// A device of `blocks` blocks in anonymous memory. Zeroes until written; all is lost with it.
#[derive(Debug)]
pub struct RamDevice {
    name: String,
    medium: Arc<Medium>,
    pool: DmaPool,
}

#[derive(Debug)]
struct Medium {
    geometry: Geometry,
    memory: GuestRegionMmap,
    queues: AtomicU16,
}

impl RamDevice {
    /// A device of `size_bytes` bytes in blocks of `block_size`. The memory is only used up as it is
    /// written.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Invalid`] for a size that is not a positive multiple of the block size or a
    /// block size that is not 512, 1024, 2048 or 4096; [`DeviceError::NoMemory`].
    pub fn new(size_bytes: u64, block_size: u32, pool: DmaPool) -> Result<Self, DeviceError> {
        if !matches!(block_size, 512 | 1024 | 2048 | 4096) {
            return Err(DeviceError::Invalid(format!(
                "a block size of {block_size} bytes is not possible: take 512, 1024, 2048 or 4096"
            )));
        }
        if size_bytes == 0 || !size_bytes.is_multiple_of(u64::from(block_size)) {
            return Err(DeviceError::Invalid(format!(
                "a size of {size_bytes} bytes is not a positive multiple of the block size, \
                 {block_size} bytes"
            )));
        }
        let no_memory = |source| DeviceError::NoMemory { bytes: size_bytes, source };
        let len_bytes =
            usize::try_from(size_bytes).map_err(|error| no_memory(std::io::Error::other(error)))?;
        let mapping = MmapRegion::new(len_bytes)
            .map_err(|error| no_memory(std::io::Error::other(error.to_string())))?;
        let memory = GuestRegionMmap::new(mapping, GuestAddress(0))
            .ok_or_else(|| DeviceError::Invalid(format!("{size_bytes} bytes are too many")))?;
        let blocks = size_bytes / u64::from(block_size);
        let most_blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        let geometry = Geometry {
            block_size,
            blocks,
            transfer_max_bytes: 1 << 20,
            discard_max_blocks: most_blocks,
            write_zeroes_max_blocks: most_blocks,
        };
        let medium = Arc::new(Medium { geometry, memory, queues: AtomicU16::new(0) });
        Ok(Self { name: format!("ram:{size_bytes}"), medium, pool })
    }
}

impl Medium {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            // Power failure takes everything, flushed or not: there is nothing to flush.
            volatile_cache: false,
            fua: true,
            read_only: false,
            queues_max: QUEUES_MAX,
            depth_max: DEPTH_MAX,
        }
    }

    fn slice(&self, offset: u64, len_bytes: usize) -> VolatileSlice<'_> {
        self.memory
            .get_slice(vm_memory::MemoryRegionAddress(offset), len_bytes)
            .expect("the geometry was checked at submit")
    }

    fn execute(&self, request: &Request) {
        let block_size = u64::from(self.geometry.block_size);
        let start = request.lba.0 * block_size;
        let len_bytes = request.blocks as usize * block_size as usize;
        match request.op {
            Op::Read => request.data.each_piece(0, len_bytes, |frame, offset, range| {
                let medium = self.slice(start + range.start as u64, range.len());
                medium.copy_to_volatile_slice(frame.slice().offset(offset).expect("in the frame"));
            }),
            Op::Write { .. } => request.data.each_piece(0, len_bytes, |frame, offset, range| {
                let medium = self.slice(start + range.start as u64, range.len());
                let part = frame.slice().subslice(offset, range.len()).expect("in the frame");
                part.copy_to_volatile_slice(medium);
            }),
            Op::Flush => {}
            Op::Discard | Op::WriteZeroes { .. } => {
                const ZEROES: [u8; FRAME_SIZE] = [0; FRAME_SIZE];
                for done in (0..len_bytes).step_by(FRAME_SIZE) {
                    let len = FRAME_SIZE.min(len_bytes - done);
                    self.slice(start + done as u64, len).copy_from(&ZEROES[..len]);
                }
            }
        }
    }
}

impl BlockDevice for RamDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.medium.geometry
    }

    fn capabilities(&self) -> Capabilities {
        self.medium.capabilities()
    }

    fn pool(&self) -> &DmaPool {
        &self.pool
    }

    fn health(&self) -> Health {
        Health::Good
    }

    fn open_queue(&self, options: QueueOptions) -> Result<Box<dyn IoQueue>, DeviceError> {
        if options.depth == 0 || options.depth > DEPTH_MAX {
            return Err(DeviceError::Invalid(format!(
                "a queue depth of {} is not possible: take 1 to {DEPTH_MAX}",
                options.depth
            )));
        }
        let open = &self.medium.queues;
        open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count < QUEUES_MAX).then_some(count + 1)
        })
        .map_err(|max| DeviceError::NoMoreQueues { max })?;
        let depth = usize::from(options.depth);
        Ok(Box::new(RamQueue {
            medium: Arc::clone(&self.medium),
            pool: self.pool.clone(),
            waiting: VecDeque::with_capacity(depth),
            committed: 0,
            depth,
        }))
    }

    fn close(&self) -> Result<(), DeviceError> {
        match self.medium.queues.load(Ordering::Relaxed) {
            0 => Ok(()),
            open => Err(DeviceError::Failed {
                device: self.name.clone(),
                reason: format!("{open} of its queues are still open"),
            }),
        }
    }
}

/// A request that `poll` will do, or only answer when it was cancelled before.
#[derive(Debug)]
struct Waiting {
    request: Request,
    cancelled: bool,
}

/// A queue of a [`RamDevice`].
#[derive(Debug)]
struct RamQueue {
    medium: Arc<Medium>,
    pool: DmaPool,
    waiting: VecDeque<Waiting>,
    /// How many of `waiting`, from the front, have been committed.
    committed: usize,
    depth: usize,
}

impl IoQueue for RamQueue {
    fn submit(&mut self, request: Request) -> Result<(), Refused> {
        let fits = self.medium.geometry.check(&self.medium.capabilities(), &request);
        let reason = match fits {
            Err(reason) => reason,
            Ok(()) if !request.data.frames.iter().all(|frame| self.pool.owns(frame)) => {
                Refusal::BadFrames
            }
            Ok(()) if self.waiting.len() == self.depth => Refusal::Full,
            Ok(()) => {
                self.waiting.push_back(Waiting { request, cancelled: false });
                return Ok(());
            }
        };
        Err(Refused { request, reason })
    }

    fn commit(&mut self) {
        self.committed = self.waiting.len();
    }

    fn poll(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        let count = budget.min(self.committed);
        for Waiting { request, cancelled } in self.waiting.drain(..count) {
            let result = match cancelled {
                true => Err(IoError::new(IoErrorKind::Cancelled)),
                false => {
                    self.medium.execute(&request);
                    Ok(())
                }
            };
            let Request { token, data, .. } = request;
            out.push(Completion { token, result, data });
        }
        self.committed -= count;
        count
    }

    fn cancel(&mut self, token: Token) -> Cancel {
        self.commit();
        match self.waiting.iter_mut().find(|waiting| waiting.request.token == token) {
            Some(waiting) => {
                waiting.cancelled = true;
                Cancel::Asked
            }
            None => Cancel::NotFound,
        }
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn arm(&mut self) -> Armed {
        if self.committed > 0 { Armed::Ready } else { Armed::Yes }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for RamQueue {
    fn drop(&mut self) {
        // What was committed is done, as a drive would; what was not never reached the device.
        let committed = self.committed;
        let committed = self.waiting.drain(..committed).filter(|waiting| !waiting.cancelled);
        committed.for_each(|waiting| self.medium.execute(&waiting.request));
        self.medium.queues.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;
    use crate::dma::PoolOptions;

    #[test]
    fn conforms() {
        for block_size in [512, 4096] {
            let pool = DmaPool::new(PoolOptions::frames(1024)).unwrap();
            let device = RamDevice::new(16 << 20, block_size, pool).unwrap();
            conformance::run(&device);
        }
    }

    #[test]
    fn bad_sizes_are_refused_with_what_to_do() {
        let pool = DmaPool::new(PoolOptions::frames(1)).unwrap();
        let error = RamDevice::new(1000, 512, pool.clone()).unwrap_err().to_string();
        assert_eq!(
            error,
            "a size of 1000 bytes is not a positive multiple of the block size, 512 bytes"
        );
        assert!(RamDevice::new(4096, 520, pool).is_err());
    }
}
