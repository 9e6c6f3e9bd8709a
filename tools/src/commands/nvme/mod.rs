//! `aioctl nvme`: the drives of this machine, whose they are, and everything that can be asked of one.

mod blocks;
mod describe;
mod files;
mod maintain;
mod output;
mod session;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::Serialize;
use uaio_driver::nvme::{ControllerInfo, ControllerOptions, NamespaceInfo, NvmeController};
use uaio_driver::vfio::{self, PciAddress};
use uaio_driver::{DmaPool, PoolOptions, SystemClock};

use super::Context;
use crate::cli::nvme::DriveCommand;
use crate::drives::{self, Drive};
use crate::exit::{Exit, Failure};
use crate::holders;
use crate::server::checks;
use crate::table;
use uaio_driver::url::ByteSize;

use session::{Session, Terminal};

/// Carries out a command on a drive that is bound to vfio-pci and used by nobody.
pub(crate) fn drive(context: &Context, command: DriveCommand) -> Result<(), Failure> {
    run(&Terminal(context), command)
}

fn run(session: &impl Session, command: DriveCommand) -> Result<(), Failure> {
    match command {
        DriveCommand::Id(command) => describe::id(session, command),
        DriveCommand::Ns(command) => describe::ns(session, command),
        DriveCommand::Log(command) => describe::log(session, command),
        DriveCommand::Feature(command) => describe::feature(session, command),
        DriveCommand::Format(args) => maintain::format(session, args),
        DriveCommand::Sanitize(args) => maintain::sanitize(session, args),
        DriveCommand::SelfTest { of, test } => maintain::self_test(session, of, test),
        DriveCommand::Firmware(command) => maintain::firmware(session, command),
        DriveCommand::Zone(command) => blocks::zone(session, command),
        DriveCommand::Reservation(command) => maintain::reservation(session, command),
        DriveCommand::Directive(command) => maintain::directive(session, command),
        DriveCommand::Security(command) => maintain::security(session, command),
        DriveCommand::Io(command) => blocks::io(session, command),
        DriveCommand::Passthru(command) => blocks::passthru(session, command),
    }
}

#[derive(Serialize)]
struct Drives {
    drives: Vec<Drive>,
}

pub(crate) fn list(context: &Context) -> Result<(), Failure> {
    let functions = vfio::list().map_err(|error| Failure::device("look for drives", &error))?;
    let drive = |function| drives::drive(&context.system, &context.run, function);
    context.print(&Drives { drives: functions.into_iter().map(drive).collect() }, drive_table)
}

fn drive_table(drives: &Drives) -> String {
    let headers = ["ADDRESS", "MODEL", "PCI ID", "DRIVER", "IOMMU GROUP>", "DISKS", "IN USE BY"];
    let row = |drive: &Drive| {
        vec![
            drive.address.clone(),
            or_dash(drive.model.clone()),
            drive.pci_id.clone(),
            or_dash(drive.driver.clone()),
            or_dash(drive.iommu_group.map(|group| group.to_string())),
            list_or_dash(&drive.disks),
            list_or_dash(&drive.in_use_by),
        ]
    };
    table::rows(&headers, drives.drives.iter().map(row))
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".into())
}

fn list_or_dash(items: &[String]) -> String {
    if items.is_empty() { "-".into() } else { items.join(", ") }
}

/// Takes a drive from the kernel, unless somebody uses one of its disks.
pub(crate) fn bind(context: &Context, address: PciAddress) -> Result<(), Failure> {
    let function = checks::function(&context.system, address)?;
    let held = drives::held(&context.system, &function.block_devices);
    if !held.is_empty() {
        return Err(Failure::new(
            Exit::InUse,
            format!("{address} is in use: {}", holders::listed(&held)),
            "unmount or close it first",
        ));
    }
    vfio::bind(address).map_err(|error| Failure::drive(format!("bind {address}"), &error))
}

/// Gives a drive back to the kernel, unless a process drives it.
pub(crate) fn unbind(context: &Context, address: PciAddress) -> Result<(), Failure> {
    let function = checks::function(&context.system, address)?;
    let group = function.iommu_group;
    let users = drives::users(&context.system, &context.run, &address.to_string(), group);
    if !users.is_empty() {
        return Err(Failure::new(
            Exit::InUse,
            format!("{address} is in use: {}", users.join(", ")),
            "stop that first, with `aioctl del` if it is ours",
        ));
    }
    vfio::unbind(address).map_err(|error| Failure::drive(format!("unbind {address}"), &error))
}

/// What a drive says of itself.
#[derive(Serialize)]
struct Identity {
    address: String,
    driver: Option<String>,
    model: Option<String>,
    serial: Option<String>,
    /// Absent while the kernel's driver has the drive: sysfs does not tell.
    controller: Option<Controller>,
    disks: Vec<String>,
}

#[derive(Serialize)]
struct Controller {
    firmware: String,
    nvme_version: String,
    transfer_max_bytes: u32,
    queues: u16,
    depth: u16,
    volatile_cache: bool,
    discards: bool,
    writes_zeroes: bool,
    namespaces: Vec<Namespace>,
}

#[derive(Serialize)]
struct Namespace {
    id: u32,
    size_bytes: u64,
    block_size_bytes: u64,
    read_only: bool,
    /// Why this program does not serve it; absent when it does.
    unsupported: Option<String>,
}

/// Identifies a drive: by our own driver when it is bound to vfio-pci, by sysfs otherwise.
pub(crate) fn show(context: &Context, address: PciAddress) -> Result<(), Failure> {
    let function = checks::function(&context.system, address)?;
    if function.driver.as_deref() != Some("vfio-pci") {
        let identity = Identity {
            address: address.to_string(),
            driver: function.driver,
            model: function.model,
            serial: function.serial,
            controller: None,
            disks: function.block_devices,
        };
        return context.print(&identity, identity_table);
    }
    checks::drive(context, address)?;
    let failed = |error| Failure::drive(address, &error);
    let frames = NvmeController::frames_for_controller() + SPARE_FRAMES;
    let options = PoolOptions { hugepages: false, ..PoolOptions::frames(frames) };
    let pool = DmaPool::new(options).map_err(failed)?;
    let clock = Arc::new(SystemClock::new());
    let controller =
        NvmeController::open(address, pool, ControllerOptions::default(), clock).map_err(failed)?;
    let info = controller.identify().clone();
    controller.close().map_err(failed)?;
    context.print(&identity(address, function.driver, info), identity_table)
}

/// Beside the admin queue: what a drive may want for Identify.
const SPARE_FRAMES: usize = 64;

fn identity(address: PciAddress, driver: Option<String>, info: ControllerInfo) -> Identity {
    let (major, minor, tertiary) = info.version;
    let namespace = |namespace: &NamespaceInfo| Namespace {
        id: namespace.nsid,
        size_bytes: namespace.size_bytes(),
        block_size_bytes: namespace.block_size,
        read_only: namespace.read_only,
        unsupported: namespace.unsupported(),
    };
    Identity {
        address: address.to_string(),
        driver,
        model: Some(info.model),
        serial: Some(info.serial),
        controller: Some(Controller {
            firmware: info.firmware,
            nvme_version: format!("{major}.{minor}.{tertiary}"),
            transfer_max_bytes: info.transfer_max_bytes,
            queues: info.queues_max,
            depth: info.depth_max,
            volatile_cache: info.volatile_cache,
            discards: info.discards,
            writes_zeroes: info.writes_zeroes,
            namespaces: info.namespaces.iter().map(namespace).collect(),
        }),
        disks: Vec::new(),
    }
}

fn identity_table(identity: &Identity) -> String {
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_string();
    let mut pairs = vec![
        ("address", identity.address.clone()),
        ("driver", or_dash(identity.driver.clone())),
        ("model", or_dash(identity.model.clone())),
        ("serial", or_dash(identity.serial.clone())),
    ];
    let Some(controller) = &identity.controller else {
        pairs.push(("disks", list_or_dash(&identity.disks)));
        return table::pairs(pairs);
    };
    pairs.extend([
        ("firmware", controller.firmware.clone()),
        ("NVMe version", controller.nvme_version.clone()),
        ("largest transfer (bytes)", controller.transfer_max_bytes.to_string()),
        ("queues", controller.queues.to_string()),
        ("depth (requests)", controller.depth.to_string()),
        ("volatile cache", yes(controller.volatile_cache)),
        ("discard", yes(controller.discards)),
        ("write zeroes", yes(controller.writes_zeroes)),
    ]);
    let row = |namespace: &Namespace| {
        vec![
            namespace.id.to_string(),
            ByteSize(namespace.size_bytes).mib(),
            namespace.block_size_bytes.to_string(),
            yes(namespace.read_only),
            or_dash(namespace.unsupported.clone()),
        ]
    };
    let headers = ["NAMESPACE>", "SIZE MiB>", "BLOCK bytes>", "READ-ONLY", "NOT SERVED BECAUSE"];
    let namespaces = table::rows(&headers, controller.namespaces.iter().map(row));
    format!("{}\n{namespaces}", table::pairs(pairs))
}
