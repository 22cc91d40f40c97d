//! A model's tensors by name: f32, f16 and bf16, MLX's affine quantization, ggml's blocks.

use super::{Files, FloatType, GgmlBlock, ModelFormat, TensorType};
use crate::models::{Error, Result};
use safetensors::SafeTensors;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// MLX's affine quantization (`mlx.core.quantize`): `w = q * scale + bias` with unsigned integers `q` of `bits` bits, and one
/// scale and one bias per `group` consecutive weights of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantization {
    pub bits: usize,
    pub group: usize,
}

/// A weight `[rows, columns]` (outputs, inputs) in its file format.
pub enum Matrix<'a> {
    Plain {
        rows: usize,
        columns: usize,
        element: FloatType,
        data: Cow<'a, [u8]>,
    },
    Quantized(Quantized<'a>),
    /// Row-major ggml blocks; no block spans two rows.
    Blocks {
        rows: usize,
        columns: usize,
        block: GgmlBlock,
        data: Cow<'a, [u8]>,
    },
}

impl Matrix<'_> {
    pub fn shape(&self) -> (usize, usize) {
        match *self {
            Self::Plain { rows, columns, .. } | Self::Blocks { rows, columns, .. } => (rows, columns),
            Self::Quantized(Quantized { rows, columns, .. }) => (rows, columns),
        }
    }

    /// Converts each head's rows from interleaved RoPE pairs (0, 1), (2, 3), … to the half-split order of Hugging Face, in which
    /// row `i` is rotated with row `i + head_dim / 2`. It inverts the permutation of llama.cpp's converter for Llama. Rows are
    /// moved without dequantization.
    pub fn deinterleave_rope_rows(mut self, head_dim: usize) -> Self {
        let (rows, _) = self.shape();
        match &mut self {
            Self::Plain { data, .. } | Self::Blocks { data, .. } => *data = Cow::Owned(deinterleave(data, rows, head_dim)),
            Self::Quantized(_) => unreachable!("only GGUF interleaves RoPE rows, and it has no MLX weights"),
        }
        self
    }
}

fn deinterleave(data: &[u8], rows: usize, head_dim: usize) -> Vec<u8> {
    let bytes = data.len() / rows;
    let mut out = Vec::with_capacity(data.len());
    for row in 0..rows {
        let (head, at) = (row / head_dim * head_dim, row % head_dim);
        let from = head + at % (head_dim / 2) * 2 + at / (head_dim / 2);
        out.extend_from_slice(&data[from * bytes..(from + 1) * bytes]);
    }
    out
}

/// An MLX-quantized weight. Each row of `words` is a bit stream of `bits`-wide integers, lowest bits first, in little-endian
/// 32-bit words: `[rows, columns * bits / 32]`. `scales` and `biases` are `[rows, columns / group]` of type `element`.
pub struct Quantized<'a> {
    pub rows: usize,
    pub columns: usize,
    pub quantization: Quantization,
    pub words: &'a [u8],
    pub element: FloatType,
    pub scales: &'a [u8],
    pub biases: &'a [u8],
}

struct Tensor<'a> {
    tensor_type: TensorType,
    shape: Vec<usize>,
    data: &'a [u8],
    file: String,
}

/// Name and shape of a parameter that a model's files must have. A matrix's name is without `.weight`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parameter {
    Vector { name: String, length: usize },
    Matrix { name: String, rows: usize, columns: usize },
}

impl Parameter {
    pub fn elements(&self) -> u64 {
        match self {
            Self::Vector { length, .. } => *length as u64,
            Self::Matrix { rows, columns, .. } => (rows * columns) as u64,
        }
    }
}

/// All tensors of a model by name.
pub struct Tensors<'a> {
    tensors: BTreeMap<String, Tensor<'a>>,
    files: &'a Files,
}

impl<'a> Tensors<'a> {
    /// # Errors
    /// `ModelFile` if a header is invalid or two files have a tensor of the same name.
    pub fn open(files: &'a Files) -> Result<Self> {
        if let ModelFormat::Gguf = files.format {
            let gguf = files.gguf()?;
            let tensor = |info: super::TensorInfo<'a>| {
                let super::TensorInfo { name, shape, tensor_type, data } = info;
                (name.to_owned(), Tensor { tensor_type, shape, data, file: gguf.file.to_owned() })
            };
            return Ok(Self { tensors: gguf.tensors.into_iter().map(tensor).collect(), files });
        }
        let mut tensors = BTreeMap::new();
        for (file, bytes) in files.weights() {
            let parsed = SafeTensors::deserialize(bytes).map_err(|e| Error::file(file, "header", e))?;
            for (name, view) in parsed.iter() {
                let tensor = Tensor {
                    tensor_type: TensorType::from_safetensors(view.dtype()),
                    shape: view.shape().to_vec(),
                    data: view.data(),
                    file: file.to_owned(),
                };
                if tensors.insert(name.to_owned(), tensor).is_some() {
                    return Err(Error::file(file, name, "this tensor is in two files"));
                }
            }
        }
        Ok(Self { tensors, files })
    }

    /// Checks that the tensors are exactly those of the parameters, so that no parameter stays uninitialized and none is ignored.
    ///
    /// # Errors
    /// `Weights` with the missing and the unexpected tensors.
    pub fn expect(&self, parameters: &[Parameter]) -> Result<()> {
        let mut expected = BTreeSet::new();
        for parameter in parameters {
            match parameter {
                Parameter::Vector { name, .. } => expected.insert(name.clone()),
                Parameter::Matrix { name, .. } => {
                    if self.contains(&format!("{name}.scales")) {
                        expected.extend([format!("{name}.scales"), format!("{name}.biases")]);
                    }
                    expected.insert(format!("{name}.weight"))
                }
            };
        }
        let missing: Vec<_> = expected.iter().filter(|name| !self.contains(name)).cloned().collect();
        let unexpected: Vec<_> = self.tensors.keys().filter(|name| !expected.contains(*name)).cloned().collect();
        if missing.is_empty() && unexpected.is_empty() { Ok(()) } else { Err(Error::weights(missing, unexpected)) }
    }

    /// Releases the physical memory of a matrix that was packed, so that loading never holds two copies of all weights.
    pub fn release_pages(&self, name: &str) {
        for suffix in ["weight", "scales", "biases"] {
            if let Some(tensor) = self.tensors.get(&format!("{name}.{suffix}")) {
                self.files.release_pages(tensor.data);
            }
        }
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The type of most of the weights by bytes, in lower case, such as "bf16" or "q4_1".
    pub fn element_name(&self) -> String {
        let mut bytes = BTreeMap::new();
        self.tensors.values().for_each(|tensor| *bytes.entry(tensor.tensor_type.to_string()).or_insert(0) += tensor.data.len());
        bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(name, _)| name.to_lowercase()).unwrap_or_default()
    }

    /// Reads a vector of `length` elements as f32.
    ///
    /// # Errors
    /// `Weights` if it is missing; `ModelFile` for another shape or an element type that is not a float.
    pub fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        let (element, data) = self.plain(name, &[length])?;
        Ok((0..length).map(|i| element.get(data, i)).collect())
    }

    /// The weight `{name}.weight`, `[rows, columns]`. If `{name}.scales` exists, the weight is MLX-quantized as `quantization`
    /// says.
    ///
    /// # Errors
    /// `Weights` if a tensor is missing; `ModelFile` for another shape or element type, or without a `quantization`.
    pub fn matrix(&self, name: &str, rows: usize, columns: usize, quantization: Option<Quantization>) -> Result<Matrix<'a>> {
        let weight = format!("{name}.weight");
        let scales = format!("{name}.scales");
        if !self.contains(&scales) {
            let (tensor_type, data) = self.get(&weight, &[rows, columns])?;
            let data = Cow::Borrowed(data);
            return match tensor_type {
                TensorType::Float(element) => Ok(Matrix::Plain { rows, columns, element, data }),
                TensorType::GgmlBlocks(block) => Ok(Matrix::Blocks { rows, columns, block, data }),
                TensorType::U32 | TensorType::Other(_) => Err(self.error(&weight, format!("element type {tensor_type} in a weight"))),
            };
        }
        let quantization =
            quantization.ok_or_else(|| self.error(&scales, "this tensor is quantized, but config.json has no \"quantization\" for it"))?;
        let Quantization { bits, group } = quantization;
        if !columns.is_multiple_of(group) || !(columns * bits).is_multiple_of(32) {
            return Err(self.error(&weight, format!("{columns} inputs are not whole groups of {group} and whole words of {bits} bits")));
        }
        let (TensorType::U32, words) = self.get(&weight, &[rows, columns * bits / 32])? else {
            return Err(self.error(&weight, "not of element type U32, which quantized weights have"));
        };
        let (element, scales) = self.plain(&scales, &[rows, columns / group])?;
        let biases = format!("{name}.biases");
        let (bias_element, bias_data) = self.plain(&biases, &[rows, columns / group])?;
        if bias_element != element {
            return Err(self.error(&biases, "not of its scales' element type"));
        }
        Ok(Matrix::Quantized(Quantized { rows, columns, quantization, words, element, scales, biases: bias_data }))
    }

    fn plain(&self, name: &str, shape: &[usize]) -> Result<(FloatType, &'a [u8])> {
        match self.get(name, shape)? {
            (TensorType::Float(element), data) => Ok((element, data)),
            (tensor_type, _) => Err(self.error(name, format!("element type {tensor_type} where F32, F16 or BF16 is expected"))),
        }
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<(TensorType, &'a [u8])> {
        let tensor = self.tensors.get(name).ok_or_else(|| Error::weights(vec![name.to_owned()], Vec::new()))?;
        if tensor.shape != shape {
            return Err(self.error(name, format!("shape {:?} where {shape:?} is expected", tensor.shape)));
        }
        Ok((tensor.tensor_type, tensor.data))
    }

    pub fn error(&self, name: &str, reason: impl ToString) -> Error {
        Error::file(self.tensors.get(name).map_or("weights", |tensor| &tensor.file), name, reason)
    }
}
