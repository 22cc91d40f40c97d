//! What the machine could do at best: bytes read from memory, and products of weights that lie in the cache.

use memmap2::MmapMut;
use souffleur::models::backend::{Backend, LinearPart, Native, Span};
use souffleur::models::weights::{Matrix, Quantized};
use std::borrow::Cow;
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

/// Well beyond any cache a laptop has.
const MEMORY_BYTES: usize = 256 << 20;
/// How long a limit is measured at a time.
const TIME: Duration = Duration::from_millis(300);

/// Memory to read, in huge pages as the weights are.
pub(super) struct Memory(MmapMut);

impl Memory {
    pub(super) fn new() -> std::io::Result<Self> {
        let mut map = MmapMut::map_anon(MEMORY_BYTES)?;
        // A kernel without huge pages says so, and gives small ones.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        map.fill(1);
        Ok(Self(map))
    }

    /// Bytes a second, by so many threads that have a part each.
    pub(super) fn read(&self, threads: usize) -> f64 {
        let (start, mut bytes) = (Instant::now(), 0);
        while start.elapsed() < TIME {
            thread::scope(|scope| {
                for part in self.0.chunks(MEMORY_BYTES.div_ceil(threads)) {
                    scope.spawn(|| black_box(sum(part)));
                }
            });
            bytes += MEMORY_BYTES;
        }
        bytes as f64 / start.elapsed().as_secs_f64()
    }
}

/// Cheap enough that memory is what is waited for.
fn sum(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 8];
    for line in bytes.as_chunks::<64>().0 {
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

/// The shape of what is multiplied: weights of 4 to 32 bits that stay in a second-level cache, and a step's rows.
const OUTPUTS: usize = 128;
const INPUTS: usize = 1024;
const ROWS: usize = 128;
/// Products of one quantization of the rows, which then costs next to nothing.
const TIMES: usize = 8;

/// A model's weights by their weight_samples: a small piece of each, and how many of a token's products have that form.
#[derive(Default)]
pub(super) struct WeightSamples(Vec<(String, <Native as Backend>::Linear, u64)>);

impl WeightSamples {
    pub(super) fn add(&mut self, matrix: &Matrix<'_>, backend: &mut Native) -> souffleur::models::Result<()> {
        let (rows, columns) = matrix.shape();
        let name = match matrix {
            Matrix::Plain { element, .. } => format!("{element:?}"),
            Matrix::Blocks { block, .. } => format!("{block:?}"),
            Matrix::Quantized(q) => format!("{:?} {:?}", q.quantization, q.element),
        };
        let products = (rows * columns) as u64;
        if let Some((_, _, all)) = self.0.iter_mut().find(|(other, _, _)| *other == name) {
            *all += products;
        } else if let Some(piece) = piece(matrix) {
            self.0.push((name, backend.linear(vec![LinearPart { weight: piece, bias: None }])?, products));
        }
        Ok(())
    }

    /// Multiplications a second of the kernel on weights and rows in the cache, weight_samples in the model's proportion.
    pub(super) fn multiply(&self, backend: &mut Native) -> f64 {
        let (mut products, mut seconds) = (0.0, 0.0);
        for (_, weight, share) in &self.0 {
            let mut cache = backend.cache();
            let tokens: Vec<u32> = (0..ROWS as u32).map(|row| row % OUTPUTS as u32).collect();
            let x = backend.embed(weight, &[Span::ids(&tokens, 0, &mut cache)]);
            let weights = weight.repeated(TIMES);
            let _: [_; TIMES] = backend.project(&x, &weights);
            let (start, mut done) = (Instant::now(), 0);
            while start.elapsed() < TIME / self.0.len() as u32 {
                black_box::<[_; TIMES]>(backend.project(&x, &weights));
                done += TIMES * ROWS * OUTPUTS * INPUTS;
            }
            products += *share as f64;
            seconds += *share as f64 / (done as f64 / start.elapsed().as_secs_f64());
        }
        products / seconds
    }
}

/// The first bytes of a weight, read as one of another shape. `None` when it is too small.
fn piece<'a>(matrix: &'a Matrix<'_>) -> Option<Matrix<'a>> {
    let (rows, columns) = matrix.shape();
    let cut = |bytes: &'a [u8]| bytes.get(..(bytes.len() / rows * OUTPUTS * INPUTS).div_ceil(columns));
    Some(match matrix {
        Matrix::Plain { element, data, .. } => {
            Matrix::Plain { rows: OUTPUTS, columns: INPUTS, element: *element, data: Cow::Borrowed(cut(data)?) }
        }
        Matrix::Blocks { block, data, .. } => {
            Matrix::Blocks { rows: OUTPUTS, columns: INPUTS, block: *block, data: Cow::Borrowed(cut(data)?) }
        }
        Matrix::Quantized(q) => Matrix::Quantized(Quantized {
            rows: OUTPUTS,
            columns: INPUTS,
            quantization: q.quantization,
            words: cut(q.words)?,
            element: q.element,
            scales: cut(q.scales)?,
            biases: cut(q.biases)?,
        }),
    })
}
