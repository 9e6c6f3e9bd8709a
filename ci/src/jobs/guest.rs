//! `cargo ci guest`: a guest to try things in.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::guest::{self, Boot, Console, End};
use crate::lab::Lab;
use crate::lab::kernels::Series;
use crate::machine::{self, Drive, Machine};
use crate::packages;
use crate::payload::{Payload, quoted};
use crate::process;

/// Boots a guest and runs a command or a shell in it.
///
/// Files given with --file are in /uaio/files, programs given with --bin on the PATH. DRIVE0, DRIVE1, … hold the PCI
/// addresses of the drives, NVME0, NVME1, … their kernel names. Everything the guest writes is lost, except drive images
/// kept with --keep.
#[derive(Debug, Args)]
pub struct Options {
    /// Kernel: 6.12 or 7.2
    #[arg(long, default_value = "7.2")]
    kernel: Series,
    /// Memory, such as 512M or 2G
    #[arg(long, default_value = "2G")]
    memory: String,
    /// Processors
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Address width of the IOMMU, 39 or 48
    #[arg(long, default_value_t = 48)]
    aw_bits: u32,
    /// A machine without IOMMU
    #[arg(long, conflicts_with = "aw_bits")]
    no_iommu: bool,
    /// An NVMe drive, once for each: size=1G,ns=1,block=512,mdts=5,queues=4,bad-sector=N,bad-flush,root-port,shared-group,cache=writeback,nvme.OPTION=VALUE [default: one of 1G]
    #[arg(long = "drive", value_name = "OPTIONS")]
    drives: Vec<Drive>,
    /// Another PCI device, as QEMU's -device takes it
    #[arg(long = "device", value_name = "DEVICE")]
    devices: Vec<String>,
    /// One more argument for QEMU
    #[arg(long = "qemu", value_name = "ARG", allow_hyphen_values = true)]
    qemu: Vec<String>,
    /// One more argument for the kernel
    #[arg(long = "append", value_name = "ARG")]
    append: Vec<String>,
    /// A file or folder to copy to /uaio/files
    #[arg(long = "file", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// A program to copy to /uaio/bin
    #[arg(long = "bin", value_name = "PATH")]
    programs: Vec<PathBuf>,
    /// A bash script to run; the helpers of the scenarios are there (source /uaio/common.sh)
    #[arg(long, value_name = "FILE", conflicts_with = "command")]
    script: Option<PathBuf>,
    /// Time limit in seconds [default: 600 for a command, none for a shell]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Keep the run's folder (images, logs) and say where it is
    #[arg(long)]
    keep: bool,
    /// The command to run; without one, a shell
    #[arg(last = true)]
    command: Vec<String>,
}

/// Runs the job, and returns the exit status of the command.
///
/// # Errors
///
/// When the guest cannot be made or does not end by itself.
pub fn run(options: Options) -> Result<i32> {
    packages::ensure(packages::GUEST)?;
    let lab = Lab::open()?;
    let dir = lab.run_dir("guest")?;
    let machine = Machine {
        kernel: options.kernel,
        memory_mib: machine::size(&options.memory)? >> 20,
        cpus: options.cpus,
        iommu_bits: (!options.no_iommu).then_some(options.aw_bits),
        drives: if options.drives.is_empty() { vec![Drive::default()] } else { options.drives },
        devices: options.devices,
        qemu_args: options.qemu,
        kernel_args: options.append,
    };
    let mut payload = Payload::new(&dir)?;
    payload.set("KERNEL", machine.kernel.to_string());
    for file in &options.files {
        payload.copy(file, "files")?;
    }
    for program in &options.programs {
        let name = program.file_name().unwrap_or_default();
        payload.program(program, "bin", &name.to_string_lossy())?;
    }
    payload.write("common.sh", crate::scenario::COMMON)?;
    let shell = options.command.is_empty() && options.script.is_none();
    if shell {
        guest::require_terminal()?;
        payload.write("main.sh", "exec bash -i\n")?;
    } else if let Some(script) = &options.script {
        payload.write("main.sh", &fs::read_to_string(script)?)?;
    } else {
        let words: Vec<String> = options.command.iter().map(|word| quoted(word)).collect();
        // One word is a line of shell, several are a command and its arguments.
        let line = match &options.command[..] {
            [line] => line.clone(),
            _ => words.join(" "),
        };
        payload.write("main.sh", &format!("{line}\n"))?;
    }
    let (console, limit) = if shell {
        (Console::Terminal, options.timeout.unwrap_or(7 * 24 * 3600))
    } else {
        (Console::Show, options.timeout.unwrap_or(600))
    };
    guest::make_drives(&machine, &dir)?;
    let boot = Boot {
        machine: &machine,
        drives: &dir,
        payload: &payload.finish(&dir)?,
        dir: &dir,
        console,
        limit: Duration::from_secs(limit),
    };
    let outcome = boot.run(&lab)?;
    if options.keep {
        let to = dir.with_file_name("kept");
        process::quiet(Command::new("rm").arg("-rf").arg(&to))?;
        fs::rename(&dir, &to)?;
        eprintln!("kept {}", to.display());
    } else {
        fs::remove_dir_all(&dir)?;
    }
    match outcome.end {
        End::Exit(status) => Ok(status),
        End::PowerCut => Ok(0),
        end => anyhow::bail!("{end}"),
    }
}
