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
        let stat = fs::read_to_string("/proc/stat").ok()?;
        // user, nice, system, idle, waiting, irq, softirq, steal; what follows is counted in these already.
        let fields: Vec<f64> = numbers(stat.lines().next()?).take(8).collect();
        let own = fs::read_to_string("/proc/self/stat").ok()?;
        // The 14th to the 17th: user and system, its own and its children's.
        let ours = behind_name(&own).skip(14 - FIRST).take(4).sum();
        let processors = stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count() as f64;
        Some(Self { all: fields.iter().sum(), idle: fields[3] + fields[4], ours, processors })
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
pub(super) struct Watch(Option<Ticks>);

impl Watch {
    pub(super) fn start() -> Self {
        Self(Ticks::now())
    }

    /// Processors that others had since. `None` where the system does not tell.
    pub(super) fn others(&self) -> Option<f64> {
        let (before, now) = (self.0?, Ticks::now()?);
        let (all, idle, ours) = (now.all - before.all, now.idle - before.idle, now.ours - before.ours);
        Some(((all - idle - ours) / all.max(1.0) * now.processors).max(0.0))
    }

    /// Whether nobody else was there; a system that does not tell is believed.
    pub(super) fn quiet(others: Option<f64>) -> bool {
        others.is_none_or(|others| others <= OTHERS_MAX)
    }
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
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{name}{kind}, {processors} processors{}", if first_in_line() { ", ahead of all others (real-time priority)" } else { "" })
}

/// Whether this process runs before ordinary ones, as `chrt -f` makes it.
fn first_in_line() -> bool {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The 41st is the policy: 1 is first in, first out; 2 is in turns.
    behind_name(&stat).nth(41 - FIRST).is_some_and(|policy| policy == 1.0 || policy == 2.0)
}
