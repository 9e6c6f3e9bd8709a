//! How a data structure of the specification is declared once and gets its decoder and its encoder.
//!
//! `layout!` takes each field with the offset that the specification's figure gives it. That fields
//! do not overlap and end inside of the structure is checked when this compiles; that the offsets are
//! the specification's is tested against tables of their own. What a device leaves in a structure is
//! data: no value of it fails to decode.

use std::fmt;
use std::ops::{Deref, DerefMut};

use serde::{Serialize, Serializer};

/// A data structure of a fixed size, little-endian, as it lies in a transfer.
pub trait Layout: Sized {
    /// Its size in bytes.
    const SIZE: usize;

    /// Its fields: name, offset and size in bytes, in order.
    const FIELDS: &'static [(&'static str, usize, usize)];

    /// Reads it out of the first [`SIZE`](Layout::SIZE) bytes.
    ///
    /// # Panics
    ///
    /// When there are fewer.
    fn decode(bytes: &[u8]) -> Self;

    /// Writes it into the first [`SIZE`](Layout::SIZE) bytes; what is reserved becomes zero.
    ///
    /// # Panics
    ///
    /// When there are fewer.
    fn encode_into(&self, bytes: &mut [u8]);

    /// The structure in bytes.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; Self::SIZE];
        self.encode_into(&mut bytes);
        bytes
    }
}

/// What a field can be.
pub trait Field: Sized {
    /// Its size in bytes.
    const SIZE: usize;
    /// Reads it out of as many bytes.
    fn get(bytes: &[u8]) -> Self;
    /// Writes it into as many bytes.
    fn put(&self, bytes: &mut [u8]);
}

macro_rules! integer_fields {
    ($($type:ty)*) => {$(
        impl Field for $type {
            const SIZE: usize = size_of::<$type>();
            fn get(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<$type>()];
                own.copy_from_slice(bytes);
                Self::from_le_bytes(own)
            }
            fn put(&self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

integer_fields!(u8 u16 u32 u64 u128);

/// Several fields of a kind, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array<T, const N: usize>(pub [T; N]);

impl<T: Field, const N: usize> Field for Array<T, N> {
    const SIZE: usize = T::SIZE * N;
    fn get(bytes: &[u8]) -> Self {
        Self(std::array::from_fn(|index| T::get(&bytes[index * T::SIZE..][..T::SIZE])))
    }
    fn put(&self, bytes: &mut [u8]) {
        for (item, bytes) in self.0.iter().zip(bytes.chunks_exact_mut(T::SIZE)) {
            item.put(bytes);
        }
    }
}

impl<T, const N: usize> Deref for Array<T, N> {
    type Target = [T; N];
    fn deref(&self) -> &[T; N] {
        &self.0
    }
}

impl<T, const N: usize> DerefMut for Array<T, N> {
    fn deref_mut(&mut self) -> &mut [T; N] {
        &mut self.0
    }
}

impl<T: Serialize, const N: usize> Serialize for Array<T, N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

/// ASCII padded with spaces or zeroes. Shown with what is not printable left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<const N: usize>(pub [u8; N]);

impl<const N: usize> Text<N> {
    /// `text`, cut or padded with spaces.
    pub fn new(text: &str) -> Self {
        let mut field = [b' '; N];
        for (place, byte) in field.iter_mut().zip(text.bytes()) {
            *place = byte;
        }
        Self(field)
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let printable = self.0.iter().filter(|byte| (0x20..0x7f).contains(*byte));
        let text: String = printable.map(|&byte| char::from(byte)).collect();
        f.write_str(text.trim())
    }
}

/// An identifier, shown in hexadecimal digits in the order of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hex<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

macro_rules! byte_fields {
    ($($type:ident)*) => {$(
        impl<const N: usize> Field for $type<N> {
            const SIZE: usize = N;
            fn get(bytes: &[u8]) -> Self {
                let mut own = [0; N];
                own.copy_from_slice(bytes);
                Self(own)
            }
            fn put(&self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.0);
            }
        }

        impl<const N: usize> Serialize for $type<N> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

byte_fields!(Text Hex);

/// Declares data structures: `offset name: type` for each field, in the order of the figure.
macro_rules! layout {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident: $size:literal {
            $($(#[$field_meta:meta])* $offset:literal $field:ident: $type:ty,)*
        }
    )*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        impl $crate::nvme::spec::layout::Layout for $name {
            const SIZE: usize = $size;
            const FIELDS: &'static [(&'static str, usize, usize)] = &[
                $((stringify!($field), $offset, <$type as $crate::nvme::spec::layout::Field>::SIZE),)*
            ];

            fn decode(bytes: &[u8]) -> Self {
                use $crate::nvme::spec::layout::Field;
                Self { $($field: Field::get(&bytes[$offset..$offset + <$type as Field>::SIZE]),)* }
            }

            fn encode_into(&self, bytes: &mut [u8]) {
                use $crate::nvme::spec::layout::Field;
                bytes[..$size].fill(0);
                $(self.$field.put(&mut bytes[$offset..$offset + <$type as Field>::SIZE]);)*
            }
        }

        impl $crate::nvme::spec::layout::Field for $name {
            const SIZE: usize = $size;
            fn get(bytes: &[u8]) -> Self {
                $crate::nvme::spec::layout::Layout::decode(bytes)
            }
            fn put(&self, bytes: &mut [u8]) {
                $crate::nvme::spec::layout::Layout::encode_into(self, bytes);
            }
        }

        impl Default for $name {
            /// All bytes zero.
            fn default() -> Self {
                $crate::nvme::spec::layout::Layout::decode(&[0; $size])
            }
        }

        const _: () = {
            let mut end = 0;
            $(
                assert!($offset >= end, "fields overlap or are out of order");
                end = $offset + <$type as $crate::nvme::spec::layout::Field>::SIZE;
            )*
            assert!(end <= $size, "a field is outside of the structure");
        };
    )*};
}

pub(crate) use layout;

/// Compares a layout with the places that the specification's figure gives, for tests.
#[cfg(test)]
#[track_caller]
pub(crate) fn assert_places<T: Layout>(size: usize, figure: &str) {
    assert_eq!(T::SIZE, size);
    let mut wanted = 0;
    for place in figure.split_whitespace() {
        let (name, place) = place.split_once('@').expect("name@offset+size");
        let (offset, len) = place.split_once('+').expect("name@offset+size");
        let want = (name, offset.parse().expect("a number"), len.parse().expect("a number"));
        let is = T::FIELDS.iter().find(|field| field.0 == name);
        assert_eq!(is, Some(&want), "{name}");
        wanted += 1;
    }
    assert_eq!(wanted, T::FIELDS.len(), "fields that the figure does not have");
    // Each byte of each field is at its place, in both directions.
    let bytes: Vec<u8> = (0..size).map(|at| (at * 7 + at / 256) as u8).collect();
    let encoded = T::decode(&bytes).encode();
    for at in 0..size {
        let covered =
            T::FIELDS.iter().any(|&(_, offset, len)| (offset..offset + len).contains(&at));
        // A layout inside of this one has reserved bytes of its own, which come back as zero.
        assert!(encoded[at] == bytes[at] || encoded[at] == 0, "byte {at}");
        assert!(covered || encoded[at] == 0, "byte {at} is reserved");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    layout! {
        #[expect(unreachable_pub, reason = "the macro is for public structures")]
        /// For the test.
        pub struct Sample: 16 {
            /// One.
            1 one: u8,
            /// Two.
            4 two: u16,
            /// Text.
            6 text: Text<4>,
            /// Three.
            10 three: Array<u16, 3>,
        }
    }

    #[test]
    fn a_structure_is_read_and_written_at_its_offsets() {
        let bytes = *b"\x09\x01\x09\x09\x34\x12a\x1bb \x01\x00\x02\x00\x03\x00";
        let sample = Sample::decode(&bytes);
        assert_eq!((sample.one, sample.two, &*sample.three), (1, 0x1234, &[1, 2, 3]));
        assert_eq!(sample.text.to_string(), "ab", "what is not printable is left out");
        let back = sample.encode();
        assert_eq!(back, *b"\x00\x01\x00\x00\x34\x12a\x1bb \x01\x00\x02\x00\x03\x00");
        assert_places::<Sample>(16, "one@1+1 two@4+2 text@6+4 three@10+6");
    }

    #[test]
    #[should_panic(expected = "two")]
    fn a_wrong_place_is_found() {
        assert_places::<Sample>(16, "one@1+1 two@5+2 text@6+4 three@10+6");
    }
}
