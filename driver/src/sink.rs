//! Completions appended to a vector, with room for them made once.
//!
//! `Vec::push` asks for room each time, and what it is given travels through the stack, because making
//! room may fail. Here room is asked for once a batch; each completion is then written where it stays.
#![expect(unsafe_code, reason = "the length of a vector after writing into its spare room")]

use std::mem::MaybeUninit;

use crate::request::Completion;

/// An append of at most so many completions; they are in the vector once it is dropped.
#[derive(Debug)]
pub(crate) struct Sink<'a> {
    out: &'a mut Vec<Completion>,
    len: usize,
    /// Not above the vector's capacity.
    end: usize,
}

impl<'a> Sink<'a> {
    /// An append of at most `most` to `out`. Allocates when there is not room for so many.
    #[inline]
    pub(crate) fn new(out: &'a mut Vec<Completion>, most: usize) -> Self {
        out.reserve(most);
        let len = out.len();
        Self { out, len, end: len + most }
    }

    /// The place of the next one; `None` when there is no more room.
    #[inline]
    pub(crate) fn place(&mut self) -> Option<Place<'_>> {
        if self.len >= self.end {
            return None;
        }
        // SAFETY: the index is below `end`, which `reserve` made the capacity reach.
        let place = unsafe { self.out.as_mut_ptr().add(self.len) };
        // SAFETY: it is memory for a completion, in the vector that is borrowed.
        let place = unsafe { &mut *place.cast::<MaybeUninit<Completion>>() };
        Some(Place { place, len: &mut self.len })
    }
}

/// The place of one completion: taken first, so that nothing is in between when it is filled.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    place: &'a mut MaybeUninit<Completion>,
    len: &'a mut usize,
}

impl Place<'_> {
    /// Appends `completion`.
    #[inline]
    pub(crate) fn fill(self, completion: Completion) {
        self.place.write(completion);
        *self.len += 1;
    }
}

impl Drop for Sink<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: `len` is at most the capacity, and everything below it was written.
        unsafe { self.out.set_len(self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::SgList;
    use crate::slots::Token;

    fn completion(token: u64) -> Completion {
        Completion { token: Token::from_u64(token), result: Ok(()), data: SgList::empty() }
    }

    #[test]
    fn what_is_pushed_is_behind_what_was_there() {
        let mut out = vec![completion(0)];
        let mut sink = Sink::new(&mut out, 3);
        sink.place().unwrap().fill(completion(1));
        // A place that is not filled is not there.
        assert!(sink.place().is_some());
        sink.place().unwrap().fill(completion(2));
        drop(sink);
        let tokens: Vec<_> = out.iter().map(|done| done.token.to_u64()).collect();
        assert_eq!(tokens, [0, 1, 2]);
    }

    #[test]
    fn it_takes_no_more_than_room_was_made_for() {
        let mut out = Vec::with_capacity(8);
        let mut sink = Sink::new(&mut out, 1);
        sink.place().unwrap().fill(completion(1));
        assert!(sink.place().is_none());
    }
}
