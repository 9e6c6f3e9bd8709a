//! What was done about failures, counted: one counter a rung of the ladder.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count that any thread adds to. Never on the data path of a request that goes well.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// How often a controller's queues had to do something about a failure, since it was opened.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct ErrorStatistics {
            $($(#[$doc])+ pub $name: u64,)+
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)+
        }

        impl Counters {
            pub(super) fn read(&self) -> ErrorStatistics {
                ErrorStatistics { $($name: self.$name.get(),)+ }
            }
        }

        impl ErrorStatistics {
            /// Nothing had to be done.
            pub const NONE: Self = Self { $($name: 0,)+ };

            /// Name and value of each count, in order, for tables and exporters.
            pub fn fields(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Requests that were past their deadline.
    late,
    /// Abort commands sent, for requests that were late or cancelled.
    aborts,
    /// Commands that ended as aborted.
    aborted,
    /// Queues that were given up because the controller broke the protocol on them.
    queues_failed,
    /// Controller resets begun.
    resets,
    /// Controller resets after which it served again.
    resets_done,
    /// Subsystem resets (NSSR).
    subsystem_resets,
    /// Requests sent again, after an abort, a reset or a failure that may pass.
    sent_again,
    /// Requests that were failed because they may not be sent again, or not once more.
    given_up,
    /// Commands that the controller failed with a status.
    failed,
    /// Asynchronous events that the controller told of.
    events,
}
