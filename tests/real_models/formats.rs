//! The same weights in two formats.

use crate::{SMOLLM2, folder, gguf, load, logits};
use souffleur::models::{Activations, ModelSource, Prompt};

#[test]
#[ignore = "needs models: tests/real_models/fetch.sh"]
fn smollm2_as_gguf_and_as_mlx_gives_bit_identical_logits() {
    let text = include_str!("main.rs");
    for activations in [Activations::Int8, Activations::F32] {
        let mut one = load(&gguf(SMOLLM2), activations);
        let mut other = load(&ModelSource::Folder(folder().join("smollm2-mlx")), activations);
        let prompt = Prompt::Text(text[..1200].into());
        let tokens = one.codec.encode(&prompt).expect("tokens");
        assert_eq!(other.codec.encode(&prompt).expect("tokens"), tokens);
        assert_eq!(one.codec.tokenizer.eos_ids(), other.codec.tokenizer.eos_ids());
        let wanted = 64;
        let (one, other) = (logits(&mut one.decoder, &tokens, wanted), logits(&mut other.decoder, &tokens, wanted));
        let bits = |logits: &[Vec<f32>]| logits.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(&one) == bits(&other), "{activations:?}");
        assert!(one.iter().flatten().all(|x| x.is_finite()));
    }
}
