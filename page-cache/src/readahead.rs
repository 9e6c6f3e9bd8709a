//! Readahead: pages are on their way before their reader asks for them.
//!
//! Each [`Handle`] remembers a few **streams**: reads that follow each other, or that lie at one
//! distance from each other, forwards or backwards. From the second read of a sequence, or the fourth
//! at one distance, the pages after it are read in a **window** that doubles each time and is halved
//! when its pages were evicted before they were read. The first page of a window carries a **mark**: the
//! reader who reaches it sets off the next window, so one whole window is always on its way. A mark is
//! no hit for [`Cache::try_read`](crate::Cache::try_read): the operation that follows finds the stream.
//!
//! Random reads fit no stream. What lies between them is read when they come close to each other and the
//! cache has room for it (`around.rs`), and otherwise nothing. An operation looks at its handle once, when
//! it is started: a retry never reads ahead again.
//!
//! **What it may take**: what is read ahead waits for nothing and nobody. It takes frames that are free
//! or can be evicted while more than an eighth of the shard is, and request slots while more than a
//! quarter are free, and otherwise reads ahead less. The commands are the lane's own, not the
//! operation's, which may be finished before they are.
//!
//! # Advice
//!
//! | posix_fadvise(2) | here |
//! |---|---|
//! | `POSIX_FADV_NORMAL`, `SEQUENTIAL`, `RANDOM`, `NOREUSE` | [`Handle::advise`] |
//! | `POSIX_FADV_WILLNEED`, readahead(2) | [`OpKind::Readahead`](crate::OpKind::Readahead) |
//! | `POSIX_FADV_DONTNEED` | [`Cache::drop_clean`](crate::Cache::drop_clean) |

use std::ops::Range;

use uaio_driver::{FRAME_SIZE, IoError, IoResult, SgList, Token};

use crate::around::EXTENT_PAGES;
use crate::buffer::Buffer;
use crate::cache::{Cache, Handle};
use crate::lane::{Core, Io, IoKind, Lane, Piece};
use crate::page::{Notes, Page};
use crate::read::{Read, end_fill};
use crate::retry::Step;
use crate::wait::Wakeup;

const PAGE: u64 = FRAME_SIZE as u64;
/// Streams that one handle remembers: one reader seldom merges more files than this.
const STREAMS: usize = 16;
/// Reads at one distance in a row after the first that make a stride: with two, reads at random would
/// be one now and then.
const STREAK: u32 = 3;
/// How many reads longer a stream is remembered once it is sure of itself.
const CREDIT: u64 = 4096;
/// Ranges with advice of their own that one handle remembers; the oldest goes.
const ADVICES: usize = 16;
/// Reads further apart than this do not make a stride: 16 MiB.
const NEAR: u64 = 16 << 20;
/// The first window of a sequence, in pages: at least 64 KiB, and four times what was read.
const FIRST_PAGES: u64 = 16;
/// The longest window in pages: 16 MiB, what a drive of 3 GB/s sends in five milliseconds. A reader that loses its
/// processor for as long finds the next window there, and a disk that tells of nothing before it has done all that it was
/// asked (a virtio disk's interrupt does so) is waited for seldom: with 4 MiB it stood still for a third
/// of the time. [`Advice::Sequential`] doubles it.
const WINDOW_PAGES: u64 = 4096;
/// Nor is it more than one in so many of the cache's frames.
const WINDOW_PART: u64 = 16;
/// How many pages before it is looked at a page is [fetched](crate::shard::Shard::prefetch): about as long as memory takes.
const SOON: u64 = 3;
/// A longer read has had its neighbours.
const AROUND_BYTES: u64 = 4 * PAGE;
/// The most records of a stride that are asked for ahead.
const RECORDS: u32 = 16;
/// The operation that commands of readahead name: the lane's own, nobody's.
pub(crate) const NOBODY: Token = Token { slot: u32::MAX, generation: 0 };

/// How a handle will read a range; as posix_fadvise(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Advice {
    /// Nothing is known: sequences are looked for.
    #[default]
    Normal,
    /// In order: the first read sets readahead off, and windows are twice as long.
    Sequential,
    /// In no order: nothing is read ahead.
    Random,
    /// Once: pages that were brought in for this handle leave the cache when it has read their last
    /// byte.
    NoReuse,
}

/// What is to be read ahead: `records` of `len` bytes, `distance` bytes from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    offset: u64,
    len: u64,
    distance: i64,
    records: u32,
}

impl Window {
    /// The pages, in order, none past `end`.
    fn pages(self, end: u64) -> impl Iterator<Item = u64> {
        (0..i64::from(self.records))
            .map_while(move |index| {
                self.offset.checked_add_signed(self.distance.checked_mul(index)?)
            })
            .flat_map(move |offset| {
                offset / PAGE..(offset.saturating_add(self.len)).div_ceil(PAGE).min(end)
            })
    }
}

/// Reads that belong together.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// The last read: where it began and ended.
    last: u64,
    end: u64,
    /// From the read before it to the last; 0 while there was only one.
    distance: i64,
    /// How many reads in a row kept to it.
    streak: u32,
    /// Sequences: how many reads went on with it, on a page of their own.
    run: u32,
    /// Sequences: what is asked for ends here. Not past `end`: nothing is.
    ahead_to: u64,
    /// Sequences: where the last window began, and its length in pages.
    mark: u64,
    pages: u64,
    /// Strides: records asked for after the last read, and how many at once.
    asked: u32,
    records: u32,
    /// When it was used last, in reads of the handle.
    used: u64,
}

/// What a read at random is held against, of every stream, so that it looks at four short arrays and at no
/// stream: nearly all reads at random belong to none.
///
/// # Invariants
///
/// Each place says of its stream what [`note`](Keys::note) makes of it.
#[derive(Debug)]
struct Keys {
    /// Where the last read ended; where the next of its stride begins, before it is sure of itself; where
    /// the last read began, of those that may make a stride with another. [`NOWHERE`] if there is none.
    ends: [u64; STREAMS],
    nexts: [u64; STREAMS],
    near: [u64; STREAMS],
    /// When its place is another's: what is least goes first.
    due: [u64; STREAMS],
    /// Those that are sure of themselves, a bit each.
    established: u32,
}

/// No read begins there: an offset fits an `i64`.
const NOWHERE: u64 = u64::MAX;

impl Default for Keys {
    fn default() -> Self {
        Self {
            ends: [NOWHERE; STREAMS],
            nexts: [NOWHERE; STREAMS],
            near: [NOWHERE; STREAMS],
            due: [0; STREAMS],
            established: 0,
        }
    }
}

impl Keys {
    /// Takes down what became of the stream in place `index`.
    fn note(&mut self, index: usize, stream: &Stream) {
        let established = stream.is_established();
        self.ends[index] = stream.end;
        self.nexts[index] = match stream.distance {
            0 => NOWHERE,
            _ if established => NOWHERE,
            distance => stream.last.wrapping_add_signed(distance),
        };
        self.near[index] = if established { NOWHERE } else { stream.last };
        self.due[index] = stream.used + if established { CREDIT } else { 0 };
        self.established = self.established & !(1 << index) | u32::from(established) << index;
    }

    /// The places of those that are sure of themselves, in order.
    fn established(&self) -> impl Iterator<Item = usize> + use<> {
        let mut left = self.established;
        std::iter::from_fn(move || {
            let index = (left != 0).then(|| left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(index)
        })
    }
}

/// The streams of one handle, and what it was advised.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: [Stream; STREAMS],
    keys: Keys,
    clock: u64,
    advices: Vec<(Range<u64>, Advice)>,
    /// The stream whose window is being asked for.
    current: usize,
}

/// Which streams a read may belong to, by their places.
struct Looked {
    /// It goes on with this sequence; then the others are not looked for.
    followed: Option<usize>,
    /// It is one of this stream's strides.
    strided: Option<usize>,
    /// It lies nearest to the last read of this one, and may make a stride with it.
    nearest: Option<usize>,
    /// Its place if it belongs to nothing: of the stream that was used longest ago, where one that is sure
    /// of itself counts as used later than it was. Its reader has hits for as long as a window lasts, and
    /// is not seen meanwhile.
    oldest: usize,
}

/// What a read comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) window: Option<Window>,
    pub(crate) once: bool,
    /// It belongs to no stream.
    at_random: bool,
    /// The first page of an extent that is to be read around it.
    around: Option<u64>,
}

impl Streams {
    fn advise(&mut self, bytes: Range<u64>, advice: Advice) {
        self.advices.retain(|(range, _)| range.start < bytes.start || range.end > bytes.end);
        if self.advices.len() == ADVICES {
            self.advices.remove(0);
        }
        self.advices.push((bytes, advice));
    }

    fn advice(&self, offset: u64) -> Advice {
        let known = self.advices.iter().rev().find(|(range, _)| range.contains(&offset));
        known.map_or(Advice::Normal, |(_, advice)| *advice)
    }

    /// Takes a read in. `is_cached` says whether a byte is, `most` is the longest window in pages.
    pub(crate) fn plan(
        &mut self,
        read: Range<u64>,
        most: u64,
        is_cached: impl FnOnce(u64) -> bool,
    ) -> Plan {
        let advice = self.advice(read.start);
        if advice == Advice::Random {
            return Plan::default();
        }
        let eager = advice == Advice::Sequential;
        let most = if eager { 2 * most } else { most };
        let (window, at_random) = self.follow(read, most, eager, is_cached);
        let once = advice == Advice::NoReuse;
        Plan { window, once, at_random: at_random && !eager && !once, around: None }
    }

    /// What is to be read ahead, and whether the read belongs to no stream.
    fn follow(
        &mut self,
        read: Range<u64>,
        most: u64,
        eager: bool,
        is_cached: impl FnOnce(u64) -> bool,
    ) -> (Option<Window>, bool) {
        self.clock += 1;
        let used = self.clock;
        let looked = self.look(read.start);
        let at_random = looked.followed.is_none() && looked.strided.is_none();
        let window = self.go_on(read, most, (eager, used), looked, is_cached);
        self.keys.note(self.current, &self.streams[self.current]);
        (window, at_random)
    }

    /// Takes a read in that belongs where it was found to; `current` is its stream then.
    fn go_on(
        &mut self,
        read: Range<u64>,
        most: u64,
        (eager, used): (bool, u64),
        Looked { followed, strided, nearest, oldest }: Looked,
        is_cached: impl FnOnce(u64) -> bool,
    ) -> Option<Window> {
        if let Some(index) = followed {
            self.current = index;
            let stream = &mut self.streams[index];
            // Next to the last read it is hardly by chance; next to an older one it may be.
            let sure = eager || stream.run > 0 || stream.used + 1 == used;
            stream.used = used;
            let lost = read.start < stream.ahead_to && !is_cached(read.start);
            return stream.advance_sequence(&read, most, lost, sure);
        }
        let index = match strided {
            Some(index) if self.streams[index].is_established() => index,
            _ => oldest,
        };
        // A read at the distance of two others may begin a sequence of its own all the same: until
        // the stride is sure of itself, what it was seen in stays as it is.
        let known = strided.or(nearest).map(|other| self.streams[other]);
        self.current = index;
        let stream = &mut self.streams[index];
        *stream = match (strided, known) {
            (Some(_), Some(known)) => Stream { used, ..known },
            (None, Some(near)) => {
                let distance = read.start.wrapping_sub(near.last) as i64;
                Stream { used, distance, streak: 1, ..Stream::first(&read) }
            }
            (_, None) => Stream { used, ..Stream::first(&read) },
        };
        match strided.and_then(|_| stream.strides_to(read.start)) {
            Some(strides) => {
                let lost = strides <= stream.asked && !is_cached(read.start);
                stream.advance_stride(&read, strides, most, lost)
            }
            None if eager => {
                stream.run = 1;
                stream.advance_sequence(&read, most, false, true)
            }
            None => None,
        }
    }

    /// Finds the streams that a read may belong to: by their keys, and of those that are sure of
    /// themselves, of which a reader at random has none, by what they are.
    fn look(&self, offset: u64) -> Looked {
        let Keys { ends, nexts, near, due, .. } = &self.keys;
        let first = |one: Option<usize>, other: Option<usize>| one.into_iter().chain(other).min();
        let is_it = |key: &u64| *key == offset;
        let mut looked = Looked { followed: None, strided: None, nearest: None, oldest: 0 };
        let mut sure = self.keys.established();
        let inside = sure.find(|index| self.streams[*index].follows(offset));
        looked.followed = first(ends.iter().position(is_it), inside);
        if looked.followed.is_some() {
            return looked;
        }
        let mut sure = self.keys.established();
        let further = sure.find(|index| self.streams[*index].strides_to(offset).is_some());
        looked.strided = first(nexts.iter().position(is_it), further);
        let (mut oldest, mut nearest) = (u64::MAX, NEAR);
        for index in 0..STREAMS {
            if due[index] < oldest {
                (oldest, looked.oldest) = (due[index], index);
            }
            // One at the same place is as far away as can be.
            let apart = near[index].abs_diff(offset).wrapping_sub(1);
            if apart < nearest {
                (nearest, looked.nearest) = (apart, Some(index));
            }
        }
        looked
    }

    /// Only the first `pages` pages of the window that was planned last could be asked for.
    pub(crate) fn cut(&mut self, window: Window, pages: u64) {
        let stream = &mut self.streams[self.current];
        if window.distance == 0 {
            if stream.mark != window.offset {
                return; // Somebody else's read has taken its place meanwhile.
            }
            stream.ahead_to = window.offset + pages * PAGE;
            stream.pages = pages;
        } else {
            let whole = (pages / window.len.div_ceil(PAGE).max(1)) as u32;
            stream.asked = stream.asked.saturating_sub(window.records.saturating_sub(whole));
            stream.records = whole.max(1);
        }
        self.keys.note(self.current, &self.streams[self.current]);
    }
}

impl Stream {
    fn first(read: &Range<u64>) -> Self {
        Self { last: read.start, end: read.end, ..Self::default() }
    }

    fn is_sequence(&self) -> bool {
        self.ahead_to > 0
    }

    /// Whether enough reads have kept to it.
    fn is_established(&self) -> bool {
        self.is_sequence() || self.streak >= STREAK
    }

    /// Whether a read at `offset` goes on with the sequence.
    fn follows(&self, offset: u64) -> bool {
        // Reads that were hits are not seen, so one inside the window belongs to it, too.
        offset == self.end || (self.is_sequence() && (self.last..=self.ahead_to).contains(&offset))
    }

    /// How many strides it is from the last read.
    fn strides_to(&self, offset: u64) -> Option<u32> {
        let apart = offset.wrapping_sub(self.last) as i64;
        if self.distance == 0 || self.is_sequence() {
            return None;
        }
        if self.asked == 0 {
            // Nearly always, and without a division.
            return (apart == self.distance).then_some(1);
        }
        if apart.checked_rem(self.distance)? != 0 {
            return None;
        }
        let strides = u32::try_from(apart / self.distance).ok()?;
        (1..=self.asked + 1).contains(&strides).then_some(strides)
    }

    fn advance_sequence(
        &mut self,
        read: &Range<u64>,
        most: u64,
        lost: bool,
        sure: bool,
    ) -> Option<Window> {
        // A reader of small pieces is in a sequence when it comes to the next page.
        let next_page = read.end > self.end.next_multiple_of(PAGE);
        self.run += u32::from(next_page);
        self.last = read.start;
        self.end = self.end.max(read.end);
        let goes_on = if self.is_sequence() { self.end > self.mark } else { sure };
        if !goes_on || self.run == 0 {
            return None;
        }
        let read_pages = (read.end - read.start).div_ceil(PAGE);
        let pages = match self.pages {
            0 => (4 * read_pages).max(FIRST_PAGES),
            pages if lost => pages / 2,
            pages => 2 * pages,
        };
        self.pages = pages.clamp(1, most);
        self.mark = self.ahead_to.max(self.end.next_multiple_of(PAGE));
        let len = self.pages * PAGE;
        self.ahead_to = self.mark + len;
        Some(Window { offset: self.mark, len, distance: 0, records: 1 })
    }

    fn advance_stride(
        &mut self,
        read: &Range<u64>,
        strides: u32,
        most: u64,
        lost: bool,
    ) -> Option<Window> {
        let len = read.end - read.start;
        self.last = read.start;
        self.end = read.end;
        self.streak += 1;
        self.asked = self.asked.saturating_sub(strides);
        if self.streak < STREAK || (self.records > 0 && self.asked >= self.records) {
            return None;
        }
        let most = (most / len.div_ceil(PAGE).max(1)).clamp(1, u64::from(RECORDS)) as u32;
        let records = match self.records {
            0 => 2,
            records if lost => records / 2,
            records => 2 * records,
        };
        self.records = records.clamp(1, most);
        let first = self.distance.checked_mul(i64::from(self.asked) + 1)?;
        self.asked += self.records;
        let offset = read.start.checked_add_signed(first)?;
        Some(Window { offset, len, distance: self.distance, records: self.records })
    }
}

impl Handle {
    /// Says how this handle will read the bytes of a range. What was said last of a byte holds; of
    /// the last 16 ranges, that is. Does nothing now and never blocks for longer than it takes to look at them.
    pub fn advise(&self, bytes: Range<u64>, advice: Advice) {
        self.streams.lock().advise(bytes, advice);
    }

    /// What a read of this handle that starts now should read ahead.
    pub(crate) fn plan(&self, cache: &Cache, offset: u64, len: u64) -> Plan {
        // Who finds it taken reads like anybody: it is only advice, and a read never waits for it.
        let Some(mut streams) = self.streams.try_lock() else { return Plan::default() };
        let most = (cache.frames() as u64 / WINDOW_PART).clamp(1, WINDOW_PAGES);
        let mut plan = streams.plan(offset..offset + len, most, |byte| {
            cache.shard(byte / PAGE).find(byte / PAGE).is_some()
        });
        drop(streams);
        if plan.at_random && len <= AROUND_BYTES {
            plan.around = cache.around.note(offset / PAGE).filter(|_| {
                let shard = cache.shard(offset / PAGE);
                // Pages that are read again and again say nothing of those beside them.
                shard.find(offset / PAGE).is_none() && shard.has_room_to_guess()
            });
        }
        plan
    }

    fn cut(&self, window: Window, pages: u64) {
        if let Some(mut streams) = self.streams.try_lock() {
            streams.cut(window, pages);
        }
    }
}

/// How pages are read ahead.
#[derive(Clone, Copy, Debug, Default)]
struct Ahead {
    /// The first that can have it gets the mark.
    mark: bool,
    /// Their reader has no use for them again.
    once: bool,
    /// Nothing is evicted for them.
    guess: bool,
}

impl Core {
    /// Reads ahead what was planned for `handle`, as far as it can be done now.
    pub(crate) fn follow(&mut self, handle: &Handle, plan: Plan) {
        if let Some(first) = plan.around {
            let (offset, len) = (first * PAGE, EXTENT_PAGES * PAGE);
            let window = Window { offset, len, distance: 0, records: 1 };
            if !self.read_ahead(window, Ahead { guess: true, ..Ahead::default() }).1 {
                self.cache.around.again(first);
            }
        }
        let Some(window) = plan.window else { return };
        let (pages, all) =
            self.read_ahead(window, Ahead { mark: true, once: plan.once, guess: false });
        if !all {
            handle.cut(window, pages);
        }
    }

    /// Asks for the absent pages of a window, as far as it can be done now. Says how many pages it went
    /// through, and whether that was all.
    fn read_ahead(&mut self, window: Window, ahead: Ahead) -> (u64, bool) {
        let Ahead { mut mark, once, guess } = ahead;
        let cache = self.cache.clone();
        let spare = self.slots() / 4 + 1;
        let mut run = None;
        let (mut done, mut all) = (0, true);
        for page in window.pages(cache.pages()) {
            let mut shard = cache.shard(page);
            if window.distance == 0 && Cache::lie_together(page, page + SOON) {
                shard.prefetch(page + SOON);
            }
            if let Some(slot) = shard.find(page) {
                if mark && let Some(notes) = shard.notes(slot) {
                    notes.insert(Notes::MARK);
                    mark = false;
                }
                done += 1;
                continue;
            }
            let kind = IoKind::Ahead { marked: mark, once };
            let piece = Piece::new(kind, page, cache.existing(page));
            if cache.barriers.covers(page) || !self.slot_for(run.as_ref(), &piece, spare) {
                all = false;
                break;
            }
            let frame = if guess { shard.take_frame_to_guess() } else { shard.take_spare_frame() };
            let Some(frame) = frame else {
                all = false;
                break;
            };
            shard.stats.readahead += 1;
            let slot = shard.add(page, &frame);
            let begin = |page: Page| match page.begin_read() {
                Ok(reading) => (reading, ()),
                Err((page, _)) => panic!("readahead begins on {page:?}"),
            };
            let ((), released) = shard.transition(slot, &mut self.wakes, begin);
            debug_assert_eq!(released.room, 0, "a read frees no room");
            drop(shard);
            if self.gather(NOBODY, &mut run, piece, frame) > 0 {
                // The device is to work while the rest of the window is gathered.
                self.commit_if_much();
            }
            mark = false;
            done += 1;
        }
        self.send(NOBODY, &mut run);
        (done, all)
    }

    /// A command of readahead has ended. When it failed, whoever wants the pages asks for them.
    pub(crate) fn settle_ahead(&mut self, io: &Io, result: IoResult, data: SgList) {
        let IoKind::Ahead { marked, once } = io.kind else {
            unreachable!("{:?} is not readahead's", io.kind)
        };
        let mut frames = data.frames;
        let mut notes = Notes::AHEAD;
        if once {
            notes.insert(Notes::ONCE);
        }
        for (index, (page, frame)) in self.pages_of(io, &mut frames).enumerate() {
            let blocks = self.blocks_of(io, page);
            let mut notes = notes;
            if marked && index == 0 {
                notes.insert(Notes::MARK);
            }
            _ = end_fill(self, page, blocks, frame, result.is_ok(), false, notes);
        }
        self.recycle(frames);
    }
}

/// A readahead that somebody waits for; see [`OpKind::Readahead`](crate::OpKind::Readahead).
#[derive(Debug)]
pub(crate) struct Readahead {
    next: u64,
    end: u64,
    piece: Option<Read>,
}

impl Readahead {
    /// What is asked for while a piece is waited for, in pieces: a device has several commands to do.
    const PIECES_AHEAD: u64 = 3;

    pub(crate) fn new(cache: &Cache, offset: u64, len: u64) -> Self {
        let most = cache.frames() as u64 / 2 * PAGE;
        Self { next: offset, end: offset + len.min(most), piece: None }
    }

    /// Asks for nothing more, and ends with this error when what it has asked for has come.
    pub(crate) fn stop(&mut self, error: IoError) {
        self.next = self.end;
        if let Some(piece) = &mut self.piece {
            piece.stop(error);
        }
    }

    pub(crate) fn step(&mut self, me: Token, core: &mut Core, wakeup: Wakeup) -> Step<IoResult> {
        let step = match &mut self.piece {
            Some(piece) => piece.step(me, core, wakeup),
            None => Step::Done(Ok(())),
        };
        self.go_on(me, core, step)
    }

    pub(crate) fn settle(
        &mut self,
        me: Token,
        core: &mut Core,
        io: Io,
        result: IoResult,
        data: SgList,
    ) -> Step<IoResult> {
        let Some(piece) = &mut self.piece else { panic!("a command ended that was not sent") };
        let step = piece.settle(me, core, io, result, data);
        self.go_on(me, core, step)
    }

    fn go_on(&mut self, me: Token, core: &mut Core, step: Step<IoResult>) -> Step<IoResult> {
        let mut step = step;
        while step == Step::Done(Ok(())) && self.next < self.end {
            let offset = self.next;
            let len = (self.end - offset).min(Lane::LEN_MAX - offset % PAGE);
            self.next += len;
            let cache = core.cache.clone();
            let piece = Read::new(&cache, offset, len as usize, Buffer::None, false).ahead();
            step = self.piece.insert(piece).step(me, core, Wakeup::Retry);
            if step == Step::Waiting {
                let len = (self.end - self.next).min(Self::PIECES_AHEAD * Lane::LEN_MAX);
                let window = Window { offset: self.next, len, distance: 0, records: 1 };
                if len > 0 {
                    core.read_ahead(window, Ahead::default());
                }
            }
        }
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What [`Streams::look`] finds, from the streams themselves.
    fn look_at_all(streams: &Streams, offset: u64) -> Looked {
        let mut looked = Looked { followed: None, strided: None, nearest: None, oldest: 0 };
        let (mut oldest, mut nearest) = (u64::MAX, NEAR + 1);
        for (index, stream) in streams.streams.iter().enumerate() {
            let is_established = stream.is_established();
            let used = stream.used + if is_established { CREDIT } else { 0 };
            if used < oldest {
                (oldest, looked.oldest) = (used, index);
            }
            if stream.used == 0 {
                continue;
            }
            if stream.follows(offset) && looked.followed.is_none() {
                looked.followed = Some(index);
            }
            if stream.strides_to(offset).is_some() && looked.strided.is_none() {
                looked.strided = Some(index);
            }
            let apart = stream.last.abs_diff(offset);
            if !is_established && apart > 0 && apart < nearest {
                (nearest, looked.nearest) = (apart, Some(index));
            }
        }
        looked
    }

    /// Readers in order, backwards, at strides and at random on one handle, in every mix.
    #[test]
    fn the_keys_say_of_each_read_what_its_streams_say() {
        for seed in 0..40 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut streams = Streams::default();
            let mut readers: Vec<(u64, i64)> = (0..random.usize(1..20))
                .map(|_| {
                    let step = random.choice([0i64, 4096, 4096, 512, 20480, -4096, 65536]).unwrap();
                    (random.u64(0..1 << 20) * 4096, step)
                })
                .collect();
            for read in 0..5000 {
                let reader = random.usize(0..readers.len());
                let (place, step) = &mut readers[reader];
                if *step == 0 || random.u8(..) == 0 {
                    let bits = random.u32(12..32);
                    *place = random.u64(0..1 << bits) * 512;
                }
                let offset = *place;
                *place = place.checked_add_signed(*step).unwrap_or(0);
                let len = step.unsigned_abs().clamp(512, 8192);
                let (found, wanted) = (streams.look(offset), look_at_all(&streams, offset));
                let what = format!("seed {seed}, read {read} at {offset}");
                assert_eq!(found.followed, wanted.followed, "{what}");
                if found.followed.is_none() {
                    let found = (found.strided, found.nearest, found.oldest);
                    let wanted = (wanted.strided, wanted.nearest, wanted.oldest);
                    assert_eq!(found, wanted, "{what}");
                }
                let plan = streams.plan(offset..offset + len, 1024, |_| random.bool());
                if let Some(window) = plan.window
                    && random.u8(..) < 32
                {
                    streams.cut(window, random.u64(0..=window.len / PAGE));
                }
            }
        }
    }
}
