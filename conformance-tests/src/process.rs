//! Parts of a case that run in processes of their own: the same test of the same program, started again.

use std::marker::PhantomData;
use std::process::{Command, Stdio};

use database_locks_core::async_trait;

use crate::harness::{Client, Harness, Outcome, ShiftedBy, Stop};

const ADDRESS: &str = "DATABASE_LOCKS_TEST_ADDRESS";
const TAG: &str = "DATABASE_LOCKS_TEST_TAG";
const TEXT: &str = "DATABASE_LOCKS_TEST_PART";

/// What a part tells begins with this, on a line that the test runner may have begun.
const TOLD: &str = "the part tells: ";

/// A part of a case.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// Where the store is.
    pub(crate) address: String,
    /// The case's own, so that names are the same.
    pub(crate) tag: u64,
    /// What is to be done, in the case's own words.
    pub(crate) text: String,
}

impl Part {
    /// The part that this process was started for.
    pub(crate) fn of_this_process() -> Option<Self> {
        let read = |variable| std::env::var(variable).ok();
        let tag = read(TAG)?.parse().ok()?;
        Some(Self { address: read(ADDRESS)?, tag, text: read(TEXT)? })
    }

    /// The program that does the part, if the test of this name runs the case.
    pub(crate) fn program(&self, test: &str) -> Outcome<Command> {
        let mut program = Command::new(std::env::current_exe()?);
        program
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(ADDRESS, &self.address)
            .env(TAG, self.tag.to_string())
            .env(TEXT, &self.text);
        Ok(program)
    }
}

/// Tells the process that has started this one.
pub(crate) fn tell(text: &str) {
    println!("{TOLD}{text}");
}

/// A process that does a part of a case. It ends with this.
pub(crate) struct Process {
    child: tokio::process::Child,
    _clock: Option<ShiftedBy>,
}

impl Process {
    /// Starts it, and keeps its clock for as long as it runs.
    pub(crate) fn start(program: Command, clock: Option<ShiftedBy>) -> Outcome<Self> {
        let child = tokio::process::Command::from(program)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { child, _clock: clock })
    }

    /// Waits for its end, and answers what it has told.
    pub(crate) async fn told(self) -> Outcome<Vec<String>> {
        let output = self.child.wait_with_output().await?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(Stop::failed(format!("in another process:\n{text}{errors}")));
        }
        let told = text.lines().filter_map(|line| line.split_once(TOLD));
        Ok(told.map(|(_, text)| text.to_owned()).collect())
    }
}

/// A store that another process has made: all it has is clients.
pub(crate) struct Elsewhere<H> {
    address: String,
    harness: PhantomData<fn() -> H>,
}

impl<H> Elsewhere<H> {
    pub(crate) fn new(address: String) -> Self {
        Self { address, harness: PhantomData }
    }
}

#[async_trait]
impl<H: Harness> Harness for Elsewhere<H> {
    async fn fresh() -> Outcome<Self> {
        Err(Stop::failed("the store of a part of a case is the case's"))
    }

    async fn client(&self) -> Outcome<Client> {
        H::client_at(&self.address).await
    }
}
