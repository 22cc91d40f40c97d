//! A GGUF file's header: metadata, tensor infos, the network that they describe.

#![no_main]

use libfuzzer_sys::fuzz_target;
use souffleur::models::network::DecoderSpec;
use souffleur::models::weights::{Files, Tensors};

fuzz_target!(|bytes: &[u8]| {
    let files = Files::of_gguf("a.gguf", bytes.to_vec());
    let Ok(gguf) = files.gguf() else { return };
    let bytes_of_tensors: usize = gguf.tensors.iter().map(|tensor| tensor.data.len()).sum();
    assert!(bytes_of_tensors <= bytes.len(), "tensors share no byte");
    let Ok(spec) = DecoderSpec::parse(&files) else { return };
    let tensors = Tensors::open(&files).expect("a header that was read");
    let _ = tensors.expect(&spec.parameters());
});
