//! Cancelling many at once: by descriptor, by volume, all of a context.

mod set;

use std::ffi::CString;
use std::path::Path;
use std::time::Duration;

use set::{Endless, Set, iocb, noop, read};
use uaio::exports::{uaio_cancel_all, uaio_cancel_fd, uaio_open};
use uaio::layout::{F_LINK, F_VOLUME, O_DIRECT, UaioIocb, opcode};

const PATIENCE: Option<Duration> = Some(Duration::from_secs(20));
const CANCELED: i64 = -(libc::ECANCELED as i64);

/// So many events, as data and result, sorted.
fn results(set: &Set, count: usize) -> Vec<(u64, i64)> {
    let events = set.events(count as i64, count, PATIENCE).unwrap();
    let mut results: Vec<_> = events.iter().map(|event| (event.data, event.res)).collect();
    results.sort_unstable();
    results
}

fn nothing_more(set: &Set) {
    assert_eq!(set.events(1, 8, Some(Duration::from_millis(20))).unwrap().len(), 0);
}

#[test]
fn all_that_is_on_a_descriptor_is_cancelled_and_nothing_else() {
    let set = Set::up(8);
    let (mut one, mut other) = (Endless::new(), Endless::new());
    let mut first = one.read(1);
    let mut second = one.read(2);
    let mut poll = UaioIocb { nbytes: libc::POLLIN as u64, ..iocb(3, opcode::POLL) };
    poll.fd = one.ends[0];
    let mut left = other.read(4);
    let mut list = [&raw mut first, &raw mut second, &raw mut poll, &raw mut left];
    assert_eq!(set.submit(&mut list), 4);
    assert_eq!(uaio_cancel_fd(set.0, one.ends[0], 0), 3);
    assert_eq!(results(&set, 3), [(1, CANCELED), (2, CANCELED), (3, CANCELED)]);
    nothing_more(&set);
    assert_eq!(uaio_cancel_fd(set.0, one.ends[0], 0), 0, "each once");
    other.end();
    assert_eq!(results(&set, 1), [(4, 1)]);
}

#[test]
fn what_is_linked_behind_something_on_the_descriptor_ends_with_it() {
    let set = Set::up(8);
    let mut endless = Endless::new();
    let mut first = UaioIocb { flags: F_LINK, ..endless.read(1) };
    let mut bytes = [0; 8];
    let mut second = read(2, &mut bytes);
    assert_eq!(set.submit(&mut [&raw mut first, &raw mut second]), 2);
    assert_eq!(uaio_cancel_fd(set.0, endless.ends[0], 0), 1);
    assert_eq!(results(&set, 2), [(1, CANCELED), (2, CANCELED)]);
}

/// The device may be done before it is asked, so this goes on until it was not.
#[test]
fn all_that_is_on_a_volume_is_cancelled_and_has_its_event() {
    const LEN: usize = 1 << 20;
    let set = Set::up(64);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = folder.join(format!("cancels-{}", std::process::id()));
    std::fs::write(&file, vec![7; 32 * LEN]).unwrap();
    let url = CString::new(format!("file:{}", file.display())).unwrap();
    let volume = uaio_open(set.0, url.as_ptr(), O_DIRECT, 1 << 20);
    assert_eq!(volume, 2);
    let mut endless = Endless::new();
    let mut left = endless.read(99);
    assert_eq!(set.submit(&mut [&raw mut left]), 1);
    let mut buffers = vec![vec![0; LEN]; 32];
    let mut seen_cancelled = false;
    for _ in 0..300 {
        let mut iocbs: Vec<UaioIocb> = buffers
            .iter_mut()
            .enumerate()
            .map(|(at, buffer)| UaioIocb {
                fd: volume,
                offset: (at * LEN) as i64,
                ..read(at as u64, buffer)
            })
            .collect();
        let mut list: Vec<*mut UaioIocb> = iocbs.iter_mut().map(std::ptr::from_mut).collect();
        assert_eq!(set.submit(&mut list), 32);
        assert_eq!(uaio_cancel_fd(set.0, 1, F_VOLUME), 0, "another volume");
        let count = uaio_cancel_fd(set.0, volume, F_VOLUME);
        let results = results(&set, 32);
        assert!(results.iter().map(|(data, _)| *data).eq(0..32), "{results:?}");
        let cancelled = results.iter().filter(|(_, res)| *res == CANCELED).count();
        for (data, res) in results {
            // One that was cancelled between two of its pieces has moved the first.
            assert!(res == CANCELED || (1..=LEN as i64).contains(&res), "{data}: {res}");
        }
        assert!(cancelled <= count as usize, "{cancelled} of {count}");
        if cancelled > 0 {
            seen_cancelled = true;
            break;
        }
    }
    std::fs::remove_file(&file).unwrap();
    assert!(seen_cancelled, "a cancel came always too late");
    endless.end();
    assert_eq!(results(&set, 1), [(99, 1)]);
}

#[test]
fn all_of_a_context_is_cancelled_and_nothing_of_another() {
    let (set, another) = (Set::up(8), Set::up(8));
    let mut endless = [Endless::new(), Endless::new(), Endless::new()];
    let [one, two, elsewhere] = &mut endless;
    let mut first = one.read(1);
    let mut second = UaioIocb { flags: F_LINK, ..two.read(2) };
    let mut third = noop(3);
    let mut left = elsewhere.read(4);
    assert_eq!(set.submit(&mut [&raw mut first, &raw mut second, &raw mut third]), 3);
    assert_eq!(another.submit(&mut [&raw mut left]), 1);
    assert_eq!(uaio_cancel_all(set.0), 2, "a chain is one");
    assert_eq!(results(&set, 3), [(1, CANCELED), (2, CANCELED), (3, CANCELED)]);
    assert_eq!(uaio_cancel_all(set.0), 0);
    nothing_more(&set);
    elsewhere.end();
    assert_eq!(results(&another, 1), [(4, 1)]);
}

#[test]
fn what_cannot_be_cancelled_has_the_errno_of_the_man_page() {
    let set = Set::up(2);
    let endless = Endless::new();
    assert_eq!(uaio_cancel_fd(set.0, endless.ends[0], 0), 0, "there is nothing");
    for fd in [-1, 0x7fff_ffff] {
        assert_eq!(uaio_cancel_fd(set.0, fd, 0), -libc::EBADF);
        assert_eq!(uaio_cancel_fd(set.0, fd, F_VOLUME), -libc::EBADF);
    }
    assert_eq!(uaio_cancel_fd(set.0, 0, F_VOLUME), -libc::EBADF);
    assert_eq!(uaio_cancel_fd(set.0, 2, F_VOLUME), -libc::EBADF);
    assert_eq!(uaio_cancel_fd(set.0, 1, F_VOLUME), 0);
    assert_eq!(uaio_cancel_fd(set.0, 1, F_LINK), -libc::EINVAL);
    assert_eq!(uaio_cancel_fd(0, 1, 0), -libc::EINVAL);
    assert_eq!(uaio_cancel_all(0), -libc::EINVAL);
}
