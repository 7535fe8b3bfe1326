//! What the tests of `dblock` share.

use std::process::Command;

pub(crate) const DBLOCK: &str = env!("CARGO_BIN_EXE_dblock");

/// A program that no signal is ignored by, whoever runs the tests: what a script runs in the background starts with
/// SIGINT and SIGQUIT ignored, and hands that on. The process is the program's own, since `env` becomes it.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal", program]);
    command
}
