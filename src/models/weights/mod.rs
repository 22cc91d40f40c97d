//! A model's files and the tensors in them, checked before use and taken strictly: what is missing,
//! left over or of the wrong shape is an error that names it.

mod blocks;
mod files;
mod gguf;
mod memory;
mod stored;
mod tensors;

pub use blocks::{Affine, Block};
pub use files::{About, Files, Json};
pub use gguf::{Gguf, Info, List, Value};
pub use memory::{check_memory, free_memory};
pub use stored::Stored;
pub use tensors::{Element, Matrix, Parameter, Quantization, Quantized, Tensors};
