//! The runtime both programs work with.

use std::{io, num::NonZeroUsize, thread};

use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// How a program uses the machine.
#[derive(Debug, Clone, Args)]
pub struct RuntimeArgs {
    /// Threads that work. [default: one for each core but one, at least one]
    #[arg(long, env = "HERALD_THREADS", global = true)]
    pub threads: Option<NonZeroUsize>,
}

impl RuntimeArgs {
    /// Runs a program to its end.
    ///
    /// # Errors
    /// If the system does not give the runtime what it needs.
    pub fn run<T>(&self, program: impl Future<Output = T>) -> io::Result<T> {
        open_many_files();
        let threads = self.threads.unwrap_or_else(default_threads);
        // One thread needs nobody to share its work with: nothing is locked, and nobody has to be woken.
        let mut builder = if threads == NonZeroUsize::MIN {
            tokio::runtime::Builder::new_current_thread()
        } else {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads.get());
            builder
        };
        builder.max_io_events_per_tick(EVENTS_AT_A_TIME);
        Ok(builder.enable_all().build()?.block_on(program))
    }
}

/// How many sockets' events are taken at once. Whatever tasks wake each other for goes on behind those that these events
/// have woken: behind thousands of them, when a crowd comes or goes.
const EVENTS_AT_A_TIME: usize = 64;

/// A connection is a file. What a process may open is often far less than it may ask for: 1024 under some container
/// runtimes.
fn open_many_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        // Before anything is logged, and no reason not to serve.
        eprintln!("the limit of open files stays as it is: {error}");
    }
}

/// One for each core but one, which the kernel's network stack and the program's neighbours keep busy. A thread more
/// than there is work for costs: what becomes ready wakes it, and it finds little left to do.
fn default_threads() -> NonZeroUsize {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new(cores - 1).unwrap_or(NonZeroUsize::MIN)
}
