//! Guest scenarios: one script each, in the shape of blktests.

/// The helpers every scenario has.
pub const COMMON: &str = include_str!("../scenarios/common.sh");
