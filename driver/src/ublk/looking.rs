//! How long a queue thread looks for completions of the device before it sleeps.

use std::time::Duration;

/// How a queue thread waits.
///
/// The latency that this adds to a request is at most one `nap` at a device that only can be polled,
/// and nothing at others, beside the time the kernel takes to run the thread again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollOptions {
    /// How often the thread looks for something to do without letting go of the CPU.
    pub spin_turns: u32,
    /// How often it looks after that, letting others run first each time (`sched_yield`).
    pub yield_turns: u32,
    /// How long each wait for a device that only can be polled is after that. A new request ends it
    /// early.
    pub nap: Duration,
    /// The longest sleep while requests are in flight at a device that tells of completions; ten of
    /// them when none are. Nothing that a device tells of waits for it: it is how soon a device that
    /// looks at its deadlines in `poll` looks at them.
    pub tick: Duration,
}

impl Default for PollOptions {
    /// Some microseconds of spinning, a few hundred of yielding (a flash drive answers within both),
    /// then naps of 50 µs. A tick of 100 ms.
    fn default() -> Self {
        Self {
            spin_turns: 200,
            yield_turns: 1000,
            nap: Duration::from_micros(50),
            tick: Duration::from_millis(100),
        }
    }
}

impl PollOptions {
    /// How often the thread looks in all before it sleeps.
    fn looks(&self) -> u32 {
        self.spin_turns.saturating_add(self.yield_turns)
    }
}

/// What a turn in which nothing happened is followed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Look again at once.
    Spin,
    /// Let others run, then look again.
    Yield,
    /// Sleep, as the device allows.
    Sleep,
}

/// Where the thread is between two turns in which something happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Quiet {
    #[default]
    NotYet,
    /// It has looked this often.
    Looking(u32),
    /// It looks no more, and sleeps.
    Over,
}

/// Whether looking has paid of late, and so whether to look.
#[derive(Debug, Default)]
pub(super) struct Looking {
    quiet: Quiet,
    /// Phases in a row in which nothing came.
    misses: u32,
    /// How many phases are left out before the next.
    left_out: u32,
}

impl Looking {
    /// At most 2^6 - 1 phases in a row are left out.
    const MISSES_MAX: u32 = 6;

    /// Something happened.
    pub(super) fn found(&mut self) {
        if let Quiet::Looking(_) = self.quiet {
            self.misses = 0;
        }
        self.quiet = Quiet::NotYet;
    }

    /// Nothing happened: what now?
    pub(super) fn next(&mut self, options: &PollOptions) -> Next {
        let looked = match self.quiet {
            Quiet::NotYet if options.looks() == 0 => None,
            Quiet::NotYet if self.left_out > 0 => {
                self.left_out -= 1;
                None
            }
            Quiet::NotYet => Some(1),
            Quiet::Looking(looked) if looked < options.looks() => Some(looked + 1),
            Quiet::Looking(_) => {
                self.misses = (self.misses + 1).min(Self::MISSES_MAX);
                self.left_out = (1 << self.misses) - 1;
                None
            }
            Quiet::Over => None,
        };
        self.quiet = looked.map_or(Quiet::Over, Quiet::Looking);
        match looked {
            Some(looked) if looked <= options.spin_turns => Next::Spin,
            Some(_) => Next::Yield,
            None => Next::Sleep,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: PollOptions = PollOptions {
        spin_turns: 2,
        yield_turns: 1,
        nap: Duration::from_micros(1),
        tick: Duration::from_millis(1),
    };

    /// The answers up to the first sleep.
    fn phase(looking: &mut Looking) -> Vec<Next> {
        let mut answers = Vec::new();
        while answers.last() != Some(&Next::Sleep) {
            answers.push(looking.next(&OPTIONS));
        }
        answers
    }

    #[test]
    fn it_spins_then_yields_then_sleeps_until_something_happens() {
        let mut looking = Looking::default();
        assert_eq!(phase(&mut looking), [Next::Spin, Next::Spin, Next::Yield, Next::Sleep]);
        assert_eq!(looking.next(&OPTIONS), Next::Sleep);
    }

    #[test]
    fn looking_in_vain_is_left_out_ever_longer_and_back_when_it_pays() {
        let mut looking = Looking::default();
        for left_out in [1, 3, 7, 15, 31, 63, 63] {
            assert_eq!(phase(&mut looking).len(), 4);
            for _ in 0..left_out {
                looking.found();
                assert_eq!(phase(&mut looking), [Next::Sleep]);
            }
            looking.found();
        }
        // It pays once.
        assert_eq!(looking.next(&OPTIONS), Next::Spin);
        looking.found();
        assert_eq!(phase(&mut looking).len(), 4);
        looking.found();
        assert_eq!(phase(&mut looking), [Next::Sleep], "one in vain again");
        looking.found();
        assert_eq!(phase(&mut looking).len(), 4);
    }

    #[test]
    fn without_turns_it_sleeps_at_once() {
        let options = PollOptions { spin_turns: 0, yield_turns: 0, ..OPTIONS };
        let mut looking = Looking::default();
        assert_eq!(looking.next(&options), Next::Sleep);
        assert_eq!((looking.misses, looking.left_out), (0, 0));
    }
}
