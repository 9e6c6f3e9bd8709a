//! libaio and POSIX AIO for programs as they are: `LD_PRELOAD=libuaio_preload.so PROGRAM`, or the same library in place
//! of `libaio.so.1`.
//!
//! ```text
//!   io_submit, aio_read ──► checked ──► inbox ──► reactor ──► io_uring ──► the kernel's files, devices, sockets
//!   io_getevents, the ring, aio_error ◄── events and control blocks ◄──┘
//! ```
//!
//! The program's threads put requests into a queue; one thread of the library's own, the reactor, asks the kernel for them
//! with an [`Engine`](uaio_core::host::Engine) and puts the results where the program looks. So a submit does not wait, be
//! the file buffered, written with O_SYNC, or synced.
//!
//! # Contracts
//!
//! * **What a submit says** it says as the kernel does, in its order: EFAULT of any address that is not there, EBADF, EINVAL,
//!   EAGAIN; how many were taken, or why the first was not. What is found out later is in the event. (`libaio::submit`)
//! * **The ring** that `io_context_t` points to is there, and right; a program may read it, put its head on, and move it.
//!   The library writes through a mapping of its own and believes only the head, modulo the length. (`libaio::ring`)
//! * **A number means what it meant** when a request on it was submitted: whatever closes it waits until the kernel has the
//!   request. The library's own descriptors have high numbers, which nothing closes. (`serve::guard`, `own`, `files`)
//! * **Order.** None for files at an offset; appends, pipes, sockets and terminals one at a time in each direction; syncs
//!   after what was submitted before them. (`serve::Order`)
//! * **fork, exec, exit.** A child has nothing of its parent's, and gets its own with its first request. A process that ends
//!   or becomes another by a call of the C library waits up to two seconds for its writes and syncs. (`serve::process`,
//!   `end`)
//! * **Without io_uring** it says so once, on stderr, and the kernel's AIO and the C library's serve.
//! * **Cost.** A submit makes a cheap system call or three for each iocb, to look at the program's addresses and the
//!   descriptor, and rings a bell if the reactor sleeps. Cached reads are answered in the call. (`libaio::inline`)
//!
//! # Where it differs from the kernel's AIO, on purpose
//!
//! `tests/libaio.c` asks for each sentence of the man pages, of both.
//!
//! | the kernel | here |
//! |---|---|
//! | NOOP is EINVAL, though aio_abi.h has it | an event with 0 |
//! | a read of a directory, a sync of a pipe: EINVAL at submission | in the event: EISDIR, EINVAL |
//! | only polls can be cancelled | reads of pipes and sockets, too, with ECANCELED in the event |
//! | all contexts of the system together have `fs.aio-max-nr` events | each context as many at most |
//! | a request has the I/O priority of the thread that submits it | the process's, unless the iocb says one |
//! | SIGXFSZ and SIGPIPE are sent with EFBIG and EPIPE | the event alone says it |
//! | a timeout before now waits for ever | it is up |
//! | `_exit` by an inline system call, SIGKILL and execl(3) leave what is in progress to the kernel | what io_uring has not begun by then is lost |
//!
//! Only names can be taken: inline system calls and static programs are the kernel's, and what the C library closes within
//! itself is known for fclose, freopen, pclose, closedir and closefrom.
//!
//! `UAIO_PRELOAD_STATS=PATH` appends a line of JSON at the end of each process: how many requests were served, by whom.
//! POSIX AIO has its own page, in `posix`.

mod end;
mod files;
mod futex;
mod libaio;
mod number;
mod own;
mod posix;
mod real;
mod serve;
mod user;
mod versions;

/// How many requests this library has served in this process.
#[expect(unsafe_code, reason = "a symbol is exported by its name")]
// SAFETY: no other symbol has this name.
#[unsafe(no_mangle)]
pub extern "C" fn uaio_preload_requests() -> u64 {
    serve::process::running().map_or(0, |service| service.counters.requests())
}
