//! A Django project with the real django-database-locks, and processes of it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use database_locks_test_servers::{Access, ClockStep, Database, ShiftedClock, python};
use serde_json::{Value, json};

use crate::Kind;

/// How long anything may take on the slowest machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A Django project, with a database of its own.
pub(crate) struct Project {
    pub(crate) database: Database,
    settings: Value,
    /// The clock of its processes, if not the system's.
    clock: Option<ShiftedClock>,
}

impl Project {
    /// A project whose tables Django has made.
    pub(crate) fn migrated(kind: Kind) -> Self {
        let project = Self::without_tables(kind.shared().unwrap().database().unwrap());
        project.django(&["migrate", "--verbosity=0"]);
        project
    }

    pub(crate) fn without_tables(database: Database) -> Self {
        Self { database, settings: json!({}), clock: None }
    }

    /// Sets one of Django's settings for what is run from now on.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.settings[name] = value.into();
    }

    /// Sets the clock of what is run from now on.
    pub(crate) fn step_clock(&mut self, step: ClockStep) {
        self.clock = Some(ShiftedClock::new(step).unwrap());
    }

    /// Runs one of Django's commands, as `manage.py` does, and gives what it prints.
    pub(crate) fn django(&self, arguments: &[&str]) -> String {
        let output = self.python().args(["-m", "django"]).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?} ended with {}: {said}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts a process that takes locks as it is told.
    pub(crate) fn worker(&self) -> Worker {
        let mut script = self.python();
        script.arg(scripts().join("worker.py"));
        Worker::start(&mut script)
    }

    /// The interpreter, set up for the project.
    pub(crate) fn python(&self) -> Command {
        let mut command = Command::new(python().unwrap());
        if let Some(clock) = &self.clock {
            clock.give(&mut command);
        }
        let url = Access::url(&self.database);
        command
            .env("DJANGO_DATABASE_URL", url)
            .env("DJANGO_SETTINGS", self.settings.to_string())
            .env("DJANGO_SETTINGS_MODULE", "settings")
            .env("PYTHONPATH", scripts())
            .env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }
}

/// The folder of the Python side.
pub(crate) fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/django/python")
}

/// Asks once, and does not renew: the real package's renewal may come after the release, and take
/// the lock again.
pub(crate) fn once(lock_ttl: f64) -> Value {
    json!({"lock_ttl": lock_ttl, "auto_renew": false, "retry": null})
}

/// By a lock that is asked for [`once`].
pub(crate) fn assert_refused(entered: Result<(), Raised>) {
    let message = "failed to acquire lock".to_owned();
    assert_eq!(entered, Err(Raised { kind: "LockException".to_owned(), message }));
}

/// A process that takes a command a line, as `worker.py` does. It is killed when this is dropped.
pub(crate) struct Worker {
    process: Child,
    commands: ChildStdin,
    answers: Receiver<String>,
    /// How many locks it was told that it had lost.
    pub(crate) lost: u64,
    /// What it called itself last, as it does in `locked_by`.
    owner: String,
}

/// An exception.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Raised {
    pub(crate) kind: String,
    pub(crate) message: String,
}

impl Worker {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let commands = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (answer, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = answer.send(line);
            }
        });
        Self { process, commands, answers, lost: 0, owner: String::new() }
    }

    /// What it calls itself in `locked_by`, once it has answered.
    pub(crate) fn owner(&self) -> &str {
        &self.owner
    }

    /// Enters `with lock(name, **options)`.
    pub(crate) fn enter(&mut self, name: &str, options: Value) -> Result<(), Raised> {
        self.begin_to_enter(name, options);
        self.entered()
    }

    /// As [`enter`](Self::enter), without waiting for it.
    pub(crate) fn begin_to_enter(&mut self, name: &str, options: Value) {
        self.tell(&json!({"do": "enter", "name": name, "options": options}));
    }

    /// What became of [`begin_to_enter`](Self::begin_to_enter).
    pub(crate) fn entered(&mut self) -> Result<(), Raised> {
        self.answer().map(|_| ())
    }

    /// Leaves `with lock(name)`.
    pub(crate) fn exit(&mut self, name: &str) -> Result<(), Raised> {
        self.ask(&json!({"do": "exit", "name": name})).map(|_| ())
    }

    pub(crate) fn ask(&mut self, command: &Value) -> Result<Value, Raised> {
        self.tell(command);
        self.answer()
    }

    fn tell(&mut self, command: &Value) {
        writeln!(self.commands, "{command}").unwrap();
    }

    fn answer(&mut self) -> Result<Value, Raised> {
        let line = self.answers.recv_timeout(PATIENCE).expect("an answer of the python process");
        let mut reply: Value = serde_json::from_str(&line).unwrap();
        self.lost += reply["lost"].as_u64().unwrap();
        reply["owner"].as_str().unwrap().clone_into(&mut self.owner);
        match reply["error"].as_str() {
            None => Ok(reply["answer"].take()),
            Some(kind) => Err(Raised {
                kind: kind.to_owned(),
                message: reply["message"].as_str().unwrap().to_owned(),
            }),
        }
    }

    /// By `kill -9`.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}
