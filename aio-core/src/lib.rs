//! Asynchronous I/O in which nothing blocks the submitter.
//!
//! A command ([`Iocb`]) owns its memory. [`Context::submit`] takes it or hands it back whole; what is
//! cached is answered in the caller's thread, of anything else the first step is done there and the
//! rest goes on when the [`Reactor`] turns. Its [`Event`] brings the result and the memory. A
//! synchronous call is the same with a wait added at the end: there is no second code path.
//!
//! ```text
//!   submit(iocb) ──► event slot ──► cached? ──────────────── yes ──────────────► Event ──► get_events
//!                                     │ no                                         ▲        eventfd
//!                                     ▼                                            │
//!                        first step here, or the volume's inbox                    │
//!                                     │                                            │
//!                                     ▼                                            │
//!            Reactor::turn:  take in · step what was woken · commit · poll · complete
//!                                     │ Lane (page-cache)            │ Flusher
//!                                     ▼                              ▼
//!                            IoQueue of the device          another of its queues
//! ```
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//! use uaio_core::{ContextOptions, Iocb, OpenOptions, Reactor, VolumeOptions};
//! use uaio_driver::{DmaPool, PoolOptions, SystemClock, ram::RamDevice};
//! use uaio_page_cache::{Cache, CacheOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A device, a cache of 256 pages over it, and a reactor that serves it.
//! let pool = DmaPool::new(PoolOptions::frames(512))?;
//! let device = Arc::new(RamDevice::new(16 << 20, 512, pool)?);
//! let cache = Cache::new(device, CacheOptions::frames(256))?;
//! let reactor = Reactor::new(Arc::new(SystemClock::new()))?;
//! let volume = reactor.attach(cache, VolumeOptions::default())?;
//! let handle = volume.open(OpenOptions::default());
//!
//! // Asynchronous: two commands at once, and a sync when both are done.
//! let context = reactor.context(ContextOptions::events(8))?;
//! context.submit(Iocb::pwrite(&handle, 10, b"hello".to_vec()).with_user_data(1)).unwrap();
//! context.submit(Iocb::pwritev(&handle, 4094, vec![vec![1], vec![2, 3]])).unwrap();
//! let mut events = Vec::with_capacity(8);
//! context.get_events(2, 8, &mut events, None)?;
//! assert!(events.iter().all(|event| event.result.is_ok()));
//! context.submit(Iocb::fsync(&handle)).unwrap();
//! context.get_events(1, 8, &mut events, None)?;
//! assert_eq!(events[2].result, Ok(0));
//!
//! // Synchronous: the same with a wait at the end.
//! let mut out = [0; 5];
//! assert_eq!(handle.pread(&mut out, 10)?, 5);
//! assert_eq!(&out, b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! # I/O model
//!
//! * **Who turns.** One thread at a time: the one in [`Reactor::run`], or, on a reactor without a
//!   thread, one of those that wait (`baton`). Whoever turns sleeps when nothing goes on; the bound
//!   on what that adds is [`reactor::POLL_FOR`] and [`reactor::NAP_MAX`].
//! * **Who tells the device.** On a reactor with a thread that thread does, unless it sleeps and the
//!   command is alone: a submit takes some microseconds, however long the kernel takes to be entered. On
//!   one without, the submitter, at the end of a submit, a batch or a list.
//! * **Order.** Commands in progress are independent. A sync covers the writes whose *event* was
//!   there when it was submitted.
//! * **Bounds.** Event slots, commands in progress and the inbox are made at start. Having none is a
//!   refusal at submit (EAGAIN), never a wait there. Nothing is allocated on the way of a usual command
//!   but the memory it brings; a list, a wait for submissions, the first deadline, and the first to wait
//!   in a priority class other than the usual allocate. Synchronous calls that miss the cache use memory
//!   kept from earlier ones.
//! * **Locks.** `submit` tries the volume's lock and never waits for it. Events lie in a ring without
//!   a lock; who waits for them has an entry under one, which is looked at only while there is one. A
//!   cached read takes the lock of a shard of the cache. No notice is given under a lock.
//! * **Cancelling** may wait for one turn of the reactor, and for no device.
//!
//! # Errors
//!
//! | where | type | what |
//! |---|---|---|
//! | at submit | [`Refused`] | not taken: the iocb comes back with the reason |
//! | in the event | [`uaio_driver::IoError`] | taken and failed, with the device's own status |
//! | synchronous calls | [`CallError`] | one of the two; becomes an [`std::io::Error`] with `?` |
//! | at close | [`CloseError`] | acknowledged data that could not be made stable, by range |
//!
//! A writeback that failed while nobody waited is told once to each [`Handle`] that was open then, by
//! its next sync. An errno of the host is what the system call said, by
//! [`IoError::errno`](uaio_driver::IoError::errno).
//!
//! # Futures, and C
//!
//! [`AsyncContext`] has the same commands as futures, on any executor; [`Context::events`] is a stream;
//! [`Reactor::scope`] takes memory that is borrowed. The crate `uaio-c` has it all for C.
//!
//! # What was asked for, and where it is
//!
//! Linux was asked for this interface from 2002 to 2016, one patch set after the other. Each line, who
//! asked, and the tests that claim it (in `tests/`):
//!
//! | what | asked for by | here | tests |
//! |---|---|---|---|
//! | submit and complete split | Bhattacharya 2003, LaHaise 2004 | [`Context::submit`], [`Event`] | `submit_and_complete_are_the_two_halves_of_every_operation`; the synchronous calls of [`Handle`] and [`Host::call`]: `tests/calls.rs` |
//! | retry-based buffered I/O | *Filesystem AIO*, 2003, 2006 | reads and writes of a cached [`Handle`] | `submit_never_blocks`, `buffered_operations_that_need_the_device_never_block_the_submitter`, `writes_that_extend_and_allocate_on_a_file_never_block_the_submitter`; `a_retry_does_strictly_less_each_time` of the cache |
//! | fsync, fdatasync, range sync | *aio_fsync* 2004, 2006; LaHaise 2016; Hellwig 2018 | [`Iocb::fsync`], [`Iocb::fdatasync`], [`Iocb::sync_range`]; for the host [`host`] | `many_syncs_at_once_share_one_flush`, `a_file_is_made_stable_as_a_whole_and_by_range` |
//! | minimum, maximum, timeout | io_getevents(2) | [`Context::get_events`] | `get_events_keeps_to_min_max_and_timeout`, `tests/ends.rs`, `every_event_reaches_exactly_one_of_many_waiting_threads` |
//! | the first, all, m of n, over several contexts | aio_suspend(3); Drepper 2007 (m of n) | [`suspend()`] | `suspend_waits_for_the_first_for_m_of_n_and_for_all_over_several_contexts`, `suspend_spans_contexts_of_several_reactors`, `many_threads_wait_for_one_context_each_for_its_own`, `tests/watch_loom.rs` |
//! | notification: eventfd, descriptor, signal, callback, task | Dugué, Rao, Vivier 2007 | [`Notify`], [`Signal`], [`Callbacks`], [`NoticeFd`] | `tests/waiting.rs`, `tests/signals.rs`, `the_eventfd_counts_events` |
//! | epoll in the same loop | Brown, Moyer, Bhattacharya 2007 | [`host::EpollWait`], [`host::HostOp::Poll`] | `an_epoll_descriptor_delivers_its_events_in_the_same_loop`, `a_multishot_poll_has_an_event_each_time_and_ends_when_there_is_no_slot` |
//! | lio_listio | Dugué, Rao, Vivier 2007 | [`Context::listio`], [`Context::listio_wait`] | `a_list_is_one_submission_whose_failed_element_stops_no_other`, `a_list_that_is_waited_for_is_done_when_the_call_returns` |
//! | sockets and pipes | road map of 2006, part 4 | [`Iocb::host`] | `tests/host_sockets.rs`, `a_descriptor_and_a_volume_share_a_context` |
//! | operations on names; readahead | LaHaise 2016 | [`Iocb::host`]; [`Iocb::readahead`] | `names_are_made_moved_linked_and_removed`, `readahead_is_done_when_the_pages_are_there` |
//! | arbitrary system calls | syslets, acall, 2007 to 2016 | [`host::Call`]; [`Context::refresh_credentials`] | `a_system_call_is_made_with_what_its_arguments_own`, `tests/host_settled.rs`, `tests/credentials.rs` |
//! | cancellation | LaHaise 2016 | [`Context::cancel`], [`Context::cancel_all`], [`Handle::cancel_all`], [`Host::cancel_descriptor`] | `tests/cancel.rs`, `a_cancel_reaches_the_device_for_what_it_does_for_the_command_alone`, `a_call_that_a_worker_has_begun_is_interrupted_where_it_waits`, `tests/ticket_loom.rs`, `what_waits_at_a_descriptor_is_cancelled_by_ticket_by_descriptor_and_by_context`; a borrow that timed out ([`Handle::pread_within`] and its like): `a_read_whose_time_is_up_is_detached_at_once_from_a_device_that_is_stuck_and_answers_late`, `a_direct_write_whose_time_is_up_returns_when_the_device_has_let_go_of_it_and_not_before` |
//! | priorities, deadlines, links, timeouts | aio_reqprio; io_uring | [`Iocb::with_priority`], [`Iocb::with_timeout`], [`Iocb::then`] | `tests/chains.rs`, `a_chain_goes_from_the_host_to_a_volume_and_back` |
//! | a depth that is a promise | io_setup(2), io_submit(2) | [`ContextOptions::events`], [`Context::submit_all`] | `submit_all_takes_as_many_as_there_is_room_for`, `a_chain_has_all_its_slots_or_is_refused_whole` |
//! | a completion ring in user memory | aio-2.5's mmapped ring | [`Context::get_events`] takes from it | `tests/ring_loom.rs` |
//! | straight to and from the caller's buffer | *direct I/O*, 2002 | [`RegisteredBuffer`], [`Iocb::pread_registered`], [`Iocb::pwrite_registered`] on a direct [`Handle`]; other memory is copied once | `tests/registered.rs` |
//!
//! # Limits
//!
//! * A priority orders what waits to be started, and nothing at the device of a volume.
//! * A cancel asks the device to end only what it does for that command alone: see [`Context::cancel`].
//! * What a multishot poll says while its context has no slot free comes with its last event.
//! * [`suspend()`] over contexts of several reactors looks at those without a thread once a millisecond.

#![expect(clippy::result_large_err, reason = "what is refused comes back whole, and unallocated")]

mod baton;
mod buffers;
mod cached;
mod call;
mod cancel;
mod context;
mod deadline;
mod event;
mod future;
pub mod host;
mod hosted;
mod inbox;
mod iocb;
mod listio;
mod notify;
pub mod ops;
mod queue;
pub mod reactor;
mod refusal;
mod registered;
mod request;
mod ring;
mod runner;
mod scope;
mod signal;
mod station;
mod suspend;
mod sync;
mod ticket;
mod volume;
mod waiters;
mod watch;

pub use buffers::Buffers;
pub use call::CallError;
pub use cancel::Cancel;
pub use context::{Batch, Context, ContextOptions, EVENTS_MAX, InvalidRange};
pub use event::Event;
pub use future::{AsyncContext, EventStream, Finished, Running};
pub use hosted::{Host, HostOptions, HostReply};
pub use iocb::{BUFFERS_MAX, Iocb, Priority};
pub use listio::Listed;
pub use notify::{Callback, Callbacks, NoticeFd, Notify};
pub use reactor::Reactor;
pub use refusal::{Refusal, Refused};
pub use registered::RegisteredBuffer;
pub use scope::Scope;
pub use signal::Signal;
pub use suspend::suspend;
pub use ticket::Ticket;
pub use uaio_page_cache::Advice;
pub use volume::{CloseError, Handle, OpenOptions, Volume, VolumeOptions};
