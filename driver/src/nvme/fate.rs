//! The state that a controller and all its queues share: does it serve, is it being reset, has it ended.
//!
//! ```text
//!               fail, a reset may help                 RDY = 0                     up again
//!   Running(e) ───────────────────────► Stopping ───────────────► Reviving ────────────────► Running(e + 1)
//!       │                                  │ it does not stop,        │ it does not come back,
//!       │ fail, for good                   │ it is gone               │ it is another one
//!       └──────────────────────────────► Ending ◄─────────────────────┘ (or Stopping once more)
//!                                          │ RDY = 0, or the IOMMU keeps it from memory
//!                                          ▼
//!                                        Quiet, or Never
//! ```
//!
//! No frame goes back to its owner while the controller may touch it: not in Stopping, not in Ending.
//! From Reviving on, the commands of earlier epochs are gone: Base 2.0c §3.7.2 has all queues deleted
//! and nothing fetched or written any more when RDY is 0 after EN = 0.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::clock::Clock;

use super::controller::Event;
use super::failure::Failure;
use super::registers::{Function, Properties};
use super::statistics::Counters;

/// Whether a controller that was told to stop still may touch memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quiet {
    /// It may: look again later.
    NotYet,
    /// It touches nothing any more.
    Yes,
    /// It may for ever: whatever it was given is lost.
    Never,
}

/// Where a controller stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It serves, for the so-manieth time since it was opened.
    Running(u32),
    /// It was told to stop, to be reset.
    Stopping,
    /// It has stopped, and is brought up again.
    Reviving,
    /// It was told to stop for good.
    Ending,
    /// It has stopped for good.
    Quiet,
    /// It does not stop and cannot be kept from memory.
    Never,
}

const RUNNING: u32 = 0;
const STOPPING: u32 = 1;
const REVIVING: u32 = 2;
const ENDING: u32 = 3;
const QUIET: u32 = 4;
const NEVER: u32 = 5;
const PHASE_BITS: u32 = 3;
const PHASE_MASK: u32 = (1 << PHASE_BITS) - 1;

/// A word that no state has: what a queue holds that does not serve.
pub(super) const NOT_SERVING: u32 = u32::MAX;

/// How many events are kept for whoever asks; the oldest go first.
const EVENTS_MAX: usize = 256;

/// The longest pause that a controller is believed, whatever it says it needs.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// How often and how long is tried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// How long it may take to stop, from CAP.TO.
    pub(super) ready_timeout: Duration,
    /// How many resets in a row are tried.
    pub(super) resets_max: u32,
    /// Resets further apart than this are not in a row.
    pub(super) resets_window: Duration,
}

#[derive(Debug)]
struct Troubles {
    /// When it was last told to stop.
    told: Duration,
    /// Why it was last reset.
    reason: Failure,
    /// Resets in a row.
    resets: u32,
}

/// When the controller need not answer, in nanoseconds of the clock.
#[derive(Debug, Default)]
struct Pauses {
    /// Since when it says that it is busy with itself, plus one; 0 while it does not.
    since_ns: AtomicU64,
    /// For how long that is believed.
    max_ns: AtomicU64,
    /// Until when an admin command that may take long, such as a format, may keep it busy.
    long_until_ns: AtomicU64,
}

/// A command that failed on the medium, whose first bad block the error log may name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suspect {
    pub(super) qid: u16,
    pub(super) cid: u16,
    pub(super) nsid: u32,
    pub(super) lba: u64,
    pub(super) blocks: u32,
}

/// How many of those are kept until the error log is read; of more, the rest is not looked for.
const SUSPECTS_MAX: usize = 64;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Fate {
    /// The phase in the lower bits, the epoch above.
    word: AtomicU32,
    /// Why it has ended.
    failure: OnceLock<Failure>,
    troubles: Mutex<Troubles>,
    /// What happened, for whoever asks.
    events: Mutex<VecDeque<Event>>,
    suspects: Mutex<Vec<Suspect>>,
    pauses: Pauses,
    /// How often the volatile cache may have been lost since the start.
    cache_losses: AtomicU32,
    patience: Patience,
    pub(super) counters: Counters,
    properties: Properties,
    function: Arc<dyn Function>,
    clock: Arc<dyn Clock>,
    /// After so many more looks at the word the controller fails with this, as if another thread had
    /// found it then.
    #[cfg(test)]
    pub(super) trip: Mutex<Option<(u32, Failure)>>,
}

impl Fate {
    pub(super) fn new(
        function: Arc<dyn Function>,
        clock: Arc<dyn Clock>,
        patience: Patience,
    ) -> Self {
        Self {
            word: AtomicU32::new(RUNNING),
            failure: OnceLock::new(),
            troubles: Mutex::new(Troubles {
                told: Duration::ZERO,
                reason: Failure::Closed,
                resets: 0,
            }),
            events: Mutex::new(VecDeque::new()),
            suspects: Mutex::default(),
            pauses: Pauses::default(),
            cache_losses: AtomicU32::new(0),
            patience,
            counters: Counters::default(),
            properties: Properties::new(Arc::clone(&function)),
            function,
            clock,
            #[cfg(test)]
            trip: Mutex::new(None),
        }
    }

    #[cfg(test)]
    fn trip_if_due(&self) {
        let mut trip = self.trip.lock().unwrap();
        match *trip {
            Some((0, failure)) => {
                *trip = None;
                drop(trip);
                self.fail(failure);
            }
            Some((looks, failure)) => *trip = Some((looks - 1, failure)),
            None => {}
        }
    }

    /// The state as one word, for a queue to compare with the one it serves in: equal means that the
    /// controller runs and has not been reset since. One load of a line that is hardly ever written.
    #[inline]
    pub(super) fn word(&self) -> u32 {
        #[cfg(test)]
        self.trip_if_due();
        self.word.load(Ordering::Relaxed)
    }

    /// The word of a controller that runs in `epoch`.
    pub(super) const fn running_word(epoch: u32) -> u32 {
        epoch << PHASE_BITS | RUNNING
    }

    pub(super) fn standing(&self) -> Standing {
        // Acquire: pairs with the Release of `set`, so that whoever sees a state finds its reason.
        let word = self.word.load(Ordering::Acquire);
        match word & PHASE_MASK {
            RUNNING => Standing::Running(word >> PHASE_BITS),
            STOPPING => Standing::Stopping,
            REVIVING => Standing::Reviving,
            ENDING => Standing::Ending,
            QUIET => Standing::Quiet,
            _ => Standing::Never,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.standing(), Standing::Running(_))
    }

    /// Why it serves no more, when it has ended.
    pub(super) fn failure(&self) -> Option<Failure> {
        match self.standing() {
            Standing::Running(_) | Standing::Stopping | Standing::Reviving => None,
            Standing::Ending | Standing::Quiet | Standing::Never => self.failure.get().copied(),
        }
    }

    /// Why it does not serve, for good or just now; `None` while it does.
    pub(super) fn trouble(&self) -> Option<Failure> {
        if self.is_running() {
            return None;
        }
        Some(self.failure().unwrap_or(self.lock().reason))
    }

    /// Why it was last reset. Only of use to who knows that it was.
    pub(super) fn reason(&self) -> Failure {
        self.lock().reason
    }

    /// Tells the controller to stop: to be reset when that may help and was not tried too often, else
    /// for good. The first reason stays. CC.EN is cleared. Does not wait.
    pub(super) fn fail(&self, failure: Failure) {
        let mut troubles = self.lock();
        let standing = self.standing();
        let now = self.clock.now();
        match standing {
            Standing::Ending | Standing::Quiet | Standing::Never => return,
            Standing::Stopping if failure.may_pass() => return,
            Standing::Running(_) | Standing::Stopping | Standing::Reviving => {}
        }
        if now.saturating_sub(troubles.told) > self.patience.resets_window {
            troubles.resets = 0;
        }
        let again = failure.may_pass() && troubles.resets < self.patience.resets_max;
        if again {
            troubles.resets += 1;
            troubles.reason = failure;
            self.counters.resets.add(1);
            self.note(Event::Reset(failure));
        } else {
            // Set before the state says so, so that whoever sees the state finds the reason.
            self.failure.get_or_init(|| failure);
        }
        troubles.told = now;
        if let Some(cc) = self.properties.cc() {
            self.properties.set_cc(cc.with_en(false));
        }
        self.set(if again { STOPPING } else { ENDING });
    }

    /// What was told to stop to be reset ends instead.
    pub(super) fn end(&self, failure: Failure) {
        let _troubles = self.lock();
        if matches!(self.standing(), Standing::Stopping | Standing::Reviving) {
            self.failure.get_or_init(|| failure);
            self.set(ENDING);
        }
    }

    /// What was told to stop, to be reset, has: nothing of it is in flight any more, and `revive` may
    /// enable it. Nobody tells it to stop meanwhile; who did before is not undone. Whether it is being
    /// revived.
    pub(super) fn stopped(&self, revive: impl FnOnce()) -> bool {
        let _troubles = self.lock();
        let stopping = self.standing() == Standing::Stopping;
        if stopping {
            revive();
            self.set(REVIVING);
        }
        stopping
    }

    /// It is up again. Says whether it runs: it may have been told to end meanwhile.
    pub(super) fn revived(&self) -> bool {
        let _troubles = self.lock();
        if self.standing() != Standing::Reviving {
            return false;
        }
        // 2^29 resets take longer than a machine lives; a wrap would only be a reset unseen by a queue
        // that slept through all of them.
        let epoch = (self.word.load(Ordering::Relaxed) >> PHASE_BITS).wrapping_add(1)
            & (u32::MAX >> PHASE_BITS);
        self.word.store(Self::running_word(epoch), Ordering::Release);
        true
    }

    fn set(&self, phase: u32) {
        let word = self.word.load(Ordering::Relaxed);
        self.word.store(word & !PHASE_MASK | phase, Ordering::Release);
    }

    /// When it was last told to stop.
    pub(super) fn told(&self) -> Duration {
        self.lock().told
    }

    /// The controller's volatile cache may be lost: every queue that is open fails its next flush.
    pub(super) fn lose_cache(&self) {
        self.cache_losses.fetch_add(1, Ordering::Relaxed);
        self.note(Event::CacheLost);
    }

    pub(super) fn cache_losses(&self) -> u32 {
        self.cache_losses.load(Ordering::Relaxed)
    }

    /// Keeps what happened; of more than 256, the oldest go.
    pub(super) fn note(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// Keeps a command to be looked for in the error log.
    pub(super) fn suspect(&self, suspect: Suspect) {
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        if suspects.len() < SUSPECTS_MAX {
            suspects.push(suspect);
        }
    }

    pub(super) fn take_suspects(&self) -> Vec<Suspect> {
        std::mem::take(&mut *self.suspects.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn take_events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }

    /// Looks at the controller's status: what is wrong with it, if anything is. One register read, and
    /// one of a descriptor.
    pub(super) fn examine(&self) -> Option<Failure> {
        if self.function.is_asked_back() {
            return Some(Failure::AskedBack);
        }
        match self.properties.csts() {
            None => Some(Failure::Removed),
            Some(csts) if csts.cfs() => Some(Failure::Fatal),
            Some(_) => None,
        }
    }

    /// Whether the controller need not answer just now: it says that it is busy with new firmware
    /// (CSTS.PP), for at most as long as it said that takes, or it does an admin command that may take
    /// long. Reads a register.
    pub(super) fn is_paused(&self, now: Duration) -> bool {
        let now_ns = now.as_nanos() as u64;
        let Pauses { since_ns, max_ns, long_until_ns } = &self.pauses;
        if now_ns < long_until_ns.load(Ordering::Relaxed) {
            return true;
        }
        if !self.properties.csts().is_some_and(|csts| csts.pp()) {
            since_ns.store(0, Ordering::Relaxed);
            return false;
        }
        // Whoever sees it first says when it began.
        let since = since_ns.compare_exchange(0, now_ns + 1, Ordering::Relaxed, Ordering::Relaxed);
        let since = since.err().unwrap_or(now_ns + 1) - 1;
        now_ns.saturating_sub(since) < max_ns.load(Ordering::Relaxed)
    }

    /// Believes a pause for `mtfa` units of 100 ms (Base 2.0c figure 275, MTFA), or for `otherwise` when
    /// it says nothing, and never for more than [`PAUSE_MAX`].
    pub(super) fn set_pause_max(&self, mtfa: u16, otherwise: Duration) {
        let said = Duration::from_millis(100) * u32::from(mtfa);
        let max = if mtfa == 0 { otherwise } else { said };
        self.pauses.max_ns.store(max.min(PAUSE_MAX).as_nanos() as u64, Ordering::Relaxed);
    }

    /// Until when an admin command may keep the controller busy; zero for none.
    pub(super) fn set_long_until(&self, until: Duration) {
        self.pauses.long_until_ns.store(until.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Whether a controller that was ended touches memory no more. Does not wait.
    pub(super) fn quiet(&self) -> Quiet {
        match self.standing() {
            Standing::Quiet => return Quiet::Yes,
            Standing::Never => return Quiet::Never,
            Standing::Running(_) | Standing::Stopping | Standing::Reviving => {
                return Quiet::NotYet;
            }
            Standing::Ending => {}
        }
        let troubles = self.lock();
        if self.standing() != Standing::Ending {
            return if self.standing() == Standing::Quiet { Quiet::Yes } else { Quiet::Never };
        }
        let stopped = match self.properties.csts() {
            // Base 2.0c §3.5.1: with RDY = 0 after EN = 0 all queues are gone and nothing is fetched
            // or written any more.
            Some(csts) if !csts.rdy() => true,
            Some(_) if self.clock.now() < troubles.told + self.patience.ready_timeout => {
                return Quiet::NotYet;
            }
            // It will not stop, or it cannot be asked: only the IOMMU can help.
            Some(_) | None => self.function.cut_off(),
        };
        self.set(if stopped { QUIET } else { NEVER });
        if stopped && matches!(self.failure.get(), Some(Failure::AskedBack | Failure::Removed)) {
            // The kernel waits for it, and its address cannot be used again before.
            self.function.give_back();
        }
        if stopped { Quiet::Yes } else { Quiet::Never }
    }

    /// [`quiet`](Fate::quiet), waited for; bounded by CAP.TO. For control paths, of a controller that
    /// was ended. `false` is never.
    pub(super) fn wait_quiet(&self) -> bool {
        loop {
            match self.quiet() {
                Quiet::Yes => return true,
                Quiet::Never => return false,
                Quiet::NotYet => self.clock.sleep(Duration::from_millis(1)),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Troubles> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
