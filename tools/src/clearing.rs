//! Clearing away what dead servers of ours have left, and nobody else's.

use crate::cli::DeviceId;
use crate::commands::Context;
use crate::exit::Failure;
use crate::kernel;
use crate::record::Record;
use crate::system::System;

/// A ublk device as the kernel tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KernelDevice {
    /// Its number.
    pub(crate) id: u32,
    /// The process of ours that added it; `None` for a device of another program.
    pub(crate) our_pid: Option<u32>,
    /// It has no disk: nobody serves it any more, or not yet.
    pub(crate) dead: bool,
}

/// What a server that has died left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clearing {
    /// Remove the kernel's device, then the files.
    DeviceAndFiles(DeviceId),
    /// The kernel has no such device any more, or has given the number to somebody else.
    Files(DeviceId),
    /// The server died before it wrote its record: there is only the kernel's device.
    Device(DeviceId),
}

/// What may be cleared away: devices that a record of ours names, or that carry our mark in the
/// kernel, whose server has died, and which the kernel says nobody serves. A server in another pid
/// namespace looks dead from here, so a device that the kernel calls live is never touched, nor is
/// its record.
fn stale(records: &[Record], devices: &[KernelDevice], system: &System) -> Vec<Clearing> {
    let dead_records = records.iter().filter(|record| !record.is_alive(system));
    let of_records = dead_records.filter_map(|record| {
        let id = DeviceId(record.id);
        match devices.iter().find(|device| device.id == record.id) {
            None => Some(Clearing::Files(id)),
            Some(device) if device.our_pid != Some(record.pid) => Some(Clearing::Files(id)),
            Some(device) if device.dead => Some(Clearing::DeviceAndFiles(id)),
            Some(_) => None,
        }
    });
    let unrecorded = devices.iter().filter(|device| {
        let server_died = device.our_pid.is_some_and(|pid| system.start_time(pid).is_none());
        let recorded =
            |record: &Record| device.our_pid == Some(record.pid) && device.id == record.id;
        device.dead && server_died && !records.iter().any(recorded)
    });
    of_records.chain(unrecorded.map(|device| Clearing::Device(DeviceId(device.id)))).collect()
}

/// Clears away, and says what was done, or could not be, a line each. Never fails: whoever calls it
/// came for something else.
pub(crate) fn clear(context: &Context) -> Vec<String> {
    let records = context.run.records();
    let devices = match kernel::devices() {
        Ok(devices) => devices,
        // Who may not ask about devices can only list what is served.
        Err(_) if records.iter().all(|record| record.is_alive(&context.system)) => {
            return Vec::new();
        }
        Err(failure) => return vec![failed("look for dead devices", &failure)],
    };
    let stale = stale(&records, &devices, &context.system);
    stale.into_iter().map(|left| clear_one(context, left)).collect()
}

fn clear_one(context: &Context, left: Clearing) -> String {
    let (Clearing::DeviceAndFiles(id) | Clearing::Device(id) | Clearing::Files(id)) = left;
    if !matches!(left, Clearing::Files(_))
        && let Err(failure) = kernel::remove(id)
    {
        return failed(format!("clear {id} away"), &failure);
    }
    if !matches!(left, Clearing::Device(_)) {
        context.run.remove(id);
    }
    format!("cleared away {id}, whose server had died")
}

fn failed(what: impl std::fmt::Display, failure: &Failure) -> String {
    format!("cannot {what}: {failure}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: u32, pid: u32, start_time_ticks: u64) -> Record {
        let record = Record::of_this_process(&System::new("/nonexistent"), DeviceId(id));
        Record { pid, start_time_ticks, ..record }
    }

    #[test]
    fn only_dead_devices_of_dead_servers_of_ours_are_cleared() {
        let system = System::new("/");
        let me = std::process::id();
        let ticks = system.start_time(me).expect("this process runs");
        let gone = u32::MAX;
        let records = [
            record(0, me, ticks),     // alive
            record(1, me, ticks + 1), // the number was used again: dead, device dead
            record(2, gone, 1),       // dead, device gone
            record(3, gone, 1),       // dead as seen from here, but the kernel says live
            record(4, gone, 1),       // dead, the number belongs to somebody else now
            record(5, gone, 1),       // dead, device dead
        ];
        let device = |id, our_pid, dead| KernelDevice { id, our_pid, dead };
        let devices = [
            device(0, Some(me), true),
            device(1, Some(me), true),
            device(3, Some(gone), false),
            device(4, None, true),
            device(5, Some(gone), true),
            device(6, Some(gone), true), // without a record, its server dead
            device(7, Some(me), true),   // without a record, being started
            device(8, None, true),       // another program's
            device(9, Some(gone), false),
        ];
        assert_eq!(
            stale(&records, &devices, &system),
            [
                Clearing::DeviceAndFiles(DeviceId(1)),
                Clearing::Files(DeviceId(2)),
                Clearing::Files(DeviceId(4)),
                Clearing::DeviceAndFiles(DeviceId(5)),
                Clearing::Device(DeviceId(6)),
            ]
        );
    }
}
