//! What the programs count and measure. A program registers its metrics once and keeps the handles: what a hot path pays
//! is an atomic add, whatever the labels are. [`Registry::openmetrics`] writes them for a scrape of `/metrics`, and
//! [`otlp`] sends the same to an OpenTelemetry collector.
//!
//! Why not a crate (as of opentelemetry 0.33 and prometheus-client 0.26): OpenTelemetry's SDK takes a read lock and looks
//! labels up in a hash map at every add, and its data points never carry an exemplar; prometheus-client has a mutex
//! around each histogram and an RwLock around each one with exemplars, and what it has counted can't be read back, so
//! it could only be sent to a collector by parsing its own text. All that is wanted of them here is below.

mod label;
pub mod nats;
mod openmetrics;
pub mod otlp;
pub mod process;
mod registry;
mod request;
#[cfg(test)]
mod tests;
mod value;

pub use label::{By, By2, Label};
pub use openmetrics::CONTENT_TYPE;
pub use opentelemetry::trace::TraceId;
pub use registry::{Family, Kind, Point, Registry, Sample};
pub use request::{AnswerCode, RequestKind};
pub use value::{Bounds, Counter, Exemplar, Gauge, Histogram, Part, Reading};

/// Bounds for what a person or a peer waits for, from a millisecond to what ends in an error.
pub const LATENCY: Bounds = Bounds {
    uppers: &[
        1_000_000,
        2_500_000,
        5_000_000,
        10_000_000,
        25_000_000,
        50_000_000,
        100_000_000,
        250_000_000,
        500_000_000,
        1_000_000_000,
        2_500_000_000,
        5_000_000_000,
        10_000_000_000,
        30_000_000_000,
    ],
    per_unit: 1_000_000_000,
};

/// Bounds for a round trip to the broker or the database.
pub const ROUND_TRIP: Bounds = Bounds {
    uppers: &[
        250_000,
        500_000,
        1_000_000,
        2_500_000,
        5_000_000,
        10_000_000,
        25_000_000,
        50_000_000,
        100_000_000,
        250_000_000,
        500_000_000,
        1_000_000_000,
        3_000_000_000,
    ],
    per_unit: 1_000_000_000,
};

/// Bounds for how many go together.
pub const BATCH: Bounds =
    Bounds { uppers: &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024], per_unit: 1 };
