//! `dblock run` at a terminal: what a user sees, and what the keys do.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tempfile::TempDir;

use crate::common::DBLOCK;

const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const CTRL_Z: &str = "\x1a";
/// How the line of a waiting `dblock run` is removed, or begun anew.
const CLEAR: &str = "\r\x1b[2K";
/// Reads lines until Ctrl-D. What it prints differs from the terminal's echo of what is typed.
const ANSWER: &str = r#"while read -r line; do echo "got $line"; done"#;

#[test]
fn a_wait_is_shown_on_one_line_that_is_gone_when_the_command_starts() {
    let place = Place::new();
    let holder = Holder::start(&place);
    let mut screen = Screen::run(&place, &["dblock", "run", "n", "--", "echo", "started"]);
    screen.await_text("the line is kept up to date", |text| match &waiting_lines(text)[..] {
        [first, .., last] => first.held < last.held && last.left < first.left,
        _ => false,
    });
    holder.end();
    assert_eq!(screen.exit_code(), 0);
    let text = screen.text();
    let before = text.strip_suffix("started\r\n").unwrap_or_else(|| panic!("{text:?}"));
    assert!(before.ends_with(CLEAR) && !before.contains('\n'), "{text:?}");
}

#[test]
fn ctrl_c_ends_a_wait_and_clears_its_line() {
    let place = Place::new();
    let holder = Holder::start(&place);
    let mut screen = Screen::run(&place, &["dblock", "run", "n", "--", "echo", "started"]);
    screen.await_text("the wait is shown", |text| !waiting_lines(text).is_empty());
    screen.press(CTRL_C);
    assert_eq!(screen.exit_code(), 130);
    let text = screen.text();
    assert!(text.ends_with(CLEAR) && !text.contains("started"), "{text:?}");
    holder.end();
}

#[test]
fn a_wait_in_the_background_leaves_the_line_alone() {
    let place = Place::new();
    let holder = Holder::start(&place);
    let script = "set -m; dblock run n -- echo started & read -r end; wait; echo over";
    let mut screen = Screen::run(&place, &["sh", "-c", script]);
    screen.await_text("the wait is told", |text| text.contains("held by alice for "));
    holder.end();
    screen.await_text("the command runs", |text| text.contains("started"));
    screen.press("\n");
    assert_eq!(screen.exit_code(), 0);
    let text = screen.text();
    assert!(!text.contains(CLEAR), "{text:?}");
}

#[test]
fn the_command_reads_from_the_terminal_and_ctrl_c_ends_it() {
    let place = Place::new();
    let mut screen = Screen::run(&place, &["dblock", "run", "n", "--", "sh", "-c", ANSWER]);
    screen.press("hello\n");
    screen.await_text("the command answers", |text| text.contains("got hello"));
    screen.press(CTRL_C);
    assert_eq!(screen.exit_code(), 130);
    assert!(place.is_free(), "the lock was released");
}

#[test]
fn ctrl_z_stops_and_fg_goes_on() {
    let place = Place::new();
    // Long enough that the lease outlives the stop on any machine.
    let script = r#"set -m
        dblock run --ttl 1h n -- sh -c "$0"; echo "stopped $?"
        read -r go; fg; echo "ended $?""#;
    let mut screen = Screen::run(&place, &["sh", "-c", script, ANSWER]);
    screen.press("one\n");
    screen.await_text("the command answers", |text| text.contains("got one"));
    screen.press(CTRL_Z);
    let stopped = format!("stopped {}", 128 + Signal::SIGTSTP as i32);
    screen.await_text("the shell is back", |text| text.contains(&stopped));
    assert!(!place.is_free(), "a stopped command keeps its lock");
    screen.press("\n");
    screen.press("two\n");
    screen.await_text("the command answers again", |text| text.contains("got two"));
    screen.press(CTRL_D);
    screen.await_text("the command ends", |text| text.contains("ended 0"));
    assert_eq!(screen.exit_code(), 0);
    assert!(place.is_free(), "the lock was released");
}

#[test]
fn ctrl_z_where_nobody_could_continue_it_stops_nothing() {
    let place = Place::new();
    let mut screen = Screen::run(&place, &["dblock", "run", "n", "--", "sh", "-c", ANSWER]);
    screen.press("one\n");
    screen.await_text("the command answers", |text| text.contains("got one"));
    screen.press(CTRL_Z);
    screen.await_text("the key is echoed", |text| text.contains("^Z"));
    screen.press("two\n");
    screen.await_text("the command answers again", |text| text.contains("got two"));
    screen.press(CTRL_D);
    assert_eq!(screen.exit_code(), 0);
}

/// A folder with a fresh SQLite file.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Runs a program that finds `dblock` on its path, and the file.
    fn command(&self, program: &str) -> Command {
        let mut path = Path::new(DBLOCK).parent().unwrap().as_os_str().to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap());
        let mut command = common::command(program);
        command
            .current_dir(self.0.path())
            .env("PATH", path)
            .env("DATABASE_LOCKS_URL", format!("sqlite:{}", self.0.path().join("l.db").display()))
            .env_remove("RUST_LOG");
        command
    }

    fn is_free(&self) -> bool {
        let mut command = self.command("dblock");
        command.args(["run", "--no-wait", "n", "--", "true"]).stderr(Stdio::null());
        command.status().unwrap().success()
    }
}

/// Alice holds the lock, away from any terminal, until she is told to end.
struct Holder {
    process: Child,
    input: ChildStdin,
}

impl Holder {
    fn start(place: &Place) -> Self {
        let mut command = place.command("dblock");
        command.args(["run", "--owner", "alice", "--ttl", "1h", "n", "--"]);
        command.args(["sh", "-c", "echo held; read -r end"]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let held = process.stdout.as_mut().unwrap().read(&mut [0; 16]).unwrap();
        assert_ne!(held, 0, "alice holds the lock");
        let input = process.stdin.take().unwrap();
        Self { process, input }
    }

    fn end(mut self) {
        self.input.write_all(b"\n").unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}

/// A terminal, with a program that leads a session on it.
struct Screen {
    keyboard: File,
    text: Arc<Mutex<Vec<u8>>>,
    reader: Option<thread::JoinHandle<()>>,
    program: Child,
}

impl Screen {
    fn run(place: &Place, program: &[&str]) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let size = Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let no_controlling = OFlags::NOCTTY.bits().cast_signed();
        let terminal = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(no_controlling)
            .open(name)
            .unwrap();
        let keyboard = File::from(master);
        let text = Arc::new(Mutex::new(Vec::new()));
        let mut output = keyboard.try_clone().unwrap();
        let seen = Arc::clone(&text);
        let reader = thread::spawn(move || {
            let mut chunk = [0; 4096];
            // Fails once nobody has the terminal open any more.
            while let Ok(length @ 1..) = output.read(&mut chunk) {
                seen.lock().unwrap().extend_from_slice(&chunk[..length]);
            }
        });
        let mut command = place.command("setsid");
        command.arg("--ctty").args(program);
        command.stdin(terminal.try_clone().unwrap()).stdout(terminal.try_clone().unwrap());
        let program = command.stderr(terminal).spawn().unwrap();
        Self { keyboard, text, reader: Some(reader), program }
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }

    fn await_text(&self, what: &str, is_there: impl Fn(&str) -> bool) {
        await_some(what, || is_there(&self.text()).then_some(()), || self.text());
    }

    /// Waits for the program's end, and for the last of what was written.
    fn exit_code(&mut self) -> i32 {
        let text = Arc::clone(&self.text);
        let shown = || String::from_utf8_lossy(&text.lock().unwrap()).into_owned();
        let status = await_some("the program ends", || self.program.try_wait().unwrap(), shown);
        let reader = self.reader.take().unwrap();
        await_some("nobody writes", || reader.is_finished().then_some(()), || self.text());
        status.code().unwrap()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Only a test that failed leaves something behind: the kernel hangs up on its session.
        if let Ok(None) = self.program.try_wait() {
            let _ = kill(Pid::from_raw(self.program.id().cast_signed()), Signal::SIGKILL);
            let _ = self.program.wait();
        }
    }
}

/// Waits with a bound that only a broken program, or a machine that stands still, exceeds.
fn await_some<T>(
    what: &str,
    mut happened: impl FnMut() -> Option<T>,
    shown: impl Fn() -> String,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(outcome) = happened() {
            return outcome;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{what}: not yet: {:?}", shown());
        thread::sleep(Duration::from_millis(5));
    }
}

struct WaitingLine {
    held: Duration,
    left: Duration,
}

/// What a waiting `dblock run` showed so far, each time it wrote its line. The last one may be
/// incomplete yet, and is not counted then.
fn waiting_lines(text: &str) -> Vec<WaitingLine> {
    let complete = text.split(CLEAR).filter_map(|line| line.strip_suffix(" unless renewed"));
    complete.map(|line| parse_waiting(line).unwrap_or_else(|| panic!("{line:?}"))).collect()
}

fn parse_waiting(line: &str) -> Option<WaitingLine> {
    let (waited, line) = line.strip_prefix("dblock: waiting ")?.split_once(" for ")?;
    humantime::parse_duration(waited).ok()?;
    let (held, left) =
        line.strip_prefix("\"n\": held by alice for ")?.split_once(", expires in ")?;
    Some(WaitingLine {
        held: humantime::parse_duration(held).ok()?,
        left: humantime::parse_duration(left).ok()?,
    })
}
