//! A reset, from CC.EN = 0 to serving again, a step at a time: whoever polls a queue of the controller
//! drives it ([`NvmeController::turn`]), and nobody waits in it.
//!
//! The controller must come back as the one that it was: requests in flight are sent to it again. Its
//! queues are made anew by their owners (`queue/trouble.rs`), each when it is polled next.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::nvme::admin::{AdminError, Purpose, Ticket};
use crate::nvme::failure::Failure;
use crate::nvme::fate::Standing;
use crate::nvme::info::{NamespaceInfo, transfer_max_bytes};
use crate::nvme::registers::Properties;
use crate::nvme::sgl;
use crate::nvme::spec::command::{Opcode, SubmissionEntry, cns};
use crate::nvme::spec::{Aqa, IdentifyController, IdentifyNamespace};

use super::{Event, NvmeController, Shared};

/// How often the status of a controller is looked at that nobody uses.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How far a reset is. Stopping and ended are the fate's; this is what is between.
#[derive(Debug, Default)]
pub(super) enum Recovery {
    /// Nothing was begun since the controller was told to stop.
    #[default]
    Begin,
    /// It did not stop, and its subsystem was reset.
    Subsystem { since: Duration },
    /// CC.EN is 1; RDY is waited for.
    Enabling { since: Duration },
    /// Whether it is the same controller.
    Identifying { ticket: Ticket },
    /// Whether the open namespaces are the same; those behind the one asked for, in reverse.
    Namespaces { ticket: Ticket, nsid: u32, left: Vec<u32> },
    /// Whether there are as many queues.
    Queues { ticket: Ticket },
    /// What else was set up before is set up again.
    Settings { ticket: Ticket, next: usize },
}

/// What the step of a reset found.
enum Step {
    /// It waits for the controller.
    Same(Recovery),
    Next(Recovery),
    Done,
    Failed(Failure),
}

impl NvmeController {
    /// Takes in admin completions and events, and moves a reset on by a step. Does not wait, neither for
    /// the controller nor for a lock. Owners of queues do it by polling them; whoever has no queue in
    /// use calls it now and then.
    pub fn turn(&self) {
        if let Some(mut shared) = self.try_lock() {
            self.turn_with(&mut shared);
        }
    }

    pub(super) fn turn_with(&self, shared: &mut Shared) {
        match self.fate.standing() {
            Standing::Running(_) => {
                self.look(shared);
                shared.admin.service();
                self.listen(shared);
            }
            Standing::Stopping => self.stop(shared),
            Standing::Reviving => self.revive(shared),
            Standing::Ending => {
                let _ = self.fate.quiet();
            }
            Standing::Quiet | Standing::Never => {}
        }
    }

    /// Looks at the controller's status once a second, also when no queue of it is polled.
    fn look(&self, shared: &mut Shared) {
        let now = self.clock.now();
        if now.saturating_sub(shared.looked) < LOOK_INTERVAL {
            return;
        }
        shared.looked = now;
        if let Some(failure) = self.fate.examine() {
            self.fate.fail(failure);
        }
    }

    /// CC.EN is 0: waits for RDY = 0, and helps when that does not come.
    fn stop(&self, shared: &mut Shared) {
        let now = self.clock.now();
        let since = match shared.recovery {
            Recovery::Subsystem { since } => since,
            _ => self.fate.told(),
        };
        let waited = now.saturating_sub(since);
        let over = waited >= self.ready_timeout();
        match self.properties.csts() {
            Some(csts) if !csts.rdy() => {
                // Nothing is in flight any more: rings and registers can be set anew.
                let revived = self.fate.stopped(|| {
                    shared.admin.reset();
                    self.enable(shared);
                });
                if revived {
                    shared.recovery = Recovery::Enabling { since: now };
                }
            }
            // A subsystem that is being reset may be off the bus for as long as that takes.
            None if !matches!(shared.recovery, Recovery::Subsystem { .. }) => {
                self.fate.end(Failure::Removed);
            }
            Some(_) | None if !over => {}
            Some(_)
                if self.options.subsystem_reset
                    && self.cap.nssrs()
                    && !matches!(shared.recovery, Recovery::Subsystem { .. }) =>
            {
                self.fate.counters.subsystem_resets.add(1);
                self.properties.reset_subsystem();
                if self.info.volatile_cache {
                    self.fate.lose_cache();
                }
                shared.recovery = Recovery::Subsystem { since: now };
            }
            Some(_) | None => {
                self.fate.end(Failure::NotBack { waited_ms: waited.as_millis() as u64 });
            }
        }
    }

    fn enable(&self, shared: &Shared) {
        let admin = &shared.admin;
        let aqa = Aqa::new()
            .with_asqs(admin.sq().size_zero_based())
            .with_acqs(admin.cq().size_zero_based());
        self.properties.set_admin_queue(aqa, admin.sq().iova(), admin.cq().iova());
        self.properties.set_cc(self.cc.with_en(true).with_shn(0));
    }

    /// The controller was quiet and is enabled again.
    fn revive(&self, shared: &mut Shared) {
        shared.admin.service();
        let step = match std::mem::take(&mut shared.recovery) {
            // The fate moved on by another thread between two looks: the next turn sees why.
            begin @ (Recovery::Begin | Recovery::Subsystem { .. }) => Step::Same(begin),
            Recovery::Enabling { since } => self.enabled(shared, since),
            Recovery::Identifying { ticket } => match shared.admin.take(ticket) {
                None => Step::Same(Recovery::Identifying { ticket }),
                Some(answer) => self.identified(shared, answer),
            },
            Recovery::Namespaces { ticket, nsid, left } => match shared.admin.take(ticket) {
                None => Step::Same(Recovery::Namespaces { ticket, nsid, left }),
                Some(answer) => self.namespace_identified(shared, nsid, left, answer),
            },
            Recovery::Queues { ticket } => match shared.admin.take(ticket) {
                None => Step::Same(Recovery::Queues { ticket }),
                Some(answer) => self.queues_granted(shared, answer),
            },
            Recovery::Settings { ticket, next } => match shared.admin.take(ticket) {
                None => Step::Same(Recovery::Settings { ticket, next }),
                Some(Ok(_)) => self.set_again(shared, next),
                Some(Err(error)) => Step::Failed(self.not_back(error)),
            },
        };
        match step {
            Step::Same(recovery) | Step::Next(recovery) => shared.recovery = recovery,
            Step::Done => {
                shared.listening.start_again();
                if self.fate.revived() {
                    self.fate.counters.resets_done.add(1);
                    self.fate.note(Event::Back);
                }
            }
            Step::Failed(failure) => self.fate.fail(failure),
        }
    }

    fn enabled(&self, shared: &mut Shared, since: Duration) -> Step {
        let waited = self.clock.now().saturating_sub(since);
        match self.properties.csts() {
            None => Step::Failed(Failure::Removed),
            Some(csts) if csts.cfs() => Step::Failed(Failure::Fatal),
            Some(csts) if csts.rdy() => match shared.admin.post_identify(cns::CONTROLLER, 0) {
                Ok(Some(ticket)) => Step::Next(Recovery::Identifying { ticket }),
                Ok(None) => Step::Same(Recovery::Enabling { since }),
                Err(error) => Step::Failed(self.not_back(error)),
            },
            Some(_) if waited < self.ready_timeout() => Step::Same(Recovery::Enabling { since }),
            Some(_) => Step::Failed(Failure::NotBack { waited_ms: waited.as_millis() as u64 }),
        }
    }

    fn identified(&self, shared: &mut Shared, answer: Result<u32, AdminError>) -> Step {
        if let Err(error) = answer {
            return Step::Failed(self.not_back(error));
        }
        let id: IdentifyController = shared.admin.identified_as();
        let Some(cap) = self.properties.cap() else { return Step::Failed(Failure::Removed) };
        let same = id.sn.to_string() == self.info.serial && id.mn.to_string() == self.info.model;
        // New firmware may take less than what requests were made for, or keep in a cache what was
        // stable before.
        let enough = transfer_max_bytes(id.mdts) >= self.info.transfer_max_bytes
            && cap.mqes() >= self.cap.mqes()
            && cap.dstrd() == self.cap.dstrd()
            && (sgl::is_supported(id.sgls) || !self.info.scatter_gather)
            && (id.vwc & 1 == 0 || self.info.volatile_cache);
        if !same || !enough {
            return Step::Failed(Failure::Changed);
        }
        let opened: BTreeSet<u32> = shared.opened.iter().map(|it| it.info.nsid).collect();
        self.next_namespace(shared, opened.into_iter().rev().collect())
    }

    fn next_namespace(&self, shared: &mut Shared, mut left: Vec<u32>) -> Step {
        let Some(nsid) = left.pop() else { return self.ask_for_queues(shared) };
        match shared.admin.post_identify(cns::NAMESPACE, nsid) {
            Ok(Some(ticket)) => Step::Next(Recovery::Namespaces { ticket, nsid, left }),
            Ok(None) => Step::Failed(self.busy()),
            Err(error) => Step::Failed(self.not_back(error)),
        }
    }

    /// What is in flight goes to the same blocks, or nowhere: a namespace that is not there any more, or
    /// is not the one that was opened, fails, and its queues with it.
    fn namespace_identified(
        &self,
        shared: &mut Shared,
        nsid: u32,
        left: Vec<u32>,
        answer: Result<u32, AdminError>,
    ) -> Step {
        let now = match answer {
            Ok(_) => NamespaceInfo::new(nsid, &shared.admin.identified_as::<IdentifyNamespace>()),
            Err(AdminError::Status(_)) => None,
            Err(error) => return Step::Failed(self.not_back(error)),
        };
        let mut lost = false;
        for opened in shared.opened.iter().filter(|opened| opened.info.nsid == nsid) {
            if !now.as_ref().is_some_and(|now| opened.info.is_same(now)) {
                opened.state.lose();
                lost = true;
            }
        }
        if lost {
            self.fate.note(Event::NamespaceChanged(nsid));
        }
        self.next_namespace(shared, left)
    }

    fn ask_for_queues(&self, shared: &mut Shared) -> Step {
        match shared.admin.post_number_of_queues(self.info.queues_max) {
            Ok(Some(ticket)) => Step::Next(Recovery::Queues { ticket }),
            Ok(None) => Step::Failed(self.busy()),
            Err(error) => Step::Failed(self.not_back(error)),
        }
    }

    fn queues_granted(&self, shared: &mut Shared, answer: Result<u32, AdminError>) -> Step {
        match answer {
            Ok(granted) => {
                // Both counts are 0's based.
                let granted = (granted & 0xffff).min(granted >> 16) + 1;
                let needed = shared.queues.last().copied().unwrap_or(0);
                match u32::from(needed) <= granted {
                    true => self.set_again(shared, 0),
                    false => Step::Failed(Failure::Changed),
                }
            }
            Err(error) => Step::Failed(self.not_back(error)),
        }
    }

    fn set_again(&self, shared: &mut Shared, next: usize) -> Step {
        let Some(&(opcode, entry)) = shared.settings.get(next) else { return Step::Done };
        match shared.admin.post(opcode, entry, Purpose::Answer) {
            Ok(Some(ticket)) => Step::Next(Recovery::Settings { ticket, next: next + 1 }),
            Ok(None) => Step::Failed(self.busy()),
            Err(error) => Step::Failed(self.not_back(error)),
        }
    }

    #[expect(dead_code, reason = "the half of the ladder in the queues uses it")]
    /// Makes an admin command that was good part of every bring-up after a reset, which forgets what it
    /// set. A later one of the same opcode and dword 10 takes its place.
    pub(super) fn remember(shared: &mut Shared, opcode: Opcode, entry: SubmissionEntry) {
        let same = |one: &(Opcode, SubmissionEntry)| {
            one.0 == opcode && one.1.cdw10 == entry.cdw10 && one.1.nsid == entry.nsid
        };
        shared.settings.retain(|one| !same(one));
        shared.settings.push((opcode, entry));
    }

    fn not_back(&self, error: AdminError) -> Failure {
        match error {
            AdminError::Failed(failure) | AdminError::Lost(failure) => failure,
            AdminError::Status(_) => self.busy(),
        }
    }

    fn busy(&self) -> Failure {
        let waited = self.clock.now().saturating_sub(self.fate.told());
        Failure::NotBack { waited_ms: waited.as_millis() as u64 }
    }

    fn ready_timeout(&self) -> Duration {
        ready_timeout(&self.cap)
    }
}

/// CAP.TO is in units of 500 ms; 0 is a controller that promises nothing.
pub(super) fn ready_timeout(cap: &crate::nvme::spec::Cap) -> Duration {
    Duration::from_millis(500) * u32::from(cap.to().max(1))
}

impl Properties {
    /// NVM Subsystem Reset (Base 2.0c §3.1.3.7): the letters "NVMe".
    fn reset_subsystem(&self) {
        self.write_nssr(0x4e56_4d65);
    }
}
