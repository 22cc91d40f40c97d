//! The operations of a step that are divided among threads.

pub(super) mod attention;
pub(super) mod linear;
