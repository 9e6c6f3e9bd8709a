//! NVMe: the protocol, from registers to queue pairs. No `unsafe` here.
#![forbid(unsafe_code)]

mod admin;
mod controller;
mod discard;
mod failure;
mod in_flight;
mod info;
pub mod model;
mod namespace;
mod prp;
mod queue;
mod registers;
mod ring;
pub mod spec;
#[cfg(test)]
mod tests;

pub use controller::{ControllerOptions, NvmeController};
pub use failure::{Failure, Violation};
pub use info::{ControllerInfo, NamespaceInfo};
pub use namespace::NvmeNamespace;
pub use registers::{Function, Registers};
