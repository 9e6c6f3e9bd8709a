//! The C face: `libuaio.so`, with `include/uaio.h`, which says what each call does.
//!
//! ```text
//!   uaio_iocb ──► command (checked) ──► Context::submit ──► Event ──► uaio_event
//!                     │                                       │
//!                     └──► flight: whose iocb, where the bytes go ──┘
//! ```
//!
//! A context of C is a [`Context`](uaio_core::Context) with a reactor, a thread that turns it, and the
//! volumes that were opened on it. Names are looked up, so one that has been destroyed is EINVAL and
//! not a crash.
//!
//! A command on a descriptor of the host goes to the kernel with the caller's addresses, which checks
//! them. One on a volume goes through memory of ours: a write is copied at submit, a read when its event
//! is taken out. Names and the structures that say them are copied at submit, by the kernel, so that a bad
//! pointer is EFAULT there, too.
//!
//! # Where it differs from the man pages
//!
//! `tests/man_pages.rs` has a test for each sentence that holds, named after it. On purpose different:
//!
//! | page | says | here |
//! |---|---|---|
//! | io_setup(2) | the context is 0 before, and is an address | it is an output, and a name that is never used again |
//! | io_setup(2) | EAGAIN beyond `/proc/sys/fs/aio-max-nr` | no limit of the system; 65536 events a context, 1024 contexts a process |
//! | io_submit(2), io_getevents(2), lio_listio(3) | no limit but the context's | EINVAL for more than 65536 iocbs or events in a call |
//! | io_submit(2) | EPERM for the priority class RT without privilege | RT orders what waits, and is the highest level of BE at the disk of a descriptor, which nobody is refused |
//! | io_submit(2) | a buffered transfer may block in the call | it never does |
//! | io_submit(2) | `aio_rw_flags` of any transfer | of descriptors; a volume's number says O_DSYNC, and flags are EINVAL there. One that the kernel does not know is said in the event |
//! | io_submit(2), io_setup(2) and the rest | ENOSYS where there is no such call | ENOSYS or EPERM from `uaio_setup` where io_uring is not to be had |
//! | io_getevents(2) | EINTR when a signal handler runs | it goes on waiting; a signal that is to end a wait can be a notice's, or write an eventfd |
//! | io_cancel(2) | the event of a cancelled one is in `result`, and not in the queue | every iocb has its one event in the queue |
//! | io_cancel(2) | EAGAIN when it was not cancelled | `UAIO_NOTCANCELED`, and its event comes |
//! | io_destroy(2) | cancels what it can and waits for the rest | also closes the volumes, and says if they could not be made stable |
//! | aio_suspend(3) | EINTR when a signal handler runs | it goes on waiting |
//! | aio_suspend(3) | returns when one of the list is over | when as many as are asked for are, over several contexts |
//! | lio_listio(3) | `LIO_NOP` and NULL are ignored | NULL is; `UAIO_NOOP` is a command that does nothing and has its event |
//! | lio_listio(3) | EIO when one of the list failed, EINTR | the number taken; `status` says why one was not, its event how it went |
//! | aio(7) | `aio_fsync` covers the operations that are queued | a sync covers those whose event was there; link it to one (`UAIO_F_LINK`) to cover that |
//! | aio(7) | `aio_cancel` says one word for all | `uaio_cancel_fd` and `uaio_cancel_all` say how many; the event of each says how it went |
//! | aio(7) | simultaneous operations with one control block are undefined | each has its event; `uaio_cancel` and `uaio_suspend` know the last |
//! | aio(7) | `aio_error`, `aio_return` by the control block | events; a sync or transfer is asked for its result once, when it is taken out |

mod command;
mod errno;
pub mod exports;
mod flights;
mod forked;
mod host;
pub mod layout;
mod names;
mod notice;
mod quiet;
mod state;
mod user;

pub(crate) use errno::Errno;
