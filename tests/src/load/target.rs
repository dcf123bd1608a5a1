//! What is put under load.

use super::{args::Args, parts::Parts, slowdown::Slowdowns, usage::Watched};

/// A running Herald, and what is known of its machine.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where its gateways are.
    pub urls: Vec<String>,
    /// Its processes, as far as they are to be measured, and this one.
    pub processes: Vec<Watched>,
    /// When the machine did not keep its pace.
    pub slowdowns: Slowdowns,
}

impl Target {
    /// These parts, or what the flags say where nothing was started.
    pub fn new(args: &Args, parts: Option<&Parts>, slowdowns: Slowdowns) -> Self {
        let gateway = |pid: &u32| Watched::new(format!("gateway {pid}"), *pid);
        let (urls, mut processes) = match parts {
            Some(parts) => (parts.urls().to_vec(), parts.watched()),
            None => (args.url.clone(), args.gateway_pid.iter().map(gateway).collect()),
        };
        processes.push(Watched::new("load", std::process::id()));
        Self { urls, processes, slowdowns }
    }
}
