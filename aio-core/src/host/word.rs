//! What an entry of the ring carries: whose it is, and what it is about.

use uaio_driver::Token;

/// What an entry of the ring is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Step = 0,
    Timer = 1,
    CancelStep = 2,
    CancelTimer = 3,
}

const KIND_SHIFT: u32 = 30;

/// The word of the wait for the workers' bell; no token is so large.
pub(super) const BELL: u64 = u64::MAX;

pub(super) fn word(token: Token, kind: Kind) -> u64 {
    Token { slot: token.slot | (kind as u32) << KIND_SHIFT, ..token }.to_u64()
}

pub(super) fn from_word(word: u64) -> (Token, Kind) {
    let Token { slot, generation } = Token::from_u64(word);
    let kind = match slot >> KIND_SHIFT {
        0 => Kind::Step,
        1 => Kind::Timer,
        2 => Kind::CancelStep,
        _ => Kind::CancelTimer,
    };
    (Token { slot: slot & ((1 << KIND_SHIFT) - 1), generation }, kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::DEPTH_MAX;

    #[test]
    fn a_word_says_whose_it_is_and_what_it_is_about() {
        for slot in [0, 1, DEPTH_MAX as u32 - 1] {
            for kind in [Kind::Step, Kind::Timer, Kind::CancelStep, Kind::CancelTimer] {
                let token = Token { slot, generation: u32::MAX };
                assert_eq!(from_word(word(token, kind)), (token, kind));
                assert_ne!(word(token, kind), BELL);
            }
        }
    }
}
