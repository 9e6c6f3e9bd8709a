//! Bring-up, from reset to the list of namespaces (Base 2.0c §3.5.1).

use std::collections::BTreeSet;
use std::mem;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::clock::Clock;
use crate::dma::DmaPool;
use crate::error::DeviceError;
use crate::nvme::admin::{AdminError, AdminQueue};
use crate::nvme::discard::DsmLimits;
use crate::nvme::failure::Failure;
use crate::nvme::fate::{Fate, Patience};
use crate::nvme::in_flight;
use crate::nvme::info::{ControllerInfo, NamespaceInfo};
use crate::nvme::registers::{Function, Properties, queues_in_bar};
use crate::nvme::shadow::Shadow;
use crate::nvme::spec::command::{IOCQES, IOSQES, Opcode, SubmissionEntry, cns};
use crate::nvme::spec::event;
use crate::nvme::spec::identify::oacs;
use crate::nvme::spec::{
    Aqa, Cap, Cc, Csts, IdentifyController, IdentifyControllerNvm, IdentifyNamespace,
};

use super::events::Listening;
use super::recovery::{Recovery, ready_timeout};
use super::{
    ControllerOptions, NvmeController, Setting, Shared, Waited, admin_error, failed, wait,
};

/// What a controller says of itself, as far as it is needed later.
struct Learnt {
    info: ControllerInfo,
    dsm: DsmLimits,
    write_zeroes_max_bytes_log2: u8,
    retry_delays: [Duration; 4],
    acl: u8,
    aerl: u8,
    settings: Vec<Setting>,
    shadow: Option<Arc<Shadow>>,
}

/// What a controller is started with.
pub(super) struct Start {
    pub(super) function: Arc<dyn Function>,
    pub(super) pool: DmaPool,
    pub(super) options: ControllerOptions,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) properties: Properties,
}

impl Start {
    /// Every step, in order.
    pub(super) fn run(self) -> Result<NvmeController, DeviceError> {
        let cap = self.properties.cap().ok_or_else(|| self.failed(Failure::Removed))?;
        self.check(cap)?;
        let ready_timeout = ready_timeout(&cap);
        self.disable(ready_timeout)?;
        let patience = Patience {
            ready_timeout,
            resets_max: self.options.resets_max,
            resets_window: self.options.resets_window,
        };
        let fate =
            Arc::new(Fate::new(Arc::clone(&self.function), Arc::clone(&self.clock), patience));
        let admin = AdminQueue::new(
            &self.pool,
            &self.function,
            cap,
            self.options.admin_timeout,
            Arc::clone(&fate),
            Arc::clone(&self.clock),
        );
        let bytes = (AdminQueue::FRAMES * crate::dma::FRAME_SIZE) as u64;
        let mut admin = admin.ok_or_else(|| DeviceError::NoMemory {
            bytes,
            source: std::io::Error::other("the pool has no frames free for the admin queue"),
        })?;
        match self
            .enable(&admin, cap, ready_timeout)
            .and_then(|()| self.learn(&mut admin, &fate, cap, ready_timeout))
        {
            Ok(learnt) => Ok(NvmeController {
                namespaces: Mutex::new(learnt.info.namespaces.as_slice().into()),
                info: learnt.info,
                cap,
                cc: Self::configuration(cap),
                aborts_max: usize::from(learnt.acl) + 1,
                dsm: learnt.dsm,
                write_zeroes_max_bytes_log2: learnt.write_zeroes_max_bytes_log2,
                retry_delays: learnt.retry_delays,
                shadow: learnt.shadow,
                options: self.options,
                fate,
                properties: self.properties,
                shared: Mutex::new(Shared {
                    admin,
                    queues: BTreeSet::new(),
                    opened: Vec::new(),
                    claimed: Vec::new(),
                    looked: Duration::ZERO,
                    closed: false,
                    recovery: Recovery::default(),
                    listening: Listening::new(learnt.aerl),
                    settings: learnt.settings,
                }),
                pool: self.pool,
                clock: self.clock,
                function: self.function,
            }),
            Err(error) => {
                // The controller knows of the admin queue's memory: it goes back when it is quiet.
                fate.fail(Failure::Closed);
                if !fate.wait_quiet() {
                    admin.leak();
                    mem::forget(self.function);
                    mem::forget(self.pool);
                }
                Err(error)
            }
        }
    }

    /// Whether this driver can drive what CAP describes.
    fn check(&self, cap: Cap) -> Result<(), DeviceError> {
        let name = self.function.name();
        // Bit 0 the NVM command set; bit 6 I/O command sets, of which NVM is selected by 000b too
        // only when bit 0 is set as well (Base 2.0c figure 36).
        if cap.css() & 1 == 0 {
            return Err(DeviceError::Invalid(format!(
                "{name}: the controller does not do the NVM command set (CAP.CSS {:#x})",
                cap.css()
            )));
        }
        if cap.mpsmin() != 0 {
            return Err(DeviceError::Invalid(format!(
                "{name}: the controller's smallest memory page is {} bytes; 4096 are needed",
                4096u64 << cap.mpsmin()
            )));
        }
        if cap.mqes() == 0 {
            return Err(DeviceError::Protocol {
                device: name.to_owned(),
                what: "CAP.MQES is 0; a queue has at least two entries".to_owned(),
            });
        }
        if queues_in_bar(cap, self.function.len_bytes()) == 0 {
            return Err(DeviceError::Protocol {
                device: name.to_owned(),
                what: "the doorbells of an I/O queue are outside of BAR 0".to_owned(),
            });
        }
        Ok(())
    }

    /// Base 2.0c §3.5.1 step 1 and §3.7.2: a controller that somebody left enabled is reset.
    fn disable(&self, timeout: Duration) -> Result<(), DeviceError> {
        let cc = self.properties.cc().ok_or_else(|| self.failed(Failure::Removed))?;
        if cc.en() {
            // EN may only be cleared once RDY has followed it. A controller that never does is reset
            // all the same: there is nothing else to try.
            let _ = self.wait(timeout, "CSTS.RDY = 1", |csts| csts.rdy() || csts.cfs());
        }
        if cc.en() || cc.shn() != 0 {
            self.properties.set_cc(cc.with_en(false).with_shn(0));
        }
        self.wait(timeout, "CSTS.RDY = 0 after CC.EN = 0", |csts| !csts.rdy())?;
        Ok(())
    }

    /// What the controller is enabled with, without EN. One that has several I/O command sets is told
    /// to do them all (CC.CSS 110b), or it takes no command of a zoned namespace.
    fn configuration(cap: Cap) -> Cc {
        let css = if cap.css() & 1 << 6 != 0 { 0b110 } else { 0 };
        Cc::new().with_iosqes(IOSQES).with_iocqes(IOCQES).with_css(css)
    }

    /// Base 2.0c §3.5.1 steps 2 to 5.
    fn enable(&self, admin: &AdminQueue, cap: Cap, timeout: Duration) -> Result<(), DeviceError> {
        let aqa = Aqa::new()
            .with_asqs(admin.sq().size_zero_based())
            .with_acqs(admin.cq().size_zero_based());
        self.properties.set_admin_queue(aqa, admin.sq().iova(), admin.cq().iova());
        self.properties.set_cc(Self::configuration(cap).with_en(true));
        let csts =
            self.wait(timeout, "CSTS.RDY = 1 after CC.EN = 1", |csts| csts.rdy() || csts.cfs())?;
        if csts.cfs() { Err(self.failed(Failure::Fatal)) } else { Ok(()) }
    }

    /// Base 2.0c §3.5.1 steps 6 to 9: identify, number of queues, namespaces.
    fn learn(
        &self,
        admin: &mut AdminQueue,
        fate: &Fate,
        cap: Cap,
        ready_timeout: Duration,
    ) -> Result<Learnt, DeviceError> {
        let name = self.function.name();
        let named = |what: &'static str| move |error| admin_error(name, what, error);
        let id: IdentifyController =
            admin.identify_as(cns::CONTROLLER, 0).map_err(named("identify the controller"))?;
        if id.sqes & 0xf > IOSQES || id.cqes & 0xf > IOCQES {
            return Err(DeviceError::Protocol {
                device: name.to_owned(),
                what: format!("queue entries of 2^{} and 2^{} bytes", id.sqes & 0xf, id.cqes & 0xf),
            });
        }
        fate.set_pause_max(id.mtfa, self.options.admin_timeout);
        let version = self.properties.version().ok_or_else(|| self.failed(Failure::Removed))?;
        let wanted = self.options.queues_max.max(1);
        let wanted = wanted.min(queues_in_bar(cap, self.function.len_bytes()));
        let queues_max =
            admin.set_number_of_queues(wanted).map_err(named("set the number of queues"))?;
        let mut info =
            ControllerInfo::new(name, &id, version, queues_max, depth_max(cap), ready_timeout);
        // Optional before 2.0: a controller that does not know it says so.
        let nvm = match admin.identify_as::<IdentifyControllerNvm>(cns::CONTROLLER_CSI, 0) {
            Ok(nvm) => Some(nvm),
            Err(AdminError::Status(_)) => None,
            Err(error) => return Err(admin_error(name, "identify the command set", error)),
        };
        // Without the report, Write Zeroes is kept to MDTS, as the Linux driver does.
        let write_zeroes_log2 = match &nvm {
            Some(nvm) if nvm.wzsl == 0 => u8::MAX,
            Some(nvm) => nvm.wzsl.saturating_add(12),
            None => info.transfer_max_bytes.ilog2() as u8,
        };
        info.namespaces = self.learn_namespaces(admin)?;
        let mut settings = self.ask_for_events(admin, id.oaes)?;
        let (retry_delays, setting) = self.ask_for_retry_delays(admin, &id)?;
        settings.extend(setting);
        let shadow = self.set_shadow(admin, cap, id.oacs)?;
        settings.extend(
            shadow.iter().map(|shadow| (Opcode::DOORBELL_BUFFER_CONFIG, shadow.config_entry())),
        );
        Ok(Learnt {
            info,
            dsm: DsmLimits::new(nvm.as_ref()),
            write_zeroes_max_bytes_log2: write_zeroes_log2,
            retry_delays,
            acl: id.acl,
            aerl: id.aerl,
            settings,
            shadow,
        })
    }

    /// Says which events are wanted (Base 2.0c §5.27.1.8): of what the controller has, all that this
    /// driver knows. A controller that does not take it tells of what it pleases.
    fn ask_for_events(
        &self,
        admin: &mut AdminQueue,
        oaes: u32,
    ) -> Result<Vec<Setting>, DeviceError> {
        let entry = SubmissionEntry {
            cdw10: event::FEATURE_EVENTS.into(),
            cdw11: (event::EVENTS_HEALTH | event::EVENTS_NOTICES & oaes).into(),
            ..Default::default()
        };
        match admin.set(entry) {
            Ok(()) => Ok(vec![(Opcode::SET_FEATURES, entry)]),
            Err(AdminError::Status(_)) => Ok(Vec::new()),
            Err(error) => Err(admin_error(self.function.name(), "ask for events", error)),
        }
    }

    /// Has the controller name a delay when a command is to be sent again later, if it has any; by the
    /// field of the status how long they are, and the command to be part of every bring-up.
    fn ask_for_retry_delays(
        &self,
        admin: &mut AdminQueue,
        id: &IdentifyController,
    ) -> Result<([Duration; 4], Option<Setting>), DeviceError> {
        // In units of 100 ms.
        let delays = [0, id.crdt1, id.crdt2, id.crdt3]
            .map(|delay| Duration::from_millis(100) * u32::from(delay));
        if delays == [Duration::ZERO; 4] {
            return Ok((delays, None));
        }
        let entry = admin.retry_delays_entry();
        match admin.set(entry) {
            Ok(()) => Ok((delays, Some((Opcode::SET_FEATURES, entry)))),
            // Its statuses name none then.
            Err(AdminError::Status(_)) => Ok(([Duration::ZERO; 4], None)),
            Err(error) => Err(admin_error(self.function.name(), "ask for retry delays", error)),
        }
    }

    /// Puts the doorbells of I/O queues into memory, when the controller has it, as emulated ones do.
    /// Without room in the pool the registers are used, which is slower and no other difference.
    fn set_shadow(
        &self,
        admin: &mut AdminQueue,
        cap: Cap,
        oacs: u16,
    ) -> Result<Option<Arc<Shadow>>, DeviceError> {
        if oacs & oacs::DOORBELL_BUFFER == 0 || !self.options.shadow_doorbells {
            return Ok(None);
        }
        let Some(mut shadow) = Shadow::new(&self.pool, cap) else { return Ok(None) };
        match admin.set_shadow(&shadow) {
            Ok(()) => Ok(Some(Arc::new(shadow))),
            Err(AdminError::Status(_)) => Ok(None),
            Err(error) => {
                // It may have taken them, and only the caller makes it quiet.
                shadow.leak();
                Err(admin_error(self.function.name(), "set the shadow doorbells", error))
            }
        }
    }

    fn learn_namespaces(&self, admin: &mut AdminQueue) -> Result<Vec<NamespaceInfo>, DeviceError> {
        let name = self.function.name();
        let named = |what: &'static str| move |error| admin_error(name, what, error);
        let mut found = Vec::new();
        let mut after = 0;
        let start = self.clock.now();
        // One list, of up to 1024 identifiers: a controller may claim 2^32.
        for nsid in admin.active_namespaces(0).map_err(named("list the namespaces"))? {
            if nsid <= after {
                return Err(DeviceError::Protocol {
                    device: name.to_owned(),
                    what: format!("namespace {nsid} is listed after namespace {after}"),
                });
            }
            after = nsid;
            match admin.identify_as::<IdentifyNamespace>(cns::NAMESPACE, nsid) {
                Ok(id) => found.extend(NamespaceInfo::new(nsid, &id)),
                // A namespace of another command set, or one that was detached meanwhile.
                Err(AdminError::Status(_)) => {}
                Err(error) => return Err(admin_error(name, "identify a namespace", error)),
            }
            // Each within its own bound, a thousand could take a day.
            let waited = self.clock.now().saturating_sub(start);
            if waited > self.options.admin_timeout {
                return Err(DeviceError::TimedOut {
                    what: format!("{name}: identifying its namespaces"),
                    waited_ms: waited.as_millis() as u64,
                });
            }
        }
        Ok(found)
    }

    fn wait(
        &self,
        timeout: Duration,
        what: &str,
        done: impl Fn(Csts) -> bool,
    ) -> Result<Csts, DeviceError> {
        wait(&self.properties, &*self.clock, timeout, done).map_err(|waited| match waited {
            Waited::Gone => self.failed(Failure::Removed),
            Waited::For(waited_ms) => DeviceError::TimedOut {
                what: format!("{}: {what}", self.function.name()),
                waited_ms,
            },
        })
    }

    fn failed(&self, failure: Failure) -> DeviceError {
        failed(self.function.name(), failure)
    }
}

/// How many commands a queue holds: rings are powers of two, and one entry stays unused.
fn depth_max(cap: Cap) -> u16 {
    let entries = u32::from(cap.mqes()) + 1;
    let power_of_two = 1 << entries.ilog2();
    (power_of_two - 1).min(u32::from(in_flight::DEPTH_MAX)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_follows_mqes() {
        for (mqes, depth) in [(1, 1), (2, 1), (3, 3), (127, 127), (128, 127), (2047, 1023)] {
            assert_eq!(depth_max(Cap::new().with_mqes(mqes)), depth, "MQES {mqes}");
        }
        assert_eq!(depth_max(Cap::new().with_mqes(u16::MAX)), 1023);
    }
}
