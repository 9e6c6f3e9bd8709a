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
//!
//! # What was asked for
//!
//! | what | who asked, and when | the test that shows it |
//! |---|---|---|
//! | reads and writes of files, vectored, at an offset or where the file is | 2003, 2006, S. Bhattacharya | `host_files.rs`: `a_file_is_read_and_written_at_an_offset_and_where_it_is`, `vectors_of_any_number_and_length_are_written_as_one_run` |
//! | fsync, fdatasync, sync of a range | 2006, the road map; 2016, B. LaHaise | `host_files.rs`: `a_file_is_made_stable_as_a_whole_and_by_range` |
//! | sockets and pipes without threads | 2006, the road map | `host_sockets.rs`: `a_read_of_an_empty_pipe_waits_for_bytes_and_gets_those_that_are_there`, `a_connection_is_accepted_and_made_and_carries_bytes_both_ways`, `datagrams_come_with_whom_they_are_from_and_one_that_is_too_long_says_so`, `control_data_carries_a_descriptor`; the example `udp_echo` |
//! | epoll in the same loop, with timeout and cancel | 2007, Z. Brown, J. Moyer, S. Bhattacharya | `host_sockets.rs`: `an_epoll_descriptor_delivers_its_events_in_the_same_loop`; the example `epoll_and_disk` |
//! | poll of any descriptor | 2016, B. LaHaise | `host_sockets.rs`: `a_poll_says_what_is_there_once_or_each_time` |
//! | openat, unlinkat, renameat, readahead | 2016, B. LaHaise | `host_files.rs`: `names_are_made_moved_linked_and_removed`, `advice_and_readahead_are_taken`; `host_model.rs`: `random_programs_on_names_answer_as_one_call_after_the_other_would` |
//! | any system call, from an allow-list | 2007 to 2016, syslets and acall | `host_files.rs`: `a_system_call_is_made_with_what_its_arguments_own`; `call.rs`: `what_makes_no_sense_off_thread_is_refused_by_name` |
//! | credentials and limits of the submitter, not of a worker | 2007, Z. Brown's objection | `host_settled.rs`: `an_operation_is_done_as_whoever_the_credentials_were_taken_of`, `a_file_has_the_mode_and_umask_of_its_submission`, `a_name_begins_in_the_working_directory_of_its_submission` |
//! | SIGPIPE and SIGXFSZ to the submitter | 2007, Z. Brown; 2016, B. LaHaise | `host_settled.rs`: `sigpipe_is_sent_to_the_submitter_and_to_nobody_else`, `the_file_size_limit_is_that_of_the_submission_and_sigxfsz_the_submitters` |
//! | all operations can be cancelled | 2016, B. LaHaise | `host_cancel.rs`: `a_cancel_reaches_an_operation_wherever_it_is`, `a_cancel_races_with_completion_and_each_is_decided_once` |
//!
//! # Where it is not what the system call does
//!
//! * `RLIMIT_FSIZE` is settled for writes at an offset. Appends, `ftruncate`, `fallocate`, `splice` and
//!   copies get what the limit is when the kernel does them; the signal is the submitter's all the
//!   same.
//! * A settled file that is created as somebody else (a personality that the workers do not have) gets
//!   the stricter of the umask of its submission and of its making.
//! * A call that a worker has begun is interrupted when it is cancelled, as by a signal: it ends with
//!   ECANCELED if it waited for something, and goes to its end if it did not. For that the process has a
//!   handler for one real-time signal: the highest that had none when the first engine with workers was
//!   made, and was not blocked there. A signal of that number that a program waits for all the same
//!   (`sigwaitinfo(2)`, a signalfd) reaches it, if need be behind those of its number that were queued
//!   meanwhile, and the next one is used from then on.
//! * Connecting or sending to a Unix socket by a relative name begins where the process is then.
//! * A mode has the umask of its submission also where the directory has a default ACL, which would let
//!   it out (acl(5)): what is created may get fewer permissions than the call itself would have given.
//! * [`close`](HostOp::Close), also of a [number](HostOp::CloseForeign), may be cancelled, and then the descriptor is still there.

mod call;
mod calls;
mod complete;
mod credentials;
mod engine;
mod entry;
mod interrupt;
mod issue;
mod memory;
mod op;
mod ring;
mod settled;
mod slot;
mod socket;
mod stop;
mod word;
mod workers;

pub use call::{Argument, Call, CallRefused};
pub use calls::Takes;
pub use credentials::Credentials;
pub use engine::{Cancel, DEPTH_MAX, Engine, EngineOptions, OpId};
pub use memory::{Descriptor, ForeignFd, Memory, TRANSFER_MAX_BYTES, Vectored};
pub use op::{
    Accept, Between, Directory, EpollWait, HostDone, HostOp, HostRefusal, HostRefused, HostRequest,
    Names, Open, Position, Statx, Symlink,
};
pub use ring::{Disabled, EngineError, Owner};
pub use socket::{Message, PathUnfit, SocketAddress};
