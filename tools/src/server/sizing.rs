//! How much DMA memory a server takes.
//!
//! Everything that data passes through lies in one pool, mapped for the IOMMU and registered with
//! io_uring once: the cache's frames, a buffer for each request of the block layer, the rings and
//! PRP lists of a drive. It is taken at start and does not grow.

use uaio_driver::nvme::NvmeController;
use uaio_driver::ublk::ServerOptions;
use uaio_driver::{FRAME_SIZE, Geometry, PoolOptions};
use uaio_page_cache::CacheOptions;

use crate::cli::{AddArgs, Mode};
use crate::exit::{Exit, Failure};
use uaio_driver::url::Backend;
use uaio_driver::url::ByteSize;

/// What a device may take beside what is counted: a frame of zeroes, a bounce buffer.
const SPARE_FRAMES: usize = 64;

/// Frames of a hugepage: a pool of whole ones can lie in hugepages.
const HUGE_FRAMES: usize = (2 << 20) / FRAME_SIZE;

/// The smallest cache that is served: one large request for each queue of the default, and room to
/// keep something.
pub(crate) const CACHE_MIN_BYTES: u64 = 4 << 20;

/// A block of memory without being asked for another size.
pub(crate) const RAM_BLOCK_SIZE: u32 = 4096;

/// The smallest block a file can have; its own may be larger.
pub(crate) const FILE_BLOCK_SIZE_MIN: u32 = 512;

/// What a server is asked for: each of its devices has all of this.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) devices: usize,
    pub(crate) mode: Mode,
    pub(crate) cache: ByteSize,
    /// What it may grow to.
    pub(crate) cache_max: ByteSize,
    pub(crate) queues: u16,
    pub(crate) depth: u16,
}

/// The size of the cache: what was asked for, or what its limit of memory leaves of that, if it can never have more.
///
/// # Errors
///
/// For a limit that leaves less than the smallest cache.
pub(crate) fn cache(args: &AddArgs) -> Result<ByteSize, Failure> {
    let Some(limit) = args.cache_memory_max else { return Ok(args.cache) };
    if limit.0 < CACHE_MIN_BYTES {
        return Err(Failure::new(
            Exit::Usage,
            format!("a --cache-memory-max of {limit} is smaller than the smallest cache"),
            format!("take more than {}", ByteSize(CACHE_MIN_BYTES)),
        ));
    }
    if args.cache_max.is_some() || args.cache <= limit {
        return Ok(args.cache);
    }
    Ok(ByteSize(limit.0 / FRAME_SIZE as u64 * FRAME_SIZE as u64))
}

/// The frames of the cache; 0 without one.
///
/// # Errors
///
/// For a cache that is too small, or not whole frames.
pub(crate) fn cache_frames(wanted: &Wanted) -> Result<usize, Failure> {
    if wanted.mode == Mode::None {
        return Ok(0);
    }
    frames_of(wanted.cache, ("--cache ", ", or --mode none"))
}

/// The frames of a cache of this size; `option` is what stands before and after another in a hint.
///
/// # Errors
///
/// For a cache that is too small, or not whole frames.
pub(crate) fn frames_of(size: ByteSize, option: (&str, &str)) -> Result<usize, Failure> {
    let bytes = size.0;
    if bytes < CACHE_MIN_BYTES {
        return Err(Failure::new(
            Exit::Usage,
            format!("a cache of {size} is smaller than the minimum"),
            format!("take {}{} or more{}", option.0, ByteSize(CACHE_MIN_BYTES), option.1),
        ));
    }
    usize::try_from(bytes)
        .ok()
        .filter(|bytes| bytes.is_multiple_of(FRAME_SIZE))
        .map(|bytes| (bytes / FRAME_SIZE).max(CacheOptions::FRAMES_MIN))
        .ok_or_else(|| {
            Failure::new(
                Exit::Usage,
                format!("a cache of {size} is not a multiple of 4K"),
                "take a multiple of 4K",
            )
        })
}

/// The frames that the cache may grow to; 0 without one.
///
/// # Errors
///
/// As [`cache_frames`]; when it is less than what the cache starts with.
fn cache_frames_max(wanted: &Wanted) -> Result<usize, Failure> {
    let frames = cache_frames(wanted)?;
    if frames == 0 {
        return Ok(0);
    }
    let most = frames_of(wanted.cache_max, ("--cache-max ", ""))?;
    if most < frames {
        return Err(Failure::new(
            Exit::Usage,
            format!(
                "a --cache-max of {} is less than the cache, {}",
                wanted.cache_max, wanted.cache
            ),
            "leave it out, or take a larger one",
        ));
    }
    Ok(most)
}

/// The block size that was asked for, in bytes, if the sizes that were given are whole blocks.
///
/// # Errors
///
/// For one that is not possible, and for a size that it does not divide.
pub(crate) fn block_size(args: &AddArgs) -> Result<Option<u32>, Failure> {
    let asked = match args.block_size.map(|size| size.0) {
        None => None,
        Some(bytes @ (512 | 1024 | 2048 | 4096)) => Some(bytes as u32),
        Some(bytes) => {
            return Err(Failure::new(
                Exit::Usage,
                format!("a block size of {} is not possible", ByteSize(bytes)),
                "take --block-size 512, 1K, 2K or 4K",
            ));
        }
    };
    for backend in &args.backends {
        let (size, default) = match backend {
            Backend::Ram { size } => (*size, RAM_BLOCK_SIZE),
            Backend::File { size: Some(size), .. } => (*size, FILE_BLOCK_SIZE_MIN),
            Backend::File { size: None, .. } | Backend::Nvme { .. } => continue,
        };
        whole_blocks(size, asked.unwrap_or(default))?;
    }
    Ok(asked)
}

/// Refuses a size that is not whole blocks.
pub(crate) fn whole_blocks(size: ByteSize, block_size: u32) -> Result<(), Failure> {
    if size.0.is_multiple_of(u64::from(block_size)) {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Usage,
        format!("a size of {} bytes is not a multiple of the block size, {block_size}", size.0),
        "round it, or take a smaller --block-size",
    ))
}

/// The pool of a server.
///
/// # Errors
///
/// As [`cache_frames`].
pub(crate) fn pool(wanted: &Wanted) -> Result<PoolOptions, Failure> {
    let Wanted { devices, queues, depth, .. } = *wanted;
    let served = ServerOptions { queues, depth, ..ServerOptions::default() };
    // The pool is made before the device is opened: what the largest requests would need.
    let largest = Geometry {
        block_size: 512,
        blocks: 1,
        transfer_max_bytes: served.io_max_bytes,
        discard_max_blocks: 0,
        write_zeroes_max_blocks: 0,
    };
    // Rings and PRP lists, if it is a drive: beside the queues that are served there are the
    // flusher's and the one for flushes. The cache opens queues of at least 32 below its own, and
    // the kernel's queues may be deeper than asked for, up to a power of two.
    let queue = NvmeController::frames_for_queue(depth.max(32).next_power_of_two());
    let rings = (usize::from(queues) + 2) * queue;
    let device = cache_frames_max(wanted)? + served.frames(&largest) + rings + SPARE_FRAMES;
    let frames = device * devices + NvmeController::frames_for_controller();
    Ok(PoolOptions::frames(frames.next_multiple_of(HUGE_FRAMES)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted = Wanted {
        mode: Mode::Writeback,
        cache: ByteSize(256 << 20),
        cache_max: ByteSize(256 << 20),
        queues: 2,
        depth: 64,
        devices: 1,
    };

    #[test]
    fn a_pool_has_room_for_the_cache_and_each_request_in_whole_hugepages() {
        let frames = pool(&WANTED).expect("a size").frames;
        assert!(frames >= 65536 + 2 * 4096 + 4 * 64, "{frames}");
        assert!(frames.is_multiple_of(512), "{frames}");
        let none = Wanted { mode: Mode::None, ..WANTED };
        let without = pool(&none).expect("a size").frames;
        assert_eq!(frames - without, 65536);
        let more = Wanted { cache_max: ByteSize(1 << 30), ..WANTED };
        assert_eq!(pool(&more).expect("a size").frames - frames, (768 << 20) / 4096);
        let two = pool(&Wanted { devices: 2, ..WANTED }).expect("a size").frames;
        assert!(two > 2 * (65536 + 2 * 4096), "{two}");
    }

    #[test]
    fn a_limit_of_memory_is_a_size_of_the_cache_unless_that_may_grow() {
        let cache_of = |options: &[&str]| {
            let words = ["aioctl", "add", "ram:1G"].iter().chain(options);
            match crate::cli::parse(words.map(Into::into)) {
                Ok(crate::cli::Parsed::Run(cli)) => match cli.command {
                    crate::cli::Command::Add(args) => cache(&args),
                    other => panic!("{other:?}"),
                },
                _ => panic!("{options:?} were refused"),
            }
        };
        let mib = |options: &[&str]| cache_of(options).expect("a size").0 >> 20;
        assert_eq!(mib(&[]), 256);
        assert_eq!(mib(&["--cache-memory-max", "100M"]), 100);
        assert_eq!(mib(&["--cache-memory-max", "1G"]), 256);
        assert_eq!(mib(&["--cache-memory-max", "100M", "--cache-max", "512M"]), 256);
        let small = cache_of(&["--cache-memory-max", "1M"]).expect_err("too small").to_string();
        assert_eq!(
            small,
            "a --cache-memory-max of 1M is smaller than the smallest cache; take more than 4M"
        );
    }

    #[test]
    fn a_cache_below_the_minimum_is_refused_and_without_one_nobody_asks() {
        let small = Wanted { cache: ByteSize((4 << 20) - 4096), ..WANTED };
        let failure = pool(&small).expect_err("too small");
        assert_eq!(
            failure.to_string(),
            "a cache of 4092K is smaller than the minimum; take --cache 4M or more, or --mode none"
        );
        assert_eq!(failure.exit, Exit::Usage);
        assert!(pool(&Wanted { mode: Mode::None, ..small }).is_ok());
        let less = Wanted { cache_max: ByteSize(128 << 20), ..WANTED };
        assert_eq!(
            pool(&less).expect_err("less").to_string(),
            "a --cache-max of 128M is less than the cache, 256M; leave it out, or take a larger one"
        );
        let odd = Wanted { cache: ByteSize((4 << 20) + 512), ..WANTED };
        assert!(pool(&odd).expect_err("odd").what.contains("not a multiple of 4K"));
    }
}
