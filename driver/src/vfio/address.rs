//! The address of a PCI function.

use std::fmt;
use std::str::FromStr;

use crate::error::DeviceError;

/// Domain, bus, device and function, such as `0000:00:04.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    /// Domain (segment).
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device, below 32.
    pub device: u8,
    /// Function, below 8.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl FromStr for PciAddress {
    type Err = DeviceError;

    /// From `0000:00:04.0`, or `00:04.0` in domain 0, in hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, DeviceError> {
        parse(text).ok_or_else(|| {
            DeviceError::Invalid(format!(
                "{text:?} is not a PCI address; write it like 0000:00:04.0"
            ))
        })
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
    let address = PciAddress {
        domain: hex(domain, 8)?,
        bus: u8::try_from(hex(bus, 2)?).ok()?,
        device: u8::try_from(hex(device, 2)?).ok()?,
        function: u8::try_from(hex(function, 1)?).ok()?,
    };
    (address.device < 32 && address.function < 8).then_some(address)
}

fn hex(text: &str, digits_max: usize) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !digits || text.is_empty() || text.len() > digits_max {
        return None;
    }
    u32::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_with_and_without_its_domain() {
        let address = PciAddress { domain: 0, bus: 0, device: 4, function: 0 };
        assert_eq!("0000:00:04.0".parse::<PciAddress>().unwrap(), address);
        assert_eq!("00:04.0".parse::<PciAddress>().unwrap(), address);
        assert_eq!(address.to_string(), "0000:00:04.0");
        let far = "10000:e1:1f.7".parse::<PciAddress>().unwrap();
        assert_eq!(far.to_string(), "10000:e1:1f.7");
    }

    #[test]
    fn anything_else_is_refused() {
        let bad = [
            "",
            "nvme0",
            "0000:00:04",
            "00:20.0",
            "00:04.8",
            "000:00:00:04.0",
            "0000:100:04.0",
            "0000:00:+4.0",
            "0000:00:04.00",
            "../../etc:00:00.0",
            "0000:00: 4.0",
            ":00:04.0",
        ];
        for text in bad {
            let error = text.parse::<PciAddress>().unwrap_err().to_string();
            assert!(error.contains("is not a PCI address"), "{text}: {error}");
        }
    }
}
