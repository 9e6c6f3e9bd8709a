//! `aioctl info`: what one device is.

use super::Context;
use crate::cli::DeviceId;
use crate::client::{ask, unexpected};
use crate::exit::Failure;
use crate::protocol::{Answer, Command, Info};
use crate::table;
use uaio_driver::url::ByteSize;

pub(crate) fn run(context: &Context, id: DeviceId) -> Result<(), Failure> {
    match ask(&context.run, &context.system, id, Command::Info)? {
        Answer::Info(info) => context.print(&*info, table_of),
        _ => Err(unexpected()),
    }
}

fn table_of(info: &Info) -> String {
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_string();
    let list = |items: &[String]| if items.is_empty() { "-".into() } else { items.join(", ") };
    table::pairs([
        ("path", info.path.clone()),
        ("backend", info.backend.clone()),
        ("state", info.state.clone()),
        ("health", info.health.clone()),
        ("size (bytes)", format!("{} ({})", info.size_bytes, ByteSize(info.size_bytes))),
        ("block size (bytes)", info.block_size_bytes.to_string()),
        ("largest I/O (bytes)", info.io_max_bytes.to_string()),
        ("read-only", yes(info.read_only)),
        ("cache mode", info.mode.name().into()),
        ("cache (MiB)", ByteSize(info.cache_bytes).mib()),
        ("volatile cache", yes(info.volatile_cache)),
        ("queues", info.queues.to_string()),
        ("depth (requests)", info.depth.to_string()),
        ("flags", list(&info.flags)),
        ("degraded", list(&info.degraded)),
        ("DMA memory (MiB)", ByteSize(info.dma_bytes).mib()),
        ("hugepages", yes(info.hugepages)),
        ("process", info.pid.to_string()),
        ("log", info.log.clone().unwrap_or_else(|| "stderr".into())),
        ("uptime (s)", info.uptime_s.to_string()),
    ])
}
