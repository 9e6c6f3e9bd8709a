//! The control block: `struct aiocb` as the C library lays it out, and what of it is ours.
//!
//! The state of a request lies in its block, in fields that the standard leaves to the implementation, so that
//! `aio_error`, `aio_return` and `aio_suspend` need nothing but atomics. It is one word:
//!
//! ```text
//!  not ours ──submit──► EINPROGRESS ──(somebody sleeps on it)──► EINPROGRESS | SLEPT_ON
//!      ▲                     │                                          │ wake
//!      └───aio_return── 0 or an errno ◄───────────land──────────────────┘
//! ```
//!
//! Whether the word is ours at all says the `owner`: of a block that was never submitted, was returned, or was
//! submitted by the parent of this process it is another. Who lands a result writes the state last, and touches
//! the block no more: its owner may free it then.
#![expect(unsafe_code, reason = "control blocks of the program's, by address")]

use std::mem::offset_of;
use std::sync::atomic::{AtomicI32, AtomicIsize, AtomicU32, AtomicU64, Ordering};

use super::sleep;

/// `struct aiocb` of `<aio.h>` on 64 bits, where `struct aiocb64` is the same.
#[repr(C)]
pub(crate) struct Aiocb {
    pub(super) fildes: i32,
    pub(super) lio_opcode: i32,
    pub(super) reqprio: i32,
    pub(super) buf: *mut u8,
    pub(super) nbytes: usize,
    pub(super) sigevent: SigEvent,
    /// `__next_prio` of the C library's.
    owner: AtomicU64,
    abs_prio: i32,
    policy: i32,
    /// `__error_code`.
    state: AtomicI32,
    /// `__return_value`.
    result: AtomicIsize,
    pub(super) offset: i64,
    reserved: [u8; 32],
}

/// `struct sigevent` of `<signal.h>`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SigEvent {
    pub(super) value: usize,
    pub(super) signo: i32,
    pub(super) notify: i32,
    /// Either the number of a thread, or the function and its attributes.
    pub(super) target: [usize; 6],
}

const _: () = {
    assert!(size_of::<Aiocb>() == 168);
    assert!(size_of::<SigEvent>() == 64 && size_of::<SigEvent>() == size_of::<libc::sigevent>());
    assert!(offset_of!(Aiocb, fildes) == offset_of!(libc::aiocb, aio_fildes));
    assert!(offset_of!(Aiocb, lio_opcode) == offset_of!(libc::aiocb, aio_lio_opcode));
    assert!(offset_of!(Aiocb, reqprio) == offset_of!(libc::aiocb, aio_reqprio));
    assert!(offset_of!(Aiocb, buf) == offset_of!(libc::aiocb, aio_buf));
    assert!(offset_of!(Aiocb, nbytes) == offset_of!(libc::aiocb, aio_nbytes));
    assert!(offset_of!(Aiocb, sigevent) == offset_of!(libc::aiocb, aio_sigevent));
    assert!(offset_of!(Aiocb, offset) == offset_of!(libc::aiocb, aio_offset));
    assert!(size_of::<Aiocb>() == size_of::<libc::aiocb>());
};

/// In the state of one that is under way: somebody sleeps on it.
const SLEPT_ON: i32 = 1 << 30;
/// The upper half of the owner of a block that is ours; the lower half is the process's generation.
const OURS: u64 = 0x7561_696f << 32;

/// A control block by address.
///
/// The program says that there is one, as with every function of the C library that takes one, and that it stays
/// as it is until its operation is over (aio(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Control(*mut Aiocb);

// SAFETY: an address. What of the block changes while a request is under way is atomic.
unsafe impl Send for Control {}

/// What there is to know of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// No request of this process, or one whose result was taken.
    Unknown,
    /// Under way.
    InProgress,
    /// Over, with 0 or an errno.
    Over(i32),
}

impl Control {
    /// The block at this address; none at a null one, or one that no block can have.
    pub(crate) fn new(block: *mut Aiocb) -> Option<Self> {
        (!block.is_null() && block.is_aligned()).then_some(Self(block))
    }

    /// By what the reactor knows it.
    pub(crate) fn address(self) -> usize {
        self.0.addr()
    }

    /// What the program asked for. Taken down at submission, in case it does change the block after all.
    pub(super) fn fields(self) -> Fields {
        // SAFETY: a block of the program's, which it has filled and does not change now.
        let block = unsafe { &*self.0 };
        let Aiocb { fildes, lio_opcode, reqprio, buf, nbytes, sigevent, offset, .. } = *block;
        Fields { fildes, lio_opcode, reqprio, buf, nbytes, sigevent, offset }
    }

    fn owner(&self) -> &AtomicU64 {
        // SAFETY: the block is there, see the type; only atomics of it are used by more than one thread.
        unsafe { &(*self.0).owner }
    }

    fn state(&self) -> &AtomicI32 {
        // SAFETY: as above.
        unsafe { &(*self.0).state }
    }

    fn result(&self) -> &AtomicIsize {
        // SAFETY: as above.
        unsafe { &(*self.0).result }
    }

    /// The word that sleepers sleep on.
    fn word(&self) -> &AtomicU32 {
        let state = std::ptr::from_ref(self.state()).cast::<AtomicU32>();
        // SAFETY: the same four bytes, as a number without a sign.
        unsafe { &*state }
    }

    /// From now on it is a request of this process that is under way.
    pub(super) fn begin(self, generation: u32) {
        self.state().store(libc::EINPROGRESS, Ordering::Relaxed);
        // Release: who sees the owner sees the state. The reactor sees both because it takes the request.
        self.owner().store(OURS | u64::from(generation), Ordering::Release);
    }

    /// How it stands with it, for a process of this generation (0: one that has made no request).
    pub(super) fn status(self, generation: u32) -> Status {
        let owner = self.owner().load(Ordering::Acquire);
        if generation == 0 || owner != OURS | u64::from(generation) {
            return Status::Unknown;
        }
        // SeqCst: pairs with the fence in `suspend::tell`; it is no dearer than Acquire.
        match self.state().load(Ordering::SeqCst) & !SLEPT_ON {
            libc::EINPROGRESS => Status::InProgress,
            error => Status::Over(error),
        }
    }

    /// The result of one that is over: from now on it is no request any more.
    pub(super) fn take(self) -> isize {
        let result = self.result().load(Ordering::Relaxed);
        self.owner().store(0, Ordering::Relaxed);
        result
    }

    /// The result is there: the program may look at it, and have its block back.
    pub(super) fn land(self, result: Result<usize, i32>) {
        let (value, error) = match result {
            Ok(value) => (value as isize, 0),
            Err(errno) => (-1, errno),
        };
        self.result().store(value, Ordering::Relaxed);
        let word = std::ptr::from_ref(self.word());
        // Release: who sees that it is over sees the result, and what was read.
        let before = self.state().swap(error, Ordering::AcqRel);
        // The block may be gone from here on, but the address is as good: whoever sleeps there looks again.
        if before & SLEPT_ON != 0 {
            sleep::wake(word);
        }
    }

    /// Says that somebody is going to sleep until it is over; the word and value to sleep on, or none if it is.
    pub(super) fn sleep_on(&self) -> Option<(&AtomicU32, u32)> {
        let word = libc::EINPROGRESS | SLEPT_ON;
        match self.state().compare_exchange(
            libc::EINPROGRESS,
            word,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => Some((self.word(), word.cast_unsigned())),
            Err(now) => (now == word).then(|| (self.word(), word.cast_unsigned())),
        }
    }
}

/// What a control block says, but for its state.
#[derive(Clone, Copy)]
pub(super) struct Fields {
    pub(super) fildes: i32,
    pub(super) lio_opcode: i32,
    pub(super) reqprio: i32,
    pub(super) buf: *mut u8,
    pub(super) nbytes: usize,
    pub(super) sigevent: SigEvent,
    pub(super) offset: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(bytes: u8) -> Box<Aiocb> {
        let mut block = Box::<Aiocb>::new_uninit();
        // SAFETY: memory of that size.
        unsafe { std::ptr::write_bytes(block.as_mut_ptr(), bytes, 1) };
        // SAFETY: numbers and addresses, for which any bytes are a value.
        unsafe { block.assume_init() }
    }

    #[test]
    fn a_block_is_a_request_from_its_submission_until_its_result_is_taken() {
        for bytes in [0, 0xa5, 0xff] {
            let mut block = block(bytes);
            let control = Control::new(&raw mut *block).unwrap();
            assert_eq!(control.status(1), Status::Unknown);
            control.begin(1);
            assert_eq!(control.status(1), Status::InProgress);
            control.land(Ok(17));
            assert_eq!(control.status(1), Status::Over(0));
            assert_eq!(control.take(), 17);
            assert_eq!(control.status(1), Status::Unknown);
            control.begin(1);
            control.land(Err(libc::EIO));
            assert_eq!(control.status(1), Status::Over(libc::EIO));
            assert_eq!(control.take(), -1);
        }
    }

    #[test]
    fn a_block_is_no_request_of_another_process() {
        let mut block = block(0);
        let control = Control::new(&raw mut *block).unwrap();
        control.begin(7);
        assert_eq!(control.status(0), Status::Unknown, "of one that never made a request");
        assert_eq!(control.status(8), Status::Unknown, "of a child");
        assert_eq!(control.status(7), Status::InProgress);
    }

    #[test]
    fn that_somebody_sleeps_on_it_is_no_change_of_its_status() {
        let mut block = block(0);
        let control = Control::new(&raw mut *block).unwrap();
        control.begin(1);
        let (_, value) = control.sleep_on().unwrap();
        assert_eq!(control.sleep_on().unwrap().1, value, "so may another");
        assert_eq!(control.status(1), Status::InProgress);
        control.land(Ok(0));
        assert_eq!(control.status(1), Status::Over(0));
        assert!(control.sleep_on().is_none());
    }

    #[test]
    fn no_block_is_at_a_null_or_an_odd_address() {
        assert_eq!(Control::new(std::ptr::null_mut()), None);
        assert_eq!(Control::new(std::ptr::without_provenance_mut(0x1001)), None);
    }
}
