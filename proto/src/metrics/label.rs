//! Labels whose values are known beforehand: an enum each. So no series appears at run time, and every one is there from
//! the start, at zero.

use std::{marker::PhantomData, time::Duration};

use super::{Counter, Gauge, Histogram, Part, TraceId};

/// A label. Made by [`labels!`](crate::labels).
pub trait Label: Copy + 'static {
    /// Its name.
    const NAME: &'static str;
    /// Its values, in order of their indices.
    const ALL: &'static [Self];

    /// The value as text.
    fn text(self) -> &'static str;

    /// Its place in [`Self::ALL`].
    fn index(self) -> usize;
}

/// Defines a label: `labels! { /// doc  pub enum Outcome = "outcome" { /// doc  Ok = "ok", … } }`.
#[macro_export]
macro_rules! labels {
    ($($(#[$meta:meta])* $vis:vis enum $name:ident = $label:literal {
        $($(#[$variant_meta:meta])* $variant:ident = $text:literal,)+
    })+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $name { $($(#[$variant_meta])* $variant),+ }

        impl $crate::metrics::Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    )+};
}

/// One metric for each value of a label.
#[derive(Debug, Clone)]
pub struct By<L, M> {
    each: Box<[M]>,
    label: PhantomData<L>,
}

/// One metric for each pair of two labels' values.
#[derive(Debug, Clone)]
pub struct By2<A, B, M> {
    each: Box<[M]>,
    labels: PhantomData<(A, B)>,
}

impl<L: Label, M> By<L, M> {
    pub(super) fn new(mut each: impl FnMut(L) -> M) -> Self {
        Self { each: L::ALL.iter().map(|label| each(*label)).collect(), label: PhantomData }
    }

    /// The metric of a value. `None` never comes: there is one for each.
    pub fn get(&self, label: L) -> Option<&M> {
        self.each.get(label.index())
    }
}

impl<A: Label, B: Label, M> By2<A, B, M> {
    pub(super) fn new(mut each: impl FnMut(A, B) -> M) -> Self {
        let mut all = Vec::with_capacity(A::ALL.len() * B::ALL.len());
        for a in A::ALL {
            all.extend(B::ALL.iter().map(|b| each(*a, *b)));
        }
        Self { each: all.into(), labels: PhantomData }
    }

    /// The metric of a pair. `None` never comes: there is one for each.
    pub fn get(&self, a: A, b: B) -> Option<&M> {
        self.each.get(a.index() * B::ALL.len() + b.index())
    }
}

impl<L: Label> By<L, Counter> {
    /// Counts one.
    pub fn inc(&self, label: L) {
        self.add(label, 1);
    }

    /// Counts some.
    pub fn add(&self, label: L, n: u64) {
        if let Some(counter) = self.get(label) {
            counter.add(n);
        }
    }
}

impl<A: Label, B: Label> By2<A, B, Counter> {
    /// Counts one.
    pub fn inc(&self, a: A, b: B) {
        if let Some(counter) = self.get(a, b) {
            counter.inc();
        }
    }
}

impl<L: Label> By<L, Gauge> {
    /// A part of the value's gauge that is 1 until it is dropped.
    pub fn one(&self, label: L) -> Part {
        self.get(label).map(Gauge::one).unwrap_or_default()
    }
}

impl<L: Label> By<L, Histogram> {
    /// Takes a duration.
    pub fn observe(&self, label: L, duration: Duration, trace: Option<TraceId>) {
        if let Some(histogram) = self.get(label) {
            histogram.observe(duration, trace);
        }
    }
}
