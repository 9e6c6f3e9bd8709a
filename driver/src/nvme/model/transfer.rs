//! Moving the data of a command, as the controller.

use crate::nvme::spec::{Status, SubmissionEntry};

use super::{State, prp, sgl};

/// PSDT: 0 PRP entries, 1 a scatter/gather list with the metadata at an address.
pub(super) fn psdt(entry: &SubmissionEntry) -> u32 {
    entry.cdw0.get() >> 14 & 0b11
}

fn pieces(state: &State, entry: &SubmissionEntry, len: usize) -> Result<Vec<(u64, usize)>, Status> {
    let mdts = state.options.mdts;
    if mdts != 0 && len > 4096 << mdts {
        return Err(Status::INVALID_FIELD);
    }
    let (low, high) = (entry.prp1.get(), entry.prp2.get());
    match psdt(entry) {
        0 => prp::walk(&state.pool, low, high, len),
        _ => sgl::walk(&state.pool, low, high, len),
    }
}

/// To the host.
pub(super) fn give(state: &State, entry: &SubmissionEntry, bytes: &[u8]) -> Result<(), Status> {
    let mut at = 0;
    for (iova, len) in pieces(state, entry, bytes.len())? {
        prp::write(&state.pool, iova, &bytes[at..at + len])?;
        at += len;
    }
    Ok(())
}

/// From the host.
pub(super) fn take(state: &State, entry: &SubmissionEntry, len: usize) -> Result<Vec<u8>, Status> {
    let mut bytes = vec![0; len];
    let mut at = 0;
    for (iova, len) in pieces(state, entry, len)? {
        prp::read(&state.pool, iova, &mut bytes[at..at + len])?;
        at += len;
    }
    Ok(bytes)
}
