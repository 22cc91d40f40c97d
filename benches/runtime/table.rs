//! Rows of medians with their range, and a warning when other processes use the machine.

use std::time::Duration;

pub(crate) fn row(what: &str, mut values: Vec<f64>, unit: &str) {
    values.sort_by(f64::total_cmp);
    let (minimum, maximum) = (values[0], values[values.len() - 1]);
    println!("  {what:<58} {:>8.2} {unit:<9} ({minimum:.2} to {maximum:.2} of {})", values[values.len() / 2], values.len());
}

pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

pub(crate) fn p99(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() * 99).div_ceil(100) - 1]
}

/// Measures the CPU use of the machine while this bench sleeps, and warns above 10 %.
pub(crate) fn warn_of_other_load() {
    let ticks = || {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        let fields: Vec<f64> = stat.lines().next()?.split_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
        Some((fields[3] + fields[4], fields.iter().sum::<f64>()))
    };
    let before = ticks();
    std::thread::sleep(Duration::from_millis(400));
    let (Some((idle, all)), Some((idle_after, all_after))) = (before, ticks()) else { return };
    let busy = 1.0 - (idle_after - idle) / (all_after - all).max(1.0);
    if busy > 0.1 {
        println!("  warning: other processes use {:.0} % of this machine; these figures are provisional", busy * 100.0);
    }
}
