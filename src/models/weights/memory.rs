//! Free memory, checked before a model's weights are read.

use crate::models::{Error, Result};
use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// # Errors
/// `Memory` if `needed` bytes are more than `free`. Nothing is checked if `free` is unknown.
pub fn check_memory(needed: u64, free: Option<u64>) -> Result<()> {
    match free {
        Some(free) if needed > free => Err(Error::Memory { needed, free }),
        _ => Ok(()),
    }
}

/// Bytes that this process may still allocate: Linux's `MemAvailable`, limited by the process's cgroups. `None` on other
/// systems.
pub fn free_memory() -> Option<u64> {
    let available = number_after(&read_to_string("/proc/meminfo").ok()?, "MemAvailable:")? << 10;
    let groups = read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(memory_cgroups(&groups).iter().filter_map(|group| group.bytes_left()).fold(available, u64::min))
}

/// The folder of a cgroup and the names of its files for limit, usage and statistics.
#[derive(Debug, PartialEq, Eq)]
struct Cgroup {
    folder: PathBuf,
    files: [&'static str; 3],
}

impl Cgroup {
    fn bytes_left(&self) -> Option<u64> {
        let [max, current, stat] = self.files.map(|file| read_to_string(self.folder.join(file)).ok());
        bytes_left(&max?, &current?, &stat?)
    }
}

/// The memory cgroups of `/proc/self/cgroup`, versions 1 and 2, with all their ancestors.
fn memory_cgroups(groups: &str) -> Vec<Cgroup> {
    let mut all = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, files) = match controllers {
            "" => ("/sys/fs/cgroup", ["memory.max", "memory.current", "memory.stat"]),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                ("/sys/fs/cgroup/memory", ["memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"])
            }
            _ => continue,
        };
        let inside = |group: &Path| Path::new(root).join(group.strip_prefix("/").unwrap_or(group));
        all.extend(Path::new(path).ancestors().map(|group| Cgroup { folder: inside(group), files }));
    }
    all
}

/// Bytes that a cgroup still allows, from the contents of its files; `None` if it has no limit.
fn bytes_left(max: &str, current: &str, stat: &str) -> Option<u64> {
    // Without a limit, the file contains the word `max`, which does not parse.
    let max: u64 = max.trim().parse().ok()?;
    let current: u64 = current.trim().parse().ok()?;
    // The page cache of files counts as usage but is reclaimed on demand.
    let reclaimable = number_after(stat, "inactive_file").unwrap_or(0);
    Some(max.saturating_sub(current.saturating_sub(reclaimable)))
}

/// The number in the line that starts with `name`.
fn number_after(lines: &str, name: &str) -> Option<u64> {
    let mut words = lines.lines().map(str::split_ascii_whitespace).find_map(|mut words| (words.next() == Some(name)).then_some(words))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_matched_by_its_whole_name() {
        let info = "MemTotal:       24000000 kB\nMemAvailable:   22000000 kB\n";
        assert_eq!(number_after(info, "MemAvailable:"), Some(22_000_000));
        assert_eq!(number_after(info, "Mem"), None);
    }

    #[test]
    fn ancestors_of_a_cgroup_are_included() {
        let memory_cgroups = |text| memory_cgroups(text).into_iter().map(|group| group.folder).collect::<Vec<_>>();
        let new = ["/sys/fs/cgroup/user.slice/a", "/sys/fs/cgroup/user.slice", "/sys/fs/cgroup/"].map(PathBuf::from);
        assert_eq!(memory_cgroups("0::/user.slice/a\n"), new);
        let old = ["/sys/fs/cgroup/memory/box", "/sys/fs/cgroup/memory/"].map(PathBuf::from);
        assert_eq!(memory_cgroups("9:cpu,cpuacct:/box\n5:memory:/box\n"), old);
    }

    #[test]
    fn inactive_page_cache_does_not_count_as_usage() {
        assert_eq!(bytes_left("1000\n", "900\n", "anon 300\ninactive_file 500\n"), Some(600));
        assert_eq!(bytes_left("1000\n", "1900\n", ""), Some(0));
        assert_eq!(bytes_left("max\n", "900\n", "inactive_file 500\n"), None);
    }
}
