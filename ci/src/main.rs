//! The jobs of `cargo ci`.

fn main() {}
