//! Layouts and numbers of the specification: data, no logic.
//!
//! Pinned once for the whole module: NVM Express Base Specification 2.0c ("Base"), NVM Command Set
//! Specification 1.0c ("NVM") and Zoned Namespace Command Set Specification 1.1b ("ZNS"). Fields keep
//! the names they have there. Everything is little-endian in memory; the endianness is in the types,
//! and for what is copied out and decoded in [`layout`].

pub mod command;
pub mod event;
pub mod feature;
pub mod identify;
pub mod layout;
pub mod log;
pub mod register;
pub mod status;
mod status_name;

pub use command::{CompletionEntry, DsmRange, Opcode, SubmissionEntry};
pub use identify::{IdentifyController, IdentifyControllerNvm, IdentifyNamespace, LbaFormat};
pub use register::{Aqa, Cap, Cc, Csts};
pub use status::Status;
