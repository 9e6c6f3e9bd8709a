//! The server: any [`BlockDevice`](crate::BlockDevice) becomes `/dev/ublkbN`.
mod command;
mod control;
mod doorbell;
mod error;
mod options;
mod queue;
mod ring;
mod server;
mod shield;
mod stats;
mod tags;

pub use control::{DeviceState, UblkDevice, dead_devices, devices, remove};
pub use error::ServerError;
pub use options::ServerOptions;
pub use queue::PollOptions;
pub use server::{Server, ServerInfo, ServerState};
pub use shield::{ShieldReport, Shielded, shield_process, shield_thread};
pub use stats::{Latency, OpKind, OpStats, ServerStats};
