//! Threads for what io_uring cannot do: bounded, started when there is work for them.
//!
//! A worker takes no signals, and has a working directory and a umask of its own (`CLONE_FS`), so a
//! file that it creates has exactly the mode that its operation was settled with, and a name begins
//! where the submitter was. Credentials are its process's: it compares, see
//! [`credentials`](super::credentials).
//!
//! A job belongs to the worker until it is done. What an engine that was dropped had running is
//! finished, and freed then.
#![expect(unsafe_code, reason = "system calls with addresses of the operation's own memory")]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use uaio_driver::Token;

use super::credentials::Credentials;
use super::op::{Between, HostOp, Open};
use super::settled::last_errno;

/// An operation on its way through a worker.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) slot: Token,
    pub(super) op: HostOp,
    pub(super) credentials: Option<Credentials>,
    pub(super) result: Result<u64, Errno>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    /// Written to for each job that is done.
    bell: File,
}

struct State {
    queued: VecDeque<Job>,
    done: VecDeque<Job>,
    /// Threads that wait for work.
    idle: usize,
    threads: usize,
    closed: bool,
}

/// The pool.
pub(super) struct Workers {
    shared: Arc<Shared>,
    threads_max: usize,
}

impl Workers {
    /// A pool of at most `threads_max` threads, none of them yet, for `jobs_max` jobs at once.
    pub(super) fn new(threads_max: usize, jobs_max: usize) -> io::Result<Self> {
        // Blocking: io_uring waits for one that can be waited for, and a writer never waits here.
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        let state = State {
            queued: VecDeque::with_capacity(jobs_max),
            done: VecDeque::with_capacity(jobs_max),
            idle: 0,
            threads: 0,
            closed: false,
        };
        let shared = Shared { state: Mutex::new(state), work: Condvar::new(), bell: bell.into() };
        Ok(Self { shared: Arc::new(shared), threads_max })
    }

    /// What is readable when jobs are done.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }

    /// Hands a job over, and starts a thread when none is free and there may be more.
    ///
    /// # Errors
    ///
    /// The job, when there is no thread and none could be started.
    pub(super) fn push(&self, job: Job) -> Result<(), Job> {
        let mut state = self.shared.state.lock();
        if state.idle <= state.queued.len() && state.threads < self.threads_max {
            let shared = Arc::clone(&self.shared);
            let builder = std::thread::Builder::new().name("uaio-worker".to_owned());
            match builder.spawn(move || work(&shared)) {
                Ok(_) => state.threads += 1,
                Err(_) if state.threads == 0 => return Err(job),
                // Those that there are get to it.
                Err(_) => {}
            }
        }
        state.queued.push_back(job);
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    /// Takes a job back that no thread has begun.
    pub(super) fn take(&self, slot: Token) -> Option<Job> {
        let mut state = self.shared.state.lock();
        let at = state.queued.iter().position(|job| job.slot == slot)?;
        state.queued.remove(at)
    }

    /// The next job that is done.
    pub(super) fn next_done(&self) -> Option<Job> {
        self.shared.state.lock().done.pop_front()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.closed = true;
        state.queued.clear();
        drop(state);
        // Threads are not joined: one may be in a call that takes as long as it takes.
        self.shared.work.notify_all();
    }
}

/// What a thread of the pool does.
fn work(shared: &Shared) {
    let alone = set_apart();
    let mut state = shared.state.lock();
    loop {
        while let Some(mut job) = state.queued.pop_front() {
            drop(state);
            job.result = alone.and_then(|()| run(&mut job));
            state = shared.state.lock();
            state.done.push_back(job);
            // An eventfd takes 2^64 - 2 of these, and nothing can be done about one that fails.
            let _ = (&shared.bell).write(&1u64.to_ne_bytes());
        }
        if state.closed {
            return;
        }
        state.idle += 1;
        shared.work.wait(&mut state);
        state.idle -= 1;
    }
}

/// Takes no signals, and makes working directory and umask those of this thread alone.
fn set_apart() -> Result<(), Errno> {
    // SAFETY: a set of signals is numbers, for which zero is a value.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the address of a set of ours.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: blocks signals of this thread, which has no use for any.
    let blocked =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut()) };
    if blocked != 0 {
        return Err(Errno::from_raw_os_error(blocked));
    }
    // SAFETY: of this thread alone; it needs no right.
    if unsafe { libc::unshare(libc::CLONE_FS) } < 0 {
        return Err(last_errno());
    }
    // SAFETY: of this thread alone, since just now.
    unsafe { libc::umask(0) };
    Ok(())
}

fn run(job: &mut Job) -> Result<u64, Errno> {
    if job.credentials.as_ref().is_some_and(|wanted| !wanted.are_of_this_thread()) {
        return Err(Errno::PERM);
    }
    let result = match &mut job.op {
        HostOp::Copy(between) => copy(between),
        HostOp::Open(open) => return open_file(open),
        HostOp::Mkdir { directory, path, mode } => {
            // SAFETY: the path is a string that ends with a zero.
            unsafe { libc::mkdirat(directory.as_raw_fd(), path.as_ptr(), *mode) }.into()
        }
        HostOp::Ftruncate { fd, len } => {
            let Ok(len) = i64::try_from(*len) else { return Err(Errno::INVAL) };
            // SAFETY: a descriptor and a number.
            unsafe { libc::ftruncate(fd.as_raw_fd(), len) }.into()
        }
        HostOp::Call(call) => {
            if let Some(directory) = call.working_directory() {
                // SAFETY: changes the working directory of this thread alone.
                if unsafe { libc::fchdir(directory.as_raw_fd()) } < 0 {
                    return Err(last_errno());
                }
            }
            return call.make();
        }
        // The engine hands nothing else over.
        _ => return Err(Errno::NOSYS),
    };
    if result < 0 { Err(last_errno()) } else { Ok(result as u64) }
}

fn copy(between: &mut Between) -> i64 {
    let offset = |offset: &mut Option<u64>| match offset {
        Some(offset) => std::ptr::from_mut(offset).cast::<libc::off64_t>(),
        None => std::ptr::null_mut(),
    };
    let (mut from, mut to) = (between.from_offset, between.to_offset);
    let (from_fd, to_fd) = (between.from.as_raw_fd(), between.to.as_raw_fd());
    // SAFETY: descriptors, a length, and addresses of two words of ours or none.
    let result = unsafe {
        libc::copy_file_range(
            from_fd,
            offset(&mut from),
            to_fd,
            offset(&mut to),
            between.len,
            between.flags,
        )
    };
    result as i64
}

fn open_file(open: &mut Open) -> Result<u64, Errno> {
    let directory = open.directory.as_raw_fd();
    let flags = open.flags | libc::O_CLOEXEC;
    // SAFETY: the path is a string that ends with a zero.
    let fd = unsafe { libc::openat(directory, open.path.as_ptr(), flags, open.mode) };
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel has just given this descriptor to us.
    open.opened = Some(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(fd as u64)
}
