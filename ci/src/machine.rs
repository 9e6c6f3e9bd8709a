//! The machine a guest runs on: its options, how they are written, and what QEMU is told.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::lab::kernels::Series;

/// What a scenario or a person asks of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The kernel it boots.
    pub kernel: Series,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Number of processors.
    pub cpus: u32,
    /// The address width of the IOMMU in bits, 39 or 48; without one there is no IOMMU.
    pub iommu_bits: Option<u32>,
    /// The NVMe drives under test.
    pub drives: Vec<Drive>,
    /// Other PCI devices, as QEMU's `-device` takes them.
    pub devices: Vec<String>,
    /// More arguments for QEMU.
    pub qemu_args: Vec<String>,
    /// More arguments for the kernel.
    pub kernel_args: Vec<String>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            kernel: Series::V7_2,
            memory_mib: 2048,
            cpus: 2,
            iommu_bits: Some(48),
            drives: Vec::new(),
            devices: Vec::new(),
            qemu_args: Vec::new(),
            kernel_args: Vec::new(),
        }
    }
}

/// One emulated NVMe drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// Bytes in each namespace.
    pub size: u64,
    /// Number of namespaces.
    pub namespaces: u32,
    /// Bytes in a logical block.
    pub block_size: u32,
    /// Largest transfer, as a power of two of the page size.
    pub mdts: Option<u32>,
    /// Largest number of I/O queue pairs.
    pub queues: Option<u32>,
    /// A sector (of 512 bytes) of namespace 1 whose reads and writes fail.
    pub bad_sector: Option<u64>,
    /// Whether every flush of namespace 1 fails.
    pub bad_flush: bool,
    /// Whether the drive sits behind a root port of its own, to be plugged and unplugged.
    pub root_port: bool,
    /// Whether another function of the same slot shares its IOMMU group.
    pub shared_group: bool,
    /// QEMU's cache mode for the image.
    pub cache: String,
    /// More options of a namespace, as QEMU's `nvme-ns` takes them.
    pub of_namespace: Vec<(u32, String)>,
    /// More options of the controller, as QEMU's `nvme` takes them.
    pub of_controller: Vec<String>,
}

impl Default for Drive {
    fn default() -> Self {
        Self {
            size: 1 << 30,
            namespaces: 1,
            block_size: 512,
            mdts: None,
            queues: None,
            bad_sector: None,
            bad_flush: false,
            root_port: false,
            shared_group: false,
            cache: "writeback".into(),
            of_namespace: Vec::new(),
            of_controller: Vec::new(),
        }
    }
}

impl std::str::FromStr for Drive {
    type Err = anyhow::Error;

    /// Reads `size=1G ns=2 …`, with blanks or commas between.
    fn from_str(text: &str) -> Result<Self> {
        let mut drive = Self::default();
        for word in text.split([' ', ',', '\t']).filter(|word| !word.is_empty()) {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            // `ns2.zoned=on` is for namespace 2 alone.
            let own = key.strip_prefix("ns").and_then(|rest| rest.split_once('.'));
            if let Some((nsid, option)) = own {
                let nsid = nsid.parse().with_context(|| format!("drive option {word}"))?;
                drive.of_namespace.push((nsid, format!("{option}={value}")));
                continue;
            }
            if let Some(option) = key.strip_prefix("nvme.") {
                drive.of_controller.push(format!("{option}={value}"));
                continue;
            }
            let number = || -> Result<u32> {
                value.parse().with_context(|| format!("drive option {word}: not a number"))
            };
            match key {
                "size" => drive.size = size(value)?,
                "ns" => drive.namespaces = number()?.clamp(1, 16),
                "block" => drive.block_size = number()?,
                "mdts" => drive.mdts = Some(number()?),
                "queues" => drive.queues = Some(number()?),
                "bad-sector" => drive.bad_sector = Some(u64::from(number()?)),
                "bad-flush" => drive.bad_flush = true,
                "root-port" => drive.root_port = true,
                "shared-group" => drive.shared_group = true,
                "cache" => drive.cache = value.to_string(),
                _ => bail!(
                    "no drive option {key}: there are size ns nsN.OPTION nvme.OPTION block mdts queues bad-sector bad-flush root-port shared-group cache"
                ),
            }
        }
        Ok(drive)
    }
}

/// Reads a number of bytes with a suffix K, M, G or T.
///
/// # Errors
///
/// When it is not one.
pub fn size(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().with_context(|| format!("not a size: {text}"))?;
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => bail!("not a size: {text}"),
    };
    number.checked_mul(1 << shift).with_context(|| format!("too large: {text}"))
}

impl Drive {
    /// The name of the image of namespace `nsid` of drive `index`.
    pub fn image_name(index: usize, nsid: u32) -> String {
        format!("drive{index}-{nsid}.img")
    }

    /// What fails, as options of a rule of QEMU's `blkdebug` each.
    fn faults(&self) -> Vec<Vec<String>> {
        let mut faults = Vec::new();
        if let Some(sector) = self.bad_sector {
            let of = |kind| vec![format!("iotype={kind}"), format!("sector={sector}")];
            faults.extend(["read", "write"].map(of));
        }
        if self.bad_flush {
            faults.push(vec!["iotype=flush".into()]);
        }
        faults
    }

    /// QEMU's arguments for drive `index`, its images in `dir`.
    fn qemu_args(&self, index: usize, dir: &Path) -> Vec<String> {
        let mut args = Vec::new();
        let slot = 4 + index;
        let mut place = format!("bus=pcie.0,addr=0x{slot:x}");
        if self.root_port {
            let port = format!("pcie-root-port,id=port{index},chassis={},{place}", index + 1);
            args.extend(["-device".into(), port]);
            place = format!("bus=port{index}");
        } else if self.shared_group {
            place.push_str(".0,multifunction=on");
        }
        let mut controller = format!("nvme,id=drive{index},serial=uaio{index},{place}");
        if let Some(mdts) = self.mdts {
            controller.push_str(&format!(",mdts={mdts}"));
        }
        if let Some(queues) = self.queues {
            controller.push_str(&format!(",max_ioqpairs={queues}"));
        }
        for option in &self.of_controller {
            controller.push_str(&format!(",{option}"));
        }
        args.extend(["-device".into(), controller]);
        if self.shared_group {
            let other = format!("virtio-rng-pci,bus=pcie.0,addr=0x{slot:x}.1");
            args.extend(["-device".into(), other]);
        }
        for nsid in 1..=self.namespaces {
            let image = dir.join(Self::image_name(index, nsid));
            let image = image.display();
            let cache = &self.cache;
            let mut drive = format!("if=none,id=image{index}-{nsid},cache={cache},discard=unmap,");
            let faults = if nsid == 1 { self.faults() } else { Vec::new() };
            if faults.is_empty() {
                drive.push_str(&format!("format=raw,file={image}"));
            } else {
                drive.push_str(&format!(
                    "driver=blkdebug,image.driver=raw,image.file.driver=file,image.file.filename={image}"
                ));
            }
            for (rule, fault) in faults.iter().enumerate() {
                for option in ["event=none".to_string(), "errno=5".to_string()].iter().chain(fault)
                {
                    drive.push_str(&format!(",inject-error.{rule}.{option}"));
                }
            }
            let block = self.block_size;
            let mut namespace = format!(
                "nvme-ns,drive=image{index}-{nsid},bus=drive{index},nsid={nsid},\
                 logical_block_size={block},physical_block_size={block}"
            );
            for (_, option) in self.of_namespace.iter().filter(|(of, _)| *of == nsid) {
                namespace.push_str(&format!(",{option}"));
            }
            args.extend(["-drive".into(), drive, "-device".into(), namespace]);
        }
        args
    }
}

impl Machine {
    /// QEMU's arguments for this machine, its drive images in `dir`. Consoles, root and kernel are the caller's.
    pub fn qemu_args(&self, dir: &Path, kvm: bool) -> Vec<String> {
        let mut args: Vec<String> =
            ["-no-reboot", "-nodefaults", "-display", "none"].map(String::from).into();
        let mut add = |option: &str, value: String| args.extend([option.to_string(), value]);
        if kvm {
            add("-accel", "kvm".into());
            add("-cpu", "host".into());
        } else {
            add("-accel", "tcg,thread=multi".into());
            add("-cpu", "max".into());
        }
        add("-machine", "q35,kernel-irqchip=split".into());
        add("-smp", self.cpus.to_string());
        add("-m", format!("{}M", self.memory_mib));
        if let Some(bits) = self.iommu_bits {
            // First of the devices, or those before it are not behind it.
            add("-device", format!("intel-iommu,intremap=on,caching-mode=on,aw-bits={bits}"));
        }
        for (index, drive) in self.drives.iter().enumerate() {
            args.extend(drive.qemu_args(index, dir));
        }
        for device in &self.devices {
            args.extend(["-device".into(), device.clone()]);
        }
        args.extend(self.qemu_args.iter().cloned());
        args
    }

    /// What the kernel is told beside its root and console.
    pub fn kernel_args(&self) -> String {
        // A busy host runs timers late; that says nothing about the machine's clock and interrupts.
        let mut args: Vec<String> =
            ["panic=-1", "quiet", "tsc=reliable", "no_timer_check"].map(String::from).into();
        if self.iommu_bits.is_some() {
            args.extend(["intel_iommu=on".into(), "iommu=pt".into()]);
        }
        args.extend(self.kernel_args.iter().cloned());
        args.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_suffixes() {
        assert_eq!(size("512").unwrap(), 512);
        assert_eq!(size("64K").unwrap(), 65536);
        assert_eq!(size("3GiB").unwrap(), 3 << 30);
        for wrong in ["", "G", "1X", "1.5G", "-1", "99999999T"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_drive_is_read_with_blanks_or_commas() {
        let wanted = Drive {
            size: 2 << 30,
            namespaces: 2,
            mdts: Some(5),
            root_port: true,
            ..Drive::default()
        };
        for text in ["size=2G ns=2 mdts=5 root-port", "size=2G,ns=2,mdts=5,root-port"] {
            assert_eq!(text.parse::<Drive>().unwrap(), wanted);
        }
        assert!("colour=red".parse::<Drive>().is_err());
        assert!("ns=two".parse::<Drive>().is_err());
    }

    #[test]
    fn a_namespace_has_options_of_its_own() {
        let drive: Drive = "ns=2 ns2.zoned=on ns2.zoned.zone_size=4M".parse().unwrap();
        let args = drive.qemu_args(0, Path::new("d"));
        let zoned = args.iter().filter(|arg| arg.ends_with(",zoned=on,zoned.zone_size=4M"));
        assert_eq!(zoned.count(), 1);
        assert!("nsx.zoned=on".parse::<Drive>().is_err());
    }

    #[test]
    fn the_iommu_comes_before_every_device() {
        let machine =
            Machine { drives: vec![Drive::default(), Drive::default()], ..Machine::default() };
        let args = machine.qemu_args(Path::new("d"), false);
        let devices: Vec<&String> = args
            .iter()
            .zip(args.iter().skip(1))
            .filter(|(option, _)| *option == "-device")
            .map(|(_, value)| value)
            .collect();
        assert!(devices[0].starts_with("intel-iommu,"));
        assert!(devices[1].contains("serial=uaio0,bus=pcie.0,addr=0x4"));
        assert!(devices[3].contains("serial=uaio1,bus=pcie.0,addr=0x5"));
    }

    #[test]
    fn a_bad_sector_fails_reads_and_writes_of_the_first_namespace_only() {
        let drive: Drive = "ns=2 bad-sector=8".parse().unwrap();
        let args = drive.qemu_args(0, Path::new("d"));
        let rules: Vec<bool> = args
            .iter()
            .filter(|arg| arg.starts_with("if=none"))
            .map(|arg| {
                arg.contains("inject-error.0.iotype=read")
                    && arg.contains("inject-error.1.iotype=write")
                    && arg.contains("inject-error.1.sector=8")
            })
            .collect();
        assert_eq!(rules, [true, false]);
    }

    #[test]
    fn a_flush_that_fails_is_a_rule_without_a_sector() {
        let drive: Drive = "bad-flush nvme.cmb_size_mb=4".parse().unwrap();
        let args = drive.qemu_args(0, Path::new("d")).join(" ");
        assert!(args.contains("inject-error.0.iotype=flush"), "{args}");
        assert!(!args.contains("sector="), "{args}");
        assert!(args.contains(",cmb_size_mb=4 "), "{args}");
    }
}
