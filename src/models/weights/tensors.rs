//! The tensors of safetensors files by name: plain f32, f16 and bf16, and MLX's affine quantization.

use super::Files;
use crate::models::{Error, Result};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, BTreeSet};

/// Element type of plain tensors and of a quantized tensor's scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    F32,
    F16,
    Bf16,
}

impl Element {
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The value of element `index` of little-endian `bytes`.
    pub fn get(self, bytes: &[u8], index: usize) -> f32 {
        let two = || [bytes[index * 2], bytes[index * 2 + 1]];
        match self {
            Self::F32 => f32::from_le_bytes(bytes[index * 4..index * 4 + 4].try_into().expect("four bytes")),
            Self::F16 => f16::from_le_bytes(two()).to_f32(),
            Self::Bf16 => bf16::from_le_bytes(two()).to_f32(),
        }
    }
}

/// How MLX quantized a model: `w = q * scale + bias` with one scale and bias per group of inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantization {
    pub bits: usize,
    pub group: usize,
}

/// A weight of `rows` outputs and `columns` inputs, as it lies in the file.
pub enum Matrix<'a> {
    Plain { rows: usize, columns: usize, element: Element, data: &'a [u8] },
    Quantized(Quantized<'a>),
}

/// MLX affine: each row is a little-endian stream of `bits`-wide integers in 32-bit words.
pub struct Quantized<'a> {
    pub rows: usize,
    pub columns: usize,
    pub quantization: Quantization,
    pub words: &'a [u8],
    pub element: Element,
    pub scales: &'a [u8],
    pub biases: &'a [u8],
}

struct Tensor<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    data: &'a [u8],
    file: String,
}

/// One parameter of a network, as its files must have it. A matrix is named without its `.weight`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parameter {
    Vector { name: String, length: usize },
    Matrix { base: String, rows: usize, columns: usize },
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
}

impl<'a> Tensors<'a> {
    pub fn open(files: &'a Files) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (file, bytes) in files.weights() {
            let parsed = SafeTensors::deserialize(bytes).map_err(|e| Error::file(file, "header", e))?;
            for (name, view) in parsed.iter() {
                let tensor = Tensor { dtype: view.dtype(), shape: view.shape().to_vec(), data: view.data(), file: file.to_owned() };
                if tensors.insert(name.to_owned(), tensor).is_some() {
                    return Err(Error::file(file, name, "this tensor is in two files"));
                }
            }
        }
        Ok(Self { tensors })
    }

    /// Every parameter must be there and every tensor must be one of them: a model with random parts must not load.
    pub fn expect(&self, parameters: &[Parameter]) -> Result<()> {
        let mut expected = BTreeSet::new();
        for parameter in parameters {
            match parameter {
                Parameter::Vector { name, .. } => expected.insert(name.clone()),
                Parameter::Matrix { base, .. } => {
                    if self.contains(&format!("{base}.scales")) {
                        expected.extend([format!("{base}.scales"), format!("{base}.biases")]);
                    }
                    expected.insert(format!("{base}.weight"))
                }
            };
        }
        let missing: Vec<_> = expected.iter().filter(|name| !self.contains(name)).cloned().collect();
        let unexpected: Vec<_> = self.tensors.keys().filter(|name| !expected.contains(*name)).cloned().collect();
        if missing.is_empty() && unexpected.is_empty() { Ok(()) } else { Err(Error::Weights { missing, unexpected }) }
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The element type of most tensors, in lower case, such as "bf16".
    pub fn element_name(&self) -> String {
        let mut counts = BTreeMap::new();
        self.tensors.values().for_each(|tensor| *counts.entry(format!("{:?}", tensor.dtype)).or_insert(0) += 1);
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name.to_lowercase()).unwrap_or_default()
    }

    pub fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        let (element, data) = self.plain(name, &[length])?;
        Ok((0..length).map(|i| element.get(data, i)).collect())
    }

    /// The weight `{base}.weight`: quantized when `{base}.scales` is there too, which `quantization` then explains.
    pub fn matrix(&self, base: &str, rows: usize, columns: usize, quantization: Option<Quantization>) -> Result<Matrix<'a>> {
        let weight = format!("{base}.weight");
        let scales = format!("{base}.scales");
        if !self.contains(&scales) {
            let (element, data) = self.plain(&weight, &[rows, columns])?;
            return Ok(Matrix::Plain { rows, columns, element, data });
        }
        let quantization =
            quantization.ok_or_else(|| self.error(&scales, "this tensor is quantized, but config.json has no \"quantization\" for it"))?;
        let Quantization { bits, group } = quantization;
        if !columns.is_multiple_of(group) || !(columns * bits).is_multiple_of(32) {
            return Err(self.error(&weight, format!("{columns} inputs are not whole groups of {group} and whole words of {bits} bits")));
        }
        let words = self.get(&weight, &[rows, columns * bits / 32], Dtype::U32)?;
        let (element, scales) = self.plain(&scales, &[rows, columns / group])?;
        let biases = format!("{base}.biases");
        let (other, bias_data) = self.plain(&biases, &[rows, columns / group])?;
        if other != element {
            return Err(self.error(&biases, "not of its scales' element type"));
        }
        Ok(Matrix::Quantized(Quantized { rows, columns, quantization, words, element, scales, biases: bias_data }))
    }

    fn plain(&self, name: &str, shape: &[usize]) -> Result<(Element, &'a [u8])> {
        let (element, dtype) = match self.tensors.get(name).map(|tensor| tensor.dtype) {
            Some(Dtype::F16) => (Element::F16, Dtype::F16),
            Some(Dtype::BF16) => (Element::Bf16, Dtype::BF16),
            _ => (Element::F32, Dtype::F32),
        };
        Ok((element, self.get(name, shape, dtype)?))
    }

    fn get(&self, name: &str, shape: &[usize], dtype: Dtype) -> Result<&'a [u8]> {
        let tensor = self.tensors.get(name).ok_or_else(|| Error::Weights { missing: vec![name.to_owned()], unexpected: vec![] })?;
        if tensor.shape != shape {
            return Err(self.error(name, format!("shape {:?} where {shape:?} is expected", tensor.shape)));
        }
        if tensor.dtype != dtype {
            return Err(self.error(name, format!("element type {:?} where {dtype:?} is expected", tensor.dtype)));
        }
        Ok(tensor.data)
    }

    fn error(&self, name: &str, reason: impl ToString) -> Error {
        Error::file(self.tensors.get(name).map_or("*.safetensors", |tensor| &tensor.file), name, reason)
    }
}
