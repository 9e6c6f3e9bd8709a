//! Which system calls can be made, with what arguments, and which cannot and why.

use std::mem::size_of;

use super::call::{Argument, CallRefused};

/// What a call takes in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// [`Argument::Value`].
    Value,
    /// [`Argument::Descriptor`].
    Fd,
    /// [`Argument::Directory`].
    Dir,
    /// [`Argument::Path`].
    Path,
    /// [`Argument::Bytes`] or [`Argument::Memory`], of at least so many bytes: a structure.
    Struct(usize),
    /// The same, or [`Argument::Null`].
    StructOrNull(usize),
    /// [`Argument::Null`], ever.
    Null,
    /// [`Argument::Bytes`] or [`Argument::Memory`]; the kernel has their number in the place after.
    Bytes,
}

impl Takes {
    pub(super) fn fits(self, argument: &Argument) -> bool {
        match (self, argument) {
            (Self::Value, Argument::Value(_))
            | (Self::Fd, Argument::Descriptor(_))
            | (Self::Dir, Argument::Directory(_))
            | (Self::Path, Argument::Path(_))
            | (Self::Bytes, Argument::Bytes(_) | Argument::Memory(_))
            | (Self::StructOrNull(_) | Self::Null, Argument::Null) => true,
            (Self::Struct(len) | Self::StructOrNull(len), Argument::Bytes(bytes)) => {
                bytes.len() >= len
            }
            (Self::Struct(len) | Self::StructOrNull(len), Argument::Memory(memory)) => {
                memory.len() >= len
            }
            _ => false,
        }
    }

    pub(super) fn name(self) -> &'static str {
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
pub(super) struct Row {
    pub(super) number: i64,
    pub(super) name: &'static str,
    pub(super) kinds: &'static [Takes],
    /// The result is a new descriptor.
    pub(super) opens: bool,
    /// It may wait for somebody else, for ever.
    pub(super) waits: bool,
}

const fn row(number: i64, name: &'static str, kinds: &'static [Takes]) -> Row {
    Row { number, name, kinds, opens: false, waits: false }
}

const fn waits(number: i64, name: &'static str, kinds: &'static [Takes]) -> Row {
    Row { number, name, kinds, opens: false, waits: true }
}

const fn opens(number: i64, name: &'static str, kinds: &'static [Takes]) -> Row {
    Row { number, name, kinds, opens: true, waits: false }
}

use Takes::{Bytes, Dir, Fd, Null, Path, Struct, StructOrNull, Value};

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

pub(super) fn off_thread(number: i64) -> Result<(), CallRefused> {
    match find(OFF_THREAD, number).or_else(|| find(OFF_THREAD_HERE, number)) {
        Some(name) => Err(CallRefused::OffThread { name }),
        None => Ok(()),
    }
}

/// The row of a call that can be made.
pub(super) fn listed(number: i64) -> Option<&'static Row> {
    LISTED.iter().find(|row| row.number == number)
}

/// The name of a call that is an operation already.
pub(super) fn operation(number: i64) -> Option<&'static str> {
    find(OPERATIONS, number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Call, Descriptor, Directory};

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
                if matches!(kind, Takes::Value) {
                    continue;
                }
                let arguments = row.kinds.iter().enumerate().map(|(at, kind)| match kind {
                    _ if at == index => Argument::Value(4096),
                    Takes::Value => Argument::Value(0),
                    Takes::Fd => Argument::Descriptor(Descriptor::new(std::io::pipe().unwrap().0)),
                    Takes::Dir => Argument::Directory(Directory::Current),
                    Takes::Path => Argument::Path(c"x".into()),
                    Takes::Struct(len) | Takes::StructOrNull(len) => Argument::Bytes(vec![0; *len]),
                    Takes::Null => Argument::Null,
                    Takes::Bytes => Argument::Bytes(vec![0; 8]),
                });
                let error = Call::new(row.number, arguments.collect()).unwrap_err();
                assert!(matches!(error, CallRefused::Argument { index: at, .. } if at == index));
            }
            let places = row.kinds.len()
                + row.kinds.iter().filter(|kind| matches!(kind, Takes::Bytes)).count();
            assert!(places <= 6, "{} has more arguments than a call", row.name);
        }
    }

    #[test]
    fn a_structure_that_is_too_short_is_refused() {
        let short = Argument::Bytes(vec![0; size_of::<libc::utsname>() - 1]);
        let error = Call::new(libc::SYS_uname, vec![short]).unwrap_err();
        assert!(matches!(error, CallRefused::Argument { name: "uname", index: 0, .. }));
        let short = Argument::Memory(vec![0; size_of::<libc::utsname>() - 1].into());
        let error = Call::new(libc::SYS_uname, vec![short]).unwrap_err();
        assert!(matches!(error, CallRefused::Argument { name: "uname", index: 0, .. }));
    }
}
