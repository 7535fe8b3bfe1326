//! The programs that `cargo test` builds, each run with a limit, after which it says what it was waiting for.

use std::env;
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::io::{self, BufRead as _, BufReader, PipeReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::command;
use crate::processes::Processes;

/// Most tests wait for servers and leases rather than for a processor.
const TEST_THREADS: &str = "8";

/// How long what a program left may take to end by itself: watchdogs stop their servers, and guardians their commands.
const LEFT_TO_END: Duration = Duration::from_secs(20);
/// How long after its end a program's last words may be on their way.
const LAST_WORDS: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);
/// How many programs the table of the slowest has.
const SLOWEST: usize = 10;
/// How many of its last lines are shown again of a program that has failed, for those who see the end alone.
const LAST_LINES: usize = 60;

/// How long things may take.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// A program.
    run: Duration,
    /// What a program that was killed has left, to end by itself.
    end: Duration,
}

/// Builds all test programs, runs them and the doctests one after the other, and sums up.
pub(crate) fn run_all(arguments: &[String], limit: Duration) -> Result<()> {
    let programs = build()?;
    let limits = Limits { run: limit, end: LEFT_TO_END };
    let running = Running::default();
    running.end_with_us()?;
    let mut tally = Tally::default();
    for program in &programs {
        println!("\n     Running {program}");
        tally.add(run(program, arguments, limits, &running)?);
    }
    println!("\n   Doc-tests");
    tally.add(run(&Program::doctests(), arguments, limits, &running)?);
    tally.conclude()
}

/// What runs tests.
#[derive(Debug)]
struct Program {
    /// Where its source is, for people.
    name: String,
    path: PathBuf,
    /// What comes before the arguments for the tests.
    arguments: Vec<String>,
    /// The folder of its package, which it runs in.
    folder: PathBuf,
    environment: Vec<(&'static str, OsString)>,
    /// Whether it can say which tests it has.
    lists: bool,
}

impl fmt::Display for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}

impl Program {
    fn doctests() -> Self {
        let arguments = ["test", "--doc", "--workspace", "--all-features", "--no-fail-fast", "--"];
        Self {
            name: "doctests".to_owned(),
            path: PathBuf::from("cargo"),
            arguments: arguments.map(str::to_owned).to_vec(),
            folder: PathBuf::from("."),
            environment: Vec::new(),
            lists: false,
        }
    }

    /// In a process group of its own, with nothing of the settings of whoever runs it.
    fn command(&self, arguments: &[String]) -> Command {
        let mut command = Command::new(&self.path);
        command
            .args(&self.arguments)
            .args(arguments)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .process_group(0);
        for (variable, _) in env::vars_os() {
            let name = variable.to_string_lossy();
            let ours =
                name.starts_with("DATABASE_LOCKS_") && !name.starts_with("DATABASE_LOCKS_TEST_");
            // What cargo says of the package is that of this program.
            if ours || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&variable);
            }
        }
        if env::var_os("RUST_TEST_THREADS").is_none() {
            command.env("RUST_TEST_THREADS", TEST_THREADS);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The names of its tests, as far as it says them.
    fn tests(&self, arguments: &[String]) -> Vec<String> {
        if !self.lists {
            return Vec::new();
        }
        let listed = self.command(arguments).args(["--list", "--format=terse"]).output();
        let listed = listed.map(|output| output.stdout).unwrap_or_default();
        let listed = String::from_utf8_lossy(&listed);
        listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
    }
}

/// Builds what `cargo test` would build, and gives what it would run, but for the doctests.
fn build() -> Result<Vec<Program>> {
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--workspace", "--all-features", "--no-run"]);
    cargo.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let output = cargo.output().context("cannot run cargo")?;
    ensure!(output.status.success(), "the tests do not build");
    let mut libraries = library_path()?;
    if let Some(given) = env::var_os("LD_LIBRARY_PATH").filter(|given| !given.is_empty()) {
        libraries.push(":");
        libraries.push(given);
    }
    let here = env::current_dir()?;
    let mut programs = Vec::new();
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let message: serde_json::Value = serde_json::from_slice(line)?;
        let (Some(path), Some(true)) =
            (message["executable"].as_str(), message["profile"]["test"].as_bool())
        else {
            continue;
        };
        let text = |value: &serde_json::Value| value.as_str().map(PathBuf::from);
        let manifest = text(&message["manifest_path"]).context("a package without a manifest")?;
        let source = text(&message["target"]["src_path"]).context("a program without a source")?;
        let folder = manifest.parent().unwrap_or(Path::new(".")).to_owned();
        let source = source.strip_prefix(&here).unwrap_or(&source);
        programs.push(Program {
            name: source.display().to_string(),
            path: PathBuf::from(path),
            arguments: Vec::new(),
            environment: vec![
                ("CARGO_MANIFEST_DIR", folder.clone().into()),
                ("CARGO_MANIFEST_PATH", manifest.into()),
                ("LD_LIBRARY_PATH", libraries.clone()),
            ],
            folder,
            lists: true,
        });
    }
    programs.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(programs)
}

/// Where the compiler's own libraries are, which tests of procedural macros are linked to.
fn library_path() -> Result<OsString> {
    let mut rustc = Command::new("rustc");
    let output = rustc.args(["--print", "target-libdir"]).output().context("cannot run rustc")?;
    ensure!(output.status.success(), "rustc does not say where its libraries are");
    Ok(String::from_utf8(output.stdout)?.trim_end().into())
}

/// The program that runs at the moment. It is in a group of its own, which no Ctrl-C reaches.
#[derive(Clone, Default)]
struct Running(Arc<Mutex<Option<Pid>>>);

impl Running {
    /// Ends it whenever a signal ends this process.
    fn end_with_us(&self) -> Result<()> {
        let (running, mut signals) = (self.clone(), command::ending_signals()?);
        thread::spawn(move || {
            for signal in signals.forever() {
                // Kept until this process is gone, so that nothing else is started.
                let program = running.program();
                if let Some(program) = *program {
                    let _ = killpg(program, Signal::SIGKILL);
                }
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        });
        Ok(())
    }

    fn start(&self, command: &mut Command) -> io::Result<Child> {
        let mut program = self.program();
        let child = command.spawn()?;
        *program = Some(Pid::from_raw(child.id().cast_signed()));
        Ok(child)
    }

    /// Looks whether the program has ended.
    fn status(&self, child: &mut Child) -> io::Result<Option<ExitStatus>> {
        let mut program = self.program();
        let status = child.try_wait()?;
        if status.is_some() {
            *program = None;
        }
        Ok(status)
    }

    fn program(&self) -> MutexGuard<'_, Option<Pid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the run of a program went.
struct Run {
    name: String,
    took: Duration,
    output: String,
    /// Why it has failed, if it has.
    failure: Option<String>,
}

fn run(program: &Program, arguments: &[String], limits: Limits, running: &Running) -> Result<Run> {
    let started = Instant::now();
    let (reader, writer) = io::pipe()?;
    let mut command = program.command(arguments);
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = running.start(&mut command).with_context(|| format!("cannot run {program}"))?;
    // It holds the writing end of the pipe.
    drop(command);
    let output = Output::pass_through(reader);
    let status = loop {
        if let Some(status) = running.status(&mut child)? {
            break Some(status);
        }
        if started.elapsed() >= limits.run {
            break None;
        }
        thread::sleep(POLL);
    };
    let failure = match status {
        Some(status) if status.success() => None,
        Some(status) if status.code().is_some() => Some("failed".to_owned()),
        Some(status) => Some(format!("was ended by {status}")),
        None => {
            let failure = format!("had not ended after {:?}", limits.run);
            let processes = Processes::under(pid(&child));
            let tests = unfinished(&program.tests(arguments), &output.so_far());
            output.add(&format!("\n{program} {failure}, and is killed\n{tests}{processes}"));
            let _ = killpg(pid(&child), Signal::SIGKILL);
            let deadline = Instant::now() + limits.end;
            while running.status(&mut child)?.is_none()
                || processes.live() && Instant::now() < deadline
            {
                thread::sleep(POLL);
            }
            processes.kill();
            Some(failure)
        }
    };
    if !output.is_whole() {
        output.add(&format!("{program} has left somebody behind who holds its output open\n"));
    }
    let output = output.so_far();
    Ok(Run { name: program.name.clone(), took: started.elapsed(), output, failure })
}

/// The output of a program, which is shown as it comes.
struct Output {
    text: Arc<Mutex<String>>,
    whole: Receiver<()>,
}

impl Output {
    fn pass_through(reader: PipeReader) -> Self {
        let (ending, whole) = mpsc::channel();
        let output = Self { text: Arc::default(), whole };
        let text = Arc::clone(&output.text);
        thread::spawn(move || {
            let mut reader = BufReader::new(reader);
            let mut line = Vec::new();
            while let Ok(1..) = reader.read_until(b'\n', &mut line) {
                show(&text, &String::from_utf8_lossy(&line));
                line.clear();
            }
            let _ = ending.send(());
        });
        output
    }

    /// Adds what we say of the program.
    fn add(&self, said: &str) {
        show(&self.text, said);
    }

    fn so_far(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the last of it, though not for ever: what a program has left behind can hold it open.
    fn is_whole(&self) -> bool {
        self.whole.recv_timeout(LAST_WORDS).is_ok()
    }
}

fn show(text: &Mutex<String>, said: &str) {
    print!("{said}");
    text.lock().unwrap_or_else(PoisonError::into_inner).push_str(said);
}

/// Which of the tests have said nothing about their end.
fn unfinished(tests: &[String], output: &str) -> String {
    let has_ended = |test: &&String| {
        let line = format!("test {test} ");
        output.lines().filter(|said| said.contains(&line)).any(|said| {
            [" ... ok", " ... FAILED", " ... ignored"].iter().any(|end| said.contains(end))
        })
    };
    let mut text = String::from("tests that have not finished:\n");
    for test in tests.iter().filter(|test| !has_ended(test)) {
        let _ = writeln!(text, "    {test}");
    }
    text
}

fn last_lines(output: &str) -> String {
    let lines: Vec<&str> = output.lines().filter(|line| !is_of_a_backtrace(line)).collect();
    let mut last = String::new();
    for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
        let _ = writeln!(last, "    {line}");
    }
    last
}

/// Whether a line is a frame or its place in the source: such lines would push out what the program said.
fn is_of_a_backtrace(line: &str) -> bool {
    let text = line.trim_start();
    let rest = text.trim_start_matches(|character: char| character.is_ascii_digit());
    let is_frame = rest.len() < text.len() && rest.starts_with(": ");
    text.len() < line.len() && (is_frame || text.starts_with("at "))
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// What all programs have said of their tests.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    took: Vec<(Duration, String)>,
    failures: Vec<Failure>,
}

struct Failure {
    what: String,
    output: String,
}

impl Tally {
    fn add(&mut self, run: Run) {
        for line in run.output.lines().filter_map(|line| line.strip_prefix("test result: ")) {
            for part in line.split([';', '.']) {
                match part.trim().split_once(' ').map(|(number, what)| (number.parse(), what)) {
                    Some((Ok::<u64, _>(number), "passed")) => self.passed += number,
                    Some((Ok(number), "failed")) => self.failed += number,
                    Some((Ok(number), "ignored")) => self.ignored += number,
                    _ => {}
                }
            }
        }
        if let Some(failure) = run.failure {
            let what = format!("{} {failure}", run.name);
            self.failures.push(Failure { what, output: run.output });
        }
        self.took.push((run.took, run.name));
    }

    /// Says how it went, the number of tests last.
    fn conclude(mut self) -> Result<()> {
        self.took.sort();
        println!("\nthe slowest, in seconds:");
        for (took, name) in self.took.iter().rev().take(SLOWEST) {
            println!("{:>8.1}  {name}", took.as_secs_f64());
        }
        println!();
        for Failure { what, output } in &self.failures {
            println!("{what}, having said at last:\n{}", last_lines(output));
        }
        for Failure { what, .. } in &self.failures {
            println!("{what}");
        }
        let ignored = match self.ignored {
            0 => String::new(),
            number => format!(", {number} ignored"),
        };
        println!("{} passed, {} failed{ignored}", self.passed, self.failed);
        let failed = self.failures.len();
        ensure!(failed == 0, "{failed} of {} test programs failed", self.took.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long the two tests that hang do so. They pass at once where it is not set.
    const HANGS: &str = "XTASK_TEST_HANGS";

    #[test]
    fn hangs_alone() {
        if env::var_os(HANGS).is_some() {
            loop {
                thread::park();
            }
        }
    }

    #[test]
    fn hangs_with_a_child() {
        if let Some(seconds) = env::var_os(HANGS) {
            // In a group of its own, as a server is.
            let _ = Command::new("sleep").arg(seconds).process_group(0).status();
        }
    }

    #[test]
    fn a_test_that_hangs_is_named_and_ended() {
        let run = run_hanging("hangs_alone", "1", Duration::from_millis(500));
        assert_eq!(run.failure.as_deref(), Some("had not ended after 500ms"));
        assert!(run.output.contains("\n    test_programs::tests::hangs_alone\n"), "{}", run.output);
    }

    #[test]
    fn a_child_of_a_test_that_hangs_is_shown_and_ended() {
        // Nobody else sleeps for as long.
        let seconds = format!("86400.{}", std::process::id());
        let sleep = format!("sleep {seconds}");
        // A busy machine may take its time to come as far.
        let run = (0..8)
            .map(|doubled| {
                let limit = Duration::from_millis(500 << doubled);
                run_hanging("hangs_with_a_child", &seconds, limit)
            })
            .find(|run| run.output.contains(&sleep));
        let run = run.expect("the child is shown");
        assert!(run.failure.is_some(), "{}", run.output);
        assert!(!run.output.contains("left somebody behind"), "{}", run.output);
        assert!(!Processes::all().contains(&sleep), "the child has ended");
    }

    #[test]
    fn a_program_that_ends_says_so_itself() {
        for (command, failure) in [
            ("true", None),
            ("false", Some("failed")),
            ("kill -ABRT $$", Some("was ended by signal: 6 (SIGABRT)")),
        ] {
            let program = program("sh", &["-c", command]);
            let run = run(&program, &[], LIMITS, &Running::default()).expect("it runs");
            assert_eq!(run.failure.as_deref(), failure);
        }
    }

    #[test]
    fn who_holds_the_output_open_is_not_waited_for() {
        let program = program("sh", &["-c", "sleep 86400 & echo $!"]);
        let run = run(&program, &[], LIMITS, &Running::default()).expect("it runs");
        let (sleep, said) = run.output.split_once('\n').expect("its number");
        assert!(said.contains("left somebody behind"), "{said}");
        let sleep = sleep.parse().map(Pid::from_raw).expect("a number");
        nix::sys::signal::kill(sleep, Signal::SIGKILL).expect("it is there");
    }

    #[test]
    fn tests_that_have_said_how_they_ended_are_finished() {
        let tests = ["a", "b", "b_c", "d", "e"].map(str::to_owned);
        let output = "test a ... ok\nsomething test b_c ... FAILED\ntest d ... ignored, for a reason\n\
                      test e has been running for over 60 seconds\n";
        assert_eq!(unfinished(&tests, output), "tests that have not finished:\n    b\n    e\n");
    }

    #[test]
    fn a_backtrace_does_not_hide_what_was_said() {
        let frames =
            "   7: core::ops::function::FnOnce::call_once\n      at ./tests/a.rs:65:5\n".repeat(60);
        let output =
            format!("panicked at tests/a.rs:65:5:\nat most: 7\n{frames}test result: FAILED.\n");
        let said = "    panicked at tests/a.rs:65:5:\n    at most: 7\n    test result: FAILED.\n";
        assert_eq!(last_lines(&output), said);
    }

    #[test]
    fn results_are_added_up() {
        let mut tally = Tally::default();
        for (name, failure) in [("one", None), ("other", Some("failed".to_owned()))] {
            let output = "\ntest result: ok. 12 passed; 3 failed; 1 ignored; 0 measured; 9 filtered out; \
                          finished in 2.31s\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\n";
            let (name, took) = (name.to_owned(), Duration::ZERO);
            tally.add(Run { name, took, output: output.to_owned(), failure });
        }
        assert_eq!((tally.passed, tally.failed, tally.ignored), (26, 6, 2));
        assert_eq!(
            tally.conclude().expect_err("one failed").to_string(),
            "1 of 2 test programs failed"
        );
    }

    const LIMITS: Limits = Limits { run: Duration::from_secs(60), end: Duration::from_millis(100) };

    fn program(path: &str, arguments: &[&str]) -> Program {
        Program {
            name: path.to_owned(),
            path: PathBuf::from(path),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            folder: PathBuf::from("."),
            environment: Vec::new(),
            lists: true,
        }
    }

    /// Runs this program's own test of that name.
    fn run_hanging(test: &str, seconds: &str, limit: Duration) -> Run {
        let this = env::current_exe().expect("a path");
        let mut program = program(&this.display().to_string(), &[]);
        program.environment.push((HANGS, seconds.into()));
        let arguments = [format!("test_programs::tests::{test}"), "--exact".to_owned()];
        let limits = Limits { run: limit, ..LIMITS };
        run(&program, &arguments, limits, &Running::default()).expect("it runs")
    }
}
