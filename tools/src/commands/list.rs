//! `aioctl list`: what is served. Clears away what dead servers of ours have left.
//!
//! Read from the records alone, so that one server that hangs does not hang the list.

use serde::Serialize;

use super::Context;
use crate::clearing;
use crate::cli::{DeviceId, Mode};
use crate::exit::Failure;
use crate::log;
use crate::record::Record;
use crate::table;
use uaio_driver::url::ByteSize;

#[derive(Serialize)]
struct Listing {
    devices: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    id: u32,
    path: String,
    backend: String,
    size_bytes: u64,
    block_size_bytes: u32,
    mode: Mode,
    cache_bytes: u64,
    pid: u32,
    /// `serving`, or `dead` for one that could not be cleared away.
    state: &'static str,
}

pub(crate) fn run(context: &Context) -> Result<(), Failure> {
    match std::fs::read_dir(context.run.path()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure::os(format!("read {}", context.run.path().display()), error));
        }
        // Nothing has been served yet.
        _ => {}
    }
    for note in clearing::clear(context) {
        log::line(note);
    }
    for id in context.run.unreadable() {
        let path = context.run.record(id);
        log::line(format_args!(
            "cannot read {}; is {id} served? see `aioctl info {}`",
            path.display(),
            id.0
        ));
    }
    let devices = context.run.records().into_iter().map(|record| row(context, record)).collect();
    context.print(&Listing { devices }, table_of)
}

fn row(context: &Context, record: Record) -> Row {
    let state = if record.is_alive(&context.system) { "serving" } else { "dead" };
    Row {
        id: record.id,
        path: DeviceId(record.id).to_string(),
        backend: record.backend,
        size_bytes: record.size_bytes,
        block_size_bytes: record.block_size_bytes,
        mode: record.mode,
        cache_bytes: record.cache_bytes,
        pid: record.pid,
        state,
    }
}

fn table_of(listing: &Listing) -> String {
    let headers =
        ["PATH", "BACKEND", "SIZE MiB>", "BLOCK bytes>", "MODE", "CACHE MiB>", "PID>", "STATE"];
    let row = |row: &Row| {
        vec![
            row.path.clone(),
            row.backend.clone(),
            ByteSize(row.size_bytes).mib(),
            row.block_size_bytes.to_string(),
            row.mode.name().into(),
            ByteSize(row.cache_bytes).mib(),
            row.pid.to_string(),
            row.state.into(),
        ]
    };
    table::rows(&headers, listing.devices.iter().map(row))
}
