//! The load of other processes during a measurement, and a description of the machine.

use std::fs;

/// A sample is quiet when other processes used at most this many processors.
const OTHER_LOAD_MAX: f64 = 0.3;

/// Processor time since boot, in clock ticks.
#[derive(Clone, Copy)]
struct Ticks {
    all: f64,
    idle: f64,
    /// CPU time of this process and of its children that have ended.
    ours: f64,
    processors: f64,
}

impl Ticks {
    fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/stat").ok()?, &fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn parse(machine: &str, own: &str) -> Option<Self> {
        // user, nice, system, idle, iowait, irq, softirq, steal. The fields after these are included in them.
        let fields: Vec<f64> = numbers(machine.lines().next()?).take(8).collect();
        let idle = fields.get(3)? + fields.get(4)?;
        // Fields 14 to 17: utime, stime, cutime, cstime.
        let ours = fields_after_name(own).skip(14 - FIRST_FIELD).take(4).sum();
        let processors = machine.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count() as f64;
        Some(Self { all: fields.iter().sum(), idle, ours, processors })
    }

    /// Processors used by other processes between two readings.
    fn others(self, later: Self) -> f64 {
        let (all, idle, ours) = (later.all - self.all, later.idle - self.idle, later.ours - self.ours);
        ((all - idle - ours) / all.max(1.0) * later.processors).max(0.0)
    }
}

/// The number, from 1, of the first field after the process name and state in `/proc/PID/stat` (proc(5)). The name can
/// contain anything, but the last `)` ends it.
const FIRST_FIELD: usize = 4;

fn fields_after_name(stat: &str) -> impl Iterator<Item = f64> {
    numbers(stat.rsplit_once(')').map_or("", |(_, rest)| rest))
}

fn numbers(line: &str) -> impl Iterator<Item = f64> {
    line.split_whitespace().filter_map(|word| word.parse().ok())
}

/// Measures the load of other processes since its start.
pub(super) struct LoadMeter(Option<Ticks>);

impl LoadMeter {
    pub(super) fn start() -> Self {
        Self(Ticks::now())
    }

    /// Processors used by other processes since the start. `None` where the system does not report it.
    pub(super) fn others(&self) -> Option<f64> {
        Some(self.0?.others(Ticks::now()?))
    }

    /// Whether other load was low. Unknown load counts as low.
    pub(super) fn is_quiet(others: Option<f64>) -> bool {
        others.is_none_or(|others| others <= OTHER_LOAD_MAX)
    }
}

/// The number of processors available to this process.
pub(super) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// For example "AMD EPYC (family 25 model 1), 2 processors".
pub(super) fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value =
        |key: &str| info.lines().find_map(|line| line.split_once(':').filter(|(name, _)| name.trim() == key)).map(|(_, v)| v.trim());
    let name = value("model name").unwrap_or("unknown processor");
    let kind = match (value("cpu family"), value("model")) {
        (Some(family), Some(model)) => format!(" (family {family} model {model})"),
        _ => String::new(),
    };
    format!("{name}{kind}, {} processors{}", processors(), if is_real_time() { ", real-time priority" } else { "" })
}

/// Whether this process has a real-time scheduling policy, as set by `chrt -f`.
fn is_real_time() -> bool {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Field 41 is the scheduling policy: 1 is SCHED_FIFO, 2 is SCHED_RR.
    fields_after_name(&stat).nth(41 - FIRST_FIELD).is_some_and(|policy| policy == 1.0 || policy == 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_load_is_neither_idle_nor_ours() {
        let machine = |user: u32, idle: u32, steal: u32| format!("cpu  {user} 0 100 {idle} 50 1 2 {steal} 9 9\ncpu0 1\ncpu1 1\nintr 7\n");
        let own = |user: u32, children: u32| format!("7 (a) 1 b) S 1 7 7 0 -1 4 9 9 9 9 {user} 10 {children} 5 20 0 3 0 1 1\n");
        let before = Ticks::parse(&machine(1000, 500, 0), &own(100, 0)).expect("whole");
        // 400 ticks on two processors: 100 idle, 200 ours, 100 of others (20 of them stolen by the hypervisor).
        let after = Ticks::parse(&machine(1280, 600, 20), &own(150, 150)).expect("whole");
        assert_eq!(before.others(after), 0.5);
        assert!(Ticks::parse("cpu  1 2\n", "").is_none());
    }
}
