//! All metrics of a program: what they are called, what they mean, and how to read them.

use super::{Bounds, By, By2, Counter, Gauge, Histogram, Label, Reading};

/// The metrics of a program.
#[derive(Default)]
pub struct Registry {
    families: Vec<Family>,
}

/// Metrics of one name, told apart by their labels.
pub struct Family {
    /// Its name, without the suffix `_total` of counters. Ends in its unit, if it has one.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    /// What kind it is.
    pub kind: Kind,
    source: Source,
}

/// What can be done with a metric's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows: look at its rate.
    Counter,
    /// It is what it is now.
    Gauge,
    /// It tells how often what size came.
    Histogram,
}

enum Source {
    Values(Vec<(Labels, Value)>),
    /// Asked whenever it is read.
    Read(Box<Read>),
}

type Read = dyn Fn(&mut dyn FnMut(Labels, f64)) + Send + Sync;
type Labels = Vec<(&'static str, String)>;

#[derive(Clone)]
enum Value {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

/// One series at a moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its labels.
    pub labels: Vec<(&'static str, String)>,
    /// Its value.
    pub point: Point,
}

/// A series' value.
#[derive(Debug, Clone, PartialEq)]
pub enum Point {
    /// Of a counter or gauge.
    Number(f64),
    /// Of a histogram.
    Histogram(Reading),
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// All families, in the order in which they were registered.
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    fn add(&mut self, name: &'static str, help: &'static str, kind: Kind, source: Source) {
        debug_assert!(self.families.iter().all(|family| family.name != name), "{name} twice");
        self.families.push(Family { name, help, kind, source });
    }

    /// A counter.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> Counter {
        let counter = Counter::default();
        let values = vec![(vec![], Value::Counter(counter.clone()))];
        self.add(name, help, Kind::Counter, Source::Values(values));
        counter
    }

    /// A counter for each value of a label.
    pub fn counters<L: Label>(&mut self, name: &'static str, help: &'static str) -> By<L, Counter> {
        self.by(name, help, Kind::Counter, Counter::default, Value::Counter)
    }

    /// A counter for each pair of two labels' values.
    pub fn counters2<A: Label, B: Label>(
        &mut self,
        name: &'static str,
        help: &'static str,
    ) -> By2<A, B, Counter> {
        let mut values = Vec::new();
        let counters = By2::new(|a: A, b: B| {
            let counter = Counter::default();
            let labels = vec![(A::NAME, a.text().to_owned()), (B::NAME, b.text().to_owned())];
            values.push((labels, Value::Counter(counter.clone())));
            counter
        });
        self.add(name, help, Kind::Counter, Source::Values(values));
        counters
    }

    /// A gauge.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> Gauge {
        let gauge = Gauge::default();
        let values = vec![(vec![], Value::Gauge(gauge.clone()))];
        self.add(name, help, Kind::Gauge, Source::Values(values));
        gauge
    }

    /// A gauge for each value of a label.
    pub fn gauges<L: Label>(&mut self, name: &'static str, help: &'static str) -> By<L, Gauge> {
        self.by(name, help, Kind::Gauge, Gauge::default, Value::Gauge)
    }

    /// A histogram.
    pub fn histogram(
        &mut self,
        name: &'static str,
        help: &'static str,
        bounds: Bounds,
    ) -> Histogram {
        let histogram = Histogram::new(bounds);
        let values = vec![(vec![], Value::Histogram(histogram.clone()))];
        self.add(name, help, Kind::Histogram, Source::Values(values));
        histogram
    }

    /// A histogram for each value of a label.
    pub fn histograms<L: Label>(
        &mut self,
        name: &'static str,
        help: &'static str,
        bounds: Bounds,
    ) -> By<L, Histogram> {
        self.by(name, help, Kind::Histogram, || Histogram::new(bounds), Value::Histogram)
    }

    fn by<L: Label, M: Clone>(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        make: impl Fn() -> M,
        value: impl Fn(M) -> Value,
    ) -> By<L, M> {
        let mut values = Vec::new();
        let all = By::new(|label: L| {
            let made = make();
            values.push((vec![(L::NAME, label.text().to_owned())], value(made.clone())));
            made
        });
        self.add(name, help, kind, Source::Values(values));
        all
    }

    /// A metric without labels that is asked for whenever it is read. It has to answer at once.
    pub fn read(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        let source = Source::Read(Box::new(move |sample| sample(vec![], read())));
        self.add(name, help, kind, source);
    }

    /// The same for a number of series that is known only at run time, each by its labels.
    pub fn read_each(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        read: impl Fn(&mut dyn FnMut(Vec<(&'static str, String)>, f64)) + Send + Sync + 'static,
    ) {
        self.add(name, help, kind, Source::Read(Box::new(read)));
    }
}

impl Family {
    /// Its unit: what its name ends in.
    pub fn unit(&self) -> Option<&'static str> {
        ["seconds", "bytes"].into_iter().find(|unit| self.name.ends_with(unit))
    }

    /// What its series are now.
    pub fn read(&self) -> Vec<Sample> {
        match &self.source {
            Source::Values(values) => values.iter().map(sample).collect(),
            Source::Read(read) => {
                let mut samples = Vec::new();
                read(&mut |labels, value| {
                    samples.push(Sample { labels, point: Point::Number(value) });
                });
                samples
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are f64")]
fn sample((labels, value): &(Labels, Value)) -> Sample {
    let point = match value {
        Value::Counter(counter) => Point::Number(counter.get() as f64),
        Value::Gauge(gauge) => Point::Number(gauge.get() as f64),
        Value::Histogram(histogram) => Point::Histogram(histogram.read()),
    };
    Sample { labels: labels.clone(), point }
}
