//! R36: looks at what the process holds in memory, and says when it becomes too much.
//!
//! In a thread of its own: when memory grows fastest every thread of the runtime is busy with just that, and a task would look too late.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::clock::Clock;
use crate::telemetry::limited::Limited;
use crate::telemetry::memory::{Memory, resident_bytes};
use crate::units::ByteSize;

/// How often the log says that memory is short, and that it is not any more.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Looks until it is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(memory: Arc<Memory>, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        let look = move || look(&memory, &*clock, &until);
        let thread = thread::Builder::new().name("memory".to_owned()).spawn(look)?;
        Ok(Self { is_over, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return };
        thread.thread().unpark();
        if thread.join().is_err() {
            tracing::error!("the thread that looks at memory panicked");
        }
    }
}

fn look(memory: &Memory, clock: &dyn Clock, is_over: &AtomicBool) {
    let (began, ended) = (Limited::new(LOG_EVERY), Limited::new(LOG_EVERY));
    let mut shortages = 0;
    let mut was_short = false;
    while !is_over.load(Ordering::Relaxed) {
        let Some(used) = resident_bytes() else {
            tracing::warn!("the kernel does not tell what the process holds in memory: `max_memory` has no effect");
            return;
        };
        memory.note(used);
        // Others look too.
        let seen = memory.snapshot();
        let (used, limit) = (ByteSize(used), ByteSize(seen.limit_bytes));
        if seen.shortages > shortages
            && let Some(held_back) = began.pass(clock.now())
        {
            tracing::warn!(%used, max_memory = %limit, held_back, "memory is short: publishers are held back, new clients are refused, and QoS 0 to slow subscribers is dropped; raise `max_memory`, or lower what clients and links may hold (docs/limits.md)");
        }
        if (was_short || seen.shortages > shortages)
            && !seen.short
            && let Some(held_back) = ended.pass(clock.now())
        {
            tracing::info!(%used, max_memory = %limit, held_back, "memory is not short any more");
        }
        (shortages, was_short) = (seen.shortages, seen.short);
        thread::park_timeout(memory.next_look());
    }
}
