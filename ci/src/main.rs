//! `cargo ci JOB`; see the library of the same package.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    uaio_ci::main()
}
