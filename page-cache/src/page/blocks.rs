//! The device blocks inside a page, as a set.

/// A set of device blocks inside one page, as a bit mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blocks(pub u8);

impl Blocks {
    /// No block.
    pub const NONE: Self = Self(0);

    /// `count` blocks from `first` on.
    pub const fn range(first: u32, count: u32) -> Self {
        Self((((1u32 << count) - 1) << first) as u8)
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `other` is in this.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This without the other.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The first run of neighbours: `(first, count)`.
    pub const fn first_run(self) -> Option<(u32, u32)> {
        if self.is_empty() {
            return None;
        }
        let first = self.0.trailing_zeros();
        Some((first, (self.0 >> first).trailing_ones()))
    }

    /// From the first to the last, gaps included: `(first, count)`.
    pub const fn span(self) -> Option<(u32, u32)> {
        if self.is_empty() {
            return None;
        }
        let first = self.0.trailing_zeros();
        Some((first, 8 - self.0.leading_zeros() - first))
    }

    /// Each run of neighbours.
    pub fn runs(self) -> impl Iterator<Item = (u32, u32)> {
        let mut rest = self;
        std::iter::from_fn(move || {
            let (first, count) = rest.first_run()?;
            rest = rest.without(Self::range(first, count));
            Some((first, count))
        })
    }
}
