//! The jobs, one file each.

pub mod guest;
pub mod test;
