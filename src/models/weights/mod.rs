//! A model's files and the tensors in them, checked before use and taken strictly: what is missing,
//! left over or of the wrong shape is an error that names it.

mod files;
mod memory;
mod tensors;

pub use files::Files;
pub use memory::check_memory;
pub use tensors::{Element, Matrix, Parameter, Quantization, Quantized, Tensors};
