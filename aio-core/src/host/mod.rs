//! Operations of the host: files, sockets, pipes, names, waits, system calls.
//!
//! ```text
//!   start ──► slot ──► entry ──► commit ──► io_uring ──► poll ──► HostDone
//!               │                              ▲ bell
//!               └──► worker, for what io_uring cannot do
//! ```
//!
//! An [`Engine`] has one owner, who steps it: `start` takes operations, `commit` asks the kernel for
//! all of them at once, `poll` moves answers out. Nothing here waits but
//! [`commit_and_wait`](Engine::commit_and_wait), and nothing allocates but what an operation brings.
//!
//! # Contracts
//!
//! * **Ownership.** An operation owns its memory and descriptors from `start` to its answer, which
//!   brings them back. A descriptor that it made is closed with it, unless it is taken out. Nothing
//!   that the kernel may write is freed, whatever is dropped and when.
//! * **Cancellation.** By name, by descriptor, all. Every operation has one last answer: its result,
//!   or ECANCELED (ETIMEDOUT when its time was up), which means that it had no effect. What moved
//!   bytes says how many.
//! * **Liveness.** A thread that ends takes what it issued with it; the engine issues that anew.
//! * **Blocking.** `commit` does not wait: what cannot be done at once is done by the kernel when it
//!   can be, and opening and closing on threads of the kernel's. A read of a file whose metadata is
//!   not in memory is the exception; [`HostRequest::away`] is for it.
//!   `O_NONBLOCK` of a socket does not count, since nobody is kept waiting; `MSG_DONTWAIT` and
//!   `RWF_NOWAIT` do, with EAGAIN.
//! * **The submitter's.** Credentials are [taken](Engine::take_credentials); working directory,
//!   umask, RLIMIT_FSIZE and the target of SIGPIPE and SIGXFSZ are [settled](HostRequest::settle).
//!   Neither depends on the thread that does the work.
//!
//! # What does what
//!
//! | operations | io_uring | worker |
//! |---|---|---|
//! | reads, writes, syncs, sockets, poll, sleep | yes | |
//! | epoll | waits for the descriptor; the events are taken by `poll` | |
//! | names, `statx`, `fallocate`, `fadvise`, `readahead`, `splice` | yes | |
//! | creating a file or directory, settled | when the credentials are another's | otherwise |
//! | `ftruncate` | from Linux 6.9 on | before |
//! | copy between files, other system calls | | yes |

mod call;
mod credentials;
mod engine;
mod entry;
mod memory;
mod op;
mod ring;
mod settled;
mod slot;
mod socket;
mod workers;

pub use call::{Argument, Call, CallRefused};
pub use credentials::Credentials;
pub use engine::{Cancel, DEPTH_MAX, Engine, EngineOptions, OpId};
pub use memory::{Descriptor, Memory, TRANSFER_MAX_BYTES, Vectored};
pub use op::{
    Accept, Between, Directory, EpollWait, HostDone, HostOp, HostRefusal, HostRefused, HostRequest,
    Names, Open, Position, Statx, Symlink,
};
pub use ring::{Disabled, EngineError, Owner};
pub use socket::{Message, PathUnfit, SocketAddress};
