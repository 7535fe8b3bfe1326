//! A wall clock of its own for a server, which a test may set, or for another program.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::folder::Folder;
use crate::install::Account;

/// A library that a program loads first, in place of the system's clock.
const SOURCE: &str = include_str!("clock.c");
const LIBRARY: &str = "clock.so";
const OFFSET: &str = "clock-offset";

/// How a clock is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockStep {
    /// It is later at once.
    Forward(Duration),
    /// It is earlier at once.
    Back(Duration),
}

/// A wall clock that is off by as much for whatever is given it, and for what that starts. What counts time since the
/// machine was started is not touched.
#[derive(Debug)]
pub struct ShiftedClock(Folder);

impl ShiftedClock {
    /// A clock that is set once.
    ///
    /// # Errors
    ///
    /// There is no C compiler, or no folder can be made.
    pub fn new(by: ClockStep) -> Result<Self> {
        let folder = Folder::create("clock", Account::ordinary(&[])?)?;
        install(&folder)?;
        step(folder.path(), by)?;
        Ok(Self(folder))
    }

    /// Starts `program` with this clock.
    pub fn give<'a>(&self, program: &'a mut Command) -> &'a mut Command {
        program.envs(environment(self.0.path()))
    }
}

/// Gives whatever will run in a folder a clock that can be set.
pub(crate) fn install(folder: &Folder) -> Result<()> {
    let source = folder.write("clock.c", SOURCE)?;
    let library = folder.path().join(LIBRARY);
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(source)
        .output()
        .context("cannot run cc, which makes a clock that can be set: install gcc")?;
    if !output.status.success() {
        bail!("cc does not compile the clock:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    folder.write(OFFSET, "\0\0\0\0\0\0\0\0")?;
    Ok(())
}

/// What tells a program in this folder to load the clock, if it has one.
pub(crate) fn environment(folder: &Path) -> Vec<(&'static str, OsString)> {
    let (library, offset) = (folder.join(LIBRARY), folder.join(OFFSET));
    match library.exists() {
        true => vec![("LD_PRELOAD", library.into()), ("CLOCK_OFFSET_FILE", offset.into())],
        false => Vec::new(),
    }
}

/// Sets the clock of the server in this folder, for all of its processes at once.
pub(crate) fn step(folder: &Path, step: ClockStep) -> Result<()> {
    let path = folder.join(OFFSET);
    ensure!(path.exists(), "this server's clock cannot be set: build it with `steppable`");
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 0)?;
    let by = match step {
        ClockStep::Forward(by) => i64::try_from(by.as_micros())?,
        ClockStep::Back(by) => -i64::try_from(by.as_micros())?,
    };
    let offset = i64::from_ne_bytes(bytes) + by;
    file.write_all_at(&offset.to_ne_bytes(), 0)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_shifted_clock_is_off() -> Result<()> {
        let hour = Duration::from_hours(1);
        for (step, expected) in [(ClockStep::Forward(hour), 3600), (ClockStep::Back(hour), -3600)] {
            let clock = ShiftedClock::new(step)?;
            let output = clock.give(Command::new("date").arg("+%s")).output()?;
            let said: i64 = String::from_utf8(output.stdout)?.trim().parse()?;
            let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
            // As long as it may take to start a program.
            assert!((said - now - expected).abs() < 60, "{said} at {now}");
        }
        Ok(())
    }
}
