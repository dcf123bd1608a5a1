//! A rolling update with the manifests' own timings: nothing is lost, nobody is judged offline, nobody is cut off.

use std::time::Duration;

use anyhow::Result;
use herald_tests::rollout::{Plan, rehearse};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_with_the_manifests_timings_is_not_noticed() -> Result<()> {
    let plan = Plan {
        gateways: 2,
        workers: 2,
        sessions: 200,
        pairs: 4,
        pause: Duration::from_millis(50),
        // On a busy machine the coming of 200 users is told for a while.
        before: Duration::from_secs(15),
        release: false,
        programs: None,
        overlay: "prod".into(),
    };
    // Lost, doubled or reordered messages end it with an error.
    let report = Box::pin(rehearse(&plan)).await?;
    println!("{report}");
    assert!(report.moved >= report.sessions, "every session was on a gateway that was rolled");
    assert_eq!(report.cut, Vec::<String>::new(), "every session is told to come back");
    assert_eq!(report.false_presence, Vec::<String>::new(), "nobody came or went");
    assert_eq!(report.killed, 0, "everyone is done within the grace period");
    assert_eq!(report.again_though_acked, 0, "what was acked does not come again");
    // The hints spread those of one gateway over five seconds; half as many again in one of them is bad luck.
    let most = report.sessions / 2 / 5 * 3;
    assert!(report.peak_per_second <= most, "{} came back at once", report.peak_per_second);
    Ok(())
}
