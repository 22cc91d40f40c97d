//! Figures: medians with least and most, ratios, and the table of all ratios.

use super::machine_load::LoadMeter;
use serde_json::{Value, json};
use std::fmt;

pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => f64::NAN,
        (count, half) if count % 2 == 0 => f64::midpoint(values[half - 1], values[half]),
        (_, half) => values[half],
    }
}

/// One measurement, and how many processors others had meanwhile, where the system tells.
#[derive(Clone, Copy)]
pub(super) struct Sample {
    pub(super) value: f64,
    pub(super) others: Option<f64>,
}

impl Sample {
    fn is_quiet(&self) -> bool {
        LoadMeter::quiet(self.others)
    }
}

/// Everything that was measured of one thing.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) unit: &'static str,
    pub(super) samples: Vec<Sample>,
}

impl Series {
    pub(super) fn quiet(&self) -> usize {
        self.samples.iter().filter(|sample| sample.is_quiet()).count()
    }

    /// Whether it is measured in this round, from 0: in the first ones, and then in place of what had company.
    pub(super) fn is_due(&self, round: usize, rounds: usize) -> bool {
        round < rounds || self.quiet() < rounds
    }

    pub(super) fn figure(&self) -> Figure {
        let marked = self.quiet() == 0;
        let mut values: Vec<f64> = self.samples.iter().filter(|sample| marked || sample.is_quiet()).map(|sample| sample.value).collect();
        let median = median(&mut values);
        Figure {
            median,
            least: values[0],
            most: values[values.len() - 1],
            of: values.len(),
            left_out: self.samples.len() - values.len(),
            marked,
        }
    }

    pub(super) fn json(&self) -> Value {
        let samples = self.samples.iter().map(|s| json!({ "value": s.value, "others": s.others, "quiet": s.is_quiet() }));
        let Figure { median, least, most, of, marked, .. } = self.figure();
        json!({ "name": self.name, "unit": self.unit, "median": median, "least": least, "most": most, "of": of, "beside_load": marked,
            "samples": samples.collect::<Vec<_>>() })
    }
}

/// The median of the quiet samples; where there is none, of all, and marked.
pub(super) struct Figure {
    pub(super) median: f64,
    least: f64,
    most: f64,
    of: usize,
    left_out: usize,
    pub(super) marked: bool,
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figure { median, least, most, of, left_out, marked } = self.figure();
        let mark = if marked { '*' } else { ' ' };
        write!(f, "{:<44} {median:>9.2}{mark} {:<10} ({least:.2} to {most:.2} of {of}", self.name, self.unit)?;
        if left_out > 0 {
            write!(f, "; {left_out} beside load left out")?;
        }
        write!(f, ")")
    }
}

/// One median by another.
pub(super) struct Ratio {
    pub(super) name: &'static str,
    pub(super) model: String,
    pub(super) threads: usize,
    pub(super) value: f64,
    /// One of the two was measured beside other load.
    pub(super) marked: bool,
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2}{}", self.value, if self.marked { "*" } else { "" })
    }
}

/// Markdown: a row for each ratio, a column for each model, and in a cell the ratios by threads.
pub(super) fn table(ratios: &[Ratio]) -> String {
    let distinct = |of: &dyn Fn(&Ratio) -> String| {
        let mut all: Vec<String> = Vec::new();
        ratios.iter().map(of).for_each(|word| {
            if !all.contains(&word) {
                all.push(word)
            }
        });
        all
    };
    let models = distinct(&|ratio| ratio.model.clone());
    let mut lines = vec![format!("| ratio, by threads | {} |", models.join(" | ")), format!("|---|{}", "---|".repeat(models.len()))];
    for name in distinct(&|ratio| ratio.name.into()) {
        let cell = |model: &String| {
            let of = ratios.iter().filter(|ratio| ratio.name == name && ratio.model == *model);
            of.map(|ratio| format!("{}: {ratio}", ratio.threads)).collect::<Vec<_>>().join(", ")
        };
        lines.push(format!("| {name} | {} |", models.iter().map(cell).collect::<Vec<_>>().join(" | ")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(samples: &[(f64, f64)]) -> Series {
        let samples = samples.iter().map(|&(value, others)| Sample { value, others: Some(others) }).collect();
        Series { name: "decode".into(), unit: "tokens/s", samples }
    }

    #[test]
    fn what_was_measured_beside_load_is_left_out() {
        let some = series(&[(5.0, 0.1), (1.0, 0.9), (7.0, 0.0), (6.0, 0.2)]);
        assert_eq!((some.figure().median, some.figure().marked), (6.0, false));
        assert!(some.to_string().ends_with("(5.00 to 7.00 of 3; 1 beside load left out)"), "{some}");
        let none = series(&[(5.0, 0.4), (1.0, 0.9)]);
        assert_eq!((none.figure().median, none.figure().marked), (3.0, true));
        assert!(none.to_string().contains("3.00* tokens/s   (1.00 to 5.00 of 2)"), "{none}");
    }

    #[test]
    fn what_had_company_is_measured_again() {
        let (quiet, busy) = ((1.0, 0.1), (1.0, 0.9));
        assert!(series(&[quiet]).is_due(1, 2));
        assert!(!series(&[quiet, quiet]).is_due(2, 2));
        assert!(series(&[quiet, busy]).is_due(2, 2));
        // Also where nothing was quiet yet.
        assert!(series(&[busy, busy]).is_due(2, 2));
    }

    #[test]
    fn a_table_has_a_column_for_each_model() {
        let ratio = |name, model: &str, threads, value| Ratio { name, model: model.into(), threads, value, marked: threads == 2 };
        let ratios = [ratio("decode", "a", 1, 2.0), ratio("decode", "a", 2, 1.5), ratio("rows", "a", 2, 3.0), ratio("decode", "b", 1, 1.0)];
        let expected = "| ratio, by threads | a | b |\n|---|---|---|\n| decode | 1: 2.00, 2: 1.50* | 1: 1.00 |\n| rows | 2: 3.00* |  |";
        assert_eq!(table(&ratios), expected);
    }
}
