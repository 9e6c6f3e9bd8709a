//! PRP entries as a controller walks them, from the text of Base 2.0c §4.1.1.

use vm_memory::{Bytes, GuestMemoryRegion, MemoryRegionAddress};

use crate::dma::DmaPool;
use crate::nvme::spec::Status;

const PAGE: u64 = 4096;

/// The pieces (IOVA, length) of `len_bytes` bytes that `prp1` and `prp2` describe.
///
/// # Errors
///
/// The status that the command fails with.
pub fn walk(
    pool: &DmaPool,
    prp1: u64,
    prp2: u64,
    len_bytes: usize,
) -> Result<Vec<(u64, usize)>, Status> {
    let mut pieces = Vec::new();
    let mut left = len_bytes as u64;
    let mut take = |address: u64, left: &mut u64| {
        let len = (PAGE - address % PAGE).min(*left);
        pieces.push((address, len as usize));
        *left -= len;
    };
    if !prp1.is_multiple_of(4) {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    take(prp1, &mut left);
    if left == 0 {
        return Ok(pieces);
    }
    if left <= PAGE {
        if !prp2.is_multiple_of(PAGE) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        take(prp2, &mut left);
        return Ok(pieces);
    }
    let mut entry = prp2;
    if !entry.is_multiple_of(8) {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    while left > 0 {
        let address = read_u64(pool, entry)?;
        // The last entry of a list page points to the next one when more than a page is left.
        if (entry + 8).is_multiple_of(PAGE) && left > PAGE {
            if !address.is_multiple_of(PAGE) {
                return Err(Status::PRP_OFFSET_INVALID);
            }
            entry = address;
            continue;
        }
        if !address.is_multiple_of(PAGE) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        take(address, &mut left);
        entry += 8;
    }
    Ok(pieces)
}

/// Reads memory as the device: out of the pool, or not at all.
pub(super) fn read(pool: &DmaPool, iova: u64, out: &mut [u8]) -> Result<(), Status> {
    let at = place(pool, iova)?;
    pool.region().read_slice(out, at).map_err(|_| Status::DATA_TRANSFER_ERROR)
}

/// Writes memory as the device: in the pool, or not at all.
pub(super) fn write(pool: &DmaPool, iova: u64, data: &[u8]) -> Result<(), Status> {
    let at = place(pool, iova)?;
    pool.region().write_slice(data, at).map_err(|_| Status::DATA_TRANSFER_ERROR)
}

fn read_u64(pool: &DmaPool, iova: u64) -> Result<u64, Status> {
    let mut bytes = [0; 8];
    read(pool, iova, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

pub(super) fn place(pool: &DmaPool, iova: u64) -> Result<MemoryRegionAddress, Status> {
    let offset = iova.checked_sub(pool.region().start_addr().0);
    offset.map(MemoryRegionAddress).ok_or(Status::DATA_TRANSFER_ERROR)
}
