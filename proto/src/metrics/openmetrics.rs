//! The text that Prometheus scrapes: OpenMetrics 1.0, the only one of its formats in which buckets name exemplars.

use std::fmt::{self, Write as _};

use super::{Exemplar, Family, Kind, Point, Reading, Registry, Sample};

/// The `Content-Type` of [`Registry::openmetrics`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Registry {
    /// All metrics as they are now.
    pub fn openmetrics(&self) -> String {
        let mut text = String::new();
        for family in self.families() {
            // Writing to a String does not fail.
            let _ = write_family(&mut text, family);
        }
        text.push_str("# EOF\n");
        text
    }
}

fn write_family(text: &mut String, family: &Family) -> fmt::Result {
    let Family { name, help, kind, .. } = family;
    let kind_text = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    writeln!(text, "# TYPE {name} {kind_text}")?;
    if let Some(unit) = family.unit() {
        writeln!(text, "# UNIT {name} {unit}")?;
    }
    writeln!(text, "# HELP {name} {}", escaped(help))?;
    for Sample { labels, point } in family.read() {
        match point {
            Point::Number(value) => {
                let suffix = if *kind == Kind::Counter { "_total" } else { "" };
                write!(text, "{name}{suffix}")?;
                write_labels(text, &labels, None)?;
                writeln!(text, " {value}")?;
            }
            Point::Histogram(reading) => write_histogram(text, name, &labels, &reading)?,
        }
    }
    Ok(())
}

fn write_histogram(
    text: &mut String,
    name: &str,
    labels: &[(&'static str, String)],
    reading: &Reading,
) -> fmt::Result {
    let uppers = reading.uppers.iter().copied().chain([f64::INFINITY]);
    let mut so_far = 0;
    for ((upper, count), exemplar) in uppers.zip(&reading.counts).zip(&reading.exemplars) {
        so_far += count;
        write!(text, "{name}_bucket")?;
        let upper = if upper.is_finite() { format!("{upper:?}") } else { "+Inf".to_owned() };
        write_labels(text, labels, Some(("le", &upper)))?;
        write!(text, " {so_far}")?;
        if let Some(Exemplar { value, trace, at }) = exemplar {
            let (seconds, millis) = (at.div_euclid(1000), at.rem_euclid(1000));
            write!(text, " # {{trace_id=\"{trace}\"}} {value} {seconds}.{millis:03}")?;
        }
        text.push('\n');
    }
    for (suffix, value) in [("count", so_far.to_string()), ("sum", reading.sum.to_string())] {
        write!(text, "{name}_{suffix}")?;
        write_labels(text, labels, None)?;
        writeln!(text, " {value}")?;
    }
    Ok(())
}

fn write_labels(
    text: &mut String,
    labels: &[(&'static str, String)],
    more: Option<(&str, &str)>,
) -> fmt::Result {
    let all = labels.iter().map(|(name, value)| (*name, value.as_str())).chain(more);
    let mut before = "{";
    for (name, value) in all {
        write!(text, "{before}{name}=\"{}\"", escaped(value))?;
        before = ",";
    }
    if before == "," {
        text.push('}');
    }
    Ok(())
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}
