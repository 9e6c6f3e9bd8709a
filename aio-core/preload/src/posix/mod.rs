//! POSIX AIO: `<aio.h>` with requests that run beside each other, all of which can be waited for, and most cancelled.
//!
//! ```text
//!   aio_read ──► request (submit) ──► serve ──► io_uring
//!                   │                              │
//!   aio_error ◄── control block ◄── landing ◄──────┘──► notice: signal, thread
//!   aio_suspend ◄──── futex ──────────┘
//! ```
//!
//! # Contracts
//!
//! * **Order.** Requests on files and block devices run beside each other. Appends, and what is on sockets, pipes and
//!   terminals, are done in the order of the calls, one at a time; reads there do not wait for writes. A sync is done
//!   after all that was queued on its descriptor before.
//! * **Signals.** `aio_error`, `aio_return` and `aio_suspend` are atomics and a futex, and may be called in a handler
//!   that interrupts any of the others.
//! * **Cancellation.** What waits for its turn is cancelled, and so is what waits for bytes of a pipe or socket. What a
//!   disk does is not (AIO_NOTCANCELED). `aio_suspend` is a cancellation point for pthread_cancel(3).
//! * **Errors.** What the arguments say is refused at once, with nothing queued; what the kernel says comes later.
//!   A block is a request from its submission until `aio_return`: before and after that it is EINVAL.
//! * **Notice.** The status is final before anybody is told. A signal that the kernel has no room to queue
//!   (RLIMIT_SIGPENDING) comes without its value. A function gets a thread of its own, with all signals open.
//! * **Priority.** `aio_reqprio` lowers the priority that the disk sees (ioprio_set(2)) by up to three levels; the
//!   order of a descriptor is by call.
//! * **Processes.** A child of fork(2) has none of its parent's requests; its own are its own.
//!
//! # Where it is not as the C library's
//!
//! `tests/posix.c` is a suite of the standard's sentences that both are run with; this is what the C library (glibc
//! 2.36) does not do, as the test says that compares the two.
//!
//! | check | the C library |
//! |---|---|
//! | `read_of_too_many_bytes` | EFAULT in place of EINVAL |
//! | `directions_do_not_wait_for_each_other` | waits: one request at a time on a descriptor |
//! | `waiting_pipes_hold_up_no_file` | waits: 20 threads, each held by a pipe |
//! | `append_takes_any_offset` | EINVAL, though the offset does not count |
//! | `write_that_was_begun_is_cancelled` | AIO_NOTCANCELED, until somebody reads |
//! | `close_behind_a_sync` | EBADF of the sync |
//! | `close_behind_a_sync_of_a_file` | now and then: EBADF, or a sync of what has the number now |
//! | `cancel_by_two_threads` | AIO_NOTCANCELED |
//! | `close_behind_appends` | now and then: EBADF of those that were queued |
//! | `return_of_a_failure_sets_errno` | leaves errno alone |
//! | `return_twice` | gives the result again |
//! | `error_after_return` | gives the status again |
//! | `error_of_what_was_never_submitted` | takes what the bytes happen to be for its status |
//! | `suspend_ignores_null_entries` | returns 0 at once for a list of nothing but null |
//! | `suspend_for_a_time_that_is_none` | EAGAIN, at once or later |
//! | `cancel_of_what_waits` | AIO_NOTCANCELED |
//! | `list_of_less_than_nothing` | 0 |
//! | `list_is_interrupted` | now and then: crashes: the threads write to a stack that is gone |
//! | `a_thread_is_signalled` | tells nobody |
//! | `an_unknown_notification` | queues it, and tells nobody |
//! | `a_thread_without_a_function` | queues it, and calls address 0 |
//! | `a_child_has_asynchronous_io_of_its_own` | waits for threads that the child has not |
//! | `a_child_inherits_no_request` | EINPROGRESS for ever |
//! | `a_number_that_came_to_mean_another_file` | now and then: writes to the other file |

mod cancel;
mod control;
mod exports;
mod landing;
mod list;
mod notice;
mod sleep;
mod submit;
mod suspend;

pub(crate) use landing::{Batch, Landing};
