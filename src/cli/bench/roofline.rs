//! The roofline of this machine: memory bandwidth, and the speed of the matmul kernels on weights in the cache.

use memmap2::MmapMut;
use souffleur::models::backend::{Backend, LinearPart, Native, Span};
use souffleur::models::weights::{Matrix, Quantized};
use std::borrow::Cow;
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

/// Larger than the caches of any laptop.
const MEMORY_BYTES: usize = 256 << 20;
/// How long each quantity is measured.
const MEASURE_TIME: Duration = Duration::from_millis(300);

/// Memory to read, in huge pages like the weights.
pub(super) struct Memory(MmapMut);

impl Memory {
    pub(super) fn new() -> std::io::Result<Self> {
        let mut map = MmapMut::map_anon(MEMORY_BYTES)?;
        // Without huge pages the kernel reports an error and small pages stay.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        map.fill(1);
        Ok(Self(map))
    }

    /// Bytes per second, read by `threads` threads.
    pub(super) fn read(&self, threads: usize) -> f64 {
        let (start, mut bytes) = (Instant::now(), 0);
        while start.elapsed() < MEASURE_TIME {
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

/// Sums words, which is cheap enough to be bound by memory.
fn sum(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 8];
    for line in bytes.as_chunks::<64>().0 {
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

/// Shape of a product: a weight of `OUTPUTS` x `INPUTS`, which fits the L2 cache even as f32, times the activations of `TOKENS`
/// tokens.
const OUTPUTS: usize = 128;
const INPUTS: usize = 1024;
const TOKENS: usize = 128;
/// How often the weight is repeated in one operation, which quantizes the activations once, so that this cost is negligible.
const REPEATS: usize = 8;

/// For each weight type of the model: a sample, once a weight is large enough, and the multiply-accumulates (MACs) per token.
#[derive(Default)]
pub(super) struct WeightSamples(Vec<WeightSample>);

struct WeightSample {
    name: String,
    weight: Option<<Native as Backend>::Linear>,
    macs_per_token: u64,
}

impl WeightSamples {
    pub(super) fn add(&mut self, matrix: &Matrix<'_>, backend: &mut Native) -> souffleur::models::Result<()> {
        let (rows, columns) = matrix.shape();
        let name = match matrix {
            Matrix::Plain { element, .. } => format!("{element:?}"),
            Matrix::Blocks { block, .. } => format!("{block:?}"),
            Matrix::Quantized(q) => format!("{:?} {:?}", q.quantization, q.element),
        };
        let index = self.0.iter().position(|sample| sample.name == name).unwrap_or_else(|| {
            self.0.push(WeightSample { name, weight: None, macs_per_token: 0 });
            self.0.len() - 1
        });
        let entry = &mut self.0[index];
        entry.macs_per_token += (rows * columns) as u64;
        if let (None, Some(weight)) = (&entry.weight, sample(matrix)) {
            entry.weight = Some(backend.linear(vec![LinearPart { weight, bias: None }])?);
        }
        Ok(())
    }

    /// MACs per second of the kernels on data in the cache, with the weight types in the model's proportion. Types without a sample
    /// are left out.
    pub(super) fn matmul_rate(&self, backend: &mut Native) -> f64 {
        let (mut macs, mut seconds) = (0.0, 0.0);
        for WeightSample { weight, macs_per_token, .. } in &self.0 {
            let Some(weight) = weight else { continue };
            let mut cache = backend.cache();
            let tokens: Vec<u32> = (0..TOKENS as u32).map(|token| token % OUTPUTS as u32).collect();
            // The rows of the weight serve as activations: embeddings have `INPUTS` elements too.
            let x = backend.embed(weight, &[Span::ids(&tokens, 0, &mut cache)]);
            let weights = weight.repeated(REPEATS);
            // Not measured: brings the weights into the cache.
            let _: [_; REPEATS] = backend.project(&x, &weights);
            let (start, mut done) = (Instant::now(), 0);
            while start.elapsed() < MEASURE_TIME / self.0.len() as u32 {
                black_box::<[_; REPEATS]>(backend.project(&x, &weights));
                done += REPEATS * TOKENS * OUTPUTS * INPUTS;
            }
            macs += *macs_per_token as f64;
            seconds += *macs_per_token as f64 / (done as f64 / start.elapsed().as_secs_f64());
        }
        macs / seconds
    }
}

/// The first bytes of a weight as a matrix of the sample's shape. `None` when it is too small.
fn sample<'a>(matrix: &'a Matrix<'_>) -> Option<Matrix<'a>> {
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
