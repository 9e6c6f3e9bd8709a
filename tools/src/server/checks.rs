//! May this be served? Asked before anything is opened, created or changed.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use uaio_driver::vfio::{self, NvmeFunction, PciAddress};

use super::sizing;
use crate::cli::DeviceId;
use crate::commands::Context;
use crate::drives::{self, Drive};
use crate::exit::{Exit, Failure};
use crate::holders::{self, DeviceNumber, Holder};
use crate::system::System;
use uaio_driver::url::Backend;
use uaio_driver::url::ByteSize;

/// Refuses a backend that is not there, is not what it should be, or is somebody else's.
///
/// # Errors
///
/// What is wrong and by whom it is held.
pub(crate) fn backend(context: &Context, backend: &Backend) -> Result<(), Failure> {
    match backend {
        Backend::Nvme { address, .. } => drive(context, *address),
        Backend::File { path, size } => file(context, path, *size),
        Backend::Ram { .. } => Ok(()),
    }
}

/// Refuses a drive that is not there, is used, or is bound elsewhere.
///
/// # Errors
///
/// What is wrong.
pub(crate) fn drive(context: &Context, address: PciAddress) -> Result<(), Failure> {
    free(drives::drive(&context.system, &context.run, function(&context.system, address)?))
}

/// The NVMe drive at an address.
///
/// # Errors
///
/// When there is none.
pub(crate) fn function(system: &System, address: PciAddress) -> Result<NvmeFunction, Failure> {
    let functions = vfio::list().map_err(|error| Failure::device("look for drives", &error))?;
    if let Some(function) = functions.into_iter().find(|function| function.address == address) {
        return Ok(function);
    }
    let other = system.path(format!("sys/bus/pci/devices/{address}")).exists();
    let what = match other {
        true => format!("{address} is not an NVMe drive"),
        false => format!("there is no PCI device at {address}"),
    };
    Err(Failure::new(Exit::NotFound, what, "see `aioctl nvme list`"))
}

/// Refuses a drive that somebody uses, or that is not ours to drive yet. The driver itself refuses
/// what no IOMMU protects.
fn free(drive: Drive) -> Result<(), Failure> {
    let Drive { address, driver, in_use_by, .. } = drive;
    if !in_use_by.is_empty() {
        let ours = in_use_by.iter().any(|user| user.starts_with("served as"));
        let hint = match ours {
            // VFIO gives a drive to one process.
            true => "stop that first; several namespaces of a drive are named in one `aioctl add`",
            false => "stop, unmount or close that first",
        };
        let what = format!("{address} is in use: {}", in_use_by.join(", "));
        return Err(Failure::new(Exit::InUse, what, hint));
    }
    if driver.as_deref() == Some("vfio-pci") {
        return Ok(());
    }
    let driver = driver.map_or("no driver".into(), |name| format!("the driver {name}"));
    Err(Failure::new(
        Exit::InUse,
        format!("{address} is bound to {driver}, not to vfio-pci"),
        format!("run `aioctl nvme bind {address}`"),
    ))
}

fn file(context: &Context, path: &Path, size: Option<ByteSize>) -> Result<(), Failure> {
    let shown = path.display();
    let is = match std::fs::metadata(path) {
        Ok(is) => is,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && size.is_none() => {
            return Err(Failure::new(
                Exit::NotFound,
                format!("{shown}: no such file"),
                "give a size to create it: file:PATH,size=1G",
            ));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return no_device_node(&context.system, path);
        }
        Err(error) => return Err(Failure::os(shown, error)),
    };
    let me = [std::process::id()];
    let holders = if is.is_file() {
        if let Some(size) = size.filter(|size| size.0 != is.len()) {
            return Err(Failure::new(
                Exit::Usage,
                format!("{shown} is there and has {} bytes, not {}", is.len(), size.0),
                "leave size= out to serve it as it is",
            ));
        }
        sizing::whole_blocks(ByteSize(is.len()), sizing::FILE_BLOCK_SIZE_MIN)?;
        holders::of_file(&context.system, path, &me)
    } else if is.file_type().is_block_device() {
        if size.is_some() {
            return Err(Failure::new(
                Exit::Usage,
                format!("{shown} is a block device and has its own size"),
                "leave size= out",
            ));
        }
        holders::of_block_device(&context.system, &block_name(context, &is)?, &me)
    } else {
        return Err(Failure::new(
            Exit::Usage,
            format!("{shown} is neither a file nor a block device"),
            "give a file or a block device",
        ));
    };
    if let Some(failure) = served(context, path, &holders) {
        return Err(failure);
    }
    if holders.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Exit::InUse,
        format!("{shown} is in use: {}", holders::listed(&holders)),
        "stop, unmount or close that first",
    ))
}

/// Refuses to create a file among the device nodes: its name is a disk's, mistyped, and its blocks
/// would be memory. Other filesystems below /dev, such as /dev/shm, are another matter.
fn no_device_node(system: &System, path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::MetadataExt;
    let nodes = system.path("dev");
    let directory = path.parent().and_then(|parent| parent.canonicalize().ok());
    let filesystem = |path: &Path| std::fs::metadata(path).map(|is| is.dev()).ok();
    let among = directory.is_some_and(|directory| {
        nodes.canonicalize().is_ok_and(|nodes| {
            directory.starts_with(&nodes) && filesystem(&directory) == filesystem(&nodes)
        })
    });
    if !among {
        return Ok(());
    }
    Err(Failure::new(
        Exit::NotFound,
        format!("{}: no such device, and no file is created there", path.display()),
        "check the path",
    ))
}

/// What a server of ours holds has a name that tells more than the process does.
fn served(context: &Context, path: &Path, holders: &[Holder]) -> Option<Failure> {
    let process = |holder: &Holder| match holder {
        Holder::Process { pid, .. } => Some(*pid),
        Holder::Mount { .. } | Holder::Swap { .. } | Holder::Stacked { .. } => None,
    };
    let pids: Vec<u32> = holders.iter().filter_map(process).collect();
    let record = context.run.records().into_iter().find(|record| {
        pids.contains(&record.pid)
            && record.backend.starts_with("file:")
            && record.is_alive(&context.system)
    })?;
    let device = DeviceId(record.id);
    Some(Failure::new(
        Exit::InUse,
        format!("{} is served as {device} by process {}", path.display(), record.pid),
        format!("stop that first, with `aioctl del {}`", record.id),
    ))
}

fn block_name(context: &Context, is: &std::fs::Metadata) -> Result<String, Failure> {
    use std::os::unix::fs::MetadataExt;
    let [major, minor] = [rustix::fs::major(is.rdev()), rustix::fs::minor(is.rdev())];
    let number = DeviceNumber { major, minor };
    context.system.link_name(format!("sys/dev/block/{number}")).ok_or_else(|| {
        let what = format!("there is no block device {number} behind that path");
        Failure::new(Exit::NotFound, what, "check the path")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Record, RunDir};

    fn context(root: &Path) -> Context {
        Context { json: false, run: RunDir::new(root.join("run")), system: System::new(root) }
    }

    fn refusal(context: &Context, text: &str) -> (Exit, String) {
        let parsed: Backend = text.parse().expect("a backend");
        let failure = backend(context, &parsed).expect_err(text);
        (failure.exit, failure.to_string())
    }

    #[test]
    fn a_drive_that_is_used_or_not_ours_is_refused_with_the_reason_and_the_remedy() {
        let drive = |driver: Option<&str>, in_use_by: &[&str]| Drive {
            address: "0000:00:04.0".into(),
            model: None,
            serial: None,
            pci_id: "1b36:0010".into(),
            driver: driver.map(Into::into),
            iommu_group: Some(4),
            disks: Vec::new(),
            in_use_by: in_use_by.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(free(drive(Some("vfio-pci"), &[])), Ok(()));
        for (driver, in_use_by, said) in [
            (
                Some("nvme"),
                &[][..],
                "0000:00:04.0 is bound to the driver nvme, not to vfio-pci; \
                                     run `aioctl nvme bind 0000:00:04.0`",
            ),
            (
                None,
                &[],
                "0000:00:04.0 is bound to no driver, not to vfio-pci; \
                         run `aioctl nvme bind 0000:00:04.0`",
            ),
            (
                Some("nvme"),
                &["nvme0n1 is mounted on /", "nvme0n2 is swap space"],
                "0000:00:04.0 is in use: nvme0n1 is mounted on /, nvme0n2 is swap space; \
              stop, unmount or close that first",
            ),
            (
                Some("vfio-pci"),
                &["/dev/vfio/4 is open in process 77 (qemu)"],
                "0000:00:04.0 is in use: /dev/vfio/4 is open in process 77 (qemu); \
              stop, unmount or close that first",
            ),
        ] {
            let failure = free(drive(driver, in_use_by)).expect_err(said);
            assert_eq!((failure.exit, failure.to_string().as_str()), (Exit::InUse, said));
        }
    }

    #[test]
    fn an_address_without_a_drive_is_not_found() {
        let system = System::new("/");
        let address = "ffff:ff:1f.7".parse().expect("an address");
        let failure = function(&system, address).expect_err("nothing is there");
        assert_eq!(failure.exit, Exit::NotFound);
    }

    #[test]
    fn each_file_that_cannot_be_taken_is_refused_with_the_reason() {
        let root = tempfile::tempdir().expect("a directory");
        let context = Context { system: System::new("/"), ..context(root.path()) };
        let directory = root.path().display();
        let image = root.path().join("disk.img");
        std::fs::write(&image, vec![0; 8192]).expect("a file");
        std::fs::write(root.path().join("odd"), vec![0; 8191]).expect("a file");
        for (backend, exit, said) in [
            (format!("file:{directory}/none"), Exit::NotFound, "no such file; give a size"),
            (format!("file:{directory}"), Exit::Usage, "is neither a file nor a block device"),
            (format!("file:{directory}/disk.img,size=4K"), Exit::Usage, "has 8192 bytes, not 4096"),
            (format!("file:{directory}/odd"), Exit::Usage, "8191 bytes is not a multiple"),
            ("file:/dev/null".into(), Exit::Usage, "is neither a file nor a block device"),
            (format!("file:{directory}/disk.img/x"), Exit::Failure, "Not a directory"),
        ] {
            let (code, line) = refusal(&context, &backend);
            assert!(code == exit && line.contains(said), "{backend}: {line}");
        }
        let parsed: Backend = format!("file:{directory}/disk.img").parse().expect("a backend");
        assert_eq!(super::backend(&context, &parsed), Ok(()));
        let new: Backend = format!("file:{directory}/new,size=1G").parse().expect("a backend");
        assert_eq!(super::backend(&context, &new), Ok(()));
        assert!(!root.path().join("new").exists(), "a check must not create the file");
    }

    #[test]
    fn no_file_is_created_among_the_device_nodes() {
        let root = tempfile::tempdir().expect("a directory");
        let context = context(root.path());
        let directory = root.path().canonicalize().expect("a path");
        std::fs::create_dir_all(directory.join("dev/mapper")).expect("a directory");
        std::fs::create_dir(directory.join("devices")).expect("a directory");
        let directory = directory.display();
        for name in ["dev/zzz", "dev/mapper/zzz", "devices/../dev/zzz"] {
            let (exit, line) = refusal(&context, &format!("file:{directory}/{name},size=1M"));
            let said = "no such device, and no file is created there; check the path";
            assert!(exit == Exit::NotFound && line.ends_with(said), "{line}");
        }
        for name in ["devices/zzz", "zzz"] {
            let new = format!("file:{directory}/{name},size=1M").parse().expect("a backend");
            assert_eq!(super::backend(&context, &new), Ok(()));
        }
    }

    #[test]
    fn a_file_that_we_serve_is_named_by_the_device_and_the_way_to_stop_it() {
        let root = tempfile::tempdir().expect("a directory");
        // Another process must hold it open for writing.
        let image = root.path().join("disk.img");
        std::fs::write(&image, vec![0; 8192]).expect("a file");
        let mut holder = std::process::Command::new("sh")
            .args(["-c", "exec 9<>\"$0\"; echo; exec sleep 60", &image.display().to_string()])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("sh runs");
        let mut line = [0];
        let stdout = holder.stdout.as_mut().expect("a pipe");
        std::io::Read::read_exact(stdout, &mut line).expect("a line");
        let system = System::new("/");
        let context = Context { system: system.clone(), ..context(root.path()) };
        context.run.create().expect("the directory");
        let backend = format!("file:{}", image.display());
        let (_, stranger) = refusal(&context, &backend);
        let ours = Record {
            pid: holder.id(),
            start_time_ticks: system.start_time(holder.id()).expect("it runs"),
            backend: backend.clone(),
            ..Record::of_this_process(&system, DeviceId(3))
        };
        context.run.write(&ours).expect("a record");
        let refused = refusal(&context, &backend);
        holder.kill().expect("it ends");
        holder.wait().expect("it ends");
        assert!(stranger.contains(&format!("is open in process {} (", ours.pid)), "{stranger}");
        let said = format!(
            "{} is served as /dev/ublkb3 by process {}; stop that first, with `aioctl del 3`",
            image.display(),
            ours.pid
        );
        assert_eq!(refused, (Exit::InUse, said));
    }
}
