#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _found = tidegate::buffer::fuzzing::segment(data);
});
