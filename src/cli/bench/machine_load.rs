//! Whether others use the processors while something is measured, and what machine this is.

use std::fs;

/// More than so many processors in other hands, and a figure says little.
const OTHERS_MAX: f64 = 0.3;

/// Processor time of a moment, in ticks.
#[derive(Clone, Copy)]
struct Ticks {
    all: f64,
    idle: f64,
    /// Of this process and of those that it started and waited for.
    ours: f64,
    processors: f64,
}

impl Ticks {
    fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/stat").ok()?, &fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn parse(machine: &str, own: &str) -> Option<Self> {
        // user, nice, system, idle, waiting, irq, softirq, steal; what follows is counted in these already.
        let fields: Vec<f64> = numbers(machine.lines().next()?).take(8).collect();
        let idle = fields.get(3)? + fields.get(4)?;
        // The 14th to the 17th: user and system, its own and its children's.
        let ours = behind_name(own).skip(14 - FIRST).take(4).sum();
        let processors = machine.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count() as f64;
        Some(Self { all: fields.iter().sum(), idle, ours, processors })
    }

    /// Processors that others had between the two.
    fn others(self, later: Self) -> f64 {
        let (all, idle, ours) = (later.all - self.all, later.idle - self.idle, later.ours - self.ours);
        ((all - idle - ours) / all.max(1.0) * later.processors).max(0.0)
    }
}

/// The fields of a process's `stat` from this one on, counted from 1: before it are its name, which may hold anything
/// but ends with `)`, and a letter.
const FIRST: usize = 4;

fn behind_name(stat: &str) -> impl Iterator<Item = f64> {
    numbers(stat.rsplit_once(')').map_or("", |(_, rest)| rest))
}

fn numbers(line: &str) -> impl Iterator<Item = f64> {
    line.split_whitespace().filter_map(|word| word.parse().ok())
}

/// Looks at the machine's load from its making on.
pub(super) struct LoadMeter(Option<Ticks>);

impl LoadMeter {
    pub(super) fn start() -> Self {
        Self(Ticks::now())
    }

    /// Processors that others had since. `None` where the system does not tell.
    pub(super) fn others(&self) -> Option<f64> {
        Some(self.0?.others(Ticks::now()?))
    }

    /// Whether nobody else was there; a system that does not tell is believed.
    pub(super) fn quiet(others: Option<f64>) -> bool {
        others.is_none_or(|others| others <= OTHERS_MAX)
    }
}

/// Those that this process may use.
pub(super) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Such as "AMD EPYC (family 25 model 1), 2 processors".
pub(super) fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value =
        |key: &str| info.lines().find_map(|line| line.split_once(':').filter(|(name, _)| name.trim() == key)).map(|(_, v)| v.trim());
    let name = value("model name").unwrap_or("a processor without a name");
    let kind = match (value("cpu family"), value("model")) {
        (Some(family), Some(model)) => format!(" (family {family} model {model})"),
        _ => String::new(),
    };
    format!("{name}{kind}, {} processors{}", processors(), if first_in_line() { ", ahead of all others (real-time priority)" } else { "" })
}

/// Whether this process runs before ordinary ones, as `chrt -f` makes it.
fn first_in_line() -> bool {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The 41st is the policy: 1 is first in, first out; 2 is in turns.
    behind_name(&stat).nth(41 - FIRST).is_some_and(|policy| policy == 1.0 || policy == 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_had_what_was_neither_idle_nor_ours() {
        let machine = |user: u32, idle: u32, steal: u32| format!("cpu  {user} 0 100 {idle} 50 1 2 {steal} 9 9\ncpu0 1\ncpu1 1\nintr 7\n");
        let own = |user: u32, children: u32| format!("7 (a) 1 b) S 1 7 7 0 -1 4 9 9 9 9 {user} 10 {children} 5 20 0 3 0 1 1\n");
        let before = Ticks::parse(&machine(1000, 500, 0), &own(100, 0)).expect("whole");
        // Of 400 ticks of two processors 100 were idle, 200 ours and 100 another's, 20 of them another machine's.
        let after = Ticks::parse(&machine(1280, 600, 20), &own(150, 150)).expect("whole");
        assert_eq!(before.others(after), 0.5);
        assert!(Ticks::parse("cpu  1 2\n", "").is_none());
    }
}
