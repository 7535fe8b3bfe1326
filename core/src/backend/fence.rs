//! A fence: what a transaction of the user's own runs first, so that nothing is committed under a lease that has ended.

use std::fmt;
use std::sync::Arc;

use crate::words::identity::LeaseId;

/// How leases of a backend are fenced: by one statement in a transaction of the database that keeps them.
///
/// # To ensure correctness
///
/// - The statement succeeds only if the lease is alive by the server's clock, neither kept nor revoked. Its time may be of
///   before a wait for a row's lock, but then whoever was granted the lock meanwhile is seen.
/// - From its success to the end of the transaction no claim is granted that would not have fitted beside the lease,
///   whatever becomes of the lease meanwhile. On a cluster whose nodes decide by themselves one of the two fails to commit.
pub struct Fence(Box<dyn Fn(&LeaseId) -> FenceSql + Send + Sync>);

impl Fence {
    /// A fence whose statement for a lease `make` makes.
    pub fn new(make: impl Fn(&LeaseId) -> FenceSql + Send + Sync + 'static) -> Self {
        Self(Box::new(make))
    }

    /// The statement for `lease`.
    #[must_use]
    pub fn sql(&self, lease: &LeaseId) -> FenceSql {
        (self.0)(lease)
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fence")
    }
}

/// A statement that fences a transaction, for any driver: see [`Lease::fence_sql`](crate::Lease::fence_sql).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceSql {
    dialect: Dialect,
    statement: Statement,
    lookup: Option<Statement>,
}

impl FenceSql {
    /// A fence by `statement`.
    #[must_use]
    pub const fn new(dialect: Dialect, statement: Statement) -> Self {
        Self { dialect, statement, lookup: None }
    }

    /// Sets the query that tells whether a database knows the lock.
    #[must_use]
    pub fn with_lookup(self, lookup: Statement) -> Self {
        Self { lookup: Some(lookup), ..self }
    }

    /// Whose SQL it is, which says how its parameters are written.
    #[must_use]
    pub const fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The statement.
    #[must_use]
    pub const fn statement(&self) -> &Statement {
        &self.statement
    }

    /// The statement's text.
    #[must_use]
    pub fn sql(&self) -> &str {
        self.statement.sql()
    }

    /// The parameters of its text, in their order.
    #[must_use]
    pub fn params(&self) -> &[FenceParam] {
        self.statement.params()
    }

    /// Where the statement changes no row: a query that gives a row if this database knows the lock's name at all. If it does
    /// not, the transaction is probably of another database than the locks are.
    #[must_use]
    pub const fn lookup(&self) -> Option<&Statement> {
        self.lookup.as_ref()
    }
}

/// A statement, and what it is executed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    sql: Arc<str>,
    params: Vec<FenceParam>,
}

impl Statement {
    /// A statement of this text.
    pub fn new(sql: impl Into<Arc<str>>, params: impl Into<Vec<FenceParam>>) -> Self {
        Self { sql: sql.into(), params: params.into() }
    }

    /// The text.
    #[must_use]
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// The parameters of the text, in their order.
    #[must_use]
    pub fn params(&self) -> &[FenceParam] {
        &self.params
    }
}

/// A parameter. Exhaustive, since whoever sends a statement has to know each kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FenceParam {
    /// A text.
    Text(String),
    /// A number of 64 bits.
    Integer(i64),
    /// Bytes, which are no text.
    Bytes(Vec<u8>),
}

/// Whose SQL a statement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// Postgres: parameters are `$1`, `$2`, …
    Postgres,
    /// MySQL, MariaDB and Galera: each parameter is a `?`.
    MySql,
    /// SQLite: parameters are `?1`, `?2`, …
    Sqlite,
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "Postgres",
            Self::MySql => "MySQL",
            Self::Sqlite => "SQLite",
        })
    }
}
