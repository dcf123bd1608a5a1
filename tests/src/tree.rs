//! Traces as trees of spans, and as text.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
};

use crate::otlp::Span;

/// One trace: its spans, each after its parent, siblings in the order in which they began.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Its id.
    pub id: String,
    /// Its spans and how deep they lie, from 0 on.
    pub spans: Vec<(usize, Span)>,
    /// How many of them name a parent that is not there, except for `known` ones.
    pub orphans: usize,
}

/// Sorts spans into traces, the latest trace last. `known` are parents outside: a client's own spans.
pub fn traces(spans: &[Span], known: &[&str]) -> Vec<Trace> {
    let mut by_trace: BTreeMap<&str, Vec<&Span>> = BTreeMap::new();
    for span in spans {
        by_trace.entry(&span.trace).or_default().push(span);
    }
    let mut traces: Vec<Trace> =
        by_trace.into_iter().map(|(id, spans)| trace(id, spans, known)).collect();
    traces.sort_by_key(Trace::start);
    traces
}

fn trace(id: &str, mut spans: Vec<&Span>, known: &[&str]) -> Trace {
    spans.sort_by_key(|span| (span.start, span.end));
    let ids: HashSet<&str> = spans.iter().map(|span| span.id.as_str()).collect();
    let is_there = |span: &Span| span.parent.as_deref().is_some_and(|parent| ids.contains(parent));
    let is_known =
        |span: &Span| span.parent.as_deref().is_none_or(|parent| known.contains(&parent));
    let orphans = spans.iter().filter(|span| !is_there(span) && !is_known(span)).count();
    let mut todo: Vec<(usize, &Span)> =
        spans.iter().rev().filter(|span| !is_there(span)).map(|span| (0, *span)).collect();
    let mut sorted = Vec::new();
    while let Some((depth, span)) = todo.pop() {
        let children = spans.iter().rev().filter(|child| child.parent.as_ref() == Some(&span.id));
        todo.extend(children.map(|child| (depth + 1, *child)));
        sorted.push((depth, span.clone()));
    }
    Trace { id: id.to_owned(), spans: sorted, orphans }
}

impl Trace {
    /// When it began, in nanoseconds since the Unix epoch.
    pub fn start(&self) -> u64 {
        self.spans.iter().map(|(_, span)| span.start).min().unwrap_or(0)
    }

    /// How long it lasts, in nanoseconds.
    pub fn duration(&self) -> u64 {
        let end = self.spans.iter().map(|(_, span)| span.end).max().unwrap_or(0);
        end.saturating_sub(self.start())
    }

    /// The spans of that name.
    pub fn named(&self, name: &str) -> Vec<&Span> {
        self.spans.iter().map(|(_, span)| span).filter(|span| span.name == name).collect()
    }

    /// Its shape: a line a span, indented, with name, kind and service.
    pub fn shape(&self) -> String {
        self.spans.iter().fold(String::new(), |mut text, (depth, span)| {
            let (indent, service) = ("  ".repeat(*depth), span.sender("service.name"));
            let _ = writeln!(text, "{indent}{} [{}, {service}]", span.name, span.kind);
            text
        })
    }
}
