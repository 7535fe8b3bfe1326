//! A server's process: started, watched until it is ready, stopped, paused, killed.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::clock::{self, ClockStep};
use crate::folder::{Folder, PID_FILE, random_hex};

/// Generous, because a crashed server recovers its data first, and because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// What can be done to any running test server. Everything blocks until it is done.
pub trait Server {
    /// The server's process, through which the other methods work.
    fn process(&self) -> &Process;

    /// The TCP port on 127.0.0.1. It stays the same when the server is started again.
    fn port(&self) -> u16 {
        self.process().port
    }

    /// Stops the server in an orderly way, ending its connections.
    ///
    /// # Errors
    ///
    /// When it is not running, or does not stop within a minute.
    fn stop(&self) -> Result<()> {
        self.process().stop()
    }

    /// Kills the server with SIGKILL, its children included. They have ended when this returns.
    ///
    /// # Errors
    ///
    /// When it is not running.
    fn stop_hard(&self) -> Result<()> {
        self.process().kill()
    }

    /// Starts a stopped or killed server on the same port with the same data, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it is running already, or does not come up; the message has the end of its log.
    fn start_again(&self) -> Result<()> {
        self.process().start(&[])
    }

    /// [`stop`](Self::stop) and [`start_again`](Self::start_again).
    ///
    /// # Errors
    ///
    /// As these two.
    fn restart(&self) -> Result<()> {
        self.stop()?;
        self.start_again()
    }

    /// Stops the server's processes where they are (SIGSTOP): connections stay open, and nothing answers.
    ///
    /// # Errors
    ///
    /// When it is not running.
    fn pause(&self) -> Result<()> {
        self.process().pause()
    }

    /// Lets a paused server go on, as if nothing had happened.
    ///
    /// # Errors
    ///
    /// When it is not running.
    fn resume(&self) -> Result<()> {
        self.process().resume()
    }

    /// The processor time, user's and system's, that the server has used since it was started, its children included.
    /// It comes in steps of the kernel's clock, mostly 10 ms.
    ///
    /// # Errors
    ///
    /// When it is not running, or this is not Linux.
    fn cpu_time(&self) -> Result<Duration> {
        self.process().cpu_time()
    }

    /// Sets the server's wall clock, if it was built with one that can be set. What counts time since the machine was
    /// started is not touched.
    ///
    /// # Errors
    ///
    /// When it was not.
    fn step_clock(&self, step: ClockStep) -> Result<()> {
        clock::step(self.folder(), step)
    }

    /// The folder that has everything of the server's: data, log, sockets. It goes with the server.
    fn folder(&self) -> &Path {
        self.process().folder()
    }

    /// Everything that the server has logged so far.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    fn log(&self) -> Result<String> {
        self.process().log_since(0)
    }
}

/// What a server does for its data to survive a power cut.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) enum Durability {
    /// Nothing.
    #[default]
    Throwaway,
    /// What the product does by default.
    Durable,
}

impl Durability {
    /// Of a product's settings for throwaway data, those that hold.
    pub(crate) fn settings<T>(self, throwaway: &[T]) -> &[T] {
        match self {
            Durability::Throwaway => throwaway,
            Durability::Durable => &[],
        }
    }
}

/// How a server is started.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    /// What the server logs once it accepts connections.
    pub(crate) ready: &'static str,
    /// The signal that stops it in an orderly way without waiting for its clients to leave.
    pub(crate) stop: Signal,
}

/// The process of a test server, in a folder that lives as long as this value does.
#[derive(Debug)]
pub struct Process {
    child: Mutex<Option<Child>>,
    launch: Launch,
    port: u16,
    folder: Folder,
}

impl Process {
    /// Starts the server that `launch` describes for a port. The port is free; should somebody else take it just
    /// before the server does, another one is tried.
    pub(crate) fn start_on_free_port(
        folder: Folder,
        launch: impl Fn(&Folder, u16) -> Result<Launch>,
    ) -> Result<Process> {
        let port = free_port()?;
        let launched = launch(&folder, port)?;
        let mut process = Process::stopped(folder, port, launched);
        for _ in 0..10 {
            match process.start(&[]) {
                Err(error) if port_was_taken(&error) => {
                    process.port = free_port()?;
                    process.launch = launch(&process.folder, process.port)?;
                }
                started => return started.map(|()| process),
            }
        }
        bail!("ten free ports in turn were taken by somebody else")
    }

    /// A server that has still to be started.
    pub(crate) fn stopped(folder: Folder, port: u16, launch: Launch) -> Process {
        Process { child: Mutex::new(None), launch, port, folder }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The server's folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts the server, with `more` arguments after its own, and waits until it is ready.
    pub(crate) fn start(&self, more: &[OsString]) -> Result<()> {
        let mut child = self.child();
        ensure!(child.is_none(), "the test server is running already");
        let log_start = fs::metadata(self.log_path()).map_or(0, |log| log.len());
        let mut started = spawn(&self.folder, &self.launch.program, &self.arguments(more))?;
        let deadline = Instant::now() + PATIENCE;
        let failure = loop {
            if let Some(status) = started.try_wait()? {
                break format!("ended with {status}");
            }
            if self.log_since(log_start)?.contains(self.launch.ready) {
                *child = Some(started);
                return Ok(());
            }
            if Instant::now() > deadline {
                let _ = started.kill();
                let _ = started.wait();
                break format!("is not ready after {} s", PATIENCE.as_secs());
            }
            sleep(POLL);
        };
        forget_pid(&self.folder);
        bail!(
            "{} {failure}; it said:\n{}",
            self.launch.program.display(),
            self.log_since(log_start)?.trim_end()
        )
    }

    /// Runs the stopped server with `more` arguments that have it do something and end, and returns what it says.
    pub(crate) fn run(&self, more: &[OsString]) -> Result<String> {
        let child = self.child();
        ensure!(child.is_none(), "the test server is running already");
        let log_start = fs::metadata(self.log_path()).map_or(0, |log| log.len());
        run_tool(&self.folder, &self.launch.program, &self.arguments(more))?;
        self.log_since(log_start)
    }

    fn arguments(&self, more: &[OsString]) -> Vec<OsString> {
        [&self.launch.arguments, more].concat()
    }

    fn stop(&self) -> Result<()> {
        let mut child = self.child();
        let running = child.as_mut().context("the test server is not running")?;
        kill(pid(running), self.launch.stop)?;
        let deadline = Instant::now() + PATIENCE;
        while running.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the test server does not stop");
            sleep(POLL);
        }
        *child = None;
        forget_pid(&self.folder);
        Ok(())
    }

    fn kill(&self) -> Result<()> {
        let mut child = self.child();
        let running = child.as_mut().context("the test server is not running")?;
        // The parent is stopped first, so that it forks no more while its children are listed.
        kill(pid(running), Signal::SIGSTOP)?;
        let children = children(pid(running))?;
        for process in &children {
            let _ = kill(*process, Signal::SIGKILL);
        }
        killpg(pid(running), Signal::SIGKILL)?;
        running.wait()?;
        *child = None;
        forget_pid(&self.folder);
        // Nobody but init can wait for the orphans. A server does not start while they have its memory.
        let deadline = Instant::now() + PATIENCE;
        while children.iter().any(|process| state(*process).is_some_and(|state| state != 'Z')) {
            ensure!(Instant::now() < deadline, "a child of the killed test server does not end");
            sleep(POLL);
        }
        Ok(())
    }

    fn pause(&self) -> Result<()> {
        self.signal_all(Signal::SIGSTOP)
    }

    fn resume(&self) -> Result<()> {
        self.signal_all(Signal::SIGCONT)
    }

    fn signal_all(&self, signal: Signal) -> Result<()> {
        let child = self.child();
        let parent = pid(child.as_ref().context("the test server is not running")?);
        killpg(parent, signal)?;
        // Those of Postgres have groups of their own.
        for process in children(parent)? {
            // A child may have ended meanwhile.
            let _ = kill(process, signal);
        }
        Ok(())
    }

    fn cpu_time(&self) -> Result<Duration> {
        let child = self.child();
        let parent = pid(child.as_ref().context("the test server is not running")?);
        let mut processes = vec![parent];
        let mut next = 0;
        while let Some(process) = processes.get(next) {
            processes.extend(children(*process)?);
            next += 1;
        }
        let ticks: u64 = processes.into_iter().filter_map(stat).map(|stat| stat.cpu_ticks).sum();
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the kernel's clock has no rate")?;
        Ok(Duration::from_micros(ticks * 1_000_000 / u64::try_from(per_second)?))
    }

    fn log_since(&self, offset: u64) -> Result<String> {
        let mut text = Vec::new();
        let mut log =
            File::open(self.log_path()).context("cannot open the log of a test server")?;
        log.seek(SeekFrom::Start(offset))?;
        log.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn log_path(&self) -> PathBuf {
        log_path(&self.folder)
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Paused children would make the server wait for them in vain.
        let _ = self.resume();
        self.folder.remove();
        if let Some(child) = self.child().as_mut() {
            let _ = child.wait();
        }
    }
}

/// Runs a tool that prepares a server's folder, such as `initdb`, in the way that servers are run.
pub(crate) fn run_tool(folder: &Folder, program: &Path, arguments: &[OsString]) -> Result<()> {
    let mut child = spawn(folder, program, arguments)?;
    let status: ExitStatus = child.wait()?;
    forget_pid(folder);
    if status.success() {
        return Ok(());
    }
    let log = fs::read_to_string(log_path(folder)).unwrap_or_default();
    Err(anyhow!("{} ended with {status}; it said:\n{}", program.display(), log.trim_end()))
}

/// A command-line argument of two parts, such as `--name=` and a path.
pub(crate) fn flag(name: &str, value: impl Into<OsString>) -> OsString {
    let mut flag = OsString::from(name);
    flag.push(value.into());
    flag
}

/// Starts a program in the folder as its account, output going to the log. Its process group is its own, so that a
/// Ctrl-C on the terminal does not reach it before its clients are done.
fn spawn(folder: &Folder, program: &Path, arguments: &[OsString]) -> Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(log_path(folder))?;
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"echo $$ >"$0" && exec "$@""#])
        .arg(folder.path().join(PID_FILE))
        .arg(program)
        .args(arguments)
        // What the caller has set for clients must not configure the server.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("LC_ALL", "C")
        .env("HOME", folder.path())
        .envs(clock::environment(folder.path()))
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    if let Some((uid, gid)) = folder.account().ids {
        command.uid(uid).gid(gid);
    }
    command.spawn().with_context(|| format!("cannot start {}", program.display()))
}

fn log_path(folder: &Folder) -> PathBuf {
    folder.path().join("log")
}

fn forget_pid(folder: &Folder) {
    let _ = fs::remove_file(folder.path().join(PID_FILE));
}

fn pid(child: &Child) -> Pid {
    // Process ids are positive `pid_t`s; the standard library gives them as u32.
    Pid::from_raw(child.id().cast_signed())
}

/// The processes whose parent is `parent`.
fn children(parent: Pid) -> Result<Vec<Pid>> {
    let processes = fs::read_dir("/proc")
        .context("cannot list processes: pausing and killing a server needs linux")?;
    let ids = processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw);
    Ok(ids.filter(|process| stat(*process).is_some_and(|stat| stat.parent == parent)).collect())
}

fn state(process: Pid) -> Option<char> {
    stat(process).map(|stat| stat.state)
}

/// What the kernel says of a process.
struct Stat {
    state: char,
    parent: Pid,
    /// Of its own, and of those of its children that have ended.
    cpu_ticks: u64,
}

/// None when there is no such process.
fn stat(process: Pid) -> Option<Stat> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is the program's name in brackets, and may itself have spaces and brackets.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = Pid::from_raw(fields.next()?.parse().ok()?);
    // Fields 14 to 17: utime, stime, cutime, cstime.
    let cpu_ticks = fields.skip(9).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Stat { state, parent, cpu_ticks })
}

/// Whether a server did not start because somebody took its port after it was found free.
pub(crate) fn port_was_taken(error: &anyhow::Error) -> bool {
    // The case is that of the C library; programs written in Go have a small letter.
    error.to_string().to_lowercase().contains("address already in use")
}

/// A port that nobody listens on, below those that systems give to outgoing connections: a server that is stopped for
/// a while finds it free again.
pub(crate) fn free_port() -> Result<u16> {
    for _ in 0..1000 {
        let random = u16::from_str_radix(&random_hex(2)?, 16)?;
        let port = 15_000 + random % 17_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("there is no free port between 15000 and 32000 on 127.0.0.1")
}
