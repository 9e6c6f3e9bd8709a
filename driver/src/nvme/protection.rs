//! Protection information with a 16-bit guard, made and checked by the host (NVM 1.0c §5.2).
//!
//! Eight bytes a block, big-endian: guard (CRC-16 of the block's data and of the metadata before it),
//! application tag, reference tag. They are the first or the last eight of the block's metadata.

use super::spec::IdentifyNamespace;

/// Bytes of a block's protection information.
pub const TUPLE_BYTES: usize = 8;

/// Where a block's bytes are, and what protects them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockFormat {
    /// Data of a block in bytes.
    pub data_bytes: usize,
    /// Metadata of a block in bytes.
    pub metadata_bytes: usize,
    /// The metadata follows each block's data (interleaved) instead of having a buffer of its own.
    pub interleaved: bool,
    /// Protection information: type 1 to 3; 0 for none.
    pub protection: u8,
    /// It is at the start of the metadata instead of at its end.
    pub first: bool,
}

impl BlockFormat {
    /// The format that a namespace has.
    pub fn of(id: &IdentifyNamespace) -> Self {
        let format = id.format();
        Self {
            data_bytes: 1usize.checked_shl(format.lbads.into()).unwrap_or(0),
            metadata_bytes: format.ms.into(),
            interleaved: id.flbas & 1 << 4 != 0,
            protection: id.dps & 0b111,
            first: id.dps & 1 << 3 != 0,
        }
    }

    /// Data of a block in the data buffer, in bytes.
    pub const fn stride(&self) -> usize {
        self.data_bytes + if self.interleaved { self.metadata_bytes } else { 0 }
    }

    /// Where the protection information starts in the metadata.
    const fn tuple_at(&self) -> usize {
        if self.first { 0 } else { self.metadata_bytes - TUPLE_BYTES }
    }
}

/// What a check found wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtectionError {
    /// The data is not what the guard was made of.
    #[error("block {lba}: the guard is {found:#06x}, of these data it is {wanted:#06x}")]
    Guard {
        /// The block.
        lba: u64,
        /// What it carries.
        found: u16,
        /// What its data give.
        wanted: u16,
    },
    /// It is another application's.
    #[error("block {lba}: the application tag is {found:#06x}, not {wanted:#06x}")]
    Application {
        /// The block.
        lba: u64,
        /// What it carries.
        found: u16,
        /// What was expected.
        wanted: u16,
    },
    /// It is another block's.
    #[error("block {lba}: the reference tag is {found:#010x}, not {wanted:#010x}")]
    Reference {
        /// The block.
        lba: u64,
        /// What it carries.
        found: u32,
        /// What was expected.
        wanted: u32,
    },
}

/// CRC-16/T10-DIF: polynomial 8BB7h, nothing reflected, starting from 0.
pub fn crc16(crc: u16, bytes: &[u8]) -> u16 {
    const fn of_byte(byte: u8) -> u16 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 { crc << 1 ^ 0x8bb7 } else { crc << 1 };
            bit += 1;
        }
        crc
    }
    const TABLE: [u16; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            table[byte] = of_byte(byte as u8);
            byte += 1;
        }
        table
    };
    bytes.iter().fold(crc, |crc, byte| crc << 8 ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)])
}

/// A block's parts, in the buffers of a transfer.
fn parts<'a>(
    format: &BlockFormat,
    index: usize,
    data: &'a [u8],
    metadata: &'a [u8],
) -> (&'a [u8], &'a [u8]) {
    let at = index * format.stride();
    let block = &data[at..at + format.data_bytes];
    let meta = match format.interleaved {
        true => &data[at + format.data_bytes..at + format.stride()],
        false => &metadata[index * format.metadata_bytes..][..format.metadata_bytes],
    };
    (block, meta)
}

/// Guard, over the data and the metadata in front of it.
fn guard(format: &BlockFormat, block: &[u8], meta: &[u8]) -> u16 {
    crc16(crc16(0, block), &meta[..format.tuple_at()])
}

/// The reference tag of a block: types 1 and 2 count with it, type 3 leaves it alone.
const fn reference(format: &BlockFormat, start: u32, index: usize) -> u32 {
    if format.protection == 3 { start } else { start.wrapping_add(index as u32) }
}

/// Writes the protection information of every block of a transfer into its place. `reference_start` is
/// the first block's tag; with type 1 the low 32 bits of its address.
///
/// # Panics
///
/// When the format has none, or the buffers do not hold whole blocks.
pub fn protect(
    format: &BlockFormat,
    data: &mut [u8],
    metadata: &mut [u8],
    application: u16,
    reference_start: u32,
) {
    assert!(format.metadata_bytes >= TUPLE_BYTES, "a format without protection information");
    assert!(data.len().is_multiple_of(format.stride()), "{} bytes of data", data.len());
    for index in 0..data.len() / format.stride() {
        let (block, meta) = parts(format, index, data, metadata);
        let guard = guard(format, block, meta);
        let at = format.tuple_at();
        let tuple = match format.interleaved {
            true => &mut data[index * format.stride() + format.data_bytes + at..],
            false => &mut metadata[index * format.metadata_bytes + at..],
        };
        tuple[..2].copy_from_slice(&guard.to_be_bytes());
        tuple[2..4].copy_from_slice(&application.to_be_bytes());
        tuple[4..8].copy_from_slice(&reference(format, reference_start, index).to_be_bytes());
    }
}

/// Checks the protection information of every block of a transfer. A block whose tags say that it is
/// not to be checked (application FFFFh, with type 3 also reference FFFFFFFFh) is not.
///
/// # Errors
///
/// What is wrong with the first block that is wrong.
///
/// # Panics
///
/// As [`protect`].
pub fn check(
    format: &BlockFormat,
    data: &[u8],
    metadata: &[u8],
    lba: u64,
    application: Option<u16>,
    reference_start: u32,
) -> Result<(), ProtectionError> {
    assert!(format.metadata_bytes >= TUPLE_BYTES, "a format without protection information");
    for index in 0..data.len() / format.stride() {
        let (block, meta) = parts(format, index, data, metadata);
        let tuple = &meta[format.tuple_at()..][..TUPLE_BYTES];
        let found = u16::from_be_bytes([tuple[0], tuple[1]]);
        let tag = u16::from_be_bytes([tuple[2], tuple[3]]);
        let place = u32::from_be_bytes([tuple[4], tuple[5], tuple[6], tuple[7]]);
        if tag == u16::MAX && (format.protection != 3 || place == u32::MAX) {
            continue;
        }
        let lba = lba + index as u64;
        let wanted = guard(format, block, meta);
        if found != wanted {
            return Err(ProtectionError::Guard { lba, found, wanted });
        }
        if let Some(wanted) = application.filter(|&wanted| wanted != tag) {
            return Err(ProtectionError::Application { lba, found: tag, wanted });
        }
        let wanted = reference(format, reference_start, index);
        if format.protection != 3 && place != wanted {
            return Err(ProtectionError::Reference { lba, found: place, wanted });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-16/T10-DIF in the catalogue of parametrised CRC algorithms.
    #[test]
    fn the_guard_is_the_crc_of_t10() {
        assert_eq!(crc16(0, b"123456789"), 0xd0db);
        assert_eq!(crc16(crc16(0, b"1234"), b"56789"), 0xd0db);
        assert_eq!(crc16(0, &[0; 512]), 0);
    }

    #[test]
    fn every_layout_finds_every_flipped_bit() {
        for interleaved in [false, true] {
            for first in [false, true] {
                for (metadata_bytes, protection) in [(8, 1), (16, 1), (64, 3), (8, 2)] {
                    let format = BlockFormat {
                        data_bytes: 512,
                        metadata_bytes,
                        interleaved,
                        protection,
                        first,
                    };
                    let mut random = fastrand::Rng::with_seed(metadata_bytes as u64);
                    let mut data: Vec<u8> =
                        (0..4 * format.stride()).map(|_| random.u8(..)).collect();
                    let separate = if interleaved { 0 } else { 4 * metadata_bytes };
                    let mut metadata: Vec<u8> = (0..separate).map(|_| random.u8(..)).collect();
                    protect(&format, &mut data, &mut metadata, 0x1234, 100);
                    let check = |data: &[u8], metadata: &[u8]| {
                        super::check(&format, data, metadata, 100, Some(0x1234), 100)
                    };
                    assert_eq!(check(&data, &metadata), Ok(()), "{format:?}");
                    let mut flipped = data.clone();
                    flipped[2 * format.stride() + 77] ^= 4;
                    let error = check(&flipped, &metadata).unwrap_err();
                    assert!(matches!(error, ProtectionError::Guard { lba: 102, .. }), "{error}");
                    // The metadata behind the guard is not covered; the metadata before it is.
                    if metadata_bytes == 64 && !first {
                        let mut data = data.clone();
                        let mut metadata = metadata.clone();
                        let byte = match interleaved {
                            true => &mut data[format.data_bytes + 3],
                            false => &mut metadata[3],
                        };
                        *byte ^= 1;
                        let error = check(&data, &metadata).unwrap_err();
                        assert!(
                            matches!(error, ProtectionError::Guard { lba: 100, .. }),
                            "{error}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_block_at_another_place_or_of_another_application_is_found() {
        let format = BlockFormat {
            data_bytes: 512,
            metadata_bytes: 8,
            interleaved: true,
            protection: 1,
            first: false,
        };
        let mut data = vec![7; 2 * format.stride()];
        protect(&format, &mut data, &mut [], 5, 10);
        let error = check(&format, &data, &[], 20, None, 20).unwrap_err();
        assert_eq!(error, ProtectionError::Reference { lba: 20, found: 10, wanted: 20 });
        let error = check(&format, &data, &[], 10, Some(6), 10).unwrap_err();
        assert_eq!(error, ProtectionError::Application { lba: 10, found: 5, wanted: 6 });
        // The escape: nobody checks such a block.
        protect(&format, &mut data, &mut [], u16::MAX, 10);
        data[3] ^= 1;
        assert_eq!(check(&format, &data, &[], 20, Some(6), 20), Ok(()));
    }
}
