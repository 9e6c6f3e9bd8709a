//! `aioctl nvme`: what clap reads. Every command that asks a drive takes it as `ADDRESS[/NAMESPACE]`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};
use uaio_driver::vfio::PciAddress;

use uaio_driver::url::ByteSize;

/// A drive, or a namespace of it: `0000:00:04.0` or `0000:00:04.0/1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) address: PciAddress,
    pub(crate) nsid: Option<u32>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, nsid) = match text.split_once('/') {
            None => (text, None),
            Some((address, nsid)) => (address, Some(nsid)),
        };
        let nsid = nsid.map(|nsid| match nsid.parse() {
            Ok(nsid @ 1..=0xffff_fffe) => Ok(nsid),
            _ => Err(format!("`{nsid}` is not a namespace: write a number from 1 on")),
        });
        let address = address.parse().map_err(|error| format!("{error}"))?;
        Ok(Self { address, nsid: nsid.transpose()? })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.address)?;
        self.nsid.map_or(Ok(()), |nsid| write!(f, "/{nsid}"))
    }
}

/// A number, in decimal or, after 0x, in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Number(pub(crate) u64);

impl FromStr for Number {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.strip_prefix("0x") {
            Some(digits) if !digits.starts_with('+') => u64::from_str_radix(digits, 16),
            Some(_) => "".parse(),
            None => text.parse(),
        };
        parsed.map(Self).map_err(|_| format!("`{text}` is not a number: write 16 or 0x10"))
    }
}

/// A drive that is bound to vfio-pci and used by nobody.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OfDrive {
    /// The drive, such as 0000:00:04.0
    #[arg(value_name = "ADDRESS")]
    pub(crate) target: Target,
}

/// A namespace of such a drive.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OfNamespace {
    /// The namespace, such as 0000:00:04.0/1
    #[arg(value_name = "ADDRESS/NAMESPACE")]
    pub(crate) target: Target,
}

/// A drive, or a namespace of it.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OfEither {
    /// The drive, such as 0000:00:04.0, or a namespace of it, such as 0000:00:04.0/1
    #[arg(value_name = "ADDRESS[/NAMESPACE]")]
    pub(crate) target: Target,
}

/// Consent to lose data.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Yes {
    /// Do it without asking for the drive's address to be typed again
    #[arg(long)]
    pub(crate) yes: bool,
}

/// Commands for a drive that our own driver takes for as long as they last.
#[derive(Debug, Subcommand)]
pub(crate) enum DriveCommand {
    /// Identify data structures, with the specification's field names
    #[command(subcommand, disable_help_subcommand = true)]
    Id(IdCommand),
    /// Namespaces: list, create, delete, attach, detach
    #[command(subcommand, disable_help_subcommand = true)]
    Ns(NsCommand),
    /// Log pages, decoded
    #[command(subcommand, disable_help_subcommand = true)]
    Log(LogCommand),
    /// Features by name: list, get, set
    #[command(subcommand, disable_help_subcommand = true)]
    Feature(FeatureCommand),
    /// Format a namespace: its data is gone
    Format(FormatArgs),
    /// Sanitize a drive: all data of all its namespaces is gone
    ///
    /// Returns when it has started; `aioctl nvme log sanitize` says how far it is.
    Sanitize(SanitizeArgs),
    /// Start or end a self-test; `aioctl nvme log self-test` says how it went
    SelfTest {
        #[command(flatten)]
        of: OfEither,
        /// Which
        #[arg(value_enum)]
        test: SelfTestKind,
    },
    /// Firmware: download an image, commit it to a slot
    #[command(subcommand, disable_help_subcommand = true)]
    Firmware(FirmwareCommand),
    /// Zones of a zoned namespace: report, open, close, finish, reset, append
    #[command(subcommand, disable_help_subcommand = true)]
    Zone(ZoneCommand),
    /// Reservations of a namespace: report, register, acquire, release
    #[command(subcommand, disable_help_subcommand = true)]
    Reservation(ReservationCommand),
    /// Directives of a namespace and flexible data placement
    #[command(subcommand, disable_help_subcommand = true)]
    Directive(DirectiveCommand),
    /// Security protocols: send, receive
    #[command(subcommand, disable_help_subcommand = true)]
    Security(SecurityCommand),
    /// I/O commands on a namespace: read, write, verify, compare, copy, zero, trim
    #[command(subcommand, disable_help_subcommand = true)]
    Io(IoCommand),
    /// Any command, as its dwords
    #[command(subcommand, disable_help_subcommand = true)]
    Passthru(PassthruCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum IdCommand {
    /// Identify Controller
    Ctrl(OfDrive),
    /// Identify Namespace, with its names
    Ns(OfNamespace),
}

#[derive(Debug, Subcommand)]
pub(crate) enum NsCommand {
    /// List the namespaces that are attached, or with --all also the others
    List {
        #[command(flatten)]
        of: OfDrive,
        /// Also those that are not attached to this controller
        #[arg(long)]
        all: bool,
    },
    /// Make a namespace; prints its identifier
    Create {
        #[command(flatten)]
        of: OfDrive,
        /// How large it is to be
        #[arg(long, value_name = "SIZE")]
        size: ByteSize,
        /// Index of its LBA format
        #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..64))]
        format: u8,
        #[command(flatten)]
        metadata: MetadataArgs,
        /// Other controllers may attach it too
        #[arg(long)]
        shared: bool,
        /// Attach it to this controller as well
        #[arg(long)]
        attach: bool,
    },
    /// Delete a namespace: its data is gone
    Delete {
        #[command(flatten)]
        of: OfNamespace,
        #[command(flatten)]
        yes: Yes,
    },
    /// Attach a namespace to this controller or to others
    Attach {
        #[command(flatten)]
        of: OfNamespace,
        /// Controller identifiers, with commas between [default: this controller]
        #[arg(long, value_name = "ID", value_delimiter = ',')]
        controllers: Vec<u16>,
    },
    /// Detach a namespace from this controller or from others
    Detach {
        #[command(flatten)]
        of: OfNamespace,
        /// Controller identifiers, with commas between [default: this controller]
        #[arg(long, value_name = "ID", value_delimiter = ',')]
        controllers: Vec<u16>,
        #[command(flatten)]
        yes: Yes,
    },
}

/// Metadata of a format.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct MetadataArgs {
    /// Metadata behind each block's data instead of in a buffer of its own
    #[arg(long)]
    pub(crate) metadata_with_data: bool,
    /// Type of protection information, 1 to 3; 0 is none
    #[arg(long, value_name = "TYPE", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=3))]
    pub(crate) protection: u8,
    /// Protection information in the first bytes of the metadata instead of the last
    #[arg(long)]
    pub(crate) protection_first: bool,
}

impl MetadataArgs {
    /// Whether nothing of it was asked for.
    pub(crate) fn is_default(self) -> bool {
        !self.metadata_with_data && self.protection == 0 && !self.protection_first
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum EraseKind {
    /// Nothing is promised about the data
    None,
    /// The data is erased
    UserData,
    /// The data's key is
    Crypto,
}

#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    #[command(flatten)]
    pub(crate) of: OfNamespace,
    /// Index of the LBA format [default: what the namespace has now, with its protection]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(..64))]
    pub(crate) format: Option<u8>,
    #[command(flatten)]
    pub(crate) metadata: MetadataArgs,
    /// What becomes of the data
    #[arg(long, value_enum, default_value_t = EraseKind::None)]
    pub(crate) erase: EraseKind,
    #[command(flatten)]
    pub(crate) yes: Yes,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum SanitizeKind {
    /// Leave the failure of the last one
    ExitFailure,
    /// Erase all blocks
    BlockErase,
    /// Write over all blocks
    Overwrite,
    /// Change the keys
    CryptoErase,
}

#[derive(Debug, Args)]
pub(crate) struct SanitizeArgs {
    #[command(flatten)]
    pub(crate) of: OfDrive,
    /// How
    #[arg(value_enum)]
    pub(crate) action: SanitizeKind,
    /// How often to write over
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) passes: u8,
    /// With what to write over, 32 bits
    #[arg(long, value_name = "NUMBER", default_value = "0")]
    pub(crate) pattern: Number,
    /// Invert the pattern between passes
    #[arg(long)]
    pub(crate) invert: bool,
    /// Leave the drive usable if it fails
    #[arg(long)]
    pub(crate) allow_unrestricted: bool,
    /// Do not deallocate afterwards
    #[arg(long)]
    pub(crate) no_deallocate: bool,
    #[command(flatten)]
    pub(crate) yes: Yes,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum SelfTestKind {
    /// Two minutes at most
    Short,
    /// As long as the drive says
    Extended,
    /// End the one that runs
    Abort,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum CommitKind {
    /// Put the image into the slot
    Store,
    /// Put it into the slot and run it after the next reset
    StoreActivate,
    /// Run what is in the slot after the next reset
    Activate,
    /// Run what is in the slot at once
    ActivateNow,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FirmwareCommand {
    /// Download an image to the controller
    Download {
        #[command(flatten)]
        of: OfDrive,
        /// The image
        file: PathBuf,
        #[command(flatten)]
        yes: Yes,
    },
    /// Commit the downloaded image, or activate a slot
    Commit {
        #[command(flatten)]
        of: OfDrive,
        /// The slot, 1 to 7; 0 is the controller's choice
        #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=7))]
        slot: u8,
        /// What to do
        #[arg(long, value_enum)]
        action: CommitKind,
        #[command(flatten)]
        yes: Yes,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum SelectKind {
    /// The value in force
    Current,
    /// The value when nothing was saved
    Default,
    /// The value after a reset
    Saved,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FeatureCommand {
    /// List the features that have names, with their fields and ranges
    List,
    /// Show a feature
    Get {
        #[command(flatten)]
        of: OfEither,
        /// Its name; also apst, timestamp, host-behavior, host-id
        name: String,
        /// Which value
        #[arg(long, value_enum, default_value_t = SelectKind::Current)]
        select: SelectKind,
        /// What selects one of several values, such as sensor=1
        #[arg(value_name = "FIELD=NUMBER")]
        fields: Vec<String>,
    },
    /// Change fields of a feature; the others stay as they are
    Set {
        #[command(flatten)]
        of: OfEither,
        /// Its name; also timestamp
        name: String,
        /// What to change, such as enabled=0; for timestamp ms=NUMBER
        #[arg(value_name = "FIELD=NUMBER", required = true)]
        fields: Vec<String>,
        /// Keep it through resets
        #[arg(long)]
        save: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// Which log pages there are
    Supported(OfDrive),
    /// Health of the drive or, where it has one, of a namespace
    Smart(OfEither),
    /// The errors that the drive remembers, newest first
    Error(OfDrive),
    /// The firmware slots
    Firmware(OfDrive),
    /// The namespaces that changed since this was read last
    ChangedNamespaces(OfDrive),
    /// What each command does to the drive
    Effects(OfDrive),
    /// Self-tests
    SelfTest(OfDrive),
    /// Telemetry, into a file for the vendor
    Telemetry {
        #[command(flatten)]
        of: OfDrive,
        /// Where to write it; must not exist
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Up to which data area
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=3))]
        area: u8,
        /// What the controller made by itself, instead of a new one
        #[arg(long)]
        controller_initiated: bool,
    },
    /// An endurance group
    Endurance {
        #[command(flatten)]
        of: OfDrive,
        /// Which
        #[arg(long, value_name = "ID", default_value_t = 1)]
        group: u16,
    },
    /// Persistent events
    PersistentEvent(OfDrive),
    /// How far a sanitize is, and how the last one ended
    Sanitize(OfDrive),
    /// The zones of a namespace that the controller changed
    Zones(OfNamespace),
    /// The next reservation notification
    Reservation(OfDrive),
    /// Flexible data placement: configurations and statistics of an endurance group
    Fdp {
        #[command(flatten)]
        of: OfDrive,
        /// Which endurance group
        #[arg(long, value_name = "ID", default_value_t = 1)]
        group: u16,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ZoneCommand {
    /// Show zones
    Report {
        #[command(flatten)]
        of: OfNamespace,
        /// From the zone with this block on
        #[arg(long, value_name = "LBA", default_value = "0")]
        from: Number,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 1024)]
        limit: usize,
    },
    /// Open a zone until it is closed
    Open(ZoneArgs),
    /// Close a zone
    Close(ZoneArgs),
    /// Finish a zone: it is full
    Finish {
        #[command(flatten)]
        zone: ZoneArgs,
        #[command(flatten)]
        yes: Yes,
    },
    /// Reset a zone: its data is gone
    Reset {
        #[command(flatten)]
        zone: ZoneArgs,
        #[command(flatten)]
        yes: Yes,
    },
    /// Write a file where the zone is written next; prints the block it went to
    Append {
        #[command(flatten)]
        of: OfNamespace,
        /// The zone's first block
        #[arg(value_name = "LBA")]
        zone: Number,
        /// The data, whole blocks
        file: PathBuf,
        #[command(flatten)]
        yes: Yes,
    },
}

/// A zone, or all.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct ZoneArgs {
    #[command(flatten)]
    pub(crate) of: OfNamespace,
    /// The zone's first block
    #[arg(value_name = "LBA", required_unless_present = "all", conflicts_with = "all")]
    pub(crate) zone: Option<Number>,
    /// All zones that this can be done to
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ReservationKind {
    WriteExclusive,
    ExclusiveAccess,
    WriteExclusiveRegistrants,
    ExclusiveAccessRegistrants,
    WriteExclusiveAll,
    ExclusiveAccessAll,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReservationCommand {
    /// Who is registered and who holds it
    Report(OfNamespace),
    /// Register a key, replace it, or take it back
    Register {
        #[command(flatten)]
        of: OfNamespace,
        /// The key from now on; without it the current one is taken back
        #[arg(long, value_name = "KEY", required_unless_present = "current")]
        new: Option<Number>,
        /// The key so far
        #[arg(long, value_name = "KEY")]
        current: Option<Number>,
        /// Keep reservations through power loss
        #[arg(long)]
        persist: bool,
    },
    /// Acquire a reservation, or take it over from another key
    Acquire {
        #[command(flatten)]
        of: OfNamespace,
        /// This host's key
        #[arg(long, value_name = "KEY")]
        current: Number,
        /// What it lets others do
        #[arg(value_enum)]
        kind: ReservationKind,
        /// Take it from the registrant with this key
        #[arg(long, value_name = "KEY")]
        preempt: Option<Number>,
        #[command(flatten)]
        yes: Yes,
    },
    /// Release a reservation, or clear it with all registrations
    Release {
        #[command(flatten)]
        of: OfNamespace,
        /// This host's key
        #[arg(long, value_name = "KEY")]
        current: Number,
        /// Its type; without it everything is cleared
        #[arg(value_enum)]
        kind: Option<ReservationKind>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DirectiveCommand {
    /// The directive types of a namespace, and its streams
    List(OfNamespace),
    /// Enable streams
    EnableStreams(OfNamespace),
    /// Disable streams
    DisableStreams(OfNamespace),
    /// Allocate streams; prints how many were given
    AllocateStreams {
        #[command(flatten)]
        of: OfNamespace,
        /// How many
        count: u16,
    },
    /// Give the streams back
    ReleaseStreams(OfNamespace),
    /// Whether an endurance group places data by handles
    Fdp {
        #[command(flatten)]
        of: OfDrive,
        /// Which endurance group
        #[arg(long, value_name = "ID", default_value_t = 1)]
        group: u16,
        /// Make it do so by this configuration, or with `off` not any more
        #[arg(long, value_name = "N|off")]
        set: Option<String>,
    },
    /// What is left in the reclaim units of a namespace's handles
    Handles(OfNamespace),
    /// Point handles at new reclaim units
    UpdateHandles {
        #[command(flatten)]
        of: OfNamespace,
        /// Placement identifiers
        #[arg(required = true, value_name = "ID")]
        placements: Vec<u16>,
    },
}

/// Which security protocol.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct ProtocolArgs {
    #[command(flatten)]
    pub(crate) of: OfEither,
    /// Security Protocol, 8 bits
    #[arg(long, value_name = "NUMBER")]
    pub(crate) protocol: Number,
    /// Security Protocol Specific, 16 bits
    #[arg(long, value_name = "NUMBER", default_value = "0")]
    pub(crate) specific: Number,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SecurityCommand {
    /// Send a file to a protocol
    Send {
        #[command(flatten)]
        protocol: ProtocolArgs,
        /// What to send
        file: PathBuf,
        #[command(flatten)]
        yes: Yes,
    },
    /// Receive from a protocol; prints hexadecimal bytes
    Receive {
        #[command(flatten)]
        protocol: ProtocolArgs,
        /// How many bytes
        #[arg(long, value_name = "N", default_value_t = 512)]
        length: u32,
    },
}

/// Blocks of a namespace.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct BlocksArgs {
    #[command(flatten)]
    pub(crate) of: OfNamespace,
    /// The first block
    #[arg(value_name = "LBA")]
    pub(crate) lba: Number,
    /// How many
    #[arg(default_value_t = 1)]
    pub(crate) blocks: u32,
}

/// Data for blocks of a namespace.
#[derive(Clone, Debug, Args)]
pub(crate) struct DataArgs {
    #[command(flatten)]
    pub(crate) of: OfNamespace,
    /// The first block
    #[arg(value_name = "LBA")]
    pub(crate) lba: Number,
    /// The data, whole blocks, with their metadata where that is within
    pub(crate) file: PathBuf,
    /// The metadata, where it has a buffer of its own
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum IoCommand {
    /// Read blocks into a file
    Read {
        #[command(flatten)]
        blocks: BlocksArgs,
        /// Where to write them; must not exist
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Where to write metadata that has a buffer of its own; must not exist
        #[arg(long, value_name = "FILE")]
        metadata_out: Option<PathBuf>,
    },
    /// Write a file to blocks
    Write {
        #[command(flatten)]
        data: DataArgs,
        /// Stable when it is done
        #[arg(long)]
        fua: bool,
        #[command(flatten)]
        yes: Yes,
    },
    /// Make stable what was written
    Flush(OfNamespace),
    /// Have the drive check that blocks can be read
    Verify(BlocksArgs),
    /// Have the drive compare blocks with a file
    Compare(DataArgs),
    /// Write a file when the blocks hold another, in one step
    CompareAndWrite {
        #[command(flatten)]
        data: DataArgs,
        /// What is written then
        new: PathBuf,
        #[command(flatten)]
        yes: Yes,
    },
    /// Have the drive copy ranges, one behind the other
    Copy {
        #[command(flatten)]
        of: OfNamespace,
        /// Where to: the first block
        #[arg(value_name = "LBA")]
        to: Number,
        /// From where: first block and number of blocks
        #[arg(required = true, value_name = "LBA+BLOCKS")]
        from: Vec<String>,
        #[command(flatten)]
        yes: Yes,
    },
    /// Make blocks read as zeroes
    Zero {
        #[command(flatten)]
        blocks: BlocksArgs,
        /// The drive may free them
        #[arg(long)]
        deallocate: bool,
        #[command(flatten)]
        yes: Yes,
    },
    /// Tell the drive that blocks are not needed
    Trim {
        #[command(flatten)]
        blocks: BlocksArgs,
        #[command(flatten)]
        yes: Yes,
    },
    /// Make blocks unreadable until they are written again
    WriteUncorrectable {
        #[command(flatten)]
        blocks: BlocksArgs,
        #[command(flatten)]
        yes: Yes,
    },
}

/// A command as its dwords.
#[derive(Clone, Debug, Args)]
pub(crate) struct RawArgs {
    #[command(flatten)]
    pub(crate) of: OfEither,
    /// Opcode, 8 bits
    #[arg(long, value_name = "NUMBER")]
    pub(crate) opcode: Number,
    /// Dwords 2, 3 and 10 to 15
    #[arg(long, value_name = "N=NUMBER")]
    pub(crate) dword: Vec<String>,
    /// How many bytes the controller writes; printed in hexadecimal
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "file")]
    pub(crate) read: u32,
    /// What the controller reads
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Seconds it may take
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub(crate) timeout: u32,
    #[command(flatten)]
    pub(crate) yes: Yes,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PassthruCommand {
    /// An admin command
    Admin(RawArgs),
    /// An I/O command on a namespace
    Io(RawArgs),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_drive_or_a_namespace_of_it() {
        let target: Target = "0000:00:04.0/7".parse().expect("a target");
        assert_eq!((target.nsid, target.to_string().as_str()), (Some(7), "0000:00:04.0/7"));
        assert_eq!("0000:00:04.0".parse::<Target>().expect("a target").nsid, None);
        for text in ["", "/1", "0000:00:04.0/", "0000:00:04.0/0", "0000:00:04.0/4294967295", "x/1"]
        {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!("16".parse(), Ok(Number(16)));
        assert_eq!("0x10".parse(), Ok(Number(16)));
        for text in ["", "0x", "0x+1", "-1", "1k", "0xg", "18446744073709551616"] {
            assert!(text.parse::<Number>().is_err(), "{text}");
        }
    }
}
