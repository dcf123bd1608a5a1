//! Child processes that are signalled like real failures, and that never outlive this process.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child as Guard, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::Child;

use crate::owner::Owner;

/// Waits until our end of the pipe is closed, however we came to our end, then ends the process $1 with signal $2 and,
/// if there is a $3, sweeps that folder away. A stopped process only takes a signal once it is continued; a dead one may
/// stay a zombie where nobody takes over our children, as in some containers.
const GUARD: &str = r#"
read -r _
kill -s "$2" "$1"; kill -s CONT "$1"
[ -n "$3" ] || exit 0
n=0
while kill -0 "$1" && ! grep -q '^State:.Z' "/proc/$1/status" && [ "$n" -lt 50 ]; do sleep 0.1; n=$((n + 1)); done
kill -s KILL "$1"
rm -rf -- "$3"
"#;

/// How long a process may take to end when its [`Process`] is dropped.
const FAREWELL: Duration = Duration::from_secs(5);

/// What to start: a program with its arguments and environment. Can be started any number of times.
#[derive(Debug, Clone)]
pub struct Program {
    name: String,
    path: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    log: PathBuf,
    folder: Option<PathBuf>,
    owner: Option<Owner>,
    farewell: Signal,
    scratch: Option<PathBuf>,
}

impl Program {
    /// The program at `path`, called `name` in messages; it appends what it prints to the file `log`.
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            path: path.into(),
            args: Vec::new(),
            env: Vec::new(),
            log: log.into(),
            folder: None,
            owner: None,
            farewell: Signal::SIGKILL,
            scratch: None,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets environment variables.
    #[must_use]
    pub fn envs(mut self, variables: &[(String, String)]) -> Self {
        self.env.extend(variables.iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// Runs it in that folder.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Runs it as that user.
    #[must_use]
    pub fn owner(mut self, owner: Option<Owner>) -> Self {
        self.owner = owner;
        self
    }

    /// The signal that ends it when its [`Process`] is dropped or this process dies; SIGKILL unless set.
    #[must_use]
    pub fn farewell(mut self, signal: Signal) -> Self {
        self.farewell = signal;
        self
    }

    /// A folder to remove once it has ended because this process died.
    #[must_use]
    pub fn scratch(mut self, folder: impl Into<PathBuf>) -> Self {
        self.scratch = Some(folder.into());
        self
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that gets what it prints.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its log, indented, to be put into an error.
    pub fn log_tail(&self) -> String {
        let Ok(bytes) = std::fs::read(&self.log) else {
            return format!("  (no log at {})", self.log.display());
        };
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.iter().skip(lines.len().saturating_sub(12));
        tail.fold(format!("the end of {}:", self.log.display()), |tail, line| {
            format!("{tail}\n  {line}")
        })
    }

    /// Starts it, and takes its end as the result: for programs that do one thing and are done.
    ///
    /// # Errors
    /// If it can't be started or does not end with 0; holds the end of its log.
    pub async fn run(&self) -> Result<()> {
        let status = Process::spawn(self)?.wait().await?;
        if !status.success() {
            bail!("{} ended with {}; {}", self.name, describe(status), self.log_tail());
        }
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("opening the log {}", self.log.display()))?;
        let mut command = Command::new(&self.path);
        command
            .args(&self.args)
            // A backtrace would push what went wrong out of the end of the log.
            .env("RUST_BACKTRACE", "0")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A group of its own: Ctrl-C in the terminal is for us alone.
            .process_group(0);
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        if let Some(owner) = &self.owner {
            owner.run_as(&mut command);
        }
        Ok(command)
    }
}

/// A running child. It is ended when this is dropped, and when this process ends in whatever way.
#[derive(Debug)]
pub struct Process {
    program: Program,
    pid: Pid,
    child: Child,
    guard: Guard,
}

impl Process {
    /// Starts the program. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// If the program can't be run or its log can't be written.
    pub fn spawn(program: &Program) -> Result<Self> {
        let Program { name, path, farewell, .. } = program;
        let mut child = tokio::process::Command::from(program.command()?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {name} ({})", path.display()))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.with_context(|| format!("{name} has no process id"))?;
        let scratch = program.scratch.as_deref().unwrap_or(Path::new(""));
        let guard = Command::new("sh")
            .args([
                "-c",
                GUARD,
                "guard",
                &pid.to_string(),
                farewell.as_str().trim_start_matches("SIG"),
            ])
            .arg(scratch)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        match guard {
            Ok(guard) => {
                Ok(Self { program: program.clone(), pid: Pid::from_raw(pid), child, guard })
            }
            Err(error) => {
                child.start_kill()?;
                Err(error).with_context(|| format!("starting the guard of {name}"))
            }
        }
    }

    /// Waits for `ready`, which tells that the process does what it was started for.
    ///
    /// # Errors
    /// The error of `ready`, or that the process ended before; with the end of its log.
    pub async fn until<T>(&mut self, ready: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            ready = ready => ready.with_context(|| self.program.log_tail()),
            status = self.child.wait() => {
                bail!("{} ended with {}; {}", self.program.name, describe(status?), self.program.log_tail())
            }
        }
    }

    /// What was started.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The process id, also after its end.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Sends SIGKILL and waits until the process is gone. Fine if it is gone already.
    ///
    /// # Errors
    /// If the system refuses.
    pub async fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait().await.map(drop)
    }

    /// Sends SIGTERM; [`Self::wait`] sees the end of it.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn term(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// Sends SIGSTOP: the process is still there and its connections are open, but it does nothing any more.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Sends SIGCONT, which ends a [`Self::stop`].
    ///
    /// # Errors
    /// If the system refuses.
    pub fn cont(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Sends any signal, unless the process is gone.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // Once it was waited for, the id may be another process's.
        if self.ended()?.is_none() {
            kill(self.pid, signal)
                .with_context(|| format!("sending {signal} to {}", self.program.name))?;
        }
        Ok(())
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        if status.is_some() {
            self.dismiss_guard();
        }
        Ok(status)
    }

    /// Waits for its end. Dropping the future loses nothing.
    ///
    /// # Errors
    /// If the system refuses.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.dismiss_guard();
        Ok(status)
    }

    /// Sends SIGTERM, and SIGKILL if the process is still there after `patience`.
    ///
    /// # Errors
    /// If the system refuses.
    pub async fn shut_down(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.term()?;
        if let Ok(status) = tokio::time::timeout(patience, self.wait()).await {
            return status;
        }
        self.kill().await?;
        self.wait().await
    }

    fn dismiss_guard(&mut self) {
        // Both fail only if the guard is gone already, which is all that is asked.
        let _ = self.guard.kill();
        let _ = self.guard.wait();
    }

    /// Blocks, for Drop can't wait otherwise: until the process has ended its files can't be removed.
    fn say_farewell(&mut self) -> Result<()> {
        self.signal(self.program.farewell)?;
        self.signal(Signal::SIGCONT)?;
        let end = Instant::now() + FAREWELL;
        while self.ended()?.is_none() {
            if Instant::now() > end {
                self.signal(Signal::SIGKILL)?;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.say_farewell() {
            eprintln!("{} (pid {}) may be left behind: {error:#}", self.program.name, self.pid);
        }
    }
}

/// An exit status in few words: `signal 9`, `exit code 1`.
pub fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => status.to_string(),
    }
}
