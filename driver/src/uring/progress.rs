//! What to make of one result of the kernel: done, or what is to be asked next. No I/O here.

use crate::error::{IoError, IoErrorKind, IoResult};
use crate::request::Op;

/// How often one request is sent again after EAGAIN, EINTR or a cancellation nobody asked for. (A
/// thread that ends takes back what it had queued in the kernel's workers, and a queue may have moved
/// on to another thread by then.)
const RETRIES_MAX: u16 = 1000;

/// What the kernel is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A read or a write of the request's frames.
    Transfer,
    /// fdatasync.
    Sync,
    /// `FALLOC_FL_PUNCH_HOLE`: frees the blocks, and they read as zeroes.
    Punch,
    /// `FALLOC_FL_ZERO_RANGE`: the blocks stay allocated and read as zeroes.
    ZeroRange,
    /// Plain writes of zeroes, where the file system has neither.
    WriteZeroes,
}

impl Step {
    /// The first step of a request. `zero_range` says that the file took it so far.
    pub(super) const fn first(op: Op, zero_range: bool) -> Self {
        match op {
            Op::Read | Op::Write { .. } => Self::Transfer,
            Op::Flush => Self::Sync,
            Op::Discard | Op::WriteZeroes { may_unmap: true } => Self::Punch,
            Op::WriteZeroes { may_unmap: false } if zero_range => Self::ZeroRange,
            Op::WriteZeroes { may_unmap: false } => Self::WriteZeroes,
        }
    }
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) step: Step,
    /// The whole length, in bytes; 0 for a flush.
    pub(super) len_bytes: u64,
    /// How much of it has been transferred, in bytes: a multiple of the block size.
    pub(super) done_bytes: u64,
    /// How much was asked for in the entry under way, in bytes.
    pub(super) asked_bytes: u32,
    pub(super) retries: u16,
}

impl Progress {
    pub(super) const fn new(step: Step, len_bytes: u64) -> Self {
        Self { step, len_bytes, done_bytes: 0, asked_bytes: 0, retries: 0 }
    }

    /// Takes the kernel's result for the entry under way: the request's own result when it is done,
    /// `None` when the step that is now in `self` must be sent.
    pub(super) fn advance(&mut self, op: Op, block_size: u32, result: i32) -> Option<IoResult> {
        if result < 0 {
            return self.advance_after_error(op, result.saturating_neg());
        }
        match self.step {
            Step::Sync | Step::Punch | Step::ZeroRange => Some(Ok(())),
            Step::Transfer | Step::WriteZeroes => self.advance_by(op, block_size, result as u32),
        }
    }

    fn advance_by(&mut self, op: Op, block_size: u32, moved_bytes: u32) -> Option<IoResult> {
        if moved_bytes > self.asked_bytes {
            // More than was asked for: nothing this kernel says about the request can be believed.
            return Some(Err(IoError::new(IoErrorKind::Device)));
        }
        // Direct I/O continues at a block only; what was moved of a broken one is moved again.
        let whole_bytes = moved_bytes - moved_bytes % block_size;
        if whole_bytes == 0 {
            // The end of the file: it was truncated under us. Zeroes would be a lie.
            let errno = if op == Op::Read { libc::ENODATA } else { libc::EIO };
            return Some(Err(IoError::from_errno(errno)));
        }
        self.retries = 0;
        self.done_bytes += u64::from(whole_bytes);
        (self.done_bytes >= self.len_bytes).then_some(Ok(()))
    }

    fn advance_after_error(&mut self, op: Op, errno: i32) -> Option<IoResult> {
        let zeroes = matches!(op, Op::WriteZeroes { .. });
        match (errno, self.step) {
            (libc::EAGAIN | libc::EINTR | libc::ECANCELED, _) if self.retries < RETRIES_MAX => {
                self.retries += 1;
                None
            }
            (libc::EOPNOTSUPP, Step::Punch) if zeroes => {
                self.step = Step::ZeroRange;
                None
            }
            (libc::EOPNOTSUPP, Step::ZeroRange) if zeroes => {
                self.step = Step::WriteZeroes;
                None
            }
            _ => Some(Err(IoError::from_errno(errno))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Op = Op::Write { fua: false };
    const ZEROES: Op = Op::WriteZeroes { may_unmap: true };

    fn asked(step: Step, len_bytes: u64) -> Progress {
        Progress { asked_bytes: len_bytes as u32, ..Progress::new(step, len_bytes) }
    }

    #[test]
    fn a_short_transfer_goes_on_where_it_stopped_and_never_counts_as_done() {
        for op in [Op::Read, WRITE] {
            let mut progress = asked(Step::Transfer, 4096);
            assert_eq!(progress.advance(op, 512, 1000), None);
            assert_eq!(progress.done_bytes, 512, "a broken block is moved again");
            progress.asked_bytes = 3584;
            assert_eq!(progress.advance(op, 512, 3583), None);
            assert_eq!(progress.done_bytes, 3584);
            progress.asked_bytes = 512;
            assert_eq!(progress.advance(op, 512, 512), Some(Ok(())));
        }
    }

    #[test]
    fn the_end_of_the_file_is_an_error_and_not_zeroes() {
        for moved in [0, 1, 511] {
            let mut progress = asked(Step::Transfer, 4096);
            let Some(Err(error)) = progress.advance(Op::Read, 512, moved) else {
                panic!("{moved}")
            };
            assert_eq!(error.kind, IoErrorKind::Media);
        }
    }

    #[test]
    fn more_than_was_asked_for_is_an_error() {
        let result = asked(Step::Transfer, 4096).advance(Op::Read, 512, 4097);
        assert_eq!(result, Some(Err(IoError::new(IoErrorKind::Device))));
        let result = asked(Step::WriteZeroes, 4096).advance(ZEROES, 512, i32::MAX);
        assert_eq!(result, Some(Err(IoError::new(IoErrorKind::Device))));
    }

    #[test]
    fn what_may_be_passing_is_tried_again_and_not_for_ever() {
        for errno in [libc::EAGAIN, libc::EINTR, libc::ECANCELED] {
            let mut progress = asked(Step::Transfer, 4096);
            for _ in 0..RETRIES_MAX {
                assert_eq!(progress.advance(WRITE, 512, -errno), None);
            }
            let error = IoError::from_errno(errno);
            assert_eq!(progress.advance(WRITE, 512, -errno), Some(Err(error)));
        }
    }

    #[test]
    fn zeroes_fall_back_from_hole_to_range_to_writes_and_a_discard_does_not() {
        let mut progress = asked(Step::Punch, 4096);
        assert_eq!(progress.advance(ZEROES, 512, -libc::EOPNOTSUPP), None);
        assert_eq!(progress.step, Step::ZeroRange);
        assert_eq!(progress.advance(ZEROES, 512, -libc::EOPNOTSUPP), None);
        assert_eq!(progress.step, Step::WriteZeroes);
        let unsupported = Some(Err(IoError::from_errno(libc::EOPNOTSUPP)));
        assert_eq!(progress.advance(ZEROES, 512, -libc::EOPNOTSUPP), unsupported);
        let mut discard = asked(Step::Punch, 4096);
        assert_eq!(discard.advance(Op::Discard, 512, -libc::EOPNOTSUPP), unsupported);
    }

    #[test]
    fn every_step_ends_with_success_or_with_the_errno() {
        let ops = [
            (Op::Read, Step::Transfer),
            (WRITE, Step::Transfer),
            (Op::Flush, Step::Sync),
            (Op::Discard, Step::Punch),
            (ZEROES, Step::Punch),
            (ZEROES, Step::ZeroRange),
            (ZEROES, Step::WriteZeroes),
        ];
        for (op, step) in ops {
            for errno in [libc::EIO, libc::ENOSPC, libc::ENODEV, libc::EINVAL, libc::EBADF] {
                let result = asked(step, 4096).advance(op, 512, -errno);
                assert_eq!(result, Some(Err(IoError::from_errno(errno))), "{op:?} {step:?}");
            }
            let moved = if matches!(step, Step::Transfer | Step::WriteZeroes) { 4096 } else { 0 };
            assert_eq!(asked(step, 4096).advance(op, 512, moved), Some(Ok(())), "{op:?} {step:?}");
            // Whatever a kernel makes up is an answer, not a panic.
            let _ = asked(step, 4096).advance(op, 512, i32::MIN);
        }
    }
}
