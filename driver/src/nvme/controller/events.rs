//! Asynchronous events (Base 2.0c §5.2): what a controller tells without being asked.
//!
//! Requests for events are always with the controller. An event masks its kind until the log page that
//! it names was read. Pages that hold the same for everybody who reads them are read here, so that their
//! events come again, and another request is sent. A page that gives something once (a reservation's
//! notification, changed zones, telemetry that the controller has saved) is left to whoever wants it;
//! until he has read it, its event does not come again.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;

use crate::error::IoError;
use crate::nvme::admin::{AdminError, AdminQueue, Purpose, Ticket};
use crate::nvme::failure::{Failure, Violation};
use crate::nvme::fate::Suspect;
use crate::nvme::spec::event::{self, EVENT_NOTICE, NOTICE_NAMESPACES, log};
use crate::nvme::spec::layout::Layout;
use crate::nvme::spec::log::ErrorEntry;
use crate::nvme::spec::{Opcode, SubmissionEntry};
use crate::request::{Lba, Op};

use super::{NvmeController, Shared};

/// How many changed namespaces are kept for whoever asks, as many as their log page lists.
const CHANGED_MAX: usize = 1024;
/// How many requests for events are with the controller, if it takes that many.
const REQUESTS_MAX: u8 = 4;
/// Bytes read of a log page other than the list of changed namespaces: the shortest is 512.
const LOG_BYTES: u32 = 512;
const LIST_BYTES: u32 = 4096;

/// Something that happened to a controller: what it told of by itself, and what it did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// It has an error to report that no command carries (Base 2.0c figure 146); with the information.
    Error(u8),
    /// Its health needs a look: reliability (0), temperature (1), spare blocks (2).
    Health(u8),
    /// A namespace was made, deleted, attached, detached, formatted or resized, or was not itself any
    /// more after a reset; `u32::MAX` when more changed than it lists.
    NamespaceChanged(u32),
    /// New firmware begins to run; commands may wait meanwhile.
    FirmwareActivation,
    /// The controller has saved telemetry: read it with
    /// [`telemetry`](NvmeController::telemetry), before which this does not come again.
    Telemetry,
    /// A reservation or a registration was taken away: read which with
    /// [`reservation_log`](NvmeController::reservation_log), before which this does not come again.
    Reservation,
    /// Zones of this namespace changed: read which with
    /// [`changed_zones`](NvmeController::changed_zones), before which this does not come again.
    ZonesChanged(u32),
    /// A sanitize operation ended, well or not.
    Sanitized,
    /// It broke the protocol on a queue, which was given up.
    QueueFailed(Violation),
    /// It was reset, for this reason.
    Reset(Failure),
    /// It serves again after a reset.
    Back,
    /// It was reset with its subsystem and has a volatile cache, which may be lost: every queue that was
    /// open fails its next flush.
    CacheLost,
    /// It failed a request with a status, for good or too often; data path only.
    RequestFailed {
        /// The namespace.
        nsid: u32,
        /// What was asked.
        op: Op,
        /// The first block.
        lba: Lba,
        /// How many blocks.
        blocks: u32,
        /// What it said.
        error: IoError,
    },
    /// Its error log names this block as the first that a request failed on.
    BadBlock {
        /// The namespace.
        nsid: u32,
        /// The block.
        lba: Lba,
    },
    /// Another: type, information, log page.
    Other {
        /// Event type.
        kind: u8,
        /// Event information.
        info: u8,
        /// The log page to read.
        log_page: u8,
    },
}

impl Event {
    /// From dwords 0 and 1 of the completion; `None` for the change of namespaces, which the log names.
    fn decode(value: u64) -> Option<Self> {
        let (dw0, nsid) = (value as u32, (value >> 32) as u32);
        let (kind, info, log_page) = (dw0 as u8 & 7, (dw0 >> 8) as u8, (dw0 >> 16) as u8);
        Some(match (kind, info) {
            (event::EVENT_ERROR, info) => Self::Error(info),
            (event::EVENT_HEALTH, info) => Self::Health(info),
            (EVENT_NOTICE, NOTICE_NAMESPACES) => return None,
            (EVENT_NOTICE, event::NOTICE_FIRMWARE) => Self::FirmwareActivation,
            (EVENT_NOTICE, event::NOTICE_TELEMETRY) => Self::Telemetry,
            (event::EVENT_COMMAND_SET, _) if log_page == log::SANITIZE => Self::Sanitized,
            _ if log_page == log::RESERVATION => Self::Reservation,
            _ if log_page == log::CHANGED_ZONES => Self::ZonesChanged(nsid),
            _ => Self::Other { kind, info, log_page },
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Error(info) => write!(f, "error {info:#04x} that no command carries"),
            Self::Health(0) => f.write_str("health: less reliable"),
            Self::Health(1) => f.write_str("health: temperature"),
            Self::Health(2) => f.write_str("health: few spare blocks"),
            Self::Health(info) => write!(f, "health: {info:#04x}"),
            Self::NamespaceChanged(u32::MAX) => f.write_str("many namespaces changed"),
            Self::NamespaceChanged(nsid) => write!(f, "namespace {nsid} changed"),
            Self::FirmwareActivation => f.write_str("new firmware begins to run"),
            Self::Telemetry => f.write_str("telemetry was saved"),
            Self::Reservation => f.write_str("a reservation or registration was taken away"),
            Self::ZonesChanged(nsid) => write!(f, "zones of namespace {nsid} changed"),
            Self::Sanitized => f.write_str("a sanitize operation ended"),
            Self::QueueFailed(violation) => write!(f, "a queue was given up: {violation}"),
            Self::Reset(failure) => write!(f, "reset: {failure}"),
            Self::Back => f.write_str("it serves again"),
            Self::CacheLost => f.write_str("its volatile cache may be lost"),
            Self::RequestFailed { nsid, op, lba, blocks, error } => {
                let what = match op {
                    Op::Read => "read",
                    Op::Write { .. } => "write",
                    Op::Flush => "flush",
                    Op::Discard => "discard",
                    Op::WriteZeroes { .. } => "write of zeroes",
                };
                write!(f, "{what} of namespace {nsid} failed")?;
                if op != Op::Flush {
                    write!(f, ", {blocks} blocks from {}", lba.0)?;
                }
                write!(f, ": {error}")?;
                if error.do_not_retry { f.write_str(", not to be tried again") } else { Ok(()) }
            }
            Self::BadBlock { nsid, lba } => write!(f, "block {} of namespace {nsid} is bad", lba.0),
            Self::Other { kind, info, log_page } => {
                write!(f, "event {kind}, information {info:#04x}, log page {log_page:#04x}")
            }
        }
    }
}

/// What was heard, and what is to be done about it.
#[derive(Debug, Default)]
pub(super) struct Listening {
    /// Log pages to be read.
    due: VecDeque<u8>,
    reading: Option<(u8, Ticket)>,
    /// Commands to be looked for in the error log that is being read.
    suspects: Vec<Suspect>,
    /// How many requests the controller says it takes.
    requests_max: u8,
    /// How many are sent: fewer, once it has refused one, until it is reset.
    requests: u8,
    /// The changed namespaces that were read here, for whoever asks for them.
    changed: BTreeSet<u32>,
}

impl Listening {
    /// For a controller that takes `aerl` requests more than one.
    pub(super) fn new(aerl: u8) -> Self {
        let requests_max = aerl.saturating_add(1).min(REQUESTS_MAX);
        Self { requests_max, requests: requests_max, ..Self::default() }
    }

    /// The controller was reset: it has no requests, and may take what it refused before.
    pub(super) fn start_again(&mut self) {
        self.requests = self.requests_max;
        self.due.clear();
    }

    /// The changed namespaces that were read since they were last taken; `u32::MAX` for too many.
    pub(super) fn changed(&mut self, retain: bool) -> BTreeSet<u32> {
        let changed = self.changed.clone();
        if !retain {
            self.changed.clear();
        }
        changed
    }
}

impl NvmeController {
    /// Takes the events out that came since the last call, oldest first. Of more than 256 the oldest
    /// are gone. Events arrive while a queue is polled, or by [`turn`](NvmeController::turn).
    pub fn take_events(&self) -> Vec<Event> {
        self.turn();
        self.fate.take_events()
    }

    /// Sends requests for events, reads what the last ones named. Does not wait.
    pub(super) fn listen(&self, shared: &mut Shared) {
        let Shared { admin, listening, .. } = shared;
        while let Some(value) = admin.next_event() {
            self.fate.counters.events.add(1);
            if let Some(event) = Event::decode(value) {
                self.fate.note(event);
            }
            let log_page = (value >> 16) as u8;
            if log::SAME_FOR_ALL.contains(&log_page) && !listening.due.contains(&log_page) {
                listening.due.push_back(log_page);
            }
        }
        if let Some((log_page, ticket)) = listening.reading
            && let Some(answer) = admin.take(ticket)
        {
            listening.reading = None;
            let suspects = match log_page {
                log::ERRORS => std::mem::take(&mut listening.suspects),
                _ => Vec::new(),
            };
            match answer {
                Ok(_) if log_page == log::CHANGED_NAMESPACES => {
                    admin.changed_namespaces().into_iter().for_each(|nsid| {
                        self.fate.note(Event::NamespaceChanged(nsid));
                        listening.changed.insert(nsid);
                    });
                    if listening.changed.len() > CHANGED_MAX {
                        listening.changed = [u32::MAX].into();
                    }
                }
                Ok(_) if log_page == log::ERRORS => {
                    admin.bad_blocks(&suspects).for_each(|bad| self.fate.note(bad));
                }
                // Read to make the controller tell again; who wants it decoded reads it himself.
                Ok(_) => {}
                // It names a page that it does not have, or is being reset: nothing to read.
                Err(AdminError::Status(_) | AdminError::Failed(_) | AdminError::Lost(_)) => {}
            }
        }
        if listening.reading.is_none() {
            // What failed before the log is read is in it.
            listening.suspects.append(&mut self.fate.take_suspects());
            if !listening.suspects.is_empty() && !listening.due.contains(&log::ERRORS) {
                listening.due.push_front(log::ERRORS);
            }
        }
        if listening.reading.is_none()
            && let Some(log_page) = listening.due.pop_front()
        {
            let len = if log_page == log::CHANGED_NAMESPACES { LIST_BYTES } else { LOG_BYTES };
            match admin.post_log(log_page, len) {
                Ok(Some(ticket)) => listening.reading = Some((log_page, ticket)),
                Ok(None) => listening.due.push_front(log_page),
                Err(_) => {}
            }
        }
        if admin.take_event_refused() {
            listening.requests = admin.in_flight(Purpose::Event) as u8;
        }
        while admin.in_flight(Purpose::Event) < usize::from(listening.requests) {
            let sent = admin.post(
                Opcode::ASYNCHRONOUS_EVENT_REQUEST,
                SubmissionEntry::default(),
                Purpose::Event,
            );
            if !matches!(sent, Ok(Some(_))) {
                break;
            }
        }
    }
}

impl AdminQueue {
    /// The blocks that the error log just read names for commands that failed on the medium.
    fn bad_blocks(&self, suspects: &[Suspect]) -> impl Iterator<Item = Event> {
        let bytes = self.event_data();
        let entries: Vec<_> = bytes[..LOG_BYTES as usize]
            .chunks_exact(ErrorEntry::SIZE)
            .map(ErrorEntry::decode)
            .filter(|entry| entry.error_count != 0)
            .collect();
        suspects.iter().filter_map(move |suspect| {
            // The newest comes first. A block outside of what was asked names nothing.
            let entry = entries.iter().find(|entry| {
                (entry.sqid, entry.cid, entry.nsid) == (suspect.qid, suspect.cid, suspect.nsid)
            })?;
            let inside = entry.lba.checked_sub(suspect.lba)? < u64::from(suspect.blocks);
            inside.then_some(Event::BadBlock { nsid: suspect.nsid, lba: Lba(entry.lba) })
        })
    }

    /// The namespaces in the log page just read (Base 2.0c §5.16.1.5); `u32::MAX` for too many.
    fn changed_namespaces(&self) -> Vec<u32> {
        let bytes = self.event_data();
        let ids = bytes.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]]));
        ids.take_while(|&id| id != 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_some_event() {
        assert_eq!(Event::decode(0x0001_0100), Some(Event::Error(1)));
        assert_eq!(Event::decode(0x0002_0101), Some(Event::Health(1)));
        assert_eq!(Event::decode(0x0004_0002), None, "the log names the namespaces");
        assert_eq!(Event::decode(0x0003_0102), Some(Event::FirmwareActivation));
        assert_eq!(Event::decode(0x0007_0202), Some(Event::Telemetry));
        assert_eq!(Event::decode(0x0081_0106), Some(Event::Sanitized));
        assert_eq!(Event::decode(0x0080_0006), Some(Event::Reservation));
        assert_eq!(Event::decode(7 << 32 | 0x00bf_ef02), Some(Event::ZonesChanged(7)));
        let other = Event::Other { kind: 7, info: 9, log_page: 0xc0 };
        assert_eq!(Event::decode(0x00c0_0907), Some(other));
    }
}
