//! Lists that go with a packet: each as one literal, which statements take apart as a table. So a packet has
//! as many statements for one item as for many.

use std::fmt;
use std::time::Duration;

use database_locks_core::Attempt;
use database_locks_core::ledger::{Entry, Until};
use serde_json::{Value, json};

use crate::literal::{digits, text};
use crate::state::{Change, LAST, NEVER, Write};

/// With so few rows a list is written out wherever it is used: to take a literal apart costs more.
const FEW: usize = 4;

/// A list of a kind, which displays as a table.
pub(crate) struct List {
    kind: &'static ListKind,
    /// Of one array a row, with one value a column.
    rows: Vec<Value>,
    columns: &'static [(&'static str, &'static str)],
}

/// What a list is of. Its last column is the data, and left out where there is none.
pub(crate) struct ListKind {
    variable: &'static str,
    alias: &'static str,
    columns: &'static [(&'static str, &'static str)],
}

impl ListKind {
    pub(crate) fn list(&'static self, rows: Vec<Value>) -> List {
        let is_told = |row: &Value| row.get(self.columns.len() - 1).is_some_and(|v| !v.is_null());
        // Room is made for the longest text that a column may have.
        let columns = match rows.iter().any(is_told) {
            true => self.columns,
            false => &self.columns[..self.columns.len() - 1],
        };
        List { kind: self, rows, columns }
    }
}

impl List {
    /// The statement that has to come before its use, if one has.
    pub(crate) fn set(&self) -> Option<String> {
        if self.rows.len() <= FEW {
            return None;
        }
        let json = Value::from_iter(self.rows.iter().cloned()).to_string();
        Some(format!("SET {} = {}", self.kind.variable, text(&json)))
    }

    /// The data of a row, for a statement.
    pub(crate) fn data(&self) -> String {
        match self.columns.len() == self.kind.columns.len() {
            true => format!("UNHEX({}.data)", self.kind.alias),
            false => "NULL".to_owned(),
        }
    }

    fn write_out(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, row) in self.rows.iter().enumerate() {
            let union = if place == 0 { "(" } else { " UNION ALL " };
            write!(f, "{union}SELECT {} AS i", place + 1)?;
            for (column, (name, _)) in self.columns.iter().enumerate() {
                match row.get(column) {
                    None | Some(Value::Null) => write!(f, ", NULL AS {name}")?,
                    Some(Value::String(value)) => write!(f, ", {} AS {name}", text(value))?,
                    Some(value) => write!(f, ", {value} AS {name}")?,
                }
            }
        }
        write!(f, ") {}", self.kind.alias)
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.len() <= FEW {
            return self.write_out(f);
        }
        let (ListKind { variable, alias, .. }, columns) = (self.kind, self.columns);
        write!(f, "JSON_TABLE({variable}, '$[*]' COLUMNS (i FOR ORDINALITY")?;
        for (place, (name, kind)) in columns.iter().enumerate() {
            write!(f, ", {name} {kind} PATH '$[{place}]'")?;
        }
        write!(f, ")) {alias}")
    }
}

const INTEGER: &str = "BIGINT";
/// Without anything that JSON escapes, since some versions of MariaDB leave it escaped: labels of owners, of up to
/// 255 bytes, go as hexadecimal digits.
const TEXT: &str = "VARCHAR(510) CHARACTER SET utf8mb4";
/// Data, as hexadecimal digits.
const DATA: &str = "VARCHAR(2048) CHARACTER SET utf8mb4";

/// What a row of [`CHANGES`] or [`SHARES`] is for.
pub(crate) const NEW: &str = "new";
pub(crate) const CHANGED: &str = "changed";
pub(crate) const MARKED: &str = "marked";
pub(crate) const GONE: &str = "gone";

/// Names that change, by the id of their row. Here and below times are in µs since 1970, and truth is 0 or 1.
pub(crate) static CHANGES: ListKind = ListKind {
    variable: "@database_locks_changes",
    columns: &[
        ("kind", TEXT),
        ("id", INTEGER),
        ("version", INTEGER),
        ("was", INTEGER),
        ("good_until", INTEGER),
        ("waiting_until", INTEGER),
        ("waiting_weight", INTEGER),
        ("token", INTEGER),
        ("locked_by", TEXT),
        ("explicit_owner", INTEGER),
        ("attempt", TEXT),
        ("capacity", INTEGER),
        ("acquired_at", INTEGER),
        ("touched_at", INTEGER),
        ("expires_at", INTEGER),
        ("standing", INTEGER),
        ("data", DATA),
    ],
    alias: "c",
};

/// The row of [`CHANGES`] for a change, and its kind.
pub(crate) fn change_row(change: &Change<'_>) -> (&'static str, Value) {
    let (kind, mark) = match &change.write {
        Write::Row(row) => (CHANGED, row.mark),
        Write::Mark(mark) => (MARKED, Some(*mark)),
        Write::Nothing => (GONE, None),
    };
    let mut values = vec![
        json!(kind),
        json!(change.id),
        json!(change.version),
        json!(change.expires_at),
        json!(change.before.map(micros)),
        json!(mark.map(|mark| micros(mark.until))),
        json!(mark.map_or(0, |mark| mark.weight)),
    ];
    if let Write::Row(row) = &change.write {
        values.extend([
            json!(row.token),
            json!(row.locked_by.map(|label| digits(label.as_bytes()))),
            json!(u8::from(row.explicit_owner)),
            json!(row.attempt.map(hexadecimal)),
            json!(row.capacity),
            json!(row.acquired_at.map(micros)),
            json!(micros(row.touched_at)),
            json!(row.expires_at.map(micros)),
            json!(row.standing.code()),
            json!(row.data.map(|data| digits(data.as_str().as_bytes()))),
        ]);
    }
    (kind, Value::Array(values))
}

/// Shares of names that change, by the id of the name's row.
pub(crate) static SHARES: ListKind = ListKind {
    variable: "@database_locks_shares",
    columns: &[
        ("kind", TEXT),
        ("id", INTEGER),
        ("version", INTEGER),
        ("written_at", INTEGER),
        ("attempt", TEXT),
        ("token", INTEGER),
        ("locked_by", TEXT),
        ("explicit_owner", INTEGER),
        ("weight", INTEGER),
        ("capacity", INTEGER),
        ("acquired_at", INTEGER),
        ("expires_at", INTEGER),
        ("touched_at", INTEGER),
        ("standing", INTEGER),
        ("data", DATA),
    ],
    alias: "e",
};

/// The rows of [`SHARES`] for a change, each with its kind.
pub(crate) fn share_rows(change: &Change<'_>) -> Vec<(&'static str, Value)> {
    let Write::Row(row) = &change.write else { return Vec::new() };
    let start = |kind, attempt| {
        let written_at = micros(row.touched_at);
        vec![
            json!(kind),
            json!(change.id),
            json!(change.version),
            json!(written_at),
            json!(hexadecimal(attempt)),
        ]
    };
    let whole = |kind, entry: &Entry| {
        // One that was released has no expiry, and was touched then.
        let (expires_at, touched_at) = match entry.until {
            Until::Forever => (Some(NEVER), row.touched_at),
            Until::Expiry(at) => (Some(at.min(LAST)), row.touched_at),
            Until::Released(at) => (None, at),
        };
        // It never changes.
        let data = entry.data.as_ref().filter(|_| kind == NEW);
        let mut values = start(kind, entry.attempt);
        values.extend([
            json!(entry.token.get()),
            json!(digits(entry.owner.label().as_bytes())),
            json!(u8::from(entry.owner.is_explicit())),
            json!(entry.share.weight()),
            json!(entry.share.capacity()),
            json!(micros(entry.granted_at)),
            json!(expires_at.map(micros)),
            json!(micros(touched_at)),
            json!(entry.standing.code()),
            json!(data.map(|data| digits(data.as_str().as_bytes()))),
        ]);
        (kind, Value::Array(values))
    };
    let gone = row.gone_shares.iter().map(|gone| (GONE, Value::Array(start(GONE, *gone))));
    let new = row.new_shares.iter().map(|entry| whole(NEW, entry));
    let changed = row.changed_shares.iter().map(|entry| whole(CHANGED, entry));
    gone.chain(new).chain(changed).collect()
}

/// An attempt as text.
pub(crate) fn hexadecimal(attempt: Attempt) -> String {
    digits(attempt.as_uuid().as_bytes())
}

/// µs since 1970, of a time that each client can read.
fn micros(since_1970: Duration) -> u64 {
    u64::try_from(since_1970.min(NEVER).as_micros()).unwrap_or(u64::MAX)
}
