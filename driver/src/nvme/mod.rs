//! NVMe: the protocol, from registers to queue pairs. No `unsafe` here.
#![forbid(unsafe_code)]
