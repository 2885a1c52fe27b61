//! The writer thread: waits for work, lets the log do it, and says when it has ended.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::log::Log;
use super::state::Shared;

/// Starts the thread of a log. It ends when the log is closed.
pub(super) fn start(mut log: Log, name: &str) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(&log.shared);
    log.pace.patient = true;
    // Names of threads are cut at 15 bytes by Linux.
    std::thread::Builder::new().name(format!("buf-{name}")).spawn(move || {
        let ending = Ending(shared);
        run(log, &ending.0);
    })
}

fn run(mut log: Log, shared: &Shared) {
    loop {
        let closing = shared.wait_for_work(log.next_look());
        log.commit();
        log.tend();
        shared.make_room();
        if closing {
            return log.finish();
        }
    }
}

/// Tells those who wait that the thread is gone, also when it panicked.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("its writer panicked");
        }
        self.0.mark.fail("the buffer is closed");
        self.0.closed.send_replace(true);
        self.0.ended.send_replace(true);
        self.0.state.lock().closing = true;
        self.0.make_room();
    }
}
