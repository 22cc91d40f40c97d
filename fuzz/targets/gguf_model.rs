//! Loads a whole GGUF model: packs its weights and tokenizes a prompt.

#![no_main]

use libfuzzer_sys::fuzz_target;
use souffleur::models::backend::{Backend, cpu::Cpu};
use souffleur::models::codec::TextCodec;
use souffleur::models::network::{Decoder, DecoderSpec};
use souffleur::models::weights::{Files, Tensors};
use souffleur::models::{Activations, CpuSettings, Prompt, Result};

fuzz_target!(|bytes: &[u8]| {
    let _ = load(bytes);
});

fn load(bytes: &[u8]) -> Result<()> {
    let files = Files::of_gguf("a.gguf", bytes.to_vec());
    let spec = DecoderSpec::parse(&files)?;
    let tensors = Tensors::open(&files)?;
    tensors.expect(&spec.parameters())?;
    let backend = Cpu::open(&spec, &CpuSettings { threads: 1, activations: Activations::Int8 })?;
    Decoder::load(spec.clone(), &tensors, backend, &mut |_, _| {})?;
    let codec = TextCodec::open(&files, &spec)?;
    codec.encode(&Prompt::Text("while lo in (7, 8): é\r\n\tin".into()))?;
    Ok(())
}
