//! The parser against files that are made to break it.
