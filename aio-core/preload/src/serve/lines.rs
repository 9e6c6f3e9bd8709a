//! In which order the requests on a descriptor are done.

use std::collections::{HashMap, VecDeque};
use std::os::fd::RawFd;

/// After what a request is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Nothing: files at an offset.
    Free,
    /// Those of its descriptor that are in turn and go the same way, one at a time, in the order of their submission:
    /// pipes, sockets, terminals, appends. A read that waits for bytes of a socket does not hold up an answer to them.
    InTurn(Way),
    /// Everything that was submitted on its descriptor before: syncs. Nothing waits for it but another of its kind.
    AfterAll,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the program.
    In,
    /// From the program.
    Out,
}

/// Names the line that a request stands in, until it has left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LineId(usize);

/// A request's place: it is given back when the request is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    line: LineId,
    number: u64,
    order: Order,
}

/// The requests on one open descriptor that are not done.
#[derive(Debug)]
struct Line<T> {
    /// Those started, too.
    unfinished: usize,
    /// Those in turn, each way.
    ways: [Turns<T>; 2],
    /// Those after all that wait, and how many before each are not done.
    syncs: VecDeque<(u64, usize, T)>,
}

/// Those in turn that go one way.
#[derive(Debug)]
struct Turns<T> {
    /// One was started and is not done.
    busy: bool,
    /// Those that wait.
    waiting: VecDeque<(u64, T)>,
}

/// The lines of all descriptors.
#[derive(Debug)]
pub(super) struct Lines<T> {
    by_fd: HashMap<RawFd, LineId>,
    lines: Vec<Line<T>>,
    free: Vec<LineId>,
    next: u64,
}

impl<T> Lines<T> {
    pub(super) fn new() -> Self {
        Self { by_fd: HashMap::new(), lines: Vec::new(), free: Vec::new(), next: 0 }
    }

    /// A request arrives; it is given back if it can be started at once.
    pub(super) fn arrive(&mut self, fd: RawFd, order: Order, request: T) -> Option<(Place, T)> {
        let line = self.line_of(fd);
        let number = self.next;
        self.next += 1;
        let place = Place { line, number, order };
        let line = &mut self.lines[line.0];
        let ahead = line.unfinished;
        line.unfinished += 1;
        match order {
            Order::Free => {}
            Order::InTurn(way) => {
                let turns = &mut line.ways[way as usize];
                if turns.busy || !turns.waiting.is_empty() {
                    turns.waiting.push_back((number, request));
                    return None;
                }
                turns.busy = true;
            }
            Order::AfterAll if ahead > 0 => {
                line.syncs.push_back((number, ahead, request));
                return None;
            }
            Order::AfterAll => {}
        }
        Some((place, request))
    }

    fn line_of(&mut self, fd: RawFd) -> LineId {
        if let Some(line) = self.by_fd.get(&fd) {
            return *line;
        }
        let line = self.free.pop().unwrap_or_else(|| {
            let ways = [(); 2].map(|()| Turns { busy: false, waiting: VecDeque::new() });
            self.lines.push(Line { unfinished: 0, ways, syncs: VecDeque::new() });
            LineId(self.lines.len() - 1)
        });
        self.by_fd.insert(fd, line);
        line
    }

    /// A request that was started is done; what can be started now is put into `ready`.
    pub(super) fn finished(&mut self, fd: RawFd, place: Place, ready: &mut Vec<(Place, T)>) {
        let line = &mut self.lines[place.line.0];
        if let Order::InTurn(way) = place.order {
            line.ways[way as usize].busy = false;
        }
        line.leave(place.number);
        self.start(fd, place.line, ready);
    }

    fn start(&mut self, fd: RawFd, id: LineId, ready: &mut Vec<(Place, T)>) {
        let line = &mut self.lines[id.0];
        for way in [Way::In, Way::Out] {
            let turns = &mut line.ways[way as usize];
            if !turns.busy
                && let Some((number, request)) = turns.waiting.pop_front()
            {
                turns.busy = true;
                ready.push((Place { line: id, number, order: Order::InTurn(way) }, request));
            }
        }
        // The first has the fewest before it.
        while line.syncs.front().is_some_and(|(_, ahead, _)| *ahead == 0)
            && let Some((number, _, request)) = line.syncs.pop_front()
        {
            ready.push((Place { line: id, number, order: Order::AfterAll }, request));
        }
        if line.unfinished == 0 {
            self.free.push(id);
            if self.by_fd.get(&fd) == Some(&id) {
                self.by_fd.remove(&fd);
            }
        }
    }

    /// Takes those that wait and are wanted out, with their descriptors; what can be started then is put into
    /// `ready`.
    pub(super) fn withdraw(
        &mut self,
        mut wanted: impl FnMut(RawFd, &T) -> bool,
        out: &mut Vec<T>,
        ready: &mut Vec<(Place, T)>,
    ) {
        let open: Vec<_> = self.by_fd.iter().map(|(fd, line)| (*fd, *line)).collect();
        for (fd, id) in open {
            let line = &mut self.lines[id.0];
            let mut gone = Vec::new();
            for turns in &mut line.ways {
                for (number, request) in std::mem::take(&mut turns.waiting) {
                    if wanted(fd, &request) {
                        gone.push(number);
                        out.push(request);
                    } else {
                        turns.waiting.push_back((number, request));
                    }
                }
            }
            for (number, ahead, request) in std::mem::take(&mut line.syncs) {
                if wanted(fd, &request) {
                    gone.push(number);
                    out.push(request);
                } else {
                    line.syncs.push_back((number, ahead, request));
                }
            }
            if !gone.is_empty() {
                gone.iter().for_each(|number| line.leave(*number));
                self.start(fd, id, ready);
            }
        }
    }

    /// Whether anything on this descriptor waits for its turn.
    pub(super) fn has_waiting(&self, fd: RawFd) -> bool {
        self.by_fd.get(&fd).is_some_and(|line| {
            let line = &self.lines[line.0];
            line.ways.iter().any(|turns| !turns.waiting.is_empty()) || !line.syncs.is_empty()
        })
    }

    /// The number will mean another file: what is started of the old one is none of the new one's business.
    /// Nothing may wait.
    pub(super) fn part(&mut self, fd: RawFd) {
        self.by_fd.remove(&fd);
    }
}

impl<T> Line<T> {
    /// The request of this number is done, or was withdrawn.
    fn leave(&mut self, number: u64) {
        self.unfinished -= 1;
        for (_, ahead, _) in self.syncs.iter_mut().filter(|sync| sync.0 > number) {
            *ahead -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the rule says of a list of all requests, by looking at all of them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Is {
        Waiting,
        Started,
        Done,
    }

    fn may_start(all: &[(RawFd, Order, Is)], at: usize) -> bool {
        let (fd, order, _) = all[at];
        let before = |which: Option<Order>| {
            let which = |order: Order| which.is_none_or(|which| which == order);
            all[..at].iter().any(|(f, o, is)| *f == fd && which(*o) && *is != Is::Done)
        };
        match order {
            Order::Free => true,
            Order::InTurn(_) => !before(Some(order)),
            Order::AfterAll => !before(None),
        }
    }

    #[test]
    fn random_requests_start_as_soon_as_their_order_allows_and_not_before() {
        let seed = std::env::var("UAIO_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        println!("UAIO_SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..300 {
            let mut lines = Lines::new();
            let mut all: Vec<(RawFd, Order, Is)> = Vec::new();
            let mut places: HashMap<usize, Place> = HashMap::new();
            for _ in 0..60 {
                let mut ready = Vec::new();
                let started: Vec<_> = places.keys().copied().collect();
                match random.u8(..10) {
                    0..5 => {
                        let order = [
                            Order::Free,
                            Order::InTurn(Way::In),
                            Order::InTurn(Way::Out),
                            Order::AfterAll,
                        ][random.usize(..4)];
                        let fd = random.i32(0..3);
                        all.push((fd, order, Is::Waiting));
                        ready.extend(lines.arrive(fd, order, all.len() - 1));
                    }
                    5..9 if !started.is_empty() => {
                        let at = started[random.usize(..started.len())];
                        all[at].2 = Is::Done;
                        let place = places.remove(&at).unwrap();
                        lines.finished(all[at].0, place, &mut ready);
                    }
                    _ => {
                        let mut out = Vec::new();
                        let odd = random.usize(..4);
                        lines.withdraw(|_, at| at % 4 == odd, &mut out, &mut ready);
                        let waits = |at: &usize| all[*at].2 == Is::Waiting && at % 4 == odd;
                        let mut expected: Vec<_> = (0..all.len()).filter(waits).collect();
                        out.sort_unstable();
                        expected.sort_unstable();
                        assert_eq!(out, expected);
                        out.iter().for_each(|at| all[*at].2 = Is::Done);
                    }
                }
                for (place, at) in ready {
                    assert_eq!(all[at].2, Is::Waiting, "started twice");
                    assert!(may_start(&all, at), "{at} too early: {all:?}");
                    all[at].2 = Is::Started;
                    places.insert(at, place);
                }
                for at in 0..all.len() {
                    let waits = all[at].2 == Is::Waiting;
                    assert!(!(waits && may_start(&all, at)), "{at} could start: {all:?}");
                }
                for fd in 0..3 {
                    let waits = all.iter().any(|(f, _, is)| *f == fd && *is == Is::Waiting);
                    assert_eq!(lines.has_waiting(fd), waits);
                }
            }
        }
    }

    #[test]
    fn lines_are_used_again() {
        let mut lines = Lines::new();
        for fd in 0..1000 {
            let (place, ()) = lines.arrive(fd, Order::Free, ()).unwrap();
            lines.finished(fd, place, &mut Vec::new());
        }
        assert_eq!((lines.lines.len(), lines.by_fd.len()), (1, 0));
    }

    #[test]
    fn what_is_in_progress_on_a_number_that_was_closed_holds_up_nothing_of_the_next_file() {
        let mut lines = Lines::new();
        let mut ready = Vec::new();
        let (old, ()) = lines.arrive(3, Order::InTurn(Way::In), ()).unwrap();
        lines.part(3);
        let (new, ()) = lines.arrive(3, Order::InTurn(Way::In), ()).unwrap();
        assert!(lines.arrive(3, Order::AfterAll, ()).is_none());
        lines.finished(3, old, &mut ready);
        assert!(ready.is_empty(), "the sync is after the new one");
        lines.finished(3, new, &mut ready);
        assert_eq!(ready.len(), 1);
    }
}
