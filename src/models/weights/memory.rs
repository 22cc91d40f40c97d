//! Does a model fit? Asked before its first tensor is read.

use crate::models::{Error, Result};

/// Fails with both numbers when `needed` bytes are more than the machine has free. Where the system doesn't
/// say what is free (anything but Linux), it is not checked.
pub fn check_memory(needed: u64) -> Result<()> {
    match free_bytes() {
        Some(free) if needed > free => Err(Error::Memory { needed, free }),
        _ => Ok(()),
    }
}

/// What Linux would give without swapping, and what the control group still allows.
fn free_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10;
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max").zip(number("/sys/fs/cgroup/memory.current"));
    Some(group.map_or(available, |(max, current)| available.min(max.saturating_sub(current))))
}
