//! Parses a GGUF file's header: metadata, tensor infos and the network.

#![no_main]

use libfuzzer_sys::fuzz_target;
use souffleur::models::network::DecoderSpec;
use souffleur::models::weights::{Files, Tensors};

fuzz_target!(|bytes: &[u8]| {
    let files = Files::of_gguf("a.gguf", bytes.to_vec());
    let Ok(gguf) = files.gguf() else { return };
    let bytes_of_tensors: usize = gguf.tensors.iter().map(|tensor| tensor.data.len()).sum();
    assert!(bytes_of_tensors <= bytes.len(), "tensors do not overlap");
    let Ok(spec) = DecoderSpec::parse(&files) else { return };
    let tensors = Tensors::open(&files).expect("the header was parsed above");
    let _ = tensors.expect(&spec.parameters());
});
