#![no_main]

use std::sync::Arc;

use tidegate::clock;
use tidegate::hub::Hub;
use tidegate::message::IdSource;
use tidegate::router::Table;

// A broker of its own for the clients of each run, so that a run can be repeated.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (clock, ids) = (clock::system(), IdSource::new("fuzz".into(), 1));
    let hub = Arc::new(Hub::new(ids, Table::default(), Vec::new(), Arc::clone(&clock)));
    tidegate::broker::fuzzing::serve_behind(dir.path(), hub, clock, data).unwrap();
});
