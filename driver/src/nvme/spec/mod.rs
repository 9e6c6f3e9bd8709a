//! Layouts and numbers of the specification: data, no logic.
//!
//! Pinned once for the whole module: NVM Express Base Specification 2.0c ("Base") and NVM Command Set
//! Specification 1.0c ("NVM"). Fields keep the names they have there. Everything is little-endian in
//! memory; the endianness is in the types.

pub mod command;
pub mod event;
pub mod identify;
pub mod register;
pub mod status;

pub use command::{CompletionEntry, DsmRange, Opcode, SubmissionEntry};
pub use identify::{IdentifyController, IdentifyControllerNvm, IdentifyNamespace, LbaFormat};
pub use register::{Aqa, Cap, Cc, Csts};
pub use status::Status;
