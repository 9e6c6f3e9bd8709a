//! A namespace: the block device.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::block::{BlockDevice, Capabilities, Geometry, Health, IoQueue, QueueOptions};
use crate::dma::DmaPool;
use crate::error::{DeviceError, IoError, IoErrorKind};
use crate::request::Request;
use crate::slots::Token;

use super::commands::CommandError;
use super::controller::{Created, NvmeController};
use super::info::NamespaceInfo;
use super::queue::{NvmeQueue, QueueTarget};
use super::spec::command::NLB_MAX;

/// A namespace of an [`NvmeController`], as a block device.
///
/// Several namespaces of a controller can be open at once; they share its queues, so
/// [`Capabilities::queues_max`] is what all of them have together.
#[derive(Debug)]
pub struct NvmeNamespace {
    name: String,
    nsid: u32,
    shape: Mutex<Shape>,
    controller: Arc<NvmeController>,
    state: Arc<NamespaceState>,
    closed: AtomicBool,
}

/// What queues are opened with. Constant while one is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    geometry: Geometry,
    capabilities: Capabilities,
    deallocates_to_zeroes: bool,
    shared: bool,
}

impl Shape {
    fn new(controller: &NvmeController, info: &NamespaceInfo) -> Self {
        let id = controller.identify();
        let block_size = info.block_size as u32;
        let write_zeroes_max_bytes =
            1u64.checked_shl(controller.write_zeroes_max_bytes_log2().into()).unwrap_or(u64::MAX);
        let write_zeroes_max_blocks =
            (write_zeroes_max_bytes / u64::from(block_size)).min(NLB_MAX.into()) as u32;
        Self {
            geometry: Geometry {
                block_size,
                blocks: info.blocks,
                transfer_max_bytes: id.transfer_max_bytes,
                discard_max_blocks: match id.discards {
                    true => controller.dsm_limits().range_blocks,
                    false => 0,
                },
                write_zeroes_max_blocks: if id.writes_zeroes { write_zeroes_max_blocks } else { 0 },
            },
            capabilities: Capabilities {
                volatile_cache: id.volatile_cache,
                fua: true,
                read_only: info.read_only,
                queues_max: id.queues_max,
                depth_max: id.depth_max,
            },
            deallocates_to_zeroes: info.deallocates_to_zeroes,
            shared: info.shared,
        }
    }
}

/// What a namespace shares with its queues and with its controller.
#[derive(Debug, Default)]
pub(super) struct NamespaceState {
    open_queues: AtomicUsize,
    /// It was not there any more after a reset, or was another one.
    gone: AtomicBool,
}

impl NamespaceState {
    /// Fails the namespace: its queues answer everything so when they are polled next.
    pub(super) fn lose(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}

/// One open queue of a namespace, counted for as long as it lives.
#[derive(Debug)]
pub(super) struct NamespaceUse(Arc<NamespaceState>);

impl NamespaceUse {
    pub(super) fn new(state: &Arc<NamespaceState>) -> Self {
        state.open_queues.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(state))
    }

    /// Whether the namespace is gone, which a reset finds.
    pub(super) fn is_gone(&self) -> bool {
        self.0.is_gone()
    }
}

impl Drop for NamespaceUse {
    fn drop(&mut self) {
        // Release: pairs with the Acquire in `close`, which finds the queue gone with all it did.
        self.0.open_queues.fetch_sub(1, Ordering::Release);
    }
}

impl NvmeNamespace {
    pub(super) fn new(
        controller: Arc<NvmeController>,
        info: &NamespaceInfo,
        state: Arc<NamespaceState>,
    ) -> Self {
        Self {
            name: format!("nvme:{}/{}", controller.identify().name, info.nsid),
            nsid: info.nsid,
            shape: Mutex::new(Shape::new(&controller, info)),
            state,
            closed: AtomicBool::new(false),
            controller,
        }
    }

    /// Its identifier.
    pub const fn nsid(&self) -> u32 {
        self.nsid
    }

    /// Takes the size and the format that the namespace has now; whether they are others than before.
    /// For a namespace that was resized while it is open; every queue of it is closed meanwhile.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] while a queue is open, when the namespace is gone or another one has its
    /// identifier, or when its format is not supported any more; those of [`NvmeController::admin`]. It
    /// stays as it was then.
    pub fn refresh(&self) -> Result<bool, CommandError> {
        let mut shape = self.lock();
        let open = self.state.open_queues.load(Ordering::Acquire);
        if open > 0 {
            return Err(CommandError::invalid(&self.name, format_args!("{open} queues are open")));
        }
        let id = self.controller.identify_namespace(self.nsid)?;
        let Some(info) = NamespaceInfo::new(self.nsid, &id) else {
            return Err(CommandError::invalid(
                &self.name,
                "the namespace is not attached any more",
            ));
        };
        if let Some(why) = info.unsupported() {
            return Err(CommandError::invalid(&self.name, why));
        }
        if !self.controller.reopened(&self.state, &info) {
            let what = "another namespace has its identifier; close it and open that one";
            return Err(CommandError::invalid(&self.name, what));
        }
        self.state.gone.store(false, Ordering::Relaxed);
        let now = Shape::new(&self.controller, &info);
        Ok(std::mem::replace(&mut *shape, now) != now)
    }

    fn lock(&self) -> MutexGuard<'_, Shape> {
        self.shape.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The controller it is of.
    pub fn controller(&self) -> &Arc<NvmeController> {
        &self.controller
    }

    fn queue(&self, depth: u16) -> Result<NvmeQueue, DeviceError> {
        // Under the lock: a queue that is counted has the shape that `refresh` leaves alone.
        let (namespace_use, shape) = {
            let shape = self.lock();
            (NamespaceUse::new(&self.state), *shape)
        };
        let Created { qid, vector, memory, serving } = self.controller.create_queue(depth)?;
        let target = QueueTarget {
            nsid: self.nsid,
            geometry: shape.geometry,
            capabilities: shape.capabilities,
            dsm: self.controller.dsm_limits(),
            deallocates_to_zeroes: shape.deallocates_to_zeroes,
            shared: shape.shared,
            namespace_use,
        };
        let controller = Arc::clone(&self.controller);
        Ok(NvmeQueue::new(controller, qid, vector, depth, memory, target, serving))
    }

    /// Makes stable what the controller's volatile cache has of this namespace.
    fn flush(&self) -> Result<(), DeviceError> {
        let mut queue = self.queue(1)?;
        let mut out = Vec::with_capacity(1);
        queue
            .submit(Request::flush(Token::from_u64(0)))
            .map_err(|refused| self.failed(refused.reason))?;
        queue.commit();
        // Bounded by the command's deadline.
        while queue.poll(1, &mut out) == 0 {
            self.controller.parts().clock.sleep(Duration::from_micros(50));
        }
        out[0].result.map_err(|error| self.failed(error))
    }

    fn failed(&self, reason: impl std::fmt::Display) -> DeviceError {
        DeviceError::Failed { device: self.name.clone(), reason: reason.to_string() }
    }
}

impl BlockDevice for NvmeNamespace {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.lock().geometry
    }

    fn capabilities(&self) -> Capabilities {
        self.lock().capabilities
    }

    fn pool(&self) -> &DmaPool {
        self.controller.parts().pool
    }

    fn health(&self) -> Health {
        match self.controller.health() {
            Health::Good if self.state.is_gone() => Health::Failed(IoError::new(IoErrorKind::Gone)),
            health => health,
        }
    }

    fn open_queue(&self, options: QueueOptions) -> Result<Box<dyn IoQueue>, DeviceError> {
        let most = self.capabilities().depth_max;
        if options.depth == 0 || options.depth > most {
            return Err(DeviceError::Invalid(format!(
                "{}: a queue depth of {} is not possible: take 1 to {most}",
                self.name, options.depth
            )));
        }
        if self.closed.load(Ordering::Relaxed) {
            return Err(self.failed("it is closed"));
        }
        if self.state.is_gone() {
            return Err(self.failed("after a reset it was not there any more, or another one was"));
        }
        Ok(Box::new(self.queue(options.depth)?))
    }

    /// Closes the namespace: flushes what the volatile cache has of it, and shuts the controller down
    /// when no other namespace of it is open.
    fn close(&self) -> Result<(), DeviceError> {
        let open = self.state.open_queues.load(Ordering::Acquire);
        if open > 0 {
            return Err(self.failed(format_args!("{open} of its queues are still open")));
        }
        if self.closed.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        if self.controller.is_last_namespace(self.nsid) {
            // The shutdown makes everything stable.
            self.controller.put_namespace(&self.state);
            return self.controller.close();
        }
        let flushed = if self.capabilities().volatile_cache { self.flush() } else { Ok(()) };
        self.controller.put_namespace(&self.state);
        flushed
    }
}

impl Drop for NvmeNamespace {
    fn drop(&mut self) {
        if !self.closed.load(Ordering::Relaxed) {
            self.controller.put_namespace(&self.state);
        }
    }
}
