//! A real browser, driven by the Chrome DevTools Protocol: opens a page and asks it what it shows.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

use crate::{Process, Program, eventually, tools};

/// How long the browser may take to start, and for each answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page; it ends when it is dropped.
pub struct Browser {
    page: DevTools,
    // In the order in which they have to end.
    _process: Process,
    _profile: TempDir,
}

/// What takes commands.
struct DevTools {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    asked: u64,
}

impl Browser {
    /// Starts one, without a window, and opens `url` in it.
    ///
    /// # Errors
    /// If there is no browser, or it does not start.
    pub async fn open(url: &str) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        let folder = format!("--user-data-dir={}", profile.path().display());
        let program = Program::new("browser", tools::browser().await?, profile.path().join("log"))
            // Root may not use the sandbox. What is opened here is our own.
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--remote-debugging-port=0", &folder, "about:blank"]);
        let mut process = Process::spawn(&program)?;
        let told = profile.path().join("DevToolsActivePort");
        let told = eventually("it says where it listens", PATIENCE, async || {
            let text = std::fs::read_to_string(&told)?;
            let (port, path) = text.split_once('\n').context("no path yet")?;
            Ok((port.to_owned(), path.trim().to_owned()))
        });
        let (port, path) = process.until(told).await?;
        let at = |path: &str| format!("ws://127.0.0.1:{port}{path}");
        let mut browser = DevTools::connect(&at(&path)).await?;
        let opened = browser.command("Target.createTarget", json!({"url": url})).await?;
        let target = opened.get("targetId").and_then(Value::as_str).context("no page")?;
        let page = DevTools::connect(&at(&format!("/devtools/page/{target}"))).await?;
        Ok(Self { page, _process: process, _profile: profile })
    }

    /// What a JavaScript expression is on the page; promises are waited for.
    ///
    /// # Errors
    /// If it throws.
    pub async fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let what = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.page.command("Runtime.evaluate", what).await?;
        ensure!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        // What is undefined has no value.
        Ok(answer.pointer("/result/value").cloned().unwrap_or_default())
    }
}

impl DevTools {
    async fn connect(url: &str) -> Result<Self> {
        let (socket, _) = connect_async(url).await?;
        Ok(Self { socket, asked: 0 })
    }

    async fn command(&mut self, method: &str, params: Value) -> Result<Value> {
        self.asked += 1;
        let command = json!({"id": self.asked, "method": method, "params": params});
        self.socket.send(Message::text(command.to_string())).await?;
        timeout(PATIENCE, self.answer()).await.with_context(|| format!("{method}: no answer"))?
    }

    /// The answer to the last command. Events may come before it.
    async fn answer(&mut self) -> Result<Value> {
        while let Some(message) = self.socket.next().await {
            let Message::Text(text) = message? else { continue };
            let mut said: Value = serde_json::from_str(&text)?;
            if said.get("id") == Some(&json!(self.asked)) {
                let result = said.get_mut("result").map(Value::take);
                return result.with_context(|| said.to_string());
            }
        }
        bail!("the browser is gone")
    }
}
