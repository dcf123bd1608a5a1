//! Two runs side by side.

use std::{
    fmt::{self, Display, Formatter},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::report::figure::Figure;

/// What is read of a result that `--json` has written.
#[derive(Debug, Deserialize)]
pub struct Run {
    /// What was done.
    pub what: String,
    /// Whether nothing was wrong.
    pub clean: bool,
    /// What matters.
    pub figures: Vec<Figure>,
}

/// Two runs.
#[derive(Debug)]
pub struct Comparison {
    /// The first.
    pub before: Run,
    /// The second.
    pub after: Run,
}

/// A figure of both runs, or of one that the other does not have.
type Row<'a> = (&'a Figure, Option<f64>, Option<f64>);

impl Comparison {
    /// Reads both.
    ///
    /// # Errors
    /// If one is not there or is no result.
    pub fn read(before: &Path, after: &Path) -> Result<Self> {
        Ok(Self { before: run(before)?, after: run(after)? })
    }

    /// In the first run's order, then what only the second has.
    fn rows(&self) -> Vec<Row<'_>> {
        let find = |run: &Run, name: &str| {
            run.figures.iter().find(|figure| figure.name == name).map(|figure| figure.value)
        };
        let both = self.before.figures.iter().map(|figure| {
            let after = find(&self.after, &figure.name);
            (figure, Some(figure.value), after)
        });
        let only_after = self.after.figures.iter().filter_map(|figure| {
            let is_new = find(&self.before, &figure.name).is_none();
            is_new.then_some((figure, None, Some(figure.value)))
        });
        both.chain(only_after).collect()
    }
}

fn run(file: &Path) -> Result<Run> {
    let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is no result", file.display()))
}

impl Display for Comparison {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (name, run) in [("before", &self.before), ("after", &self.after)] {
            let clean = if run.clean { "" } else { "  (NOT CLEAN)" };
            writeln!(f, "{name:<8}{}{clean}", run.what)?;
        }
        writeln!(f, "\n{:<40}{:>14}{:>14}{:>9}", "", "before", "after", "ratio")?;
        for (figure, before, after) in self.rows() {
            let number = |value: Option<f64>| value.map_or("-".into(), |n| format!("{n:.2}"));
            let ratio = match (before, after) {
                (Some(before), Some(after)) if before != 0.0 => format!("{:.3}", after / before),
                _ => "-".into(),
            };
            let name = format!("{}, {}", figure.name, figure.unit);
            writeln!(f, "{name:<40}{:>14}{:>14}{ratio:>9}", number(before), number(after))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_of(figures: &[(&str, f64)]) -> Run {
        let figures = figures.iter().map(|(name, value)| Figure::new(*name, *value, "ms"));
        Run { what: "x".into(), clean: true, figures: figures.collect() }
    }

    #[test]
    fn figures_are_matched_by_name_and_none_is_left_out() {
        let before = run_of(&[("p50", 2.0), ("gone", 1.0), ("none", 0.0)]);
        let after = run_of(&[("fresh", 7.0), ("none", 3.0), ("p50", 3.0)]);
        let comparison = Comparison { before, after };
        let text = comparison.to_string();
        let row = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_ascii_whitespace().skip(2).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(row("p50"), ["2.00", "3.00", "1.500"]);
        assert_eq!(row("gone"), ["1.00", "-", "-"]);
        assert_eq!(row("fresh"), ["-", "7.00", "-"]);
        assert_eq!(row("none"), ["0.00", "3.00", "-"]);
    }

    #[test]
    fn what_is_no_result_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Comparison::read(file.path(), file.path()).unwrap_err();
        assert!(error.to_string().contains(file.path().to_str().unwrap()), "{error}");
    }
}
