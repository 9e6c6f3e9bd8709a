//! What is left to a reactor's thread that stops, under loom: the crate's own `runner.rs`, with loom's
//! primitives in the place of std's, and a lock with something in it.

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering};
}

#[path = "../src/runner.rs"]
mod runner;

use loom::sync::{Arc, Mutex};
use loom::thread;
use runner::Runner;

/// What was started, and what of it the device has been told.
#[derive(Default)]
struct Core {
    started: usize,
    told: usize,
}

#[test]
fn what_is_left_to_a_thread_that_stops_is_done_by_it_or_by_who_comes_later() {
    loom::model(|| {
        let scene = Arc::new((Runner::new(), Mutex::new(Core::default())));
        let running = scene.0.begin();
        let submitters: Vec<_> = (0..2)
            .map(|_| {
                let scene = Arc::clone(&scene);
                thread::spawn(move || {
                    let (runner, core) = &*scene;
                    let mut core = core.lock().unwrap();
                    core.started += 1;
                    if !runner.turns() {
                        core.told = core.started;
                    }
                })
            })
            .collect();
        drop(running);
        {
            let mut core = scene.1.lock().unwrap();
            core.told = core.started;
        }
        for submitter in submitters {
            submitter.join().unwrap();
        }
        let core = scene.1.lock().unwrap();
        assert_eq!((core.started, core.told), (2, 2), "something is left, and nobody turns");
    });
}
