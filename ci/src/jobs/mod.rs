//! The jobs, one file each.

pub mod bench;
pub mod check;
pub mod demo;
pub mod fuzz;
pub mod guest;
pub mod preload;
pub mod programs;
pub mod stress;
pub mod test;
pub mod trace;
