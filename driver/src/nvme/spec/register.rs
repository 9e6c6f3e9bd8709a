//! Controller properties (registers) of the PCIe transport, Base 2.0c §3.1.3.

use bitfield_struct::bitfield;

/// Controller Capabilities, 64 bits, read-only.
pub const CAP: u32 = 0x00;
/// Version, 32 bits, read-only.
pub const VS: u32 = 0x08;
/// Controller Configuration, 32 bits.
pub const CC: u32 = 0x14;
/// Controller Status, 32 bits, read-only for our purposes.
pub const CSTS: u32 = 0x1c;
/// NVM Subsystem Reset, 32 bits.
pub const NSSR: u32 = 0x20;
/// Admin Queue Attributes, 32 bits.
pub const AQA: u32 = 0x24;
/// Admin Submission Queue Base Address, 64 bits.
pub const ASQ: u32 = 0x28;
/// Admin Completion Queue Base Address, 64 bits.
pub const ACQ: u32 = 0x30;
/// The first doorbell: the admin submission queue's tail.
pub const DOORBELLS: u32 = 0x1000;

/// Controller Capabilities (Base 2.0c §3.1.3.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cap {
    /// Maximum Queue Entries Supported, 0's based.
    pub mqes: u16,
    /// Contiguous Queues Required.
    pub cqr: bool,
    /// Arbitration Mechanism Supported.
    #[bits(2)]
    pub ams: u8,
    #[bits(5)]
    __: u8,
    /// Timeout: the worst time for CSTS.RDY to follow CC.EN, in units of 500 ms.
    pub to: u8,
    /// Doorbell Stride: doorbells are `4 << dstrd` bytes apart.
    #[bits(4)]
    pub dstrd: u8,
    /// NVM Subsystem Reset Supported.
    pub nssrs: bool,
    /// Command Sets Supported: bit 0 the NVM command set, bit 6 one or more I/O command sets, bit 7
    /// none.
    pub css: u8,
    /// Boot Partition Support.
    pub bps: bool,
    /// Controller Power Scope.
    #[bits(2)]
    pub cps: u8,
    /// Memory Page Size Minimum: `4096 << mpsmin` bytes.
    #[bits(4)]
    pub mpsmin: u8,
    /// Memory Page Size Maximum: `4096 << mpsmax` bytes.
    #[bits(4)]
    pub mpsmax: u8,
    /// Persistent Memory Region Supported.
    pub pmrs: bool,
    /// Controller Memory Buffer Supported.
    pub cmbs: bool,
    /// NVM Subsystem Shutdown Supported.
    pub nsss: bool,
    /// Controller Ready Modes Supported.
    #[bits(2)]
    pub crms: u8,
    #[bits(3)]
    __: u8,
}

/// Controller Configuration (Base 2.0c §3.1.3.5).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Cc {
    /// Enable.
    pub en: bool,
    #[bits(3)]
    __: u8,
    /// I/O Command Set Selected: 000b is the NVM command set.
    #[bits(3)]
    pub css: u8,
    /// Memory Page Size: `4096 << mps` bytes.
    #[bits(4)]
    pub mps: u8,
    /// Arbitration Mechanism Selected: 000b is round robin.
    #[bits(3)]
    pub ams: u8,
    /// Shutdown Notification: 01b is a normal shutdown.
    #[bits(2)]
    pub shn: u8,
    /// I/O Submission Queue Entry Size, as a power of two.
    #[bits(4)]
    pub iosqes: u8,
    /// I/O Completion Queue Entry Size, as a power of two.
    #[bits(4)]
    pub iocqes: u8,
    /// Controller Ready Independent of Media Enable.
    pub crime: bool,
    #[bits(7)]
    __: u8,
}

/// CC.SHN: normal shutdown notification.
pub const SHN_NORMAL: u8 = 0b01;

/// Controller Status (Base 2.0c §3.1.3.6).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Csts {
    /// Ready.
    pub rdy: bool,
    /// Controller Fatal Status.
    pub cfs: bool,
    /// Shutdown Status: 00b none, 01b occurring, 10b complete.
    #[bits(2)]
    pub shst: u8,
    /// NVM Subsystem Reset Occurred.
    pub nssro: bool,
    /// Processing Paused.
    pub pp: bool,
    /// Shutdown Type.
    pub st: bool,
    #[bits(25)]
    __: u32,
}

/// CSTS.SHST: shutdown processing complete.
pub const SHST_COMPLETE: u8 = 0b10;

/// Admin Queue Attributes (Base 2.0c §3.1.3.8).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Aqa {
    /// Admin Submission Queue Size, 0's based.
    #[bits(12)]
    pub asqs: u16,
    #[bits(4)]
    __: u8,
    /// Admin Completion Queue Size, 0's based.
    #[bits(12)]
    pub acqs: u16,
    #[bits(4)]
    __: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        assert_eq!(u64::from(Cap::new().with_mqes(0xffff)), 0xffff);
        assert_eq!(u64::from(Cap::new().with_cqr(true)), 1 << 16);
        assert_eq!(u64::from(Cap::new().with_to(0xff)), 0xff << 24);
        assert_eq!(u64::from(Cap::new().with_dstrd(0xf)), 0xf << 32);
        assert_eq!(u64::from(Cap::new().with_css(0xff)), 0xff << 37);
        assert_eq!(u64::from(Cap::new().with_mpsmin(0xf)), 0xf << 48);
        assert_eq!(u64::from(Cap::new().with_mpsmax(0xf)), 0xf << 52);
        assert_eq!(u64::from(Cap::new().with_crms(3)), 3 << 59);
        assert_eq!(u32::from(Cc::new().with_en(true)), 1);
        assert_eq!(u32::from(Cc::new().with_css(7)), 7 << 4);
        assert_eq!(u32::from(Cc::new().with_mps(0xf)), 0xf << 7);
        assert_eq!(u32::from(Cc::new().with_ams(7)), 7 << 11);
        assert_eq!(u32::from(Cc::new().with_shn(3)), 3 << 14);
        assert_eq!(u32::from(Cc::new().with_iosqes(0xf)), 0xf << 16);
        assert_eq!(u32::from(Cc::new().with_iocqes(0xf)), 0xf << 20);
        assert_eq!(u32::from(Csts::new().with_rdy(true)), 1);
        assert_eq!(u32::from(Csts::new().with_cfs(true)), 2);
        assert_eq!(u32::from(Csts::new().with_shst(3)), 3 << 2);
        assert_eq!(u32::from(Aqa::new().with_asqs(0xfff)), 0xfff);
        assert_eq!(u32::from(Aqa::new().with_acqs(0xfff)), 0xfff << 16);
    }
}
