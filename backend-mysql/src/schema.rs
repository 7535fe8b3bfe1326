//! The tables: how they are made, what is added to one that a Django app made, and what is wrong
//! with one that is there.

use std::collections::BTreeMap;

use database_locks_core::{Error, ErrorKind, Result};
use mysql_async::Row;

use crate::config::MysqlConfig;
use crate::literal::hex;
use crate::state::get;

/// The engine that has row locks and transactions.
const ENGINE: &str = "InnoDB";

/// What django-database-locks has, too.
const LOCK_KEYS: &[(&str, &str)] = &[
    ("id", "BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY"),
    ("name", "VARBINARY(255) NOT NULL"),
    ("locked_by", "VARBINARY(255) NULL"),
    ("expires_at", EXPIRES_AT),
];

/// `lease_expires_at` is `expires_at` as we wrote it: where the two differ, somebody else has
/// written the row since.
const LOCK_COLUMNS: &[(&str, &str)] = &[
    ("attempt", "BINARY(16) NULL"),
    ("token", "BIGINT NOT NULL DEFAULT 0"),
    ("version", "BIGINT NOT NULL DEFAULT 0"),
    ("explicit_owner", "BOOLEAN NOT NULL DEFAULT FALSE"),
    ("capacity", "INT NOT NULL DEFAULT 2147483647"),
    ("acquired_at", "DATETIME(6) NULL"),
    ("lease_expires_at", "DATETIME(6) NULL"),
    ("touched_at", "DATETIME(6) NULL"),
    ("waiting_until", "DATETIME(6) NULL"),
    ("waiting_weight", "INT NOT NULL DEFAULT 0"),
    ("standing", "TINYINT NOT NULL DEFAULT 0"),
    ("data", "VARBINARY(1024) NULL"),
];

const LOCK_INDEXES: &str = "UNIQUE KEY (name)";

const SHARE_COLUMNS: &[(&str, &str)] = &[
    ("name", "VARBINARY(255) NOT NULL"),
    ("attempt", "BINARY(16) NOT NULL"),
    ("token", "BIGINT NOT NULL"),
    ("locked_by", "VARBINARY(255) NOT NULL"),
    ("explicit_owner", "BOOLEAN NOT NULL"),
    ("weight", "INT NOT NULL"),
    ("capacity", "INT NOT NULL"),
    ("acquired_at", "DATETIME(6) NOT NULL"),
    ("expires_at", "DATETIME(6) NULL"),
    ("touched_at", "DATETIME(6) NOT NULL"),
    ("standing", "TINYINT NOT NULL DEFAULT 0"),
    ("data", "VARBINARY(1024) NULL"),
];

const SHARE_INDEXES: &str = "PRIMARY KEY (name, attempt)";

/// Without fractions it would not be equal to what was written.
const EXPIRES_AT: &str = "DATETIME(6) NULL";

/// The name as text, for a Django app, that compares as its bytes do, spaces at its end included.
/// Each of the two servers takes the other one's clause for a comment. A table that an old server
/// has made may have a row format that cannot index that much.
const NAME_AS_TEXT: &str = "VARCHAR(255) CHARACTER SET utf8mb4 \
    /*!80017 COLLATE utf8mb4_0900_bin */ /*M! COLLATE utf8mb4_nopad_bin */ NOT NULL";
const EXACT_COLLATIONS: [&str; 2] = ["utf8mb4_0900_bin", "utf8mb4_nopad_bin"];

/// Who holds a lock, as text for a Django app, in whatever letters.
const LOCKED_BY_AS_TEXT: &str = "LONGTEXT CHARACTER SET utf8mb4 NULL";

/// What there is of the tables.
#[derive(Debug, Default)]
pub(crate) struct Schema {
    /// By table and name, in lower case.
    columns: BTreeMap<(Table, String), Column>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Table {
    Lock,
    Share,
}

#[derive(Debug)]
struct Column {
    data_type: String,
    collation: Option<String>,
    /// How many digits a second has.
    precision: Option<u8>,
    /// How many characters fit, or bytes where it has bytes.
    length: Option<u64>,
}

/// Makes the tables where they are missing.
pub(crate) fn create(config: &MysqlConfig) -> [String; 2] {
    let lock = [LOCK_KEYS, LOCK_COLUMNS].concat();
    [
        (config.lock_table(), lock, LOCK_INDEXES),
        (config.share_table(), SHARE_COLUMNS.to_vec(), SHARE_INDEXES),
    ]
    .map(|(table, columns, indexes)| {
        let columns: String = columns
            .into_iter()
            .map(|(column, definition)| format!("  {column} {definition},\n"))
            .collect();
        format!("CREATE TABLE IF NOT EXISTS {table} (\n{columns}  {indexes}\n) ENGINE={ENGINE}")
    })
}

impl Schema {
    /// Asks for what [`read`](Self::read) takes. Not of the session's database, which an
    /// `init_connect` may have changed.
    pub(crate) fn query(config: &MysqlConfig) -> String {
        let database = hex(config.database().as_bytes());
        let [lock, share] = config.table_names();
        format!(
            "SELECT t.table_name, t.engine, c.column_name, c.data_type, c.collation_name, \
             c.datetime_precision, c.character_maximum_length FROM information_schema.tables t \
             JOIN information_schema.columns c \
               ON c.table_schema = t.table_schema AND c.table_name = t.table_name \
             WHERE t.table_schema = CONVERT({database} USING utf8mb4) \
               AND t.table_name IN ('{lock}', '{share}')"
        )
    }

    /// What there is.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] for a table of an engine that cannot lock rows.
    pub(crate) fn read(rows: &[Row], config: &MysqlConfig) -> Result<Self> {
        let [lock, _] = config.table_names();
        let mut schema = Self::default();
        for row in rows {
            let (table, name): (String, String) = (get(row, 0)?, get(row, 2)?);
            let engine = get::<Option<String>>(row, 1)?.unwrap_or_else(|| "no engine".to_owned());
            if !engine.eq_ignore_ascii_case(ENGINE) {
                return Err(unsupported(format!(
                    "the table {table} is kept by {engine}, which has no row locks: \
                     ALTER TABLE {table} ENGINE={ENGINE}"
                )));
            }
            let of = if table.eq_ignore_ascii_case(&lock) { Table::Lock } else { Table::Share };
            let column = Column {
                data_type: get(row, 3)?,
                collation: get(row, 4)?,
                precision: get(row, 5)?,
                length: get(row, 6)?,
            };
            schema.columns.insert((of, name.to_lowercase()), column);
        }
        Ok(schema)
    }

    /// Whether all columns are there.
    pub(crate) fn is_complete(&self) -> bool {
        LOCK_KEYS
            .iter()
            .chain(LOCK_COLUMNS)
            .all(|(name, _)| self.column(Table::Lock, name).is_some())
            && SHARE_COLUMNS.iter().all(|(name, _)| self.column(Table::Share, name).is_some())
    }

    /// What makes the lock table ours as well, for one that a Django app made: our columns, names
    /// that compare by their bytes, and times that are exact. `None` where there is nothing to do.
    pub(crate) fn adoption(&self, config: &MysqlConfig) -> Option<String> {
        let missing = LOCK_COLUMNS
            .iter()
            .filter(|(name, _)| self.column(Table::Lock, name).is_none())
            .map(|(name, definition)| format!("ADD COLUMN {name} {definition}"));
        let wrong = [
            (!self.has_exact_names())
                .then(|| format!("MODIFY name {NAME_AS_TEXT}, ROW_FORMAT = DYNAMIC")),
            (!self.has_all_letters()).then(|| format!("MODIFY locked_by {LOCKED_BY_AS_TEXT}")),
            (!self.has_exact_times()).then(|| format!("MODIFY expires_at {EXPIRES_AT}")),
        ];
        let changes: Vec<String> = missing.chain(wrong.into_iter().flatten()).collect();
        (!changes.is_empty())
            .then(|| format!("ALTER TABLE {} {}", config.lock_table(), changes.join(", ")))
    }

    /// Refuses tables that look complete, but would grant locks twice. Those that are not complete
    /// refuse every statement by themselves.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`], with what to do.
    pub(crate) fn check(&self, config: &MysqlConfig) -> Result<()> {
        match self.adoption(config) {
            Some(alter) if self.is_complete() => Err(unsupported(format!(
                "the lock table cannot hold names, owners and times as they are: {alter}"
            ))),
            _ => Ok(()),
        }
    }

    fn has_exact_names(&self) -> bool {
        self.column(Table::Lock, "name").is_some_and(|name| {
            let collation = name.collation.as_deref().unwrap_or_default();
            // What does not fit would be cut, and be another name.
            name.length >= Some(255)
                && (name.data_type.eq_ignore_ascii_case("varbinary")
                    || EXACT_COLLATIONS.contains(&collation))
        })
    }

    fn has_all_letters(&self) -> bool {
        self.column(Table::Lock, "locked_by").is_some_and(|label| {
            label.length >= Some(255)
                && label.collation.as_ref().is_none_or(|c| c.starts_with("utf8mb4"))
        })
    }

    fn has_exact_times(&self) -> bool {
        let column = self.column(Table::Lock, "expires_at");
        column.is_some_and(|column| {
            column.data_type.eq_ignore_ascii_case("datetime") && column.precision == Some(6)
        })
    }

    fn column(&self, table: Table, name: &str) -> Option<&Column> {
        self.columns.get(&(table, name.to_owned()))
    }
}

fn unsupported(message: String) -> Error {
    Error::new(ErrorKind::Unsupported, message).with_backend(crate::NAME)
}
