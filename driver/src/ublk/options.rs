//! How a device is served, and what the kernel is told of it.

use std::sync::Arc;
use std::time::Duration;

use libublk::sys;

use crate::block::{Capabilities, Geometry};
use crate::clock::{Clock, SystemClock};
use crate::dma::FRAME_SIZE;
use crate::request::SgList;

use super::command::SECTOR;
use super::error::ServerError;
use super::looking::PollOptions;

/// The largest read or write of ublk (`UBLK_IO_BUF_BITS`), in bytes.
const IO_LIMIT_BYTES: u32 = 1 << sys::UBLK_IO_BUF_BITS;

/// How a device is to be served.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// How many queues, each with a thread and a queue of the device. The kernel makes no more than
    /// there are CPUs: [`ServerInfo::queues`](super::ServerInfo::queues) says how many it made.
    pub queues: u16,
    /// How many requests each queue holds: 1 to 4096. What the device's queue cannot hold waits.
    pub depth: u16,
    /// What one read or write carries at most, in bytes: a multiple of 4096. The device's own limit
    /// holds too.
    pub io_max_bytes: u32,
    /// How much of the device's pool each queue takes for data in flight, in bytes. At least one
    /// largest request, at most one for each tag; requests beyond it wait in line.
    pub reserve_bytes: u64,
    /// How the threads wait.
    pub poll: PollOptions,
    /// What latencies are measured with.
    pub clock: Arc<dyn Clock>,
    /// How long the start may take.
    pub deadline: Duration,
}

impl Default for ServerOptions {
    /// One queue of 128 requests of at most 512 KiB, with 16 MiB for data in flight.
    fn default() -> Self {
        Self {
            queues: 1,
            depth: 128,
            io_max_bytes: 512 << 10,
            reserve_bytes: 16 << 20,
            poll: PollOptions::default(),
            clock: Arc::new(SystemClock::new()),
            deadline: Duration::from_secs(30),
        }
    }
}

impl ServerOptions {
    /// What a read or write of a device carries at most, in bytes.
    pub fn io_max_bytes(&self, geometry: &Geometry) -> u32 {
        self.io_max_bytes.min(geometry.transfer_max_bytes).min(IO_LIMIT_BYTES)
    }

    /// How many frames of the device's pool each queue takes.
    pub fn frames_per_queue(&self, geometry: &Geometry) -> usize {
        let one = SgList::frames_for(0, self.io_max_bytes(geometry) as usize);
        let wanted = usize::try_from(self.reserve_bytes / FRAME_SIZE as u64).unwrap_or(usize::MAX);
        wanted.clamp(one, one * usize::from(self.depth.max(1)))
    }

    /// How many frames of the device's pool the server takes in all: what to make the pool larger
    /// by.
    pub fn frames(&self, geometry: &Geometry) -> usize {
        self.frames_per_queue(geometry) * usize::from(self.queues)
    }

    /// Checks the options against a device.
    pub(super) fn check(&self, capabilities: &Capabilities) -> Result<(), ServerError> {
        let invalid = |text: String| Err(ServerError::Invalid(text));
        if self.queues == 0 || self.queues > capabilities.queues_max {
            return invalid(format!(
                "{} queues are not possible with this device: take 1 to {}",
                self.queues, capabilities.queues_max
            ));
        }
        if self.depth == 0 || u32::from(self.depth) > sys::UBLK_MAX_QUEUE_DEPTH {
            return invalid(format!(
                "a queue depth of {} is not possible: take 1 to {}",
                self.depth,
                sys::UBLK_MAX_QUEUE_DEPTH
            ));
        }
        if self.io_max_bytes == 0 || !self.io_max_bytes.is_multiple_of(FRAME_SIZE as u32) {
            return invalid(format!(
                "requests of up to {} bytes are not possible: take a multiple of {FRAME_SIZE}",
                self.io_max_bytes
            ));
        }
        Ok(())
    }
}

/// What the kernel is told of a device.
///
/// A flush and FUA are only ever sent to a device that says it has a volatile write cache, so that
/// is what turns both on. The physical block is the logical one: it is what the device writes whole,
/// and the device says nothing of a larger one. The preferred sizes are one page, so that no
/// filesystem takes our largest request for a RAID stripe.
pub(super) fn params(
    geometry: &Geometry,
    capabilities: &Capabilities,
    io_max_bytes: u32,
) -> sys::ublk_params {
    let mut attrs = 0;
    if capabilities.volatile_cache {
        attrs |= sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA;
    }
    if capabilities.read_only {
        attrs |= sys::UBLK_ATTR_READ_ONLY;
    }
    let block_shift = geometry.block_size.ilog2() as u8;
    let page_shift = FRAME_SIZE.ilog2() as u8;
    let mut params = sys::ublk_params {
        types: sys::UBLK_PARAM_TYPE_BASIC,
        basic: sys::ublk_param_basic {
            attrs,
            logical_bs_shift: block_shift,
            physical_bs_shift: block_shift,
            io_min_shift: page_shift,
            io_opt_shift: page_shift,
            max_sectors: io_max_bytes / SECTOR,
            dev_sectors: geometry.size_bytes() / u64::from(SECTOR),
            ..Default::default()
        },
        ..Default::default()
    };
    let block_sectors = geometry.block_size / SECTOR;
    // As many whole blocks as fit the kernel's 32 bits of sectors.
    let sectors = |blocks: u32| blocks.min(u32::MAX / block_sectors) * block_sectors;
    let (discard, zeroes) = (geometry.discard_max_blocks, geometry.write_zeroes_max_blocks);
    if !capabilities.read_only && (discard > 0 || zeroes > 0) {
        params.types |= sys::UBLK_PARAM_TYPE_DISCARD;
        params.discard = sys::ublk_param_discard {
            discard_granularity: geometry.block_size,
            max_discard_sectors: sectors(discard),
            max_write_zeroes_sectors: sectors(zeroes),
            max_discard_segments: 1,
            ..Default::default()
        };
    }
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry {
        block_size: 4096,
        blocks: 1000,
        transfer_max_bytes: 128 << 10,
        discard_max_blocks: u32::MAX,
        write_zeroes_max_blocks: 32,
    };
    const CAPABILITIES: Capabilities = Capabilities {
        volatile_cache: false,
        fua: true,
        read_only: false,
        queues_max: 4,
        depth_max: 64,
    };

    #[test]
    fn the_kernel_is_told_what_the_device_says() {
        let told = params(&GEOMETRY, &CAPABILITIES, 64 << 10);
        let basic = told.basic;
        assert_eq!(basic.attrs, 0, "no cache: neither flush nor FUA is wanted");
        assert_eq!((basic.logical_bs_shift, basic.physical_bs_shift), (12, 12));
        assert_eq!((basic.max_sectors, basic.dev_sectors), (128, 8000));
        assert_eq!(told.discard.max_write_zeroes_sectors, 256);
        assert_eq!(told.discard.max_discard_sectors % 8, 0);
        assert_eq!(told.discard.max_discard_segments, 1);

        let cached = Capabilities { volatile_cache: true, fua: false, ..CAPABILITIES };
        let attrs = params(&GEOMETRY, &cached, 4096).basic.attrs;
        assert_eq!(attrs, sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA);

        let read_only = Capabilities { read_only: true, ..CAPABILITIES };
        let told = params(&GEOMETRY, &read_only, 4096);
        assert_eq!(told.basic.attrs, sys::UBLK_ATTR_READ_ONLY);
        assert_eq!(told.types, sys::UBLK_PARAM_TYPE_BASIC);
    }

    #[test]
    fn the_reserve_holds_one_request_and_never_more_than_all() {
        let options = ServerOptions { depth: 4, ..ServerOptions::default() };
        assert_eq!(options.io_max_bytes(&GEOMETRY), 128 << 10);
        let frames = |reserve_bytes| {
            ServerOptions { reserve_bytes, ..options.clone() }.frames_per_queue(&GEOMETRY)
        };
        assert_eq!(frames(0), 32);
        assert_eq!(frames(200 << 10), 50);
        assert_eq!(frames(u64::MAX), 4 * 32);
    }

    #[test]
    fn options_out_of_range_are_refused_with_the_range() {
        let text = |options: ServerOptions| options.check(&CAPABILITIES).unwrap_err().to_string();
        let good = ServerOptions::default();
        assert!(good.check(&CAPABILITIES).is_ok());
        assert_eq!(
            text(ServerOptions { queues: 5, ..good.clone() }),
            "5 queues are not possible with this device: take 1 to 4"
        );
        assert_eq!(
            text(ServerOptions { depth: 4097, ..good.clone() }),
            "a queue depth of 4097 is not possible: take 1 to 4096"
        );
        assert_eq!(
            text(ServerOptions { io_max_bytes: 1000, ..good }),
            "requests of up to 1000 bytes are not possible: take a multiple of 4096"
        );
    }
}
