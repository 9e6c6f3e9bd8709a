//! Threads for what io_uring cannot do: bounded, started when there is work for them; but for calls that
//! may wait for somebody else (`flock`, `waitid`, an open of a FIFO), which have a thread each, or the one that ends their
//! wait could be waiting behind them.
//!
//! A worker takes no signals but the one that gets it out of a call that was cancelled
//! ([`interrupt`]), and has a working directory and a umask of its own (`CLONE_FS`), so a
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
use super::interrupt::{self, Reach};
use super::op::{Between, HostOp, Open};
use super::settled::last_errno;

/// Threads of the crew for what may wait for ever that stay when there is nothing to do.
const WAITERS_KEPT: usize = 4;
/// How often a call is made again that was interrupted by what was meant for the job before it.
const AGAIN_MAX: usize = 100;

/// An operation on its way through a worker.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) slot: Token,
    pub(super) op: HostOp,
    pub(super) credentials: Option<Credentials>,
    pub(super) result: Result<u64, Errno>,
}

impl Job {
    /// Which crew does it: one that may wait for somebody else has a thread of its own, or those who
    /// would end its wait could be behind it.
    fn crew(&self) -> usize {
        usize::from(match &self.op {
            HostOp::Call(call) => call.may_wait(),
            HostOp::Open(open) => may_wait(open.flags),
            _ => false,
        })
    }
}

/// Whether openat(2) with these flags may wait for somebody else, as it does at a FIFO: not for a file that
/// it makes itself.
fn may_wait(flags: i32) -> bool {
    let made = |what| flags & what == what;
    !made(libc::O_NONBLOCK) && !made(libc::O_CREAT | libc::O_EXCL) && !made(libc::O_TMPFILE)
}

struct Shared {
    state: Mutex<State>,
    /// One for each crew.
    work: [Condvar; 2],
    /// Written to for each job that is done.
    bell: File,
}

struct State {
    /// For what is done in a bounded time, and for what may wait for ever.
    crews: [Crew; 2],
    running: Vec<Running>,
    done: VecDeque<Job>,
    closed: bool,
}

struct Crew {
    queued: VecDeque<Job>,
    /// Threads that wait for work.
    idle: usize,
    threads: usize,
    threads_max: usize,
    /// Threads beyond this one go when there is no work.
    idle_max: usize,
}

/// A job that a thread has begun.
struct Running {
    slot: Token,
    reach: Reach,
    interrupted: bool,
}

/// The pool.
pub(super) struct Workers {
    shared: Arc<Shared>,
}

impl Workers {
    /// A pool of at most `threads_max` threads, none of them yet, for `jobs_max` jobs at once; what may
    /// wait for ever has a thread each beside them.
    pub(super) fn new(threads_max: usize, jobs_max: usize) -> io::Result<Self> {
        // Here, where the signals are blocked that the program waits for.
        interrupt::prepare();
        // Blocking: io_uring waits for one that can be waited for, and a writer never waits here.
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        let crew = |threads_max, idle_max, room| Crew {
            queued: VecDeque::with_capacity(room),
            idle: 0,
            threads: 0,
            threads_max,
            idle_max,
        };
        let state = State {
            crews: [crew(threads_max, threads_max, jobs_max), crew(usize::MAX, WAITERS_KEPT, 0)],
            running: Vec::with_capacity(threads_max),
            done: VecDeque::with_capacity(jobs_max),
            closed: false,
        };
        let (state, work) = (Mutex::new(state), [Condvar::new(), Condvar::new()]);
        Ok(Self { shared: Arc::new(Shared { state, work, bell: bell.into() }) })
    }

    /// What is readable when jobs are done.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.shared.bell.as_fd()
    }

    /// Hands a job over, and starts a thread when none is free and there may be more.
    ///
    /// # Errors
    ///
    /// The job, when there is no thread that will get to it and none could be started.
    pub(super) fn push(&self, job: Job) -> Result<(), Job> {
        let at = job.crew();
        let mut state = self.shared.state.lock();
        let crew = &mut state.crews[at];
        if crew.idle <= crew.queued.len() && crew.threads < crew.threads_max {
            let shared = Arc::clone(&self.shared);
            let builder = std::thread::Builder::new().name("uaio-worker".to_owned());
            match builder.spawn(move || work(&shared, at)) {
                Ok(_) => crew.threads += 1,
                Err(_) if crew.threads == 0 || crew.threads_max == usize::MAX => return Err(job),
                // Those that there are get to it.
                Err(_) => {}
            }
        }
        crew.queued.push_back(job);
        drop(state);
        self.shared.work[at].notify_one();
        Ok(())
    }

    /// Takes a job back that no thread has begun.
    pub(super) fn take(&self, slot: Token) -> Option<Job> {
        let mut state = self.shared.state.lock();
        state.crews.iter_mut().find_map(|crew| {
            let at = crew.queued.iter().position(|job| job.slot == slot)?;
            crew.queued.remove(at)
        })
    }

    /// Gets the thread that has begun a job out of what it waits in. It may be just about to wait, so
    /// come again while the job is not done.
    pub(super) fn interrupt(&self, slot: Token) {
        let mut state = self.shared.state.lock();
        if let Some(running) = state.running.iter_mut().find(|running| running.slot == slot) {
            running.interrupted = true;
            // Under the lock, which the thread takes before it begins anything else.
            running.reach.interrupt();
        }
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
        state.crews.iter_mut().for_each(|crew| crew.queued.clear());
        for running in &mut state.running {
            running.interrupted = true;
            running.reach.interrupt();
        }
        drop(state);
        // Threads are not joined: one may be in a call that takes as long as it takes.
        self.shared.work.iter().for_each(|work| {
            work.notify_all();
        });
    }
}

/// What a thread of the pool does.
fn work(shared: &Shared, crew: usize) {
    let alone = set_apart();
    let mut reach = Reach::this_thread();
    let mut state = shared.state.lock();
    loop {
        while let Some(mut job) = state.crews[crew].queued.pop_front() {
            let slot = job.slot;
            reach.renew();
            state.running.push(Running { slot, reach, interrupted: false });
            for _ in 0..AGAIN_MAX {
                drop(state);
                job.result = alone.and_then(|()| run(&mut job));
                reach.renew();
                state = shared.state.lock();
                let mut running = state.running.iter_mut();
                let Some(running) = running.find(|one| one.slot == slot) else { break };
                running.reach = reach;
                // A signal for the job before this one may have come late, or one been somebody else's.
                if running.interrupted || job.result != Err(Errno::INTR) {
                    break;
                }
            }
            state.running.retain(|running| running.slot != slot);
            state.done.push_back(job);
            // An eventfd takes 2^64 - 2 of these, and nothing can be done about one that fails.
            let _ = (&shared.bell).write(&1u64.to_ne_bytes());
        }
        let this = &mut state.crews[crew];
        if this.idle >= this.idle_max {
            this.threads -= 1;
            return;
        }
        if state.closed {
            return;
        }
        state.crews[crew].idle += 1;
        shared.work[crew].wait(&mut state);
        state.crews[crew].idle -= 1;
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
    leave_directory();
    Ok(())
}

/// Goes where this thread keeps no file system from being unmounted. It needs no directory between jobs:
/// a name begins where its job says.
fn leave_directory() {
    // Nothing is lost when it fails but an unmount.
    // SAFETY: changes the working directory of this thread alone; the path ends with a zero.
    let _ = unsafe { libc::chdir(c"/".as_ptr()) };
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
            let Some(directory) = call.working_directory() else { return call.make() };
            // SAFETY: changes the working directory of this thread alone.
            if unsafe { libc::fchdir(directory.as_raw_fd()) } < 0 {
                return Err(last_errno());
            }
            let result = call.make();
            leave_directory();
            return result;
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
