//! `dblock migrate`: the tables.

use std::io::Write;

use crate::args::Migrate;
use crate::exit::{Failure, block_on};
use crate::settings;

pub(crate) fn migrate(arguments: &Migrate) -> Result<u8, Failure> {
    let settings = settings::of_database(&arguments.database)?;
    let text = if arguments.print {
        settings.schema_sql()?
    } else {
        block_on(async { Ok(settings.migrate().await?) })?;
        "the lock tables are in place".to_owned()
    };
    writeln!(std::io::stdout(), "{}", text.trim_end())
        .map_err(|error| Failure::system("cannot print", error))?;
    Ok(0)
}
