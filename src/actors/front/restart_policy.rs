//! Restart intensity and back-off: how often a worker may die, and the delay before each restart.

use crate::config::RestartLimit;
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// The first death is likely an accident, so the restart delay is too short for a user to notice.
const BACK_OFF_FIRST: Duration = Duration::from_millis(50);
/// A user would take a longer delay for a hang.
const BACK_OFF_MAX: Duration = Duration::from_secs(2);

pub(super) struct RestartPolicy {
    limit: RestartLimit,
    /// Deaths within the period, oldest first; at most one more than the limit.
    deaths: VecDeque<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    RestartAfter(Duration),
    GiveUp,
}

impl RestartPolicy {
    pub(super) fn new(limit: RestartLimit) -> Self {
        Self { limit, deaths: VecDeque::new() }
    }

    /// Old deaths expire only if the worker `was_ready` since the last one: a model that always dies while it loads reaches the
    /// limit even if each load takes longer than the period.
    pub(super) fn on_death(&mut self, now: Instant, was_ready: bool) -> Decision {
        let period = self.limit.period;
        if was_ready {
            self.deaths.retain(|&death| now.duration_since(death) < period);
        }
        self.deaths.push_back(now);
        let deaths = self.deaths.len() as u32;
        if deaths > self.limit.deaths {
            self.deaths.clear();
            return Decision::GiveUp;
        }
        let doubled = BACK_OFF_FIRST.saturating_mul(2u32.saturating_pow(deaths - 1));
        Decision::RestartAfter(doubled.min(BACK_OFF_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_and_deaths_count_within_the_period() {
        let limit = RestartLimit { deaths: 8, period: Duration::from_secs(30) };
        let mut policy = RestartPolicy::new(limit);
        let start = Instant::now();
        let waits: Vec<_> = (0..8).map(|second| policy.on_death(start + Duration::from_secs(second), true)).collect();
        let expected = [50, 100, 200, 400, 800, 1600, 2000, 2000].map(|ms| Decision::RestartAfter(Duration::from_millis(ms)));
        assert_eq!(waits, expected);
        // The first two deaths are now older than the period.
        assert_eq!(policy.on_death(start + Duration::from_millis(31_500), true), Decision::RestartAfter(BACK_OFF_MAX));
        assert_eq!(policy.on_death(start + Duration::from_millis(31_600), true), Decision::RestartAfter(BACK_OFF_MAX));
        assert_eq!(policy.on_death(start + Duration::from_millis(31_700), true), Decision::GiveUp);
        assert_eq!(policy.on_death(start + Duration::from_millis(31_800), true), Decision::RestartAfter(BACK_OFF_FIRST));
    }

    #[test]
    fn repeated_deaths_during_load_reach_the_limit_however_slow_the_loads_are() {
        let mut policy = RestartPolicy::new(RestartLimit { deaths: 2, period: Duration::from_secs(30) });
        let start = Instant::now();
        let mut died = |minutes: u64, was_ready| policy.on_death(start + Duration::from_secs(60 * minutes), was_ready);
        assert_eq!([died(0, false), died(1, false)], [50, 100].map(|ms| Decision::RestartAfter(Duration::from_millis(ms))));
        assert_eq!(died(2, false), Decision::GiveUp);
        assert_eq!([died(3, false), died(4, true)], [Decision::RestartAfter(BACK_OFF_FIRST); 2]);
    }
}
