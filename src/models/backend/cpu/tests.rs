//! Kernels against their reference.
