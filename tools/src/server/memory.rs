//! Does it fit into the machine? Asked before any memory is taken.
//!
//! A server locks its memory and asks the kernel to spare it when memory is short. So what it takes
//! too much is taken from all others, and the kernel kills one of them.

use uaio_driver::{FRAME_SIZE, PoolOptions};

use crate::cli::AddArgs;
use crate::exit::{Exit, Failure};
use crate::system::System;
use uaio_driver::url::Backend;
use uaio_driver::url::ByteSize;

/// Refuses what needs more memory than the machine has to spare.
///
/// # Errors
///
/// How much it needs and how much there is.
pub(crate) fn check(system: &System, args: &AddArgs, pool: &PoolOptions) -> Result<(), Failure> {
    // Without /proc nobody knows.
    let Some(memory) = system.read("proc/meminfo") else { return Ok(()) };
    let Some(available) = field_bytes(&memory, "MemAvailable") else { return Ok(()) };
    let pool_bytes = (pool.frames as u64).saturating_mul(FRAME_SIZE as u64);
    // What the machine has set aside as hugepages is not among what is available.
    let from_available = if pool_bytes <= free_hugepages_bytes(&memory) { 0 } else { pool_bytes };
    let ram = |backend: &Backend| match backend {
        Backend::Ram { size } => size.0,
        Backend::File { .. } | Backend::Nvme { .. } => 0,
    };
    let ram_bytes = args.backends.iter().map(ram).fold(0, u64::saturating_add);
    let needed = ram_bytes.saturating_add(from_available);
    if needed <= available {
        return Ok(());
    }
    let hint = match ram_bytes {
        0 => "take a smaller --cache, fewer --queues or less --depth",
        _ => "take a smaller ram: or a smaller --cache",
    };
    let what = format!(
        "{} MiB of memory are needed, and this machine has {} MiB available",
        ByteSize(needed).mib(),
        available >> 20,
    );
    Err(Failure::new(Exit::Unsupported, what, hint))
}

/// Free hugepages of the default size that nobody has reserved.
fn free_hugepages_bytes(memory: &str) -> u64 {
    let count = |name| field(memory, name).unwrap_or(0);
    let free = count("HugePages_Free").saturating_sub(count("HugePages_Rsvd"));
    free.saturating_mul(field_bytes(memory, "Hugepagesize").unwrap_or(0))
}

/// A field of /proc/meminfo that is given in kB, which are KiB (proc_meminfo(5)).
fn field_bytes(memory: &str, name: &str) -> Option<u64> {
    field(memory, name)?.checked_mul(1024)
}

fn field(memory: &str, name: &str) -> Option<u64> {
    let line = memory.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, Command, Parsed};

    fn args(backend: &str) -> AddArgs {
        match cli::parse(["aioctl", "add", backend].map(Into::into)) {
            Ok(Parsed::Run(cli)) => match cli.command {
                Command::Add(args) => args,
                other => panic!("{other:?}"),
            },
            _ => panic!("{backend} was refused"),
        }
    }

    fn refusal(meminfo: &str, backend: &str, pool_frames: usize) -> Option<String> {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(root.path().join("proc")).expect("a directory");
        std::fs::write(root.path().join("proc/meminfo"), meminfo).expect("a file");
        let pool = PoolOptions::frames(pool_frames);
        let failure = check(&System::new(root.path()), &args(backend), &pool).err()?;
        assert_eq!(failure.exit, Exit::Unsupported);
        Some(failure.to_string())
    }

    /// 1 GiB to spare, and 64 MiB in free hugepages, half of them promised to somebody.
    const MACHINE: &str = "MemTotal: 2097152 kB\nMemFree: 1 kB\nMemAvailable:    1048576 kB\n\
                           HugePages_Free:       64\nHugePages_Rsvd:       32\n\
                           Hugepagesize:       2048 kB\n";

    #[test]
    fn what_the_machine_has_not_to_spare_is_refused() {
        // The pool lies in hugepages.
        assert_eq!(refusal(MACHINE, "ram:1G", 16384), None);
        // It does not fit there, and so counts with the rest.
        assert_eq!(
            refusal(MACHINE, "ram:1G", 16385).as_deref(),
            Some(
                "1088.1 MiB of memory are needed, and this machine has 1024 MiB available; \
                 take a smaller ram: or a smaller --cache"
            )
        );
        assert_eq!(refusal(MACHINE, "ram:959M", 16640), None);
        assert!(refusal(MACHINE, "ram:16T", 16384).is_some());
        assert!(refusal(MACHINE, "ram:8388607T", usize::MAX).is_some());
        assert_eq!(
            refusal(MACHINE, "file:/a", (1 << 18) + 1).as_deref(),
            Some(
                "1024.1 MiB of memory are needed, and this machine has 1024 MiB available; \
                 take a smaller --cache, fewer --queues or less --depth"
            )
        );
        assert_eq!(refusal(MACHINE, "file:/a", 1 << 18), None);
    }

    #[test]
    fn a_machine_that_does_not_say_refuses_nothing() {
        for meminfo in ["", "MemAvailable", "MemAvailable:", "MemAvailable: many kB"] {
            assert_eq!(refusal(meminfo, "ram:16T", 1), None, "{meminfo}");
        }
    }
}
