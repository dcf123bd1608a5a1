//! What `cargo dev --observe` shows, in a real browser.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use herald_tests::{
    Client,
    browser::Browser,
    eventually,
    observe::{self, Observed},
    otlp::Receiver,
    port,
    site::{Setup, Site},
};
use serde_json::json;
use tokio::net::TcpListener;

const PATIENCE: Duration = Duration::from_secs(30);

/// The text of the tile with that name.
fn tile(name: &str) -> String {
    format!(
        "[...document.querySelectorAll('.tile')].find(tile => tile.lastChild.textContent === '{name}')\
         ?.firstChild.textContent"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_lists_a_message_draws_its_trace_and_shows_the_metrics_as_they_change()
-> Result<()> {
    let receiver = Receiver::start().await?;
    let metrics = ([127, 0, 0, 1], port::free()?).into();
    let flags = |more: [String; 2]| [receiver.grpc_flags().as_slice(), &more].concat();
    let site = Site::start(Setup {
        gateways: 1,
        gateway_flags: [
            flags(["--trace-ratio".into(), "1".into()]),
            vec!["--admin-listen".into(), format!("{metrics}")],
        ]
        .concat(),
        worker_flags: receiver.grpc_flags().to_vec(),
        env: vec![("OTEL_BSP_SCHEDULE_DELAY".into(), "100".into())],
        ..Setup::default()
    })
    .await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let page = format!("http://{}/", listener.local_addr()?);
    let observed =
        Observed { spans: receiver.spans().clone(), programs: vec![("gateway".into(), metrics)] };
    let served = tokio::spawn(observe::serve(listener, observed));

    let mut browser = Browser::open(&page).await?;
    let connections = tile("connections");
    eventually_shows(&mut browser, &connections, "0").await?;
    let url = format!("{}?userId=User1", site.urls()[0]);
    let mut user1 = Client::connect(&url).await?.without_presence();
    eventually_shows(&mut browser, &connections, "1").await?;
    let new = json!({"chatId": "User2", "clientMessageId": "k", "message": "hi"});
    user1.request("new", new).await?;

    let row = "[...document.querySelectorAll('summary')].find(row => row.innerText.includes('request new'))";
    eventually_shows(&mut browser, &format!("!!{row}"), "true").await?;
    browser.evaluate(&format!("{row}.click()")).await?;
    let texts = format!(
        "[...{row}.parentElement.querySelectorAll('svg text')].map(text => text.textContent).join('\\n')"
    );
    let drawn = eventually("the trace is drawn", PATIENCE, async || {
        let texts = browser.evaluate(&texts).await?;
        let texts = texts.as_str().context("no text")?.to_owned();
        ensure!(texts.contains("apply FRAMES"), "{texts}");
        Ok(texts)
    })
    .await?;
    for name in ["request new", "publish FRAMES", "process FRAMES", "publish EVENTS"] {
        assert!(drawn.contains(name), "{name} in {drawn}");
    }
    let seen =
        format!("{row}.parentElement.querySelector('svg').getBoundingClientRect().height > 100");
    assert_eq!(browser.evaluate(&seen).await?, json!(true));
    served.abort();
    Ok(())
}

async fn eventually_shows(browser: &mut Browser, expression: &str, expected: &str) -> Result<()> {
    eventually(expression, PATIENCE, async || {
        let shown = browser.evaluate(&format!("String({expression})")).await?;
        ensure!(shown == json!(expected), "{shown} instead of {expected}");
        Ok(())
    })
    .await
}
