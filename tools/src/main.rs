//! Administers uaio.

fn main() {}
