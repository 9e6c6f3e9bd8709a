//! System calls that have no operation of their own, with arguments that own what they point to.
//!
//! The table (`calls.rs`) says for each call what its arguments are. A number can therefore never stand where the
//! kernel expects an address, and the length of a buffer is never the caller's word.
#![expect(unsafe_code, reason = "makes system calls, and a constructor for callers who vouch")]

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::calls::{self, Row, Takes};
use super::memory::{Descriptor, Memory};
use super::op::Directory;
use super::settled::{last_errno, working_directory};

/// What one argument of a call is made of.
#[derive(Debug)]
pub enum Argument {
    /// A number: flags, a mode, an offset, a length that is not that of a buffer.
    Value(u64),
    /// A descriptor.
    Descriptor(Descriptor),
    /// Where the name that follows begins, if it is relative.
    Directory(Directory),
    /// A name, or another string that ends with a zero.
    Path(CString),
    /// Bytes that the kernel reads or writes. Their length, where the call has one, is passed with
    /// them; it is no argument here.
    Bytes(Vec<u8>),
    /// The same, of whoever made this [by address](Memory::raw), which the kernel checks.
    Memory(Memory),
    /// No address, where the call lets one out.
    Null,
}

/// Why a call is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallRefused {
    /// It is about the thread or the memory of the process that makes it, so another thread cannot
    /// make it for this one: EOPNOTSUPP.
    #[error("{name} makes no sense on another thread")]
    OffThread {
        /// The call.
        name: &'static str,
    },
    /// It has an operation of its own: EINVAL.
    #[error("{name} has an operation of its own")]
    HasOperation {
        /// The call.
        name: &'static str,
    },
    /// It is not among those that can be made: ENOSYS.
    #[error("system call {number} is not among those that can be made")]
    NotListed {
        /// Its number.
        number: i64,
    },
    /// It has another number of arguments: EINVAL.
    #[error("{name} takes {wanted} arguments, not {given}")]
    Arguments {
        /// The call.
        name: &'static str,
        /// How many it takes, lengths of buffers not counted.
        wanted: usize,
        /// How many were given.
        given: usize,
    },
    /// An argument is of the wrong kind, or a structure too short: EINVAL.
    #[error("argument {index} of {name} is to be {wanted}")]
    Argument {
        /// The call.
        name: &'static str,
        /// Which argument, from 0.
        index: usize,
        /// What it takes.
        wanted: &'static str,
    },
}

impl CallRefused {
    /// The positive errno that says this to a program.
    pub fn errno(self) -> i32 {
        match self {
            Self::OffThread { .. } => libc::EOPNOTSUPP,
            Self::NotListed { .. } => libc::ENOSYS,
            Self::HasOperation { .. } | Self::Arguments { .. } | Self::Argument { .. } => {
                libc::EINVAL
            }
        }
    }
}

/// A system call with its arguments.
#[derive(Debug)]
pub struct Call {
    number: i64,
    what: What,
    /// Where relative names without a directory begin.
    working_directory: Option<OwnedFd>,
    /// The mode of a mknodat before the umask was put to it.
    unmasked: Option<u64>,
    /// The umask that the thread has to have which makes it, where no argument is a mode.
    umask: Option<u32>,
    /// The descriptor that the call made, afterwards. It is closed with this unless it is taken out.
    pub opened: Option<OwnedFd>,
}

#[derive(Debug)]
enum What {
    Listed { row: &'static Row, arguments: Vec<Argument> },
    Raw([usize; 6]),
}

impl Call {
    /// A call (`SYS_flock` …) with its arguments in their order, the lengths of buffers left out:
    /// `fgetxattr` takes a descriptor, a name and bytes to be filled.
    ///
    /// # Errors
    ///
    /// When the call is not one that can be made, or its arguments are not what it takes.
    pub fn new(number: i64, arguments: Vec<Argument>) -> Result<Self, CallRefused> {
        let row = Self::row(number)?;
        let name = row.name;
        let (wanted, given) = (row.kinds.len(), arguments.len());
        if wanted != given {
            return Err(CallRefused::Arguments { name, wanted, given });
        }
        for (index, (kind, argument)) in row.kinds.iter().zip(&arguments).enumerate() {
            if !kind.fits(argument) {
                return Err(CallRefused::Argument { name, index, wanted: kind.name() });
            }
        }
        let what = What::Listed { row, arguments };
        Ok(Self {
            number,
            what,
            working_directory: None,
            unmasked: None,
            umask: None,
            opened: None,
        })
    }

    /// What a call takes, place by place, the lengths of buffers left out.
    ///
    /// # Errors
    ///
    /// When the call is not one that can be made.
    pub fn takes(number: i64) -> Result<&'static [Takes], CallRefused> {
        Self::row(number).map(|row| row.kinds)
    }

    fn row(number: i64) -> Result<&'static Row, CallRefused> {
        calls::off_thread(number)?;
        if let Some(name) = calls::operation(number) {
            return Err(CallRefused::HasOperation { name });
        }
        calls::listed(number).ok_or(CallRefused::NotListed { number })
    }

    /// A call with arguments as the kernel takes them, whether it is listed or not.
    ///
    /// # Safety
    ///
    /// The call, made at any time until its answer by another thread that has a working directory and
    /// a umask of its own, is one that Rust code may make with these arguments.
    ///
    /// # Errors
    ///
    /// [`CallRefused::OffThread`].
    pub unsafe fn raw(number: i64, arguments: [usize; 6]) -> Result<Self, CallRefused> {
        calls::off_thread(number)?;
        let what = What::Raw(arguments);
        Ok(Self {
            number,
            what,
            working_directory: None,
            unmasked: None,
            umask: None,
            opened: None,
        })
    }

    /// Its arguments, filled in by then if it is done; none for a raw one.
    pub fn into_arguments(self) -> Vec<Argument> {
        match self.what {
            What::Listed { arguments, .. } => arguments,
            What::Raw(_) => Vec::new(),
        }
    }

    pub(super) fn descriptor(&self) -> Option<&Descriptor> {
        let What::Listed { arguments, .. } = &self.what else { return None };
        arguments.iter().find_map(|argument| match argument {
            Argument::Descriptor(fd) => Some(fd),
            _ => None,
        })
    }

    /// Takes down the working directory, if a name begins there, and puts the umask to the modes.
    pub(super) fn settle(&mut self) -> Result<(), Errno> {
        let What::Listed { arguments, .. } = &mut self.what else { return Ok(()) };
        let relative = |argument: &Argument| matches!(argument, Argument::Path(path) if !path.as_bytes().starts_with(b"/"));
        // An address of a Unix socket is the name of a file, which bind makes.
        let binds = self.number == libc::SYS_bind;
        let names_no_file = self.number == libc::SYS_memfd_create;
        if binds || !names_no_file && arguments.iter().any(relative) {
            self.working_directory = Some(working_directory()?);
        }
        if binds {
            self.umask = Some(super::settled::umask()?);
        }
        if self.number == libc::SYS_mknodat
            && let Argument::Value(mode) = &mut arguments[2]
        {
            let umask = super::settled::umask()?;
            self.unmasked = Some(*mode);
            *mode &= !u64::from(umask);
        }
        Ok(())
    }

    /// Makes it what it was before that.
    pub(super) fn unsettle(&mut self) {
        (self.working_directory, self.umask) = (None, None);
        if let (Some(unmasked), What::Listed { arguments, .. }) =
            (self.unmasked.take(), &mut self.what)
            && let Argument::Value(mode) = &mut arguments[2]
        {
            *mode = unmasked;
        }
    }

    /// Whether it may wait for somebody else, for ever; of a raw one nobody knows.
    pub(super) fn may_wait(&self) -> bool {
        match &self.what {
            What::Listed { row, .. } => row.waits,
            What::Raw(_) => true,
        }
    }

    /// The directory that this thread has to be in.
    pub(super) fn working_directory(&self) -> Option<&OwnedFd> {
        self.working_directory.as_ref()
    }

    /// Makes the call. Blocks as long as it takes.
    pub(super) fn make(&mut self) -> Result<u64, Errno> {
        let mut words = [0usize; 6];
        let mut opens = false;
        match &mut self.what {
            What::Raw(raw) => words = *raw,
            What::Listed { row, arguments } => {
                opens = row.opens;
                let mut at = 0;
                for (kind, argument) in row.kinds.iter().zip(arguments) {
                    words[at] = match &mut *argument {
                        Argument::Value(value) => *value as usize,
                        Argument::Descriptor(fd) => fd.as_raw_fd() as usize,
                        Argument::Directory(directory) => directory.as_raw_fd() as usize,
                        Argument::Path(path) => path.as_ptr().expose_provenance(),
                        Argument::Bytes(bytes) => bytes.as_mut_ptr().expose_provenance(),
                        Argument::Memory(memory) => memory.rest(0).0.expose_provenance(),
                        Argument::Null => 0,
                    };
                    if *kind == Takes::Bytes {
                        at += 1;
                        words[at] = match argument {
                            Argument::Bytes(bytes) => bytes.len(),
                            Argument::Memory(memory) => memory.len(),
                            _ => 0,
                        };
                    }
                    at += 1;
                }
            }
        }
        // Of this thread alone, which is a worker; nothing else that a worker makes minds it.
        let set_umask = |mask: u32| {
            // SAFETY: changes a number of this thread's.
            unsafe { libc::umask(mask) }
        };
        if let Some(umask) = self.umask {
            set_umask(umask);
        }
        let [a, b, c, d, e, f] = words;
        // SAFETY: for a listed call the table says what each argument is, `new` has compared, every
        // address is of memory that the arguments own, or for which its maker vouched, and every
        // length is that of its buffer; for a raw one the caller vouched.
        let result = unsafe { libc::syscall(self.number, a, b, c, d, e, f) };
        let failed = (result == -1).then(last_errno);
        if self.umask.is_some() {
            set_umask(0);
        }
        if let Some(errno) = failed {
            return Err(errno);
        }
        if opens {
            // SAFETY: the kernel has just given this descriptor to us.
            self.opened = Some(unsafe { OwnedFd::from_raw_fd(result as i32) });
        }
        Ok(result as u64)
    }
}
