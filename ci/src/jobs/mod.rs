//! The jobs, one file each.

pub mod bench;
pub mod check;
pub mod demo;
pub mod guest;
pub mod test;
pub mod trace;
