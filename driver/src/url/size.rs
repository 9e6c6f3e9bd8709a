//! Sizes as people write them: `512`, `4K`, `1G`. All units are binary.

use std::fmt;
use std::str::FromStr;

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// In MiB, for a table.
    pub fn mib(self) -> String {
        let tenths = (u128::from(self.0) * 10).div_ceil(1 << 20);
        if tenths.is_multiple_of(10) {
            format!("{}", tenths / 10)
        } else {
            format!("{}.{}", tenths / 10, tenths % 10)
        }
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not a size: write 512, 4K, 1M, 1G or 1T (binary units)");
        let last = text.chars().last().ok_or_else(wrong)?;
        let unit = UNITS.iter().find(|(letter, _)| last.eq_ignore_ascii_case(letter));
        let digits = unit.map_or(text, |_| &text[..text.len() - 1]);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let shift = unit.map_or(0, |&(_, shift)| shift);
        digits
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(1 << shift))
            // A file offset is signed (off_t), so a device cannot be larger than that.
            .filter(|&bytes| i64::try_from(bytes).is_ok())
            .map(ByteSize)
            .ok_or_else(|| format!("`{text}` is larger than any device can be"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, shift) in UNITS {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{letter}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_binary_and_go_both_ways() {
        for (text, bytes) in [
            ("512", 512),
            ("4K", 4096),
            ("1M", 1 << 20),
            ("3G", 3 << 30),
            ("2T", 2 << 40),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)));
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
        assert_eq!("4k".parse(), Ok(ByteSize(4096)));
        assert_eq!("1024".parse::<ByteSize>().map(|size| size.to_string()), Ok("1K".into()));
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in ["", "G", "1.5G", "-1", "+1", "1GB", "0x10", "1 G", "١", "1é"] {
            let error = text.parse::<ByteSize>().expect_err(text);
            assert!(error.contains("is not a size"), "{text}: {error}");
        }
        for text in ["9223372036854775808", "8388608T", "99999999999999999999", "16777216T"] {
            let error = text.parse::<ByteSize>().expect_err(text);
            assert!(error.contains("larger than any device"), "{text}: {error}");
        }
    }

    #[test]
    fn mebibytes_round_up_so_that_something_is_never_shown_as_nothing() {
        assert_eq!(ByteSize(1).mib(), "0.1");
        assert_eq!(ByteSize(0).mib(), "0");
        assert_eq!(ByteSize(256 << 20).mib(), "256");
        assert_eq!(ByteSize((3 << 20) / 2).mib(), "1.5");
    }
}
