//! A trace as a picture: a bar for each span, in a tree, coloured by who sent it.

use std::fmt::Write as _;

use crate::{otlp::Span, tree::Trace};

const WIDTH: f64 = 960.0;
/// Where the bars begin.
const LEFT: f64 = 430.0;
const RIGHT: f64 = 64.0;
const ROW: f64 = 26.0;
const TOP: f64 = 58.0;
/// Readable on white and on black.
const COLOURS: [&str; 6] = ["#2f81f7", "#d29922", "#3fb950", "#a371f7", "#db61a2", "#39c5cf"];

const STYLE: &str = "\
text{font:12px ui-sans-serif,system-ui,sans-serif;fill:#1f2328}\
.quiet{fill:#656d76}.grid{stroke:#d1d9e0}.paper{fill:#fff;stroke:#d1d9e0}.failed{fill:#cf222e}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.quiet{fill:#8d96a0}.grid{stroke:#30363d}\
.paper{fill:#0d1117;stroke:#30363d}.failed{fill:#ff7b72}}";

/// The picture, as an SVG document.
#[expect(clippy::cast_precision_loss, reason = "pixels")]
pub fn svg(trace: &Trace) -> String {
    let (start, duration) = (trace.start(), trace.duration().max(1));
    let scale = (WIDTH - LEFT - RIGHT) / duration as f64;
    let x = |at: u64| (at.saturating_sub(start) as f64).mul_add(scale, LEFT);
    let senders = senders(trace);
    let height = (trace.spans.len() as f64).mul_add(ROW, TOP + 12.0);
    let mut svg = String::new();
    // Writing to a string does not fail.
    let _ = write!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img"><title>A trace of {} spans in {}</title><style>{STYLE}</style><rect class="paper" x=".5" y=".5" width="{}" height="{}" rx="8"/>"#,
        trace.spans.len(),
        time(duration),
        WIDTH - 1.0,
        height - 1.0,
    );
    let mut at = 16.0;
    for (n, (_, name)) in senders.iter().enumerate() {
        let name = escaped(name);
        let _ = write!(
            svg,
            r#"<rect x="{at}" y="14" width="10" height="10" rx="2" fill="{}"/><text x="{}" y="23">{name}</text>"#,
            colour(n),
            at + 16.0,
        );
        at += (name.len() as f64).mul_add(6.6, 40.0);
    }
    for quarter in 0..=4_u64 {
        let (at, line) = (duration * quarter / 4, x(start + duration * quarter / 4));
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{line:.1}" x2="{line:.1}" y1="46" y2="{:.0}"/><text class="quiet" x="{line:.1}" y="42" text-anchor="middle">{}</text>"#,
            height - 8.0,
            time(at),
        );
    }
    for (n, (depth, span)) in trace.spans.iter().enumerate() {
        let y = (n as f64).mul_add(ROW, TOP);
        let sender = senders.iter().position(|(id, _)| id == instance(span)).unwrap_or(0);
        let (from, to) = (x(span.start), x(span.end));
        let failed = if span.error.is_some() { r#" class="failed""# } else { "" };
        let _ = write!(
            svg,
            r#"<g><title>{}</title><text x="{:.0}" y="{:.0}"{failed}>{} <tspan class="quiet">{}</tspan></text><rect x="{from:.1}" y="{:.0}" width="{:.1}" height="12" rx="2" fill="{}"/><text class="quiet" x="{:.1}" y="{:.0}">{}</text></g>"#,
            escaped(&told(span)),
            (*depth as f64).mul_add(14.0, 16.0),
            y + 14.0,
            escaped(short(&span.name)),
            span.kind.to_lowercase(),
            y + 4.0,
            (to - from).max(2.0),
            colour(sender),
            to.max(from + 2.0) + 5.0,
            y + 14.0,
            time(span.end.saturating_sub(span.start)),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Who sent spans, in order: instance and name. The sender's gateway and the recipient's may be the same.
fn senders(trace: &Trace) -> Vec<(String, String)> {
    let mut senders: Vec<(String, String)> = Vec::new();
    for (_, span) in &trace.spans {
        if senders.iter().all(|(id, _)| id != instance(span)) {
            let service = span.sender("service.name");
            let same = senders.iter().filter(|(_, name)| name.starts_with(service)).count();
            let number = if same == 0 { String::new() } else { format!(" {}", same + 1) };
            senders.push((instance(span).to_owned(), format!("{service}{number}")));
        }
    }
    senders
}

fn instance(span: &Span) -> &str {
    span.sender("service.instance.id")
}

fn colour(sender: usize) -> &'static str {
    COLOURS.get(sender % COLOURS.len()).copied().unwrap_or("#888")
}

/// What a span says besides its name.
fn told(span: &Span) -> String {
    let about = span.attributes.iter().map(|(key, value)| format!("{key} = {value}"));
    let links = span.links.iter().map(|(_, id)| format!("links to {id}"));
    let error = span.error.iter().map(|error| format!("failed: {error}"));
    error.chain(about).chain(links).fold(span.name.clone(), |text, line| text + "\n" + &line)
}

fn short(name: &str) -> &str {
    name.get(..name.floor_char_boundary(48)).unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "three digits")]
fn time(nanoseconds: u64) -> String {
    match nanoseconds as f64 {
        n if n < 1e6 => format!("{:.0} µs", n / 1e3),
        n if n < 1e9 => format!("{:.1} ms", n / 1e6),
        n => format!("{:.2} s", n / 1e9),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
