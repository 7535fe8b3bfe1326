//! `dblock migrate`: the tables.

use std::io::Write;

use crate::args::Migrate;
use crate::exit::{Failure, block_on};
use crate::url;

pub(crate) fn migrate(arguments: &Migrate) -> Result<u8, Failure> {
    let url = url::resolve(&arguments.database)?;
    let text = if arguments.print {
        database_locks::schema_sql(&url)?
    } else {
        block_on(async { Ok(database_locks::migrate(&url).await?) })?;
        format!("the lock tables are in place ({})", url::system(&url))
    };
    writeln!(std::io::stdout(), "{}", text.trim_end())
        .map_err(|error| Failure::system("cannot print", error))?;
    Ok(0)
}
