//! System calls that have no operation of their own, with arguments that own what they point to.
//!
//! The table says for each call what its arguments are. A number can therefore never stand where the
//! kernel expects an address, and the length of a buffer is never the caller's word.
#![expect(unsafe_code, reason = "makes system calls, and a constructor for callers who vouch")]

use std::ffi::CString;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::memory::Descriptor;
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
    /// The descriptor that the call made, afterwards. It is closed with this unless it is taken out.
    pub opened: Option<OwnedFd>,
}

#[derive(Debug)]
enum What {
    Listed { row: &'static Row, arguments: Vec<Argument> },
    Raw([usize; 6]),
}

/// What the kernel takes in one place.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Value,
    Fd,
    Dir,
    Path,
    /// A structure of at least so many bytes.
    Struct(usize),
    /// The same, or no address.
    StructOrNull(usize),
    /// No address, ever.
    Null,
    /// Bytes, and in the next place how many.
    Bytes,
}

impl Kind {
    fn takes(self, argument: &Argument) -> bool {
        match (self, argument) {
            (Self::Value, Argument::Value(_))
            | (Self::Fd, Argument::Descriptor(_))
            | (Self::Dir, Argument::Directory(_))
            | (Self::Path, Argument::Path(_))
            | (Self::Bytes, Argument::Bytes(_))
            | (Self::StructOrNull(_) | Self::Null, Argument::Null) => true,
            (Self::Struct(len) | Self::StructOrNull(len), Argument::Bytes(bytes)) => {
                bytes.len() >= len
            }
            _ => false,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Value => "a number",
            Self::Fd => "a descriptor",
            Self::Dir => "a directory",
            Self::Path => "a name",
            Self::Struct(_) => "bytes, as many as the structure has",
            Self::StructOrNull(_) => "bytes, as many as the structure has, or null",
            Self::Null => "null",
            Self::Bytes => "bytes",
        }
    }
}

#[derive(Debug)]
struct Row {
    number: i64,
    name: &'static str,
    kinds: &'static [Kind],
    /// The result is a new descriptor.
    opens: bool,
    /// It may wait for somebody else, for ever.
    waits: bool,
}

const fn row(number: i64, name: &'static str, kinds: &'static [Kind]) -> Row {
    Row { number, name, kinds, opens: false, waits: false }
}

const fn waits(number: i64, name: &'static str, kinds: &'static [Kind]) -> Row {
    Row { number, name, kinds, opens: false, waits: true }
}

const fn opens(number: i64, name: &'static str, kinds: &'static [Kind]) -> Row {
    Row { number, name, kinds, opens: true, waits: false }
}

use Kind::{Bytes, Dir, Fd, Null, Path, Struct, StructOrNull, Value};

/// The allow-list. Nothing here depends on which thread of the process makes it, but for credentials,
/// working directory and umask, which the worker sees to.
const LISTED: &[Row] = &[
    row(libc::SYS_getxattr, "getxattr", &[Path, Path, Bytes]),
    row(libc::SYS_lgetxattr, "lgetxattr", &[Path, Path, Bytes]),
    row(libc::SYS_fgetxattr, "fgetxattr", &[Fd, Path, Bytes]),
    row(libc::SYS_setxattr, "setxattr", &[Path, Path, Bytes, Value]),
    row(libc::SYS_lsetxattr, "lsetxattr", &[Path, Path, Bytes, Value]),
    row(libc::SYS_fsetxattr, "fsetxattr", &[Fd, Path, Bytes, Value]),
    row(libc::SYS_listxattr, "listxattr", &[Path, Bytes]),
    row(libc::SYS_llistxattr, "llistxattr", &[Path, Bytes]),
    row(libc::SYS_flistxattr, "flistxattr", &[Fd, Bytes]),
    row(libc::SYS_removexattr, "removexattr", &[Path, Path]),
    row(libc::SYS_lremovexattr, "lremovexattr", &[Path, Path]),
    row(libc::SYS_fremovexattr, "fremovexattr", &[Fd, Path]),
    row(libc::SYS_fchmod, "fchmod", &[Fd, Value]),
    row(libc::SYS_fchmodat, "fchmodat", &[Dir, Path, Value]),
    row(libc::SYS_fchown, "fchown", &[Fd, Value, Value]),
    row(libc::SYS_fchownat, "fchownat", &[Dir, Path, Value, Value, Value]),
    row(
        libc::SYS_utimensat,
        "utimensat",
        &[Dir, Path, StructOrNull(2 * size_of::<libc::timespec>()), Value],
    ),
    row(libc::SYS_truncate, "truncate", &[Path, Value]),
    row(libc::SYS_mknodat, "mknodat", &[Dir, Path, Value, Value]),
    row(libc::SYS_readlinkat, "readlinkat", &[Dir, Path, Bytes]),
    row(libc::SYS_faccessat, "faccessat", &[Dir, Path, Value]),
    row(libc::SYS_faccessat2, "faccessat2", &[Dir, Path, Value, Value]),
    row(libc::SYS_statfs, "statfs", &[Path, Struct(size_of::<libc::statfs>())]),
    row(libc::SYS_fstatfs, "fstatfs", &[Fd, Struct(size_of::<libc::statfs>())]),
    row(libc::SYS_fstat, "fstat", &[Fd, Struct(size_of::<libc::stat>())]),
    row(libc::SYS_newfstatat, "newfstatat", &[Dir, Path, Struct(size_of::<libc::stat>()), Value]),
    row(libc::SYS_getdents64, "getdents64", &[Fd, Bytes]),
    row(libc::SYS_lseek, "lseek", &[Fd, Value, Value]),
    waits(libc::SYS_flock, "flock", &[Fd, Value]),
    row(libc::SYS_sync, "sync", &[]),
    row(libc::SYS_syncfs, "syncfs", &[Fd]),
    waits(libc::SYS_sendfile, "sendfile", &[Fd, Fd, Null, Value]),
    waits(libc::SYS_tee, "tee", &[Fd, Fd, Value, Value]),
    row(libc::SYS_getrandom, "getrandom", &[Bytes, Value]),
    row(libc::SYS_uname, "uname", &[Struct(size_of::<libc::utsname>())]),
    row(libc::SYS_sysinfo, "sysinfo", &[Struct(size_of::<libc::sysinfo>())]),
    row(libc::SYS_clock_gettime, "clock_gettime", &[Value, Struct(size_of::<libc::timespec>())]),
    row(libc::SYS_inotify_add_watch, "inotify_add_watch", &[Fd, Path, Value]),
    row(libc::SYS_inotify_rm_watch, "inotify_rm_watch", &[Fd, Value]),
    row(libc::SYS_bind, "bind", &[Fd, Bytes]),
    row(libc::SYS_listen, "listen", &[Fd, Value]),
    row(libc::SYS_umount2, "umount2", &[Path, Value]),
    waits(
        libc::SYS_waitid,
        "waitid",
        &[Value, Value, Struct(size_of::<libc::siginfo_t>()), Value, Null],
    ),
    opens(libc::SYS_socket, "socket", &[Value, Value, Value]),
    opens(libc::SYS_memfd_create, "memfd_create", &[Path, Value]),
    opens(libc::SYS_pidfd_open, "pidfd_open", &[Value, Value]),
    opens(libc::SYS_inotify_init1, "inotify_init1", &[Value]),
];

/// Those that are an operation already, with its personality and without a worker.
const OPERATIONS: &[(i64, &str)] = &[
    (libc::SYS_read, "read"),
    (libc::SYS_write, "write"),
    (libc::SYS_readv, "readv"),
    (libc::SYS_writev, "writev"),
    (libc::SYS_pread64, "pread64"),
    (libc::SYS_pwrite64, "pwrite64"),
    (libc::SYS_preadv, "preadv"),
    (libc::SYS_pwritev, "pwritev"),
    (libc::SYS_preadv2, "preadv2"),
    (libc::SYS_pwritev2, "pwritev2"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_sync_file_range, "sync_file_range"),
    (libc::SYS_accept4, "accept4"),
    (libc::SYS_connect, "connect"),
    (libc::SYS_sendto, "sendto"),
    (libc::SYS_recvfrom, "recvfrom"),
    (libc::SYS_sendmsg, "sendmsg"),
    (libc::SYS_recvmsg, "recvmsg"),
    (libc::SYS_shutdown, "shutdown"),
    (libc::SYS_openat, "openat"),
    (libc::SYS_close, "close"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_linkat, "linkat"),
    (libc::SYS_symlinkat, "symlinkat"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_statx, "statx"),
    (libc::SYS_fallocate, "fallocate"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_fadvise64, "fadvise64"),
    (libc::SYS_readahead, "readahead"),
    (libc::SYS_splice, "splice"),
    (libc::SYS_copy_file_range, "copy_file_range"),
    (libc::SYS_ppoll, "ppoll"),
    (libc::SYS_epoll_pwait, "epoll_pwait"),
    (libc::SYS_nanosleep, "nanosleep"),
];

/// Those that are about whoever makes them.
const OFF_THREAD: &[(i64, &str)] = &[
    (libc::SYS_exit, "exit"),
    (libc::SYS_exit_group, "exit_group"),
    (libc::SYS_clone, "clone"),
    (libc::SYS_clone3, "clone3"),
    (libc::SYS_execve, "execve"),
    (libc::SYS_execveat, "execveat"),
    (libc::SYS_gettid, "gettid"),
    (libc::SYS_set_tid_address, "set_tid_address"),
    (libc::SYS_set_robust_list, "set_robust_list"),
    (libc::SYS_rseq, "rseq"),
    (libc::SYS_rt_sigreturn, "rt_sigreturn"),
    (libc::SYS_rt_sigprocmask, "rt_sigprocmask"),
    (libc::SYS_rt_sigsuspend, "rt_sigsuspend"),
    (libc::SYS_rt_sigtimedwait, "rt_sigtimedwait"),
    (libc::SYS_sigaltstack, "sigaltstack"),
    (libc::SYS_restart_syscall, "restart_syscall"),
    (libc::SYS_brk, "brk"),
    (libc::SYS_mmap, "mmap"),
    (libc::SYS_munmap, "munmap"),
    (libc::SYS_mremap, "mremap"),
    (libc::SYS_mprotect, "mprotect"),
    (libc::SYS_prctl, "prctl"),
    (libc::SYS_ptrace, "ptrace"),
    (libc::SYS_seccomp, "seccomp"),
    (libc::SYS_personality, "personality"),
    (libc::SYS_unshare, "unshare"),
    (libc::SYS_setns, "setns"),
    (libc::SYS_chroot, "chroot"),
    (libc::SYS_chdir, "chdir"),
    (libc::SYS_fchdir, "fchdir"),
    (libc::SYS_getcwd, "getcwd"),
    (libc::SYS_umask, "umask"),
    (libc::SYS_setuid, "setuid"),
    (libc::SYS_setgid, "setgid"),
    (libc::SYS_setreuid, "setreuid"),
    (libc::SYS_setregid, "setregid"),
    (libc::SYS_setresuid, "setresuid"),
    (libc::SYS_setresgid, "setresgid"),
    (libc::SYS_setfsuid, "setfsuid"),
    (libc::SYS_setfsgid, "setfsgid"),
    (libc::SYS_setgroups, "setgroups"),
    (libc::SYS_capset, "capset"),
    (libc::SYS_sched_yield, "sched_yield"),
    (libc::SYS_io_submit, "io_submit"),
    (libc::SYS_io_uring_enter, "io_uring_enter"),
];

/// And those that only this architecture has left.
#[cfg(target_arch = "x86_64")]
const OFF_THREAD_HERE: &[(i64, &str)] = &[
    (libc::SYS_fork, "fork"),
    (libc::SYS_vfork, "vfork"),
    (libc::SYS_pause, "pause"),
    (libc::SYS_alarm, "alarm"),
    (libc::SYS_arch_prctl, "arch_prctl"),
];
#[cfg(not(target_arch = "x86_64"))]
const OFF_THREAD_HERE: &[(i64, &str)] = &[];

fn find(list: &[(i64, &'static str)], number: i64) -> Option<&'static str> {
    list.iter().find(|(listed, _)| *listed == number).map(|(_, name)| *name)
}

fn off_thread(number: i64) -> Result<(), CallRefused> {
    match find(OFF_THREAD, number).or_else(|| find(OFF_THREAD_HERE, number)) {
        Some(name) => Err(CallRefused::OffThread { name }),
        None => Ok(()),
    }
}

impl Call {
    /// A call (`SYS_flock` …) with its arguments in their order, the lengths of buffers left out:
    /// `fgetxattr` takes a descriptor, a name and bytes to be filled.
    ///
    /// # Errors
    ///
    /// When the call is not one that can be made, or its arguments are not what it takes.
    pub fn new(number: i64, arguments: Vec<Argument>) -> Result<Self, CallRefused> {
        off_thread(number)?;
        if let Some(name) = find(OPERATIONS, number) {
            return Err(CallRefused::HasOperation { name });
        }
        let row = LISTED.iter().find(|row| row.number == number);
        let Some(row) = row else { return Err(CallRefused::NotListed { number }) };
        let name = row.name;
        let (wanted, given) = (row.kinds.len(), arguments.len());
        if wanted != given {
            return Err(CallRefused::Arguments { name, wanted, given });
        }
        for (index, (kind, argument)) in row.kinds.iter().zip(&arguments).enumerate() {
            if !kind.takes(argument) {
                return Err(CallRefused::Argument { name, index, wanted: kind.name() });
            }
        }
        let what = What::Listed { row, arguments };
        Ok(Self { number, what, working_directory: None, opened: None })
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
        off_thread(number)?;
        let what = What::Raw(arguments);
        Ok(Self { number, what, working_directory: None, opened: None })
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
        if arguments.iter().any(relative) {
            self.working_directory = Some(working_directory()?);
        }
        if self.number == libc::SYS_mknodat
            && let Argument::Value(mode) = &mut arguments[2]
        {
            *mode &= !u64::from(super::settled::umask()?);
        }
        Ok(())
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
                    words[at] = match argument {
                        Argument::Value(value) => *value as usize,
                        Argument::Descriptor(fd) => fd.as_raw_fd() as usize,
                        Argument::Directory(directory) => directory.as_raw_fd() as usize,
                        Argument::Path(path) => path.as_ptr().expose_provenance(),
                        Argument::Bytes(bytes) => bytes.as_mut_ptr().expose_provenance(),
                        Argument::Null => 0,
                    };
                    if let (Kind::Bytes, Argument::Bytes(bytes)) = (kind, argument) {
                        at += 1;
                        words[at] = bytes.len();
                    }
                    at += 1;
                }
            }
        }
        let [a, b, c, d, e, f] = words;
        // SAFETY: for a listed call the table says what each argument is, `new` has compared, every
        // address is of memory that the arguments own, and every length is that of its buffer; for a
        // raw one the caller vouched.
        let result = unsafe { libc::syscall(self.number, a, b, c, d, e, f) };
        if result == -1 {
            return Err(last_errno());
        }
        if opens {
            // SAFETY: the kernel has just given this descriptor to us.
            self.opened = Some(unsafe { OwnedFd::from_raw_fd(result as i32) });
        }
        Ok(result as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_off_thread_is_refused_by_name() {
        for (number, name) in OFF_THREAD.iter().chain(OFF_THREAD_HERE).copied() {
            let error = Call::new(number, Vec::new()).unwrap_err();
            assert_eq!(error, CallRefused::OffThread { name });
            assert_eq!(error.errno(), libc::EOPNOTSUPP);
        }
        let exit = Call::new(libc::SYS_exit, vec![Argument::Value(0)]).unwrap_err();
        assert_eq!(exit.to_string(), "exit makes no sense on another thread");
        assert_eq!(
            Call::new(libc::SYS_openat, Vec::new()).unwrap_err(),
            CallRefused::HasOperation { name: "openat" }
        );
        let number = libc::SYS_ioctl;
        assert_eq!(Call::new(number, Vec::new()).unwrap_err(), CallRefused::NotListed { number });
    }

    #[test]
    fn a_number_never_stands_where_the_kernel_expects_an_address() {
        for row in LISTED {
            for (index, kind) in row.kinds.iter().enumerate() {
                if matches!(kind, Kind::Value) {
                    continue;
                }
                let arguments = row.kinds.iter().enumerate().map(|(at, kind)| match kind {
                    _ if at == index => Argument::Value(4096),
                    Kind::Value => Argument::Value(0),
                    Kind::Fd => Argument::Descriptor(Descriptor::new(std::io::pipe().unwrap().0)),
                    Kind::Dir => Argument::Directory(Directory::Current),
                    Kind::Path => Argument::Path(c"x".into()),
                    Kind::Struct(len) | Kind::StructOrNull(len) => Argument::Bytes(vec![0; *len]),
                    Kind::Null => Argument::Null,
                    Kind::Bytes => Argument::Bytes(vec![0; 8]),
                });
                let error = Call::new(row.number, arguments.collect()).unwrap_err();
                assert!(matches!(error, CallRefused::Argument { index: at, .. } if at == index));
            }
            let places = row.kinds.len()
                + row.kinds.iter().filter(|kind| matches!(kind, Kind::Bytes)).count();
            assert!(places <= 6, "{} has more arguments than a call", row.name);
        }
    }

    #[test]
    fn a_structure_that_is_too_short_is_refused() {
        let short = Argument::Bytes(vec![0; size_of::<libc::utsname>() - 1]);
        let error = Call::new(libc::SYS_uname, vec![short]).unwrap_err();
        assert!(matches!(error, CallRefused::Argument { name: "uname", index: 0, .. }));
    }
}
