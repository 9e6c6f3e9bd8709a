//! How serving ends: a few stages, each of which can fail, time out and be tried again.
//!
//! ```text
//!   Serving ──(nobody has it open, or force; data saved)──► Stopping ──► Stopped ──► Closed
//!      ▲                                  │                  (the kernel's device goes)
//!      └──── data cannot be saved ────────┘                              (the backend closes)
//! ```

use std::time::Instant;

use crate::exit::{Exit, Failure};
use crate::holders::{Holder, listed};

/// What stopping needs of whatever is served.
pub(crate) trait Stoppable {
    /// Who has the device open.
    fn holders(&self) -> Vec<Holder>;

    /// New I/O is answered with an error at once, or served again.
    fn fail_new_io(&mut self, fail: bool);

    /// Makes stable whatever has been acknowledged.
    ///
    /// # Errors
    ///
    /// The failure that says what could not be saved, or not yet.
    fn save(&mut self, deadline: Instant) -> Result<(), Failure>;

    /// Gives up whatever could not be saved.
    fn give_up_unsaved(&mut self);

    /// Removes the kernel's device; afterwards nothing is in flight.
    ///
    /// # Errors
    ///
    /// That it did not happen by the deadline; can be tried again.
    fn stop(&mut self, deadline: Instant) -> Result<(), Failure>;

    /// Shuts the backend down.
    ///
    /// # Errors
    ///
    /// That it did not shut down in order.
    fn close(&mut self, deadline: Instant) -> Result<(), Failure>;
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The device is there and served.
    Serving,
    /// The kernel was told to remove the device.
    Stopping,
    /// The kernel has no device any more; the backend is open, and there may be unsaved data.
    Stopped,
    /// All is done.
    Closed,
}

impl Stage {
    /// As `aioctl info` says it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped, saving",
            Self::Closed => "closed",
        }
    }
}

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Order {
    /// Stop although the device is open.
    pub(crate) force: bool,
    /// Give up data that cannot be saved.
    pub(crate) discard_dirty: bool,
}

/// Tries to get from `stage` to [`Stage::Closed`]; `stage` says how far it came, and `tell` is told
/// of each stage as it begins.
///
/// # Errors
///
/// Why it came no further. Each attempt goes on where the last one ended, and one that was refused
/// while serving leaves the device serving as before.
pub(crate) fn attempt(
    served: &mut impl Stoppable,
    stage: &mut Stage,
    order: Order,
    deadline: Instant,
    tell: impl Fn(Stage),
) -> Result<(), Failure> {
    let reach = |stage: &mut Stage, next| {
        *stage = next;
        tell(next);
    };
    if *stage == Stage::Serving {
        prepare(served, order, deadline)?;
        reach(stage, Stage::Stopping);
    }
    if *stage == Stage::Stopping {
        served.stop(deadline)?;
        reach(stage, Stage::Stopped);
    }
    if *stage == Stage::Stopped {
        // Nobody can write any more, so what is saved now is all there will ever be.
        save(served, order, deadline)?;
        served.close(deadline)?;
        reach(stage, Stage::Closed);
    }
    Ok(())
}

/// The part that can be taken back: data is saved before the device goes, so that data that cannot
/// be saved can still be read from it.
fn prepare(served: &mut impl Stoppable, order: Order, deadline: Instant) -> Result<(), Failure> {
    let holders = served.holders();
    if !holders.is_empty() {
        if !order.force {
            return Err(Failure::new(
                Exit::InUse,
                format!("the device is in use: {}", listed(&holders)),
                "unmount or close it, or stop it with `aioctl del --force`",
            ));
        }
        served.fail_new_io(true);
    }
    match served.save(deadline) {
        // What is given up is given up at the end: until then it can be read.
        Err(failure) if !may_give_up(order, &failure) => {
            served.fail_new_io(false);
            Err(failure)
        }
        _ => Ok(()),
    }
}

/// Only what the backend refused to take may be given up, not what merely takes long to write.
fn may_give_up(order: Order, failure: &Failure) -> bool {
    order.discard_dirty && failure.exit == Exit::Unsaved
}

fn save(served: &mut impl Stoppable, order: Order, deadline: Instant) -> Result<(), Failure> {
    match served.save(deadline) {
        Err(failure) if may_give_up(order, &failure) => {
            served.give_up_unsaved();
            Ok(())
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that plays its part as told and writes down what was done to it.
    #[derive(Default)]
    struct Fake {
        open: bool,
        save_fails: bool,
        save_is_slow: bool,
        stop_times_out: u32,
        done: Vec<&'static str>,
    }

    impl Stoppable for Fake {
        fn holders(&self) -> Vec<Holder> {
            let mount = Holder::Mount { device: "ublkb0".into(), at: "/mnt".into() };
            if self.open { vec![mount] } else { Vec::new() }
        }
        fn fail_new_io(&mut self, fail: bool) {
            self.done.push(if fail { "fail" } else { "serve" });
        }
        fn save(&mut self, _: Instant) -> Result<(), Failure> {
            self.done.push("save");
            if self.save_is_slow {
                return Err(Failure::new(Exit::TimedOut, "4096 bytes are left", ""));
            }
            let unsaved =
                || Err(Failure::new(Exit::Unsaved, "blocks 8 to 15 cannot be written", ""));
            if self.save_fails { unsaved() } else { Ok(()) }
        }
        fn give_up_unsaved(&mut self) {
            self.done.push("give up");
        }
        fn stop(&mut self, _: Instant) -> Result<(), Failure> {
            self.done.push("stop");
            if self.stop_times_out > 0 {
                self.stop_times_out -= 1;
                return Err(Failure::new(Exit::TimedOut, "still stopping", ""));
            }
            Ok(())
        }
        fn close(&mut self, _: Instant) -> Result<(), Failure> {
            self.done.push("close");
            Ok(())
        }
    }

    const PLAIN: Order = Order { force: false, discard_dirty: false };
    const FORCE: Order = Order { force: true, discard_dirty: false };
    const DISCARD: Order = Order { force: false, discard_dirty: true };
    const BOTH: Order = Order { force: true, discard_dirty: true };

    fn try_it(fake: &mut Fake, stage: &mut Stage, order: Order) -> Result<(), Exit> {
        attempt(fake, stage, order, Instant::now(), |_| {}).map_err(|failure| failure.exit)
    }

    #[test]
    fn every_device_and_every_order_ends_as_the_table_says() {
        use Stage::{Closed, Serving};
        type Row = (bool, bool, Order, Result<(), Exit>, Stage, &'static [&'static str]);
        let all = &["save", "stop", "save", "close"];
        let in_use = Err(Exit::InUse);
        let unsaved = Err(Exit::Unsaved);
        #[rustfmt::skip]
        let table: [Row; 16] = [
            // open, fails, order,   outcome, stage,   what was done
            (false, false, PLAIN,   Ok(()),  Closed,  all),
            (false, false, FORCE,   Ok(()),  Closed,  all),
            (false, false, DISCARD, Ok(()),  Closed,  all),
            (false, false, BOTH,    Ok(()),  Closed,  all),
            (true,  false, PLAIN,   in_use,  Serving, &[]),
            (true,  false, FORCE,   Ok(()),  Closed,  &["fail", "save", "stop", "save", "close"]),
            (true,  false, DISCARD, in_use,  Serving, &[]),
            (true,  false, BOTH,    Ok(()),  Closed,  &["fail", "save", "stop", "save", "close"]),
            (false, true,  PLAIN,   unsaved, Serving, &["save", "serve"]),
            (false, true,  FORCE,   unsaved, Serving, &["save", "serve"]),
            (false, true,  DISCARD, Ok(()),  Closed,  &["save", "stop", "save", "give up", "close"]),
            (false, true,  BOTH,    Ok(()),  Closed,  &["save", "stop", "save", "give up", "close"]),
            (true,  true,  PLAIN,   in_use,  Serving, &[]),
            (true,  true,  FORCE,   unsaved, Serving, &["fail", "save", "serve"]),
            (true,  true,  DISCARD, in_use,  Serving, &[]),
            (true,  true,  BOTH,    Ok(()),  Closed,
                &["fail", "save", "stop", "save", "give up", "close"]),
        ];
        for (open, save_fails, order, outcome, end, done) in table {
            let mut fake = Fake { open, save_fails, ..Fake::default() };
            let mut stage = Serving;
            assert_eq!(
                try_it(&mut fake, &mut stage, order),
                outcome,
                "{open} {save_fails} {order:?}"
            );
            assert_eq!((stage, &fake.done[..]), (end, done), "{open} {save_fails} {order:?}");
        }
    }

    #[test]
    fn a_stop_that_timed_out_goes_on_where_it_was() {
        let mut fake = Fake { stop_times_out: 2, ..Fake::default() };
        let mut stage = Stage::Serving;
        assert_eq!(try_it(&mut fake, &mut stage, PLAIN), Err(Exit::TimedOut));
        assert_eq!(stage, Stage::Stopping);
        // Somebody who has it open now cannot keep it: it is on its way out.
        fake.open = true;
        assert_eq!(try_it(&mut fake, &mut stage, PLAIN), Err(Exit::TimedOut));
        assert_eq!(try_it(&mut fake, &mut stage, PLAIN), Ok(()));
        assert_eq!(fake.done, ["save", "stop", "stop", "stop", "save", "close"]);
        assert_eq!(try_it(&mut fake, &mut stage, PLAIN), Ok(()));
    }

    #[test]
    fn data_that_became_unsavable_at_the_end_is_kept_until_it_is_given_up() {
        let mut fake = Fake::default();
        let mut stage = Stage::Stopped;
        fake.save_fails = true;
        assert_eq!(try_it(&mut fake, &mut stage, FORCE), Err(Exit::Unsaved));
        assert_eq!(stage, Stage::Stopped);
        assert_eq!(try_it(&mut fake, &mut stage, DISCARD), Ok(()));
        assert_eq!(fake.done, ["save", "save", "give up", "close"]);
    }

    #[test]
    fn data_that_only_takes_long_is_never_given_up() {
        let mut fake = Fake { save_is_slow: true, ..Fake::default() };
        for mut stage in [Stage::Serving, Stage::Stopped] {
            assert_eq!(try_it(&mut fake, &mut stage, BOTH), Err(Exit::TimedOut));
        }
        assert_eq!(fake.done, ["save", "serve", "save"]);
    }

    #[test]
    fn the_refusal_names_the_holder_and_the_way_out() {
        let mut fake = Fake { open: true, ..Fake::default() };
        let failure =
            attempt(&mut fake, &mut Stage::Serving.clone(), PLAIN, Instant::now(), |_| {})
                .expect_err("it is mounted");
        assert_eq!(
            failure.to_string(),
            "the device is in use: ublkb0 is mounted on /mnt; \
             unmount or close it, or stop it with `aioctl del --force`"
        );
    }
}
