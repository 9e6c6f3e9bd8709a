//! What takes data away, and what tests the drive: Format NVM, Sanitize, Device Self-test (Base 2.0c
//! §5.14, §5.24, §5.9).

use std::time::Duration;

use crate::nvme::NvmeController;
use crate::nvme::spec::identify::oacs;
use crate::nvme::spec::{IdentifyNamespace, Opcode};

use super::log::NSID_ALL;
use super::{Command, CommandError, Data};

/// How long a format may take: a user data erase writes the whole drive on some.
const FORMAT_TIMEOUT: Duration = Duration::from_secs(3600);

/// What becomes of the data that a format leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecureErase {
    /// Nothing is promised.
    None,
    /// It is erased.
    UserData,
    /// Its key is.
    Cryptographic,
}

/// How a namespace is to be formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Index of the LBA format.
    pub format: u8,
    /// Metadata at the end of each block's data instead of in a buffer of its own.
    pub metadata_with_data: bool,
    /// Protection information: type 1 to 3, 0 for none.
    pub protection: u8,
    /// Protection information in the first bytes of the metadata instead of the last.
    pub protection_first: bool,
    /// What becomes of the data.
    pub erase: SecureErase,
}

impl Format {
    /// LBA format `format`, without metadata options, nothing erased.
    pub const fn new(format: u8) -> Self {
        Self {
            format,
            metadata_with_data: false,
            protection: 0,
            protection_first: false,
            erase: SecureErase::None,
        }
    }
}

impl Format {
    /// The format that a namespace has now, nothing erased.
    pub fn of(id: &IdentifyNamespace) -> Self {
        Self {
            metadata_with_data: id.flbas & 1 << 4 != 0,
            protection: id.dps & 0b111,
            protection_first: id.dps & 1 << 3 != 0,
            ..Self::new(id.format_index())
        }
    }
}

/// How a drive is to be sanitized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sanitize {
    /// Ends the failure mode of a sanitize that did not succeed.
    ExitFailure,
    /// All blocks are erased.
    BlockErase,
    /// All blocks are written over.
    Overwrite {
        /// How often, 1 to 16.
        passes: u8,
        /// With what.
        pattern: u32,
        /// The pattern is inverted between passes.
        invert: bool,
    },
    /// The keys are changed.
    CryptoErase,
}

/// Which self-test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfTest {
    /// Two minutes at most.
    Short,
    /// As long as Identify says (EDSTT).
    Extended,
    /// Ends the one that runs.
    Abort,
}

/// FNA bit 0: a format changes all namespaces; bit 1: so does an erase.
const fn formats_all(fna: u8, erase: SecureErase) -> bool {
    let erases = !matches!(erase, SecureErase::None);
    fna & 1 != 0 || erases && fna & 2 != 0
}

impl NvmeController {
    /// Whether a format of one namespace, with this erase, formats all that the controller has.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn formats_all(&self, erase: SecureErase) -> Result<bool, CommandError> {
        Ok(formats_all(self.identify_controller()?.fna, erase))
    }

    /// Formats a namespace, or all ([`NSID_ALL`]): what is on it is gone. Blocks until it is done, an
    /// hour at most.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for a format that cannot be, or while the namespace is open here (every
    /// one, when the controller formats all at once); those of [`admin`](NvmeController::admin).
    pub fn format(&self, nsid: u32, format: Format) -> Result<(), CommandError> {
        self.requires(oacs::FORMAT, "format")?;
        if format.format > 63 || format.protection > 3 {
            let what =
                format!("no LBA format {} with protection {}", format.format, format.protection);
            return Err(CommandError::invalid(&self.identify().name, what));
        }
        let fna = self.identify_controller()?.fna;
        let all = formats_all(fna, format.erase);
        if format.erase == SecureErase::Cryptographic && fna & 4 == 0 {
            let what = "the controller does not erase cryptographically (FNA)";
            return Err(CommandError::unsupported(&self.identify().name, what));
        }
        let _claim = self.claim_unopened(if all { NSID_ALL } else { nsid })?;
        let erase = match format.erase {
            SecureErase::None => 0,
            SecureErase::UserData => 1,
            SecureErase::Cryptographic => 2,
        };
        let cdw10 = u32::from(format.format & 0xf)
            | u32::from(format.metadata_with_data) << 4
            | u32::from(format.protection) << 5
            | u32::from(format.protection_first) << 8
            | erase << 9
            | u32::from(format.format >> 4) << 12;
        let command =
            Command::new(Opcode::FORMAT_NVM, nsid).dword(10, cdw10).within(FORMAT_TIMEOUT);
        self.admin(&command, Data::None)?;
        Ok(())
    }

    /// Starts to sanitize the whole subsystem: all data of all namespaces is gone. Returns when it has
    /// started; [`sanitize_log`](NvmeController::sanitize_log) says how far it is. With
    /// `allow_unrestricted` the drive stays usable when it fails.
    ///
    /// # Errors
    ///
    /// [`CommandError::Invalid`] for what the controller does not do, passes out of range, or while a
    /// namespace is open here; those of [`admin`](NvmeController::admin).
    pub fn sanitize(
        &self,
        sanitize: Sanitize,
        allow_unrestricted: bool,
        no_deallocate: bool,
    ) -> Result<(), CommandError> {
        let invalid = |what: &str| CommandError::invalid(&self.identify().name, what);
        let capabilities = self.identify_controller()?.sanicap;
        let (action, bit, pattern) = match sanitize {
            Sanitize::ExitFailure => (1, 0b111, 0),
            Sanitize::BlockErase => (2, 0b010, 0),
            Sanitize::Overwrite { passes, pattern, invert } => {
                if !(1..=16).contains(&passes) {
                    return Err(invalid("an overwrite takes 1 to 16 passes"));
                }
                // 0 in the field is 16 passes.
                (3 | u32::from(passes & 0xf) << 4 | u32::from(invert) << 8, 0b100, pattern)
            }
            Sanitize::CryptoErase => (4, 0b001, 0),
        };
        if capabilities & bit == 0 {
            let what = "the controller does not sanitize so (SANICAP)";
            return Err(CommandError::unsupported(&self.identify().name, what));
        }
        let _claim = self.claim_unopened(NSID_ALL)?;
        let exits = sanitize == Sanitize::ExitFailure;
        let cdw10 = action
            | u32::from(allow_unrestricted && !exits) << 3
            | u32::from(no_deallocate && !exits) << 9;
        let command = Command::new(Opcode::SANITIZE, 0).dword(10, cdw10).dword(11, pattern);
        self.admin(&command, Data::None)?;
        Ok(())
    }

    /// Starts a self-test of the controller and of `nsid` (0 none, [`NSID_ALL`] all), or ends the one
    /// that runs. Returns when it has started;
    /// [`self_test_log`](NvmeController::self_test_log) says how far it is and how the last ones ended.
    ///
    /// # Errors
    ///
    /// Those of [`admin`](NvmeController::admin).
    pub fn self_test(&self, nsid: u32, test: SelfTest) -> Result<(), CommandError> {
        self.requires(oacs::SELF_TEST, "test itself")?;
        let code = match test {
            SelfTest::Short => 1,
            SelfTest::Extended => 2,
            SelfTest::Abort => 0xf,
        };
        let command = Command::new(Opcode::DEVICE_SELF_TEST, nsid).dword(10, code);
        self.admin(&command, Data::None)?;
        Ok(())
    }
}
