//! The command line: what clap reads and the manual is made from.

pub(crate) mod nvme;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use uaio_driver::nvme::ControllerOptions;
use uaio_driver::vfio::PciAddress;

use crate::exit::{Exit, Failure};
use uaio_driver::url::Backend;
use uaio_driver::url::ByteSize;

/// Serves drives, files and memory as block devices from userspace
///
/// Each served device is one process, with a control socket under /run/uaio, and one ordinary block
/// device /dev/ublkbN, on which any filesystem can be put. The other commands talk to that process.
#[derive(Debug, Parser)]
#[command(name = "aioctl", version, max_term_width = 100, subcommand_required = true)]
#[command(after_long_help = after_help(), disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Print JSON for programs instead of a table for people
    ///
    /// A command that has nothing to tell (flush, del, nvme bind, nvme unbind) prints nothing. Errors are
    /// one line on stderr and an exit code, with --json too.
    #[arg(long, global = true, display_order = 100)]
    pub(crate) json: bool,

    /// Where the servers keep their control sockets and state
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/run/uaio",
        display_order = 101
    )]
    pub(crate) run_dir: PathBuf,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a backend as /dev/ublkbN, until Ctrl-C, SIGTERM or `aioctl del`
    ///
    /// Prints the device's path once it can be opened. Ctrl-C and SIGTERM stop the server only when
    /// nobody has the device open; else they say who has.
    Add(AddArgs),
    /// List the devices that are served
    List,
    /// Show one device: backend, sizes, cache, flags in force, process
    Info {
        /// 0, ublkb0 or /dev/ublkb0
        id: DeviceId,
    },
    /// Show counts, errors, latencies and the cache of one device since its start
    Stats {
        /// 0, ublkb0 or /dev/ublkb0
        id: DeviceId,
    },
    /// Make everything stable that the device has acknowledged before
    ///
    /// That is what was written to the device. What a mounted filesystem still keeps to itself is
    /// the business of sync(1). Of a range only that is written, by whole pages of 4K.
    Flush {
        /// 0, ublkb0 or /dev/ublkb0
        id: DeviceId,
        #[command(flatten)]
        range: ByteRange,
        #[command(flatten)]
        deadline: Deadline,
    },
    /// Stop serving a device: write out what is dirty, then remove it
    ///
    /// Refuses while anybody has the device open, and says who.
    Del(DelArgs),
    /// The cache of a device: what is in it, and how large it may be
    ///
    /// What it has done is among the counts of `aioctl stats`; `aioctl flush` writes it out.
    #[command(subcommand, disable_help_subcommand = true)]
    Cache(CacheCommand),
    /// NVMe drives: list them, move them between the kernel and vfio-pci, ask and change them
    ///
    /// Commands that ask a drive take it for as long as they last: it is bound to vfio-pci, and neither
    /// served nor held by anybody. What loses data asks for the drive to be typed, or takes --yes.
    #[command(subcommand, disable_help_subcommand = true)]
    Nvme(NvmeCommand),
    /// Print the manual page in roff
    #[command(hide = true)]
    Man,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct AddArgs {
    /// nvme:0000:00:04.0[/NAMESPACE], file:PATH[,size=1G] (created if not there) or ram:1G
    ///
    /// Several only for namespaces of one drive, which one process must serve.
    #[arg(required = true, value_name = "BACKEND")]
    pub(crate) backends: Vec<Backend>,

    /// Memory for the page cache; not used with --mode none
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub(crate) cache: ByteSize,

    /// The most that `aioctl cache resize` may give the cache; taken at the start [default: --cache]
    #[arg(long, value_name = "SIZE")]
    pub(crate) cache_max: Option<ByteSize>,

    /// The most memory that the cache may take in all, frames, tables and queues; it is smaller then, if need be
    ///
    /// It becomes smaller still as queues come, and what leaves too little is refused. Without --cache-max no more
    /// than that is taken at the start. `aioctl cache limit --memory-max` changes it.
    #[arg(long, value_name = "SIZE")]
    pub(crate) cache_memory_max: Option<ByteSize>,

    /// What an acknowledged write means before the next flush
    #[arg(long, value_enum, default_value_t = Mode::Writeback)]
    pub(crate) mode: Mode,

    /// Queues, each with a thread of its own [default: one for each CPU, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=32))]
    pub(crate) queues: Option<u16>,

    /// Requests that each queue can hold
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) depth: u16,

    /// Size of a logical block in bytes, 512 to 4096; a drive has its own [default: the backend's]
    #[arg(long, value_name = "SIZE")]
    pub(crate) block_size: Option<ByteSize>,

    /// Serve in the background: return when the device can be opened
    #[arg(long)]
    pub(crate) detach: bool,

    #[command(flatten)]
    pub(crate) drive: DriveArgs,

    #[command(flatten)]
    pub(crate) deadline: Deadline,

    /// This process is the server that --detach started
    #[arg(long, hide = true)]
    pub(crate) detached_server: bool,
}

/// What is done about failures of an NVMe drive, and when.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "NVMe drives")]
pub(crate) struct DriveArgs {
    /// How long an I/O command may take before it is aborted and sent again
    #[arg(long, value_name = "SECONDS", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub(crate) command_timeout: u32,

    /// How long an Abort may take to show before the controller is reset
    #[arg(long, value_name = "SECONDS", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub(crate) abort_timeout: u32,

    /// How long an admin command may take before the controller is reset
    #[arg(long, value_name = "SECONDS", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub(crate) admin_timeout: u32,

    /// How many resets within ten minutes are tried before the drive is given up
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) resets: u32,

    /// How often a request is sent again that an abort, a reset or a passing failure ended
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) retries: u8,

    /// Reset a drive that does not stop with its whole subsystem, other controllers included
    #[arg(long)]
    pub(crate) subsystem_reset: bool,
}

impl DriveArgs {
    /// As the driver takes them.
    pub(crate) fn options(self) -> ControllerOptions {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        ControllerOptions {
            command_timeout: seconds(self.command_timeout),
            abort_timeout: seconds(self.abort_timeout),
            admin_timeout: seconds(self.admin_timeout),
            resets_max: self.resets,
            retries_max: self.retries,
            subsystem_reset: self.subsystem_reset,
            ..ControllerOptions::default()
        }
    }
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct DelArgs {
    /// 0, ublkb0 or /dev/ublkb0
    pub(crate) id: DeviceId,

    /// Stop although the device is open: new I/O fails, what is dirty is written out first
    #[arg(long)]
    pub(crate) force: bool,

    /// Give up data that cannot be written to the backend
    #[arg(long)]
    pub(crate) discard_dirty: bool,

    #[command(flatten)]
    pub(crate) deadline: Deadline,
}

/// How long a command may take.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Deadline {
    /// Seconds after which to say how far it came, instead of waiting on
    #[arg(long = "deadline", value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub(crate) seconds: u32,
}

impl Deadline {
    pub(crate) fn duration(self) -> std::time::Duration {
        std::time::Duration::from_secs(u64::from(self.seconds))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Tell how much of a range is cached, dirty, under writeback, or was evicted not long ago
    ///
    /// In whole pages of 4K, every one that the range touches. What was evicted is not told of a range of more
    /// than 1G.
    Residency {
        /// 0, ublkb0 or /dev/ublkb0
        id: DeviceId,
        #[command(flatten)]
        range: ByteRange,
    },
    /// Let go of the clean pages that lie wholly in a range, and say how much stays
    ///
    /// What is dirty stays, and what somebody uses at the moment: run `aioctl flush` before, to drop all.
    Drop {
        /// 0, ublkb0 or /dev/ublkb0
        id: DeviceId,
        #[command(flatten)]
        range: ByteRange,
    },
    /// List what of a range may be lost: flushes that cover it fail
    ///
    /// It was written to the device, was not cached any more when a device flush failed, and has not been
    /// written or discarded since. Neighbours may be among it that are sound.
    Lost {
        /// 0, ublkb0 or /dev/ublkb0
        id: DeviceId,
        #[command(flatten)]
        range: ByteRange,
    },
    /// Say that it is known what may be lost of a range, so that flushes do not fail for it any more
    ///
    /// For what was restored, or is not needed: nothing is written, and what the backend has there is what is
    /// read from now on. What is lost while this asks stays listed, and so do blocks that only part of the range
    /// covers.
    AcceptLoss {
        /// 0, ublkb0 or /dev/ublkb0
        id: DeviceId,
        #[command(flatten)]
        range: ByteRange,
        /// Do it without asking for the device's path to be typed
        #[arg(long)]
        yes: bool,
    },
    /// Give the cache another size, up to the --cache-max it was started with
    ///
    /// Returns when the cache has that size. To become smaller it writes out what is dirty first. A size that does
    /// not fit into the limit of memory is refused.
    Resize {
        /// 0, ublkb0 or /dev/ublkb0
        id: DeviceId,
        /// How large, such as 512M; a multiple of 4K
        size: ByteSize,
        #[command(flatten)]
        deadline: Deadline,
    },
    /// Set how much of the cache may be dirty, for how long, and how much memory the cache may take
    ///
    /// What is not named stays as it is; but a dirty limit takes with it the background limit, half of it,
    /// unless that is named too. `aioctl stats` shows what is in force.
    Limit(LimitArgs),
}

/// Limits; at least one.
#[derive(Clone, Copy, Debug, Args)]
#[group(skip)]
#[command(group(clap::ArgGroup::new("limits").required(true).multiple(true)
          .args(["dirty_percent", "dirty", "background_percent", "background", "age_ms", "memory_max"])))]
pub(crate) struct LimitArgs {
    /// 0, ublkb0 or /dev/ublkb0
    pub(crate) id: DeviceId,
    /// Percent of the cache, above which writers wait; less when the device is slow, so that a
    /// flush takes about two seconds
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=90))]
    pub(crate) dirty_percent: Option<u8>,
    /// The same as a size, at most 90 percent of the cache
    #[arg(long, value_name = "SIZE", conflicts_with = "dirty_percent")]
    pub(crate) dirty: Option<ByteSize>,
    /// Percent of the cache, above which the oldest pages are written
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=90))]
    pub(crate) background_percent: Option<u8>,
    /// The same as a size
    #[arg(long, value_name = "SIZE", conflicts_with = "background_percent")]
    pub(crate) background: Option<ByteSize>,
    /// Milliseconds after which a dirty page is written, however few there are; at first 5000
    #[arg(long, value_name = "MILLISECONDS",
          value_parser = clap::value_parser!(u32).range(100..=86_400_000))]
    pub(crate) age_ms: Option<u32>,
    /// The most memory that the cache may take in all, frames, tables and queues, or `none`
    ///
    /// A cache that takes more becomes smaller, as its frames come back; with a higher limit, or none, it
    /// gets the size again that it was asked to have.
    #[arg(long, value_name = "SIZE|none")]
    pub(crate) memory_max: Option<MemoryMax>,
}

/// A limit of memory, or that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryMax(pub(crate) Option<ByteSize>);

impl FromStr for MemoryMax {
    type Err = <ByteSize as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|size| Self(Some(size))) }
    }
}

/// A part of a device.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct ByteRange {
    /// Where the range begins
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub(crate) offset: ByteSize,
    /// How long it is [default: up to the end of the device]
    #[arg(long, value_name = "SIZE")]
    pub(crate) length: Option<ByteSize>,
}

impl ByteRange {
    /// Offset and length in bytes; more than any device has, for one without an end.
    pub(crate) fn bytes(self) -> (u64, u64) {
        (self.offset.0, self.length.map_or(u64::MAX, |length| length.0))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum NvmeCommand {
    /// List the NVMe drives of this machine
    List,
    /// Take a drive from the kernel: bind it to vfio-pci
    Bind {
        /// The drive, such as 0000:00:04.0
        address: PciAddress,
    },
    /// Give a drive back to the kernel
    Unbind {
        /// The drive, such as 0000:00:04.0
        address: PciAddress,
    },
    /// Show a drive and its namespaces in short
    Show {
        /// The drive, such as 0000:00:04.0
        address: PciAddress,
    },
    #[command(flatten)]
    Drive(nvme::DriveCommand),
}

/// What an acknowledged write means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// It is in the cache; stable after the next flush
    Writeback,
    /// It is on the backend as well; stable after the next flush
    Writethrough,
    /// There is no cache; stable after the next flush
    None,
}

impl Mode {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Writeback => "writeback",
            Self::Writethrough => "writethrough",
            Self::None => "none",
        }
    }
}

/// The number of a ublk device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceId(pub(crate) u32);

impl FromStr for DeviceId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_prefix("/dev/").unwrap_or(text);
        let digits = name.strip_prefix("ublkb").unwrap_or(name);
        let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok());
        // A number alone, `ublkb` and a number, or the path; not `/dev/0`.
        let path_of_number = name.len() != text.len() && digits.len() == name.len();
        // The kernel's ids are non-negative ints.
        match number.flatten().filter(|&id| !path_of_number && id <= i32::MAX.cast_unsigned()) {
            Some(id) => Ok(Self(id)),
            None => Err(format!("`{text}` is not a device: write 0, ublkb0 or /dev/ublkb0")),
        }
    }
}

impl std::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/dev/ublkb{}", self.0)
    }
}

/// What a server keeps, in `--run-dir`.
const FILES: [(&str, &str); 3] = [
    ("/run/uaio/N.json", "what is served as /dev/ublkbN, and by which process; for all to read"),
    ("/run/uaio/N.sock", "the control socket of that process, for its owner alone"),
    (
        "/run/uaio/N.log",
        "the log of a process in the background; stays if there is something in it. The devices of \
         one process have one log, named after the first",
    ),
];

/// Commands to begin with.
const EXAMPLES: [(&str, &str); 5] = [
    ("aioctl add file:/srv/disk.img,size=1G --detach", "a file, created if it is not there"),
    ("aioctl nvme bind 0000:00:04.0", "take a drive from the kernel; see `aioctl nvme list`"),
    ("aioctl add nvme:0000:00:04.0/1 --cache 4G --detach", "serve its namespace 1"),
    ("aioctl cache resize 0 1G", "give the cache of /dev/ublkb0 another size"),
    ("aioctl del 0", "stop serving /dev/ublkb0, with everything written out"),
];

/// The sections at the end of the help: what lies where, and the exit codes.
fn after_help() -> String {
    let mut text = String::from("Files:\n");
    for (path, what) in FILES {
        text.push_str(&format!("  {path}  {what}\n"));
    }
    text.push_str("\nExit codes:\n");
    for exit in Exit::ALL {
        text.push_str(&format!("  {}  {}\n", exit as u8, exit.meaning()));
    }
    text
}

/// What became of reading the command line.
pub(crate) enum Parsed {
    /// A command to carry out.
    Run(Box<Cli>),
    /// Text that was asked for: help or the version.
    Print(String),
}

/// Reads the command line. clap's own messages are paragraphs; ours are one line.
pub(crate) fn parse(args: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Parsed, Failure> {
    let error = match Cli::try_parse_from(args) {
        Ok(cli) => return Ok(Parsed::Run(Box::new(cli))),
        Err(error) => error,
    };
    let text = error.render().to_string();
    if matches!(
        error.kind(),
        clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion
    ) {
        return Ok(Parsed::Print(text));
    }
    if matches!(
        error.kind(),
        clap::error::ErrorKind::MissingSubcommand
            | clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        return Err(Failure::new(Exit::Usage, "no command was given", "see `aioctl --help`"));
    }
    // The first paragraph says what is wrong; usage and tips follow after an empty line.
    let first = text.split("\n\n").next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    let what = first.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(Failure::new(Exit::Usage, what, "see `aioctl --help`"))
}

/// The manual page, in roff: the top page, then one section for each command.
pub(crate) fn manual() -> std::io::Result<Vec<u8>> {
    let mut command = Cli::command().disable_help_flag(true);
    command.build();
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(command.clone()).section("8").date("").source("uaio");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    for (name, sub) in leaves(&command) {
        page.extend_from_slice(format!(".SH \"AIOCTL {}\"\n", name.to_uppercase()).as_bytes());
        let man = clap_mangen::Man::new(sub);
        let mut section = Vec::new();
        man.render_synopsis_section(&mut section)?;
        man.render_description_section(&mut section)?;
        man.render_options_section(&mut section)?;
        // One level down: the sections of a command are subsections of the page.
        page.extend_from_slice(
            String::from_utf8_lossy(&section).replace(".SH ", ".SS ").as_bytes(),
        );
    }
    let mut section = |title: &str, items: &[(String, &str)]| {
        page.extend_from_slice(format!(".SH \"{title}\"\n").as_bytes());
        for (item, text) in items {
            let item = item.replace('-', "\\-");
            page.extend_from_slice(format!(".TP\n{item}\n{text}\n").as_bytes());
        }
    };
    section("FILES", &FILES.map(|(path, what)| (path.into(), what)));
    section("EXAMPLES", &EXAMPLES.map(|(command, what)| (command.into(), what)));
    section("EXIT STATUS", &Exit::ALL.map(|exit| ((exit as u8).to_string(), exit.meaning())));
    // No blanks at the ends of lines, as in every other file.
    let page = String::from_utf8_lossy(&page);
    Ok(page.lines().flat_map(|line| [line.trim_end(), "\n"]).collect::<String>().into_bytes())
}

/// Every command that does something, with its full name; the hidden ones left out.
pub(crate) fn leaves(command: &clap::Command) -> Vec<(String, clap::Command)> {
    let mut found = Vec::new();
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = sub.get_name();
        if sub.has_subcommands() {
            let inner =
                leaves(sub).into_iter().map(|(rest, leaf)| (format!("{name} {rest}"), leaf));
            found.extend(inner);
        } else {
            // The options that every command takes are described once, at the top.
            let sub = sub.clone().mut_args(|arg| {
                let hidden = arg.is_global_set() || arg.is_hide_set();
                arg.hide(hidden)
            });
            found.push((name.to_string(), sub.disable_help_flag(true)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(args: &[&str]) -> Failure {
        match parse(std::iter::once(&"aioctl").chain(args).map(Into::into)) {
            Err(failure) => failure,
            Ok(_) => panic!("{args:?} was accepted"),
        }
    }

    #[test]
    fn the_ladder_of_a_drive_is_that_of_the_driver_unless_it_is_told_otherwise() {
        let options = |line: &str| {
            let cli = Cli::try_parse_from(line.split_whitespace()).expect(line);
            let Command::Add(args) = cli.command else { panic!("{line}") };
            format!("{:?}", args.drive.options())
        };
        let usual = ControllerOptions::default();
        assert_eq!(options("aioctl add nvme:0000:00:04.0"), format!("{usual:?}"));
        let other = ControllerOptions {
            command_timeout: Duration::from_secs(7),
            abort_timeout: Duration::from_secs(2),
            admin_timeout: Duration::from_secs(60),
            resets_max: 0,
            retries_max: 1,
            subsystem_reset: true,
            ..usual
        };
        let line = "aioctl add nvme:0000:00:04.0 --command-timeout 7 --abort-timeout 2 \
                    --admin-timeout 60 --resets 0 --retries 1 --subsystem-reset";
        assert_eq!(options(line), format!("{other:?}"));
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_device_has_three_names() {
        for text in ["7", "ublkb7", "/dev/ublkb7"] {
            assert_eq!(text.parse(), Ok(DeviceId(7)));
        }
        for text in ["", "ublkb", "/dev/7", "ublkc7", "-1", "4294967296", "2147483648", "7p1", "+7"]
        {
            let error = text.parse::<DeviceId>().expect_err(text);
            assert!(error.contains("is not a device"), "{text}");
        }
    }

    #[test]
    fn a_mistake_on_the_command_line_is_one_line_that_names_it() {
        for (args, named) in [
            (&["add", "ram:1G", "--cash", "1G"][..], "'--cash'"),
            (&["add"], "<BACKEND>"),
            (&["add", "tape:1"], "`tape:1` is not a backend"),
            (&["add", "ram:1G", "--queues", "0"], "0 is not in 1..=32"),
            (&["add", "ram:1G", "--mode", "fast"], "'fast'"),
            (&["frobnicate"], "'frobnicate'"),
            (&["info", "sda"], "`sda` is not a device"),
            (&[], "no command"),
            (&["nvme"], "no command"),
            (&["cache"], "no command"),
            (&["cache", "resize", "0"], "<SIZE>"),
            (&["cache", "resize", "0", "lots"], "`lots` is not a size"),
            (&["cache", "residency", "0", "--offset", "-1"], "'-1'"),
            (&["cache", "drop", "sda"], "`sda` is not a device"),
            (&["cache", "lost"], "<ID>"),
            (&["cache", "accept-loss", "0", "--length", "x"], "`x` is not a size"),
            (&["cache", "limit", "0"], "--dirty-percent"),
            (&["cache", "limit", "0", "--memory-max", "some"], "`some` is not a size"),
            (&["add", "ram:1G", "--cache-memory-max", "none"], "`none` is not a size"),
            (&["cache", "limit", "0", "--age-ms", "99"], "99 is not in 100..="),
            (
                &["cache", "limit", "0", "--dirty", "1M", "--dirty-percent", "5"],
                "cannot be used with",
            ),
            (&["flush", "0", "--length", "lots"], "`lots` is not a size"),
            (&["cache", "limit", "0", "--dirty-percent", "91"], "91 is not in 1..=90"),
        ] {
            let failure = failure(args);
            let line = failure.to_string();
            assert_eq!(failure.exit, Exit::Usage, "{line}");
            assert!(line.contains(named) && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn every_example_is_a_command_line_that_is_accepted() {
        for (example, _) in EXAMPLES {
            assert!(parse(example.split(' ').map(Into::into)).is_ok(), "{example}");
        }
    }

    #[test]
    fn the_committed_manual_is_the_one_the_program_prints() {
        let committed = include_str!("../aioctl.8");
        let printed = String::from_utf8(manual().expect("a manual")).expect("UTF-8");
        assert!(committed == printed, "run: cargo run -p aioctl -- man > tools/aioctl.8");
    }

    #[test]
    fn the_manual_names_every_command_option_and_exit_code_that_help_names() {
        let manual = String::from_utf8(manual().expect("a manual")).expect("UTF-8");
        let plain = manual.replace("\\-", "-").replace("\\fB", "").replace("\\fR", "");
        let mut command = Cli::command();
        command.build();
        for (name, sub) in leaves(&command) {
            assert!(plain.contains(&format!("AIOCTL {}", name.to_uppercase())), "{name}");
            for arg in sub.get_arguments().filter(|arg| !arg.is_hide_set()) {
                if let Some(long) = arg.get_long().filter(|&long| long != "help") {
                    assert!(plain.contains(&format!("--{long}")), "{name} --{long}");
                }
            }
        }
        let help = command.render_long_help().to_string();
        for exit in Exit::ALL {
            assert!(help.contains(exit.meaning()), "{exit:?} in help");
            assert!(plain.contains(exit.meaning()), "{exit:?} in the manual");
        }
        for (path, what) in FILES {
            assert!(help.contains(path) && plain.contains(&format!("{path}\n{what}")), "{path}");
        }
    }
}
