//! A cache as a block device: what the ublk server serves, what conformance tests.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use uaio_driver::{
    Armed, BlockDevice, Cancel, Capabilities, Completion, DeviceError, DmaPool, Geometry, Health,
    IoQueue, Op, QueueOptions, Refusal, Refused, Request, SgList, Token,
};

use crate::buffer::Buffer;
use crate::cache::{Cache, CacheMode, Handle};
use crate::lane::{Cancelled, Finished, Lane, OpKind, Operation};

/// What one discard or write-zeroes may cover: each looks at every page of its range, in one step of
/// the queue's owner, who serves nobody else meanwhile.
const BYPASS_MAX_BYTES: u32 = 64 << 20;

/// A block device over a cache over a block device. All its queues are one handle: an error of a
/// writeback nobody waited for is told to the first flush after it.
///
/// A flusher must be turned for as long as it has queues: flushes, stable writes, and writers above the dirty
/// limit, wait for it. Each of its queues with requests in flight must be polled, or slept on as it was armed, by
/// its owner: other queues may wait for a page that it reads or writes; see [`Lane`].
pub struct CachedDevice {
    cache: Arc<Cache>,
    handle: Arc<Handle>,
    name: String,
}

impl CachedDevice {
    /// The device of a cache.
    pub fn new(cache: Arc<Cache>) -> Self {
        let name = format!("cached:{}", cache.device().name());
        Self { handle: cache.open(), name, cache }
    }

    /// The cache.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }
}

impl BlockDevice for CachedDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        let below = self.cache.device().geometry();
        let most_blocks = BYPASS_MAX_BYTES / below.block_size;
        Geometry {
            transfer_max_bytes: Lane::LEN_MAX as u32,
            discard_max_blocks: below.discard_max_blocks.min(most_blocks),
            write_zeroes_max_blocks: below.write_zeroes_max_blocks.min(most_blocks),
            ..below
        }
    }

    fn capabilities(&self) -> Capabilities {
        let below = self.cache.device().capabilities();
        Capabilities {
            // Acknowledged is not on the device yet, whatever the drive below says of itself.
            volatile_cache: below.volatile_cache || self.cache.mode() == CacheMode::Writeback,
            fua: true,
            // The flusher has one.
            queues_max: below.queues_max.saturating_sub(1),
            depth_max: 4096,
            ..below
        }
    }

    fn pool(&self) -> &DmaPool {
        self.cache.device().pool()
    }

    fn health(&self) -> Health {
        self.cache.device().health()
    }

    fn open_queue(&self, options: QueueOptions) -> Result<Box<dyn IoQueue>, DeviceError> {
        let QueueOptions { depth, wake } = options;
        if depth == 0 || depth > self.capabilities().depth_max {
            return Err(DeviceError::Invalid(format!(
                "a queue depth of {depth} is not possible: take 1 to {}",
                self.capabilities().depth_max
            )));
        }
        // A request may become several commands.
        let below = depth.max(32);
        let lane = Lane::new(Arc::clone(&self.cache), usize::from(depth), below, wake)?;
        Ok(Box::new(CachedQueue {
            geometry: self.geometry(),
            capabilities: self.capabilities(),
            handle: Arc::clone(&self.handle),
            pool: self.pool().clone(),
            lane,
        }))
    }

    /// Closes the device below.
    ///
    /// # Errors
    ///
    /// When data is dirty still, or the flusher or a lane has a queue open, or the device fails.
    fn close(&self) -> Result<(), DeviceError> {
        let dirty: u64 =
            self.cache.dirty_ranges().iter().map(|range| range.end - range.start).sum();
        if dirty > 0 {
            return Err(DeviceError::Failed {
                device: self.name.clone(),
                reason: format!("{dirty} bytes have not been written to the device"),
            });
        }
        self.cache.device().close()
    }
}

/// A queue of a [`CachedDevice`]: a lane, fed with requests.
struct CachedQueue {
    geometry: Geometry,
    capabilities: Capabilities,
    handle: Arc<Handle>,
    pool: DmaPool,
    lane: Lane,
}

impl IoQueue for CachedQueue {
    fn submit(&mut self, request: Request) -> Result<(), Refused> {
        let reason = match self.geometry.check(&self.capabilities, &request) {
            Err(reason) => reason,
            Ok(()) if !request.data.frames.iter().all(|frame| self.pool.owns(frame)) => {
                Refusal::BadFrames
            }
            Ok(()) if self.lane.in_flight() >= self.lane.depth() => Refusal::Full,
            Ok(()) => {
                let Request { token, op, lba, blocks, data } = request;
                let block_size = u64::from(self.geometry.block_size);
                let kind = match op {
                    Op::Read => OpKind::Read { direct: false },
                    Op::Write { fua } => OpKind::Write { stable: fua, direct: false },
                    Op::Flush => OpKind::Flush,
                    Op::Discard => OpKind::Discard,
                    Op::WriteZeroes { may_unmap } => OpKind::WriteZeroes { may_unmap },
                };
                let operation = Operation {
                    token,
                    kind,
                    // A flush has no place, whatever its request says.
                    offset: if op == Op::Flush { 0 } else { lba.0 * block_size },
                    len: u64::from(blocks) * block_size,
                    buffer: Buffer::Frames(data),
                    handle: Arc::clone(&self.handle),
                };
                let started = self.lane.start(operation);
                assert!(started.is_ok(), "a free place was seen");
                return Ok(());
            }
        };
        Err(Refused { request, reason })
    }

    fn commit(&mut self) {
        self.lane.commit();
    }

    fn poll(&mut self, budget: usize, out: &mut Vec<Completion>) -> usize {
        self.lane.turn();
        let mut count = 0;
        while count < budget {
            let Some(Finished { token, result, buffer }) = self.lane.pop_finished() else { break };
            let data = match buffer {
                Buffer::Frames(data) => data,
                Buffer::None
                | Buffer::Bytes(_)
                | Buffer::Part { .. }
                | Buffer::Pieces { .. }
                | Buffer::Registered { .. } => SgList::empty(),
            };
            out.push(Completion { token, result, data });
            count += 1;
        }
        count
    }

    fn cancel(&mut self, token: Token) -> Cancel {
        match self.lane.cancel(token) {
            // Also when the device is changing data: nothing more is begun, and the answer says.
            Cancelled::Finished | Cancelled::RunsOn => Cancel::Asked,
            Cancelled::Unknown => Cancel::NotFound,
        }
    }

    fn in_flight(&self) -> usize {
        self.lane.in_flight()
    }

    fn depth(&self) -> usize {
        self.lane.depth()
    }

    fn arm(&mut self) -> Armed {
        self.lane.arm()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.lane.event_fd()
    }
}
