//! The page machine: every state against every event, and what the rounds promise.

use uaio_driver::{DmaPool, FRAME_SIZE, PoolOptions};

use super::*;

const BLOCK: usize = 512;
const ALL: Blocks = Blocks(0xff);
const SOME: Blocks = Blocks(0b0000_1111);

fn pool() -> DmaPool {
    DmaPool::new(PoolOptions::frames(16)).unwrap()
}

fn content(pool: &DmaPool, valid: Blocks, dirty: Blocks) -> Content {
    Content { valid, dirty, seq: Seq::new(7), ..Content::empty(pool.take().unwrap()) }
}

const STATES: [&str; 7] =
    ["absent", "reading", "reading-held", "clean", "writing", "dirty", "writeback"];

fn page(state: &str, pool: &DmaPool) -> Page {
    match state {
        "absent" => Page::Absent,
        "reading" => Page::Reading { held: None },
        "reading-held" => Page::Reading { held: Some(content(pool, SOME, SOME)) },
        "clean" => Page::Clean(content(pool, ALL, Blocks::NONE)),
        "writing" => Page::Writing(content(pool, ALL, SOME)),
        "dirty" => Page::Dirty(content(pool, ALL, SOME)),
        "writeback" => Page::Writeback {
            content: Content { seq: Seq::new(3), done: SOME, ..content(pool, ALL, Blocks::NONE) },
            writing: SOME,
            moved: false,
        },
        other => panic!("no state {other}"),
    }
}

fn name(page: &Page) -> &'static str {
    match page {
        Page::Absent => "absent",
        Page::Reading { held: None } => "reading",
        Page::Reading { held: Some(_) } => "reading-held",
        Page::Clean(_) => "clean",
        Page::Writing(_) => "writing",
        Page::Dirty(_) => "dirty",
        Page::Writeback { .. } => "writeback",
    }
}

/// What an event does to each of [`STATES`], in that order: the next state, `busy` when the
/// caller has to queue, `panic` when the event cannot happen there.
fn table(event: &str) -> [&'static str; 7] {
    const P: &str = "panic";
    const B: &str = "busy";
    match event {
        "read miss" => ["reading", B, B, "reading-held", B, "reading-held", B],
        "read ok" => [P, "clean", "dirty", P, P, P, P],
        "read error" => [P, "absent", "dirty", P, P, P, P],
        "write begins" => ["writing", B, B, "writing", B, "writing", B],
        "write ends" => [P, P, P, P, "dirty", P, P],
        "writeback starts" => [B, B, B, B, B, "writeback", B],
        "rewrite" => [P, P, P, P, P, P, "writeback"],
        "writeback ok" => [P, P, P, P, P, P, "clean"],
        "a flush failed" => {
            ["absent", "reading", "reading-held", "dirty", "writing", "dirty", "writeback"]
        }
        "writeback error" => [P, P, P, P, P, P, "dirty"],
        "forget all" => ["absent", B, B, "absent", B, "absent", B],
        "forget dirty blocks" => ["absent", B, B, "clean", B, "clean", B],
        "forget all but dirty" => ["absent", B, B, "absent", B, "dirty", B],
        other => panic!("no event {other}"),
    }
}

fn apply(event: &str, page: Page, pool: &DmaPool) -> &'static str {
    let frame = || pool.take().unwrap();
    let result = match event {
        "read miss" => page.begin_read(),
        "read ok" => Ok(page.end_read(Some(frame()), ALL, true, BLOCK).0),
        "read error" => Ok(page.end_read(Some(frame()), ALL, false, BLOCK).0),
        "write begins" => {
            let fresh = page.needs_fresh_frame().then(frame);
            page.begin_write(fresh).map(|(page, _)| page)
        }
        "write ends" => Ok(page.end_write(SOME, 9)),
        "writeback starts" => page.begin_writeback(SOME).map(|(page, _)| page),
        "rewrite" => Ok(page.rewrite(Some(frame()), SOME, 9).0),
        "writeback ok" => Ok(page.end_writeback(Written::Volatile(1))),
        "writeback error" => Ok(page.end_writeback(Written::No)),
        "a flush failed" => {
            let unstable = |content: Content| Content { unstable: ALL, ..content };
            let page = match page {
                Page::Clean(content) => Page::Clean(unstable(content)),
                other => other,
            };
            Ok(page.take_back(|_| false))
        }
        "forget all" => page.forget(ALL, false).map(|(page, _)| page),
        "forget dirty blocks" => page.forget(SOME, false).map(|(page, _)| page),
        "forget all but dirty" => page.forget(ALL, true).map(|(page, _)| page),
        other => panic!("no event {other}"),
    };
    result.map_or("busy", |page| name(&page))
}

#[test]
fn every_state_meets_every_event_as_the_table_says() {
    let events = [
        "read miss",
        "read ok",
        "read error",
        "write begins",
        "write ends",
        "writeback starts",
        "rewrite",
        "writeback ok",
        "writeback error",
        "a flush failed",
        "forget all",
        "forget dirty blocks",
        "forget all but dirty",
    ];
    // Panics are part of the table; their messages are not part of the output.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut wrong = Vec::new();
    for event in events {
        for (state, want) in STATES.iter().zip(table(event)) {
            let got = std::panic::catch_unwind(|| {
                let pool = pool();
                apply(event, page(state, &pool), &pool)
            });
            let got = got.unwrap_or("panic");
            if got != want {
                wrong.push(format!("{event} on {state}: {got} instead of {want}"));
            }
        }
    }
    std::panic::set_hook(hook);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn fill(frame: &DmaBuf, byte: u8) {
    frame.write(0, &[byte; FRAME_SIZE]);
}

fn block(page: &Page, index: usize) -> u8 {
    let mut byte = [0];
    page.content().unwrap().frame.read(index * BLOCK, &mut byte);
    byte[0]
}

#[test]
fn a_fill_takes_only_the_missing_blocks() {
    let pool = pool();
    let held = content(&pool, SOME, SOME);
    fill(&held.frame, 1);
    let from_device = pool.take().unwrap();
    fill(&from_device, 2);
    let page = Page::Reading { held: Some(held) };
    let (page, left) = page.end_read(Some(from_device), ALL, true, BLOCK);
    assert!(left.is_some(), "the frame of the request was kept");
    assert_eq!((block(&page, 0), block(&page, 3), block(&page, 4), block(&page, 7)), (1, 1, 2, 2));
    let content = page.content().unwrap();
    assert_eq!((content.valid, content.dirty), (ALL, SOME));
}

#[test]
fn a_read_whose_frame_the_device_keeps_leaves_the_page_as_it_was() {
    let pool = pool();
    let (page, left) = Page::Reading { held: None }.end_read(None, ALL, false, BLOCK);
    assert_eq!((name(&page), left.is_some()), ("absent", false));
    let held = Page::Reading { held: Some(content(&pool, SOME, SOME)) };
    let (page, left) = held.end_read(None, ALL, false, BLOCK);
    assert_eq!((name(&page), left.is_some()), ("dirty", false));
    assert_eq!(page.content().unwrap().valid, SOME);
}

#[test]
fn a_page_dirtied_under_writeback_keeps_what_the_device_may_lose() {
    let pool = pool();
    let dirty = content(&pool, ALL, Blocks(0b11));
    fill(&dirty.frame, 1);
    let (page, request) = Page::Dirty(dirty).begin_writeback(Blocks(0b11)).unwrap();
    assert!(page.needs_fresh_frame(), "the device is reading the frame");
    let (page, old) = page.rewrite(pool.take(), Blocks(0b10), 9);
    assert!(old.unwrap().release().is_none(), "the request has a handle");
    page.content().unwrap().frame.write(BLOCK, &[2; BLOCK]);
    assert_eq!(page.written_since(), Some(7));
    assert_eq!(page.dirty_since(), Some(9));
    // The device still reads what was there.
    let mut seen = [0];
    request.read(BLOCK, &mut seen);
    assert_eq!(seen, [1]);
    let page = page.end_writeback(Written::No);
    // Block 0 failed, block 1 was dirtied again: both are dirty, since the older write.
    assert_eq!(page.content().unwrap().dirty, Blocks(0b11));
    assert_eq!(page.dirty_since(), Some(7));
    assert_eq!((block(&page, 0), block(&page, 1)), (1, 2));
}

#[test]
fn a_write_to_a_pinned_page_leaves_the_pin_a_snapshot() {
    let pool = pool();
    let clean = content(&pool, ALL, Blocks::NONE);
    fill(&clean.frame, 1);
    let pin = clean.frame.share();
    let page = Page::Clean(clean);
    assert!(page.needs_fresh_frame());
    let (page, old) = page.begin_write(pool.take()).unwrap();
    assert!(old.unwrap().release().is_none());
    page.content().unwrap().frame.write(0, &[2]);
    let mut seen = [0];
    pin.read(0, &mut seen);
    assert_eq!(seen, [1]);
    assert_eq!((block(&page, 0), block(&page, 7)), (2, 1));
}

#[test]
fn what_is_left_of_a_page_with_gaps_stays_dirty_since_the_oldest_write() {
    let pool = pool();
    let dirty = content(&pool, ALL, Blocks(0b1001));
    let (page, _request) = Page::Dirty(dirty).begin_writeback(Blocks(0b0001)).unwrap();
    let page = page.end_writeback(Written::Stable(1));
    assert_eq!(page.content().unwrap().dirty, Blocks(0b1000));
    assert_eq!(page.dirty_since(), Some(7));
}

#[test]
fn a_round_writes_each_block_once_however_often_others_are_written_meanwhile() {
    let pool = pool();
    let mut page = Page::Dirty(content(&pool, ALL, Blocks(0b101_0101)));
    let mut turns = Vec::new();
    for seq in 100.. {
        let content = page.content().unwrap();
        if page.dirty_since() != Some(7) {
            break;
        }
        let (first, count) = content.round().first_run().unwrap();
        turns.push(first);
        let (writeback, request) = page.begin_writeback(Blocks::range(first, count)).unwrap();
        // The first, and one in a gap, over and over.
        let (writeback, old) = writeback.rewrite(pool.take(), Blocks(0b11), seq);
        drop((request, old));
        page = writeback.end_writeback(Written::Volatile(1));
    }
    assert_eq!(turns, [0, 2, 4, 6]);
    assert_eq!(page.content().unwrap().round(), Blocks(0b11), "the next round is of these");
    assert_eq!(page.dirty_since(), Some(100), "and as old as the first write for it");
}

#[test]
fn a_block_that_cannot_be_written_has_one_turn_a_round_and_keeps_its_number() {
    let pool = pool();
    let mut page = Page::Dirty(content(&pool, ALL, Blocks(0b111)));
    let mut turns = Vec::new();
    for _ in 0..6 {
        let round = page.content().unwrap().round();
        let first = round.first_run().unwrap().0;
        turns.push(first);
        let (writeback, request) = page.begin_writeback(Blocks::range(first, 1)).unwrap();
        drop(request);
        let written = if first == 0 { Written::No } else { Written::Volatile(1) };
        page = writeback.end_writeback(written);
        assert_eq!(page.dirty_since(), Some(7));
    }
    assert_eq!(turns, [0, 1, 2, 0, 0, 0]);
}

#[test]
fn what_the_device_has_taken_is_dirty_again_when_a_flush_fails_unless_it_is_stable() {
    let pool = pool();
    let dirty = || Page::Dirty(content(&pool, ALL, Blocks(0b11)));
    let write = |page: Page, blocks, written| {
        let (page, request) = page.begin_writeback(blocks).unwrap();
        drop(request);
        page.end_writeback(written)
    };
    let clean = |written| write(dirty(), Blocks(0b11), written);
    let taken_back = |page: Page| {
        let page = page.take_back(|epoch| epoch < 5);
        (page.content().unwrap().dirty, page.dirty_since())
    };
    assert_eq!(taken_back(clean(Written::Volatile(5))), (Blocks(0b11), Some(0)));
    assert_eq!(taken_back(clean(Written::Volatile(4))), (Blocks::NONE, None));
    assert_eq!(taken_back(clean(Written::Stable(5))), (Blocks::NONE, None));
    // Written again by a command that is FUA, or only partly.
    let again = |blocks| {
        let (page, _) = clean(Written::Volatile(5)).begin_write(None).unwrap();
        write(page.end_write(blocks, 9), blocks, Written::Stable(6))
    };
    assert_eq!(taken_back(again(Blocks(0b11))), (Blocks::NONE, None));
    assert_eq!(taken_back(again(Blocks(0b01))), (Blocks(0b10), Some(0)));
    // Discarded since; and what is left when only the dirty part was.
    let (page, _) = clean(Written::Volatile(5)).forget(Blocks(0b01), false).unwrap();
    assert_eq!(taken_back(page), (Blocks(0b10), Some(0)));
    let half = write(dirty(), Blocks(0b01), Written::Volatile(4));
    let (page, _) = half.forget(Blocks(0b10), false).unwrap();
    assert_eq!(taken_back(page), (Blocks(0b01), Some(0)), "it does not know since when");
    // During the next writeback: what is being written is dealt with when that ends.
    let (page, _) = clean(Written::Volatile(5)).begin_write(None).unwrap();
    let page = page.end_write(Blocks(0b01), 9);
    let (page, request) = page.begin_writeback(Blocks(0b01)).unwrap();
    drop(request);
    let (page, _) = page.rewrite(pool.take(), Blocks(0b01), 30);
    let page = page.take_back(|_| false);
    assert_eq!(page.content().unwrap().round(), Blocks(0b10));
    assert_eq!(page.dirty_since(), Some(0));
    let page = write(page.end_writeback(Written::No), Blocks(0b10), Written::Volatile(6));
    assert_eq!((page.content().unwrap().dirty, page.dirty_since()), (Blocks(0b01), Some(0)));
}

#[test]
fn a_number_is_what_it_was() {
    for number in [0, 1, u64::from(u32::MAX) + 7, (1 << 56) - 1] {
        assert_eq!(Seq::new(number).get(), number);
    }
}

#[test]
fn runs_and_spans_of_blocks() {
    let blocks = Blocks(0b0110_1000);
    assert_eq!(blocks.first_run(), Some((3, 1)));
    assert_eq!(blocks.runs().collect::<Vec<_>>(), [(3, 1), (5, 2)]);
    assert_eq!(blocks.span(), Some((3, 4)));
    assert_eq!(Blocks::range(0, 8), ALL);
    assert_eq!(Blocks::NONE.first_run(), None);
    assert_eq!(Blocks::NONE.span(), None);
}
