//! What an operation needs of its submitter, taken down when it is submitted.
//!
//! Another thread does the work, later: by then the submitter may have another working directory,
//! umask or file size limit, and the signals of a failed write are its own, not the worker's (the
//! objections to the AIO patch sets of 2007 and 2016).
#![expect(unsafe_code, reason = "asks the kernel of this thread, and signals it")]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use super::memory::Descriptor;
use super::op::{Directory, HostOp, HostRequest, Position};

/// What was taken down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settled {
    /// The submitter, whose signals SIGPIPE and SIGXFSZ are.
    thread: libc::pid_t,
    /// Bytes at and after this one are not written: RLIMIT_FSIZE, for a regular file only.
    pub(super) file_size_max: u64,
    /// It writes at the end of the file, wherever it says: the descriptor or the write has O_APPEND. Known only
    /// where there is a limit.
    pub(super) appends: bool,
    before: Before,
}

/// What a request said before it was settled.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Before {
    /// The mode.
    mode: u32,
    /// Names that began in the working directory: the first, the second.
    current: [bool; 2],
}

impl Settled {
    /// Sends the submitter a signal of its own operation. One that has ended gets none.
    pub(super) fn signal(&self, signal: i32) {
        let process = std::process::id();
        // SAFETY: sends a signal to a thread of this process.
        let _ = unsafe { libc::syscall(libc::SYS_tgkill, process, self.thread, signal) };
    }
}

impl HostRequest {
    /// Takes down what the operation needs of the calling thread: its working directory if a name
    /// begins there, its umask if something is created, its RLIMIT_FSIZE if something is written,
    /// and who it is, for SIGPIPE and SIGXFSZ. Only the first call counts, until it is
    /// [taken back](HostRequest::unsettle).
    ///
    /// Without it the operation takes what is there when it is done, and sends no signal; where names
    /// begin, for a worker, is taken down by [`start`](super::Engine::start) at the latest. Does not block but
    /// for the working directory and the umask, which are a system call or two.
    ///
    /// # Errors
    ///
    /// When the working directory cannot be opened or the umask not be read. The request is as it was.
    pub fn settle(&mut self) -> Result<(), Errno> {
        if self.settled.is_some() {
            return Ok(());
        }
        let before = self.settle_place()?;
        let file_size_max = match &self.op {
            HostOp::Write { fd, .. } | HostOp::WriteV { fd, .. } => file_size_max(fd.as_raw_fd()),
            HostOp::Fallocate { .. } | HostOp::Ftruncate { .. } | HostOp::Call(_) => {
                process_file_size_max()
            }
            HostOp::Copy(between) | HostOp::Splice(between) => {
                file_size_max(between.to.as_raw_fd())
            }
            _ => u64::MAX,
        };
        let appends = match &self.op {
            HostOp::Write { fd, flags, .. } | HostOp::WriteV { fd, flags, .. } => {
                file_size_max != u64::MAX
                    && (flags & libc::RWF_APPEND != 0 || is_appending(fd.as_raw_fd()))
            }
            _ => false,
        };
        // SAFETY: asks who this thread is.
        let thread = unsafe { libc::gettid() };
        self.settled = Some(Settled { thread, file_size_max, appends, before });
        Ok(())
    }

    /// Makes it what it was before it was settled: for somebody else who submits it, after it was not
    /// taken.
    pub fn unsettle(&mut self) {
        if let Some(Settled { before, .. }) = self.settled.take() {
            self.put_back(before);
        }
    }

    fn put_back(&mut self, before: Before) {
        let [first, second] = before.current;
        match &mut self.op {
            HostOp::Open(open) => {
                open.mode = before.mode;
                unsettle_name(&mut open.directory, first);
            }
            HostOp::Mkdir { directory, mode, .. } => {
                *mode = before.mode;
                unsettle_name(directory, first);
            }
            HostOp::Unlink { directory, .. } => unsettle_name(directory, first),
            HostOp::Rename(names) | HostOp::Link(names) => {
                unsettle_name(&mut names.old_directory, first);
                unsettle_name(&mut names.new_directory, second);
            }
            HostOp::Symlink(link) => unsettle_name(&mut link.directory, first),
            HostOp::Statx(statx) => unsettle_name(&mut statx.directory, first),
            HostOp::Call(call) => call.unsettle(),
            _ => {}
        }
    }

    /// Takes down where names begin and what is taken off modes: what no worker can know later. Says
    /// what there was before; after an error it is that.
    pub(super) fn settle_place(&mut self) -> Result<Before, Errno> {
        let mut before = Before::default();
        match self.take_place(&mut before) {
            Ok(()) => Ok(before),
            Err(errno) => {
                self.put_back(before);
                Err(errno)
            }
        }
    }

    /// Notes what there was before it changes it, so that what was done can be put back wherever it fails.
    fn take_place(&mut self, before: &mut Before) -> Result<(), Errno> {
        let [first, second] = &mut before.current;
        match &mut self.op {
            HostOp::Open(open) => {
                before.mode = open.mode;
                *first = settle_name(&mut open.directory, &open.path)?;
                if creates(open.flags) {
                    open.mode &= !umask()?;
                }
            }
            HostOp::Mkdir { directory, path, mode } => {
                before.mode = *mode;
                *first = settle_name(directory, path)?;
                *mode &= !umask()?;
            }
            HostOp::Unlink { directory, path, .. } => *first = settle_name(directory, path)?,
            HostOp::Rename(names) | HostOp::Link(names) => {
                *first = settle_name(&mut names.old_directory, &names.old_path)?;
                *second = settle_name(&mut names.new_directory, &names.new_path)?;
            }
            HostOp::Symlink(link) => *first = settle_name(&mut link.directory, &link.path)?,
            HostOp::Statx(statx) => *first = settle_name(&mut statx.directory, &statx.path)?,
            HostOp::Call(call) => call.settle()?,
            _ => {}
        }
        Ok(())
    }

    /// The signal that the system call would have sent with this error, which is the submitter's.
    pub(super) fn signal_of(&self, errno: i32) -> Option<(Settled, i32)> {
        let settled = self.settled?;
        let silent = |flags: i32| flags & libc::MSG_NOSIGNAL != 0;
        let signal = match (&self.op, errno) {
            (HostOp::Send { flags, .. } | HostOp::SendMsg { flags, .. }, libc::EPIPE)
                if silent(*flags) =>
            {
                return None;
            }
            (
                HostOp::Write { .. }
                | HostOp::WriteV { .. }
                | HostOp::Send { .. }
                | HostOp::SendMsg { .. }
                | HostOp::Splice(_)
                | HostOp::Call(_),
                libc::EPIPE,
            ) => libc::SIGPIPE,
            (
                HostOp::Write { .. }
                | HostOp::WriteV { .. }
                | HostOp::Fallocate { .. }
                | HostOp::Ftruncate { .. }
                | HostOp::Splice(_)
                | HostOp::Copy(_)
                | HostOp::Call(_),
                libc::EFBIG,
            ) if settled.file_size_max != u64::MAX => libc::SIGXFSZ,
            _ => return None,
        };
        Some((settled, signal))
    }

    /// Whether a signal of the kernel's own could reach the thread that issues it: then it goes to a
    /// thread of the kernel's, which takes none.
    pub(super) fn may_signal_issuer(&self) -> bool {
        let limited = self.settled.filter(|settled| settled.file_size_max != u64::MAX);
        let Some(settled) = limited else { return false };
        match &self.op {
            // A list by address is not cut at the limit.
            HostOp::WriteV { memory, .. } if !memory.is_owned() => true,
            HostOp::Write { at, .. } | HostOp::WriteV { at, .. } => {
                *at == Position::Current || settled.appends
            }
            _ => false,
        }
    }
}

/// Whether these flags of openat(2) create something.
pub(super) fn creates(flags: i32) -> bool {
    flags & libc::O_CREAT != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE
}

/// Says whether the name begins in the working directory, which is taken down then.
fn settle_name(directory: &mut Directory, path: &CStr) -> Result<bool, Errno> {
    let current = matches!(directory, Directory::Current) && !path.to_bytes().starts_with(b"/");
    if current {
        *directory = Directory::At(Descriptor::new(working_directory()?));
    }
    Ok(current)
}

fn unsettle_name(directory: &mut Directory, current: bool) {
    if current {
        *directory = Directory::Current;
    }
}

/// The working directory as it is now, whatever becomes of it.
pub(super) fn working_directory() -> Result<OwnedFd, Errno> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    open(c".", flags)
}

fn open(path: &CStr, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: the path is a string that ends with a zero.
    let fd = unsafe { libc::open(path.as_ptr(), flags) };
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel has just given this descriptor to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The umask. umask(2) itself can only be asked by setting it, for every thread, for a moment; the
/// kernel says it in /proc since 4.7.
pub(super) fn umask() -> Result<u32, Errno> {
    let fd = open(c"/proc/thread-self/status", libc::O_RDONLY | libc::O_CLOEXEC)?;
    // The umask is the second line, after the name of the thread, which is 16 bytes at most, 64 when
    // every byte of it is escaped.
    let mut start = [0u8; 256];
    // SAFETY: the array has room for as many bytes as are said.
    let len = unsafe { libc::read(fd.as_raw_fd(), start.as_mut_ptr().cast(), start.len()) };
    let len = usize::try_from(len).map_err(|_| last_errno())?;
    let umask = start[..len].split(|byte| *byte == b'\n').find_map(|line| {
        let digits = line.strip_prefix(b"Umask:")?;
        u32::from_str_radix(std::str::from_utf8(digits).ok()?.trim(), 8).ok()
    });
    umask.ok_or(Errno::NOSYS)
}

fn file_size_max(fd: RawFd) -> u64 {
    match process_file_size_max() {
        u64::MAX => u64::MAX,
        limit if is_regular(fd) => limit,
        _ => u64::MAX,
    }
}

fn process_file_size_max() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the address of a structure of ours. It cannot fail but for a bad address.
    unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) };
    if limit.rlim_cur == libc::RLIM_INFINITY { u64::MAX } else { limit.rlim_cur }
}

/// Whether what is written there goes to the end (open(2), O_APPEND; pwrite(2), Bugs).
fn is_appending(fd: RawFd) -> bool {
    // SAFETY: asks how a descriptor was opened; any number may be given.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    flags != -1 && flags & libc::O_APPEND != 0
}

fn is_regular(fd: RawFd) -> bool {
    kind(fd) == Some(libc::S_IFREG)
}

/// Whether a transfer that was short goes on where it ended: of a file or block device. Others (eventfd,
/// timerfd, inotify, a terminal) say that they have positions and give what there is.
pub(super) fn has_extent(fd: RawFd) -> bool {
    matches!(kind(fd), Some(libc::S_IFREG | libc::S_IFBLK))
}

/// What it is (`S_IFMT`), without asking whoever serves the file, who may be this process or gone: what
/// an open file is does not change.
fn kind(fd: RawFd) -> Option<libc::mode_t> {
    // SAFETY: a structure of numbers, for which zero is a value.
    let mut status: libc::statx = unsafe { std::mem::zeroed() };
    let (flags, to) = (libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC, &raw mut status);
    // SAFETY: an empty name and the address of a structure of ours; a bad descriptor is an error.
    let result = unsafe { libc::statx(fd, c"".as_ptr(), flags, libc::STATX_TYPE, to) };
    (result == 0).then_some(libc::mode_t::from(status.stx_mode) & libc::S_IFMT)
}

pub(super) fn last_errno() -> Errno {
    let errno = std::io::Error::last_os_error().raw_os_error();
    Errno::from_raw_os_error(errno.unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has every way to ask for a file's status refused to this thread, but one that does not ask whoever
    /// serves the file.
    fn forbid_asking_servers() {
        let jump = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        let any_bit = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
        let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        let give = (libc::BPF_RET | libc::BPF_K) as u16;
        let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        // The number of the call, and the low half of its third argument (`struct seccomp_data`).
        let (number, flags) = (0, 16 + 2 * 8);
        let mut steps = [
            step(load, 0, 0, number),
            step(jump, 5, 0, libc::SYS_fstat as u32),
            step(jump, 4, 0, libc::SYS_newfstatat as u32),
            step(jump, 0, 2, libc::SYS_statx as u32),
            step(load, 0, 0, flags),
            step(any_bit, 0, 1, libc::AT_STATX_DONT_SYNC as u32),
            step(give, 0, 0, libc::SECCOMP_RET_ALLOW),
            step(give, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        ];
        let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
        // SAFETY: of this thread alone, which ends here.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
        // SAFETY: the address of a program of ours, which the kernel checks and copies.
        let set = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
        };
        assert_eq!(set, 0);
    }

    /// A file may be served by this very process (FUSE): who turns the reactor would wait for itself.
    #[test]
    fn what_a_file_is_is_known_without_asking_whoever_serves_it() {
        let path = std::env::temp_dir().join(format!("uaio-settled-{}", std::process::id()));
        let file = std::fs::File::create(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        let (pipe, _writer) = std::io::pipe().unwrap();
        let seen = std::thread::spawn(move || {
            forbid_asking_servers();
            // SAFETY: a structure of numbers, for which zero is a value.
            let mut status: libc::stat = unsafe { std::mem::zeroed() };
            // SAFETY: the address of a structure of ours.
            let asked = unsafe { libc::fstat(file.as_raw_fd(), &raw mut status) };
            (asked, [file.as_raw_fd(), pipe.as_raw_fd()].map(|fd| (is_regular(fd), has_extent(fd))))
        });
        assert_eq!(seen.join().unwrap(), (-1, [(true, true), (false, false)]));
    }
}
