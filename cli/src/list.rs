//! `dblock list`: who holds what.

use std::io::{self, Write};
use std::time::Duration;

use database_locks::LeaseInfo;
use serde::Serialize;

use crate::args::List;
use crate::exit::{Failure, block_on};
use crate::settings;
use crate::waiting::{printable, whole_seconds};

pub(crate) fn list(arguments: &List) -> Result<u8, Failure> {
    let settings = settings::of_database(&arguments.database)?;
    let leases = block_on(async {
        let locks = settings.connect().await?;
        let leases = locks.list(&arguments.prefix).await?;
        locks.shutdown().await;
        Ok(leases)
    })?;
    let printed = if arguments.json { print_json(&leases) } else { print_table(&leases) };
    match printed {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        Err(error) => Err(Failure::system("cannot print", error)),
        Ok(()) => Ok(0),
    }
}

/// A lease in JSON. The names of the fields are part of the interface.
#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    owner: &'a str,
    token: u64,
    attempt: String,
    share: String,
    weight: u32,
    capacity: u32,
    held_for_seconds: f64,
    remaining_seconds: Option<f64>,
    waited_for: bool,
}

fn print_json(leases: &[LeaseInfo]) -> io::Result<()> {
    let rows: Vec<Row<'_>> = leases
        .iter()
        .map(|info| Row {
            name: info.lease.name.as_str(),
            owner: info.lease.owner.label(),
            token: info.lease.token.get(),
            attempt: info.lease.attempt.to_string(),
            share: info.lease.share.to_string(),
            weight: info.lease.share.weight(),
            capacity: info.lease.share.capacity(),
            held_for_seconds: info.held_for.as_secs_f64(),
            remaining_seconds: info.remaining.as_ref().map(Duration::as_secs_f64),
            waited_for: info.waited_for,
        })
        .collect();
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &rows)?;
    writeln!(out)?;
    out.flush()
}

fn print_table(leases: &[LeaseInfo]) -> io::Result<()> {
    let titles = ["NAME", "OWNER", "TOKEN", "SHARE", "HELD FOR", "REMAINING", "WAITED FOR"];
    let mut rows = vec![titles.map(str::to_owned)];
    rows.extend(leases.iter().map(|info| {
        [
            printable(info.lease.name.as_str()),
            printable(info.lease.owner.label()),
            info.lease.token.to_string(),
            info.lease.share.to_string(),
            whole_seconds(info.held_for),
            info.remaining.map_or("never expires".to_owned(), whole_seconds),
            if info.waited_for { "yes" } else { "no" }.to_owned(),
        ]
    }));
    let widths: [usize; 7] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
    });
    let mut out = io::stdout().lock();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line += &format!("{cell:width$}  ");
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    out.flush()
}
