//! The controller's registers: what a PCI function must offer, and a typed face over it.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::shadow::{Shadow, ShadowDoorbell};
use super::spec::register::{self, Aqa, Cap, Cc, Csts};

/// The registers of BAR 0: a mapped BAR, or a controller in this process.
///
/// # Ordering
///
/// A write is seen by the controller after every store to DMA memory that the caller made before it
/// (what `wmb` before `writel` is in a kernel): the entries of a ring before its doorbell. Reads are
/// not moved before earlier reads of registers.
///
/// # Range
///
/// An offset outside the BAR is a defect of this driver, not of the device: implementations panic.
/// The driver checks once, when it starts, that its highest doorbell is inside.
pub trait Registers: Send + Sync {
    /// Size of what can be accessed, in bytes.
    fn len_bytes(&self) -> usize;
    /// Reads a 32-bit register. All ones when the function is gone from the bus.
    fn read32(&self, offset: u32) -> u32;
    /// Reads a 64-bit register, in one access or two.
    fn read64(&self, offset: u32) -> u64;
    /// Writes a 32-bit register.
    fn write32(&self, offset: u32, value: u32);
    /// Writes a 64-bit register, in one access or two, low half first.
    fn write64(&self, offset: u32, value: u64);
}

/// A PCI function that an NVMe controller sits behind, with the pool mapped for it.
pub trait Function: Registers + fmt::Debug {
    /// What it is called in messages, such as `0000:00:04.0`.
    fn name(&self) -> &str;

    /// How many interrupt vectors there are; 0 when it only can be polled.
    fn vectors(&self) -> u16;

    /// What becomes readable when `vector` fires; `None` when there is no such vector.
    fn event_fd(&self, vector: u16) -> Option<BorrowedFd<'_>>;

    /// Lets `vector` fire or not, and says whether it will. What happens while it may not is kept,
    /// and fires it when it is allowed again.
    fn set_interrupt(&self, vector: u16, on: bool) -> bool;

    /// Puts all memory out of the device's reach, whatever it does from now on, for good. Says
    /// whether that is certain. For a device that does not stop when it is told to.
    fn cut_off(&self) -> bool;

    /// Gives the function back to whoever wants it: its registers read as all ones afterwards. Only
    /// for a controller that is quiet and has ended.
    fn give_back(&self) {}

    /// Whether the kernel, or whoever gave the function, wants it back. Cheap enough for once a second;
    /// does not block.
    fn is_asked_back(&self) -> bool {
        false
    }
}

/// The registers with their types. A register that reads as all ones is `None`: the function is gone
/// (surprise removal, a link that is down); no register of ours can have that value.
#[derive(Clone, Debug)]
pub(super) struct Properties {
    function: Arc<dyn Function>,
}

impl Properties {
    pub(super) fn new(function: Arc<dyn Function>) -> Self {
        Self { function }
    }

    pub(super) fn cap(&self) -> Option<Cap> {
        let raw = self.function.read64(register::CAP);
        (raw != u64::MAX).then(|| Cap::from(raw))
    }

    pub(super) fn version(&self) -> Option<u32> {
        let raw = self.function.read32(register::VS);
        (raw != u32::MAX).then_some(raw)
    }

    pub(super) fn cc(&self) -> Option<Cc> {
        let raw = self.function.read32(register::CC);
        (raw != u32::MAX).then(|| Cc::from(raw))
    }

    pub(super) fn set_cc(&self, cc: Cc) {
        self.function.write32(register::CC, cc.into());
    }

    pub(super) fn write_nssr(&self, value: u32) {
        self.function.write32(register::NSSR, value);
    }

    pub(super) fn csts(&self) -> Option<Csts> {
        let raw = self.function.read32(register::CSTS);
        (raw != u32::MAX).then(|| Csts::from(raw))
    }

    pub(super) fn set_admin_queue(&self, aqa: Aqa, asq: u64, acq: u64) {
        self.function.write32(register::AQA, aqa.into());
        self.function.write64(register::ASQ, asq);
        self.function.write64(register::ACQ, acq);
    }
}

/// A doorbell: where the tail of a submission queue or the head of a completion queue is written.
#[derive(Clone, Debug)]
pub(super) struct Doorbell {
    function: Arc<dyn Function>,
    offset: u32,
    shadow: Option<ShadowDoorbell>,
}

impl Doorbell {
    /// The tail doorbell of submission queue `qid` (Base 2.0c, PCIe transport §3.1.2.1).
    pub(super) fn submission(
        function: &Arc<dyn Function>,
        cap: Cap,
        qid: u16,
        shadow: Option<&Arc<Shadow>>,
    ) -> Self {
        Self::new(function, cap, 2 * u32::from(qid), shadow)
    }

    /// The head doorbell of completion queue `qid` (PCIe transport §3.1.2.2).
    pub(super) fn completion(
        function: &Arc<dyn Function>,
        cap: Cap,
        qid: u16,
        shadow: Option<&Arc<Shadow>>,
    ) -> Self {
        Self::new(function, cap, 2 * u32::from(qid) + 1, shadow)
    }

    fn new(
        function: &Arc<dyn Function>,
        cap: Cap,
        index: u32,
        shadow: Option<&Arc<Shadow>>,
    ) -> Self {
        Self {
            function: Arc::clone(function),
            offset: doorbell_offset(cap, index),
            shadow: shadow.and_then(|shadow| ShadowDoorbell::new(shadow, index)),
        }
    }

    /// Writes it.
    #[inline]
    pub(super) fn ring(&mut self, index: u16) {
        if self.shadow.as_mut().is_none_or(|shadow| shadow.set(index)) {
            self.function.write32(self.offset, u32::from(index));
        }
    }

    /// The queue is made anew, and the controller does not know of it yet.
    pub(super) fn reset(&mut self) {
        if let Some(shadow) = &mut self.shadow {
            shadow.start_again();
        }
    }
}

fn doorbell_offset(cap: Cap, index: u32) -> u32 {
    register::DOORBELLS + index * (4 << cap.dstrd())
}

/// How many I/O queues have their doorbells inside a BAR of `len_bytes`.
pub(super) fn queues_in_bar(cap: Cap, len_bytes: usize) -> u16 {
    let pair_bytes = 2 * (4usize << cap.dstrd());
    let pairs = len_bytes.saturating_sub(register::DOORBELLS as usize) / pair_bytes;
    // One pair is the admin queue's.
    u16::try_from(pairs.saturating_sub(1)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doorbells_are_where_the_stride_puts_them() {
        assert_eq!(doorbell_offset(Cap::new(), 0), 0x1000);
        assert_eq!(doorbell_offset(Cap::new(), 3), 0x100c);
        assert_eq!(doorbell_offset(Cap::new().with_dstrd(4), 3), 0x10c0);
        assert_eq!(queues_in_bar(Cap::new(), 0x1000), 0);
        assert_eq!(queues_in_bar(Cap::new(), 0x1008), 0);
        assert_eq!(queues_in_bar(Cap::new(), 0x1010), 1);
        assert_eq!(queues_in_bar(Cap::new().with_dstrd(15), 0x2000), 0);
    }
}
