//! Whether a pool can be mapped at all, before anything is tried: the kernel's own answers to one that
//! cannot are ENOMEM and ENOSPC, after minutes of pinning pages.

use std::fs;

use rustix::process::{Resource, getrlimit};

use crate::error::DeviceError;

/// How much a drive has mapped at most. Page tables and pinning grow with it, and on some machines more
/// was seen to fail in ways that are hard to tell.
const MAPPED_MAX_BYTES: u64 = 128 << 30;

/// The capability that lifts the limit of locked memory (capabilities(7)).
const CAP_IPC_LOCK: u32 = 14;

/// What this process may lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lockable {
    /// RLIMIT_MEMLOCK, in bytes; `None` is no limit, or one that does not hold for this process.
    limit: Option<u64>,
    /// What it has locked already, in bytes: pools of other drives count too.
    locked: u64,
}

impl Lockable {
    fn of_this_process() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self::new(getrlimit(Resource::Memlock).current, &status)
    }

    /// From the soft limit and `/proc/self/status`.
    fn new(limit: Option<u64>, status: &str) -> Self {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let capabilities =
            field("CapEff:").and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        let may = capabilities.is_some_and(|bits| bits >> CAP_IPC_LOCK & 1 == 1);
        let kib = field("VmLck:").and_then(|text| text.split_whitespace().next()?.parse().ok());
        let locked = kib.map_or(0, |kib: u64| kib.saturating_mul(1024));
        Self { limit: if may { None } else { limit }, locked }
    }
}

/// Checks that a pool of `len_bytes` can be mapped by this process.
///
/// # Errors
///
/// [`DeviceError::Invalid`], which says what the limit is and how it is raised.
pub(super) fn check(len_bytes: u64) -> Result<(), DeviceError> {
    check_against(len_bytes, Lockable::of_this_process())
}

fn check_against(len_bytes: u64, lockable: Lockable) -> Result<(), DeviceError> {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    if len_bytes > MAPPED_MAX_BYTES {
        return Err(DeviceError::Invalid(format!(
            "a pool of {} GiB is more than the {} GiB that can be mapped for a drive: make it smaller",
            len_bytes.div_ceil(1 << 30),
            MAPPED_MAX_BYTES >> 30
        )));
    }
    match lockable.limit {
        Some(limit) if lockable.locked.saturating_add(len_bytes) > limit => {
            Err(DeviceError::Invalid(format!(
                "a pool of {} MiB has to be locked in memory, and this process may lock {} MiB, of which \
                 {} MiB are in use: raise the limit (ulimit -l, LimitMEMLOCK=) or make the pool smaller",
                mib(len_bytes),
                limit >> 20,
                mib(lockable.locked)
            )))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_128_gib_is_refused_whatever_may_be_locked() {
        let lockable = Lockable { limit: None, locked: 0 };
        assert!(check_against(128 << 30, lockable).is_ok());
        let error = check_against((128 << 30) + 4096, lockable).unwrap_err().to_string();
        assert_eq!(
            error,
            "a pool of 129 GiB is more than the 128 GiB that can be mapped for a drive: make it smaller"
        );
    }

    #[test]
    fn a_pool_above_the_limit_of_locked_memory_is_refused_with_the_limit() {
        let lockable = Lockable { limit: Some(8 << 20), locked: 3 << 20 };
        assert!(check_against(5 << 20, lockable).is_ok());
        let error = check_against((5 << 20) + 4096, lockable).unwrap_err().to_string();
        assert_eq!(
            error,
            "a pool of 6 MiB has to be locked in memory, and this process may lock 8 MiB, of which 3 MiB \
             are in use: raise the limit (ulimit -l, LimitMEMLOCK=) or make the pool smaller"
        );
    }

    #[test]
    fn the_limit_holds_for_who_lacks_the_capability() {
        let status = "VmLck:\t    2048 kB\nCapEff:\t0000000000000000\n";
        let limited = Lockable { limit: Some(8 << 20), locked: 2 << 20 };
        assert_eq!(Lockable::new(Some(8 << 20), status), limited);
        let root = status.replace("CapEff:\t0000000000000000", "CapEff:\t000001ffffffffff");
        assert_eq!(Lockable::new(Some(8 << 20), &root).limit, None);
        let nearly = status.replace("CapEff:\t0000000000000000", "CapEff:\t000001ffffffbfff");
        assert_eq!(Lockable::new(Some(8 << 20), &nearly), limited, "all but CAP_IPC_LOCK");
        assert_eq!(Lockable::new(None, ""), Lockable { limit: None, locked: 0 });
    }
}
