#![no_main]

use tidegate::message::Envelope;

// What decodes is encoded to what decodes to the same.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(envelope) = Envelope::decode(bytes::Bytes::copy_from_slice(data)) else { return };
    let head = envelope.head();
    let written = [head, envelope.message.encode()].concat();
    assert_eq!(Envelope::decode(written.into()).ok(), Some(envelope));
});
