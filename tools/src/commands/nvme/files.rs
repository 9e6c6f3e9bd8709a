//! Data of commands in files.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use crate::exit::{Exit, Failure};

/// What one command, or one image, may have at most, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// The contents of a file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error| Failure::os(path.display(), error);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    let count = file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if count as u64 > MAX_BYTES {
        let what = format!("{} is larger than 1G", path.display());
        return Err(Failure::new(Exit::Usage, what, "nothing was changed"));
    }
    Ok(bytes)
}

/// A new file, before anything is asked of a drive.
pub(super) fn create(path: &Path) -> Result<File, Failure> {
    File::create_new(path).map_err(|error| Failure::os(path.display(), error))
}

/// Fills it.
pub(super) fn fill(path: &Path, mut file: File, bytes: &[u8]) -> Result<(), Failure> {
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(|error| Failure::os(path.display(), error))
}

/// Bytes in hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
