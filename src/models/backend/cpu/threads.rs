//! The default number of compute threads.

use std::collections::BTreeSet;

/// The physical cores that this process may use. Two hardware threads of one core share its arithmetic units and its
/// bandwidth to memory, so a second thread per core gains nothing.
pub(super) fn cores() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    processors.min(siblings().and_then(count_distinct).unwrap_or(processors))
}

/// For each processor in the affinity mask, the list of those that share its core (Linux sysfs); `None` if unreadable.
#[cfg(target_os = "linux")]
fn siblings() -> Option<impl Iterator<Item = Option<String>>> {
    let mask = rustix::thread::sched_getaffinity(None).ok()?;
    let processors = (0..rustix::thread::CpuSet::MAX_CPU).filter(move |&processor| mask.is_set(processor));
    let list = |processor| format!("/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list");
    Some(processors.map(move |processor| std::fs::read_to_string(list(processor)).ok()))
}

#[cfg(not(target_os = "linux"))]
fn siblings() -> Option<std::iter::Empty<Option<String>>> {
    None
}

/// `None` if any list is missing.
fn count_distinct(siblings: impl Iterator<Item = Option<String>>) -> Option<usize> {
    siblings.collect::<Option<BTreeSet<_>>>().map(|cores| cores.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_threads_of_one_core_count_once() {
        let some = |lists: &[&str]| count_distinct(lists.iter().map(|list| Some((*list).to_owned())));
        assert_eq!((some(&["0,2\n", "1,3\n", "0,2\n", "1,3\n"]), some(&["0\n", "1\n"])), (Some(2), Some(2)));
        assert_eq!(count_distinct([Some("0\n".into()), None].into_iter()), None);
        assert!((1..=std::thread::available_parallelism().map_or(1, usize::from)).contains(&cores()));
    }
}
