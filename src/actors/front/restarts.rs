//! How often a child may die, and how long its parent waits before it makes a new one.

use crate::config::RestartLimit;
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// A first death is likely an accident, so the next life starts at once for a reader.
const BACK_OFF_FIRST: Duration = Duration::from_millis(50);
/// Longer would be taken for a hang.
const BACK_OFF_MAX: Duration = Duration::from_secs(2);

pub(super) struct Restarts {
    limit: RestartLimit,
    /// Those that count, oldest first; at most one more than the limit.
    deaths: VecDeque<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    RestartAfter(Duration),
    GiveUp,
}

impl Restarts {
    pub(super) fn new(limit: RestartLimit) -> Self {
        Self { limit, deaths: VecDeque::new() }
    }

    /// `lived`: it was well since the death before. Deaths of loads alone count however long a load takes.
    pub(super) fn died(&mut self, now: Instant, lived: bool) -> Verdict {
        let period = self.limit.period;
        if lived {
            self.deaths.retain(|&death| now.duration_since(death) < period);
        }
        self.deaths.push_back(now);
        let deaths = self.deaths.len() as u32;
        if deaths > self.limit.deaths {
            self.deaths.clear();
            return Verdict::GiveUp;
        }
        let doubled = BACK_OFF_FIRST.saturating_mul(2u32.saturating_pow(deaths - 1));
        Verdict::RestartAfter(doubled.min(BACK_OFF_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_and_the_limit_counts_within_its_period() {
        let limit = RestartLimit { deaths: 8, period: Duration::from_secs(30) };
        let mut restarts = Restarts::new(limit);
        let start = Instant::now();
        let waits: Vec<_> = (0..8).map(|second| restarts.died(start + Duration::from_secs(second), true)).collect();
        let expected = [50, 100, 200, 400, 800, 1600, 2000, 2000].map(|ms| Verdict::RestartAfter(Duration::from_millis(ms)));
        assert_eq!(waits, expected);
        // The first two are older than the period by now.
        assert_eq!(restarts.died(start + Duration::from_millis(31_500), true), Verdict::RestartAfter(BACK_OFF_MAX));
        assert_eq!(restarts.died(start + Duration::from_millis(31_600), true), Verdict::RestartAfter(BACK_OFF_MAX));
        assert_eq!(restarts.died(start + Duration::from_millis(31_700), true), Verdict::GiveUp);
        assert_eq!(restarts.died(start + Duration::from_millis(31_800), true), Verdict::RestartAfter(BACK_OFF_FIRST));
    }

    #[test]
    fn loads_that_die_slower_than_the_period_are_given_up_all_the_same() {
        let mut restarts = Restarts::new(RestartLimit { deaths: 2, period: Duration::from_secs(30) });
        let start = Instant::now();
        let mut died = |minutes: u64, lived| restarts.died(start + Duration::from_secs(60 * minutes), lived);
        assert_eq!([died(0, false), died(1, false)], [50, 100].map(|ms| Verdict::RestartAfter(Duration::from_millis(ms))));
        assert_eq!(died(2, false), Verdict::GiveUp);
        assert_eq!([died(3, false), died(4, true)], [Verdict::RestartAfter(BACK_OFF_FIRST); 2]);
    }
}
