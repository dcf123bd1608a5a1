use std::time::Duration;

use opentelemetry_proto::tonic::metrics::v1::metric::Data;

use super::*;

crate::labels! {
    enum Kind_ = "kind" {
        New = "new",
        Read = "read",
    }

    enum Outcome = "outcome" {
        Ok = "ok",
        Failed = "failed",
    }
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn filled() -> Registry {
    let mut registry = Registry::new();
    let frames = registry.counters2::<Kind_, Outcome>("herald_frames", "Frames \"so\\far\".");
    frames.inc(Kind_::New, Outcome::Ok);
    frames.inc(Kind_::New, Outcome::Ok);
    frames.inc(Kind_::Read, Outcome::Failed);
    let waits = registry.histogram("herald_wait_seconds", "How long.", LATENCY);
    waits.observe(Duration::from_millis(1), None);
    waits.observe(Duration::from_micros(1_001), TraceId::from_hex(TRACE).ok());
    waits.observe(Duration::from_secs(60), None);
    registry.gauge("herald_open", "Open.").set(-3);
    registry.read_each("herald_lag", "Lag.", Kind::Gauge, |sample| {
        sample(vec![("partition", "7".into())], 41.5);
    });
    registry
}

#[test]
fn the_text_is_openmetrics() {
    let text = filled().openmetrics();
    let expected = r#"# TYPE herald_frames counter
# HELP herald_frames Frames \"so\\far\".
herald_frames_total{kind="new",outcome="ok"} 2
herald_frames_total{kind="new",outcome="failed"} 0
herald_frames_total{kind="read",outcome="ok"} 0
herald_frames_total{kind="read",outcome="failed"} 1
# TYPE herald_wait_seconds histogram
# UNIT herald_wait_seconds seconds
# HELP herald_wait_seconds How long.
herald_wait_seconds_bucket{le="0.001"} 1
herald_wait_seconds_bucket{le="0.0025"} 2 # {trace_id="4bf92f3577b34da6a3ce929d0e0e4736"} 0.001001 "#;
    assert!(text.starts_with(expected), "{text}");
    let end = r#"herald_wait_seconds_bucket{le="30.0"} 2
herald_wait_seconds_bucket{le="+Inf"} 3
herald_wait_seconds_count 3
herald_wait_seconds_sum 60.002001
# TYPE herald_open gauge
# HELP herald_open Open.
herald_open -3
# TYPE herald_lag gauge
# HELP herald_lag Lag.
herald_lag{partition="7"} 41.5
# EOF
"#;
    assert!(text.ends_with(end), "{text}");
}

#[test]
fn a_collector_gets_the_same_numbers_and_exemplars() {
    let request = otlp::request(&filled(), &[("service.name".into(), "x".into())], 7);
    let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
    let names: Vec<(&str, &str)> =
        metrics.iter().map(|metric| (metric.name.as_str(), metric.unit.as_str())).collect();
    assert_eq!(
        names,
        [
            ("herald_frames", ""),
            ("herald_wait_seconds", "s"),
            ("herald_open", ""),
            ("herald_lag", "")
        ]
    );
    let Some(Data::Sum(sum)) = &metrics[0].data else { panic!("{:?}", metrics[0]) };
    assert!(sum.is_monotonic && sum.aggregation_temporality == 2);
    assert_eq!(sum.data_points.len(), 4);
    assert_eq!(sum.data_points[0].attributes[1].key, "outcome");
    let Some(Data::Histogram(histogram)) = &metrics[1].data else { panic!("{:?}", metrics[1]) };
    let point = &histogram.data_points[0];
    assert_eq!((point.count, point.bucket_counts.len()), (3, point.explicit_bounds.len() + 1));
    assert_eq!(point.bucket_counts[..3], [1, 1, 0]);
    assert_eq!(point.start_time_unix_nano, 7);
    assert_eq!(point.exemplars.len(), 1);
    assert_eq!(point.exemplars[0].trace_id[..2], [0x4b, 0xf9]);
}

#[test]
fn a_part_that_is_gone_counts_no_more() {
    let gauge = Gauge::default();
    let (mut one, other) = (gauge.part(), gauge.one());
    one.set(5);
    one.set(3);
    assert_eq!(gauge.get(), 4);
    drop(one);
    assert_eq!(gauge.get(), 1);
    drop(other);
    assert_eq!(gauge.get(), 0);
}
