//! Model files and their tensors. A tensor that is missing, unexpected or of the wrong shape is an error that names it.

mod files;
mod ggml_block;
mod gguf;
mod memory;
mod tensor_type;
mod tensors;

pub use files::{Files, HfFiles, ModelFormat};
pub use ggml_block::{Affine, GgmlBlock};
pub use gguf::{Array, Gguf, HeaderLen, TensorInfo, Value};
pub use memory::{check_memory, free_memory};
pub use tensor_type::{FloatType, TensorType};
pub use tensors::{Matrix, Parameter, Quantization, Quantized, Tensors};
