//! Leases that hold on Postgres: a [`LockBackend`](database_locks_core::LockBackend) on
//! tokio-postgres and deadpool-postgres. Postgres 12 or newer; the suite runs on
//! 13, 15 and 18.
//!
//! ```no_run
//! # async fn example() -> database_locks_core::Result<()> {
//! use database_locks_postgres::{PostgresBackend, PostgresConfig};
//!
//! let config = PostgresConfig::from_url("postgres://app@db.internal/app?sslmode=verify-full")?;
//! let backend = PostgresBackend::connect(config).await?;
//! backend.migrate().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Most people never see this crate: they give the URL to `Locks::connect` of `database-locks`.
//!
//! # The URL
//!
//! `postgres://user:password@host:port/database?parameter=value&…`, or `postgresql://`. Several
//! hosts, `host1:port1,host2:port2`, are tried in turn until one takes writes: first the one that
//! worked last, and last the one that broke a connection or did not answer. Special characters are
//! encoded as `%XX`, also those of the password: `@` as `%40`. Beside what the driver knows
//! (`application_name`, `target_session_attrs`, `channel_binding`, `keepalives_idle`, …):
//!
//! | parameter | meaning | default |
//! |---|---|---|
//! | `table` | the lock table; shares are in the table with `_share` appended | `database_locks_lock` |
//! | `schema` | the schema of both, and of the functions | where `search_path` finds the table at first, or would make it |
//! | `prepare` | `auto`, `always` or `never`: whether statements are prepared, see [`Prepare`] | `auto` |
//! | `pool_size` | connections for claims, releases and lists, 1 to 64 | 4 |
//! | `sslmode` | `disable`, `prefer`, `require`, `verify-ca` or `verify-full`, as of libpq | `prefer` |
//! | `sslrootcert` | a PEM file of trusted authorities | those of the system |
//! | `sslcert`, `sslkey` | PEM files of the client's certificate and key | none |
//! | `connect_timeout` | seconds for each host, login included | 5 |
//! | `load_balance_hosts` | `random` begins with any host, `disable` with the first | `disable` |
//!
//! `prefer` and `require` protect against listeners only: they take any certificate (`require`
//! checks the chain where `sslrootcert` is given). Use `verify-full` across a network.
//!
//! Unless the URL says otherwise, a connection breaks after 20 s of unanswered data, and keepalives
//! are sent from 15 s of silence on.
//!
//! # Connections
//!
//! `pool_size` for claims, releases and lists, one that only renewals use, and one that listens:
//! 6 in all by default, however many leases or waiters there are. The shared ones are closed once they have been idle for a
//! minute, but for one, while anything is asked for or renewed. A connection with a request that
//! nobody waits for any more is closed, not reused; so are then, if the host had at least a second to
//! answer, the pooled connections to it, when they are next needed.
//!
//! The first words on a connection find out whether the server sees the very addresses and ports that
//! the connection has here. Then nothing is in between, and the session is ours alone: its statements
//! are prepared, and planned as for large tables, what is given up is cancelled on the server, and
//! `statement_timeout` is set to 10 s for what cannot be cancelled. On any other connection no setting of the session is changed beyond the
//! statement or transaction that needs it, and nothing is cancelled: behind a pooler, over a Unix socket (which has no
//! addresses) and where [`connect_by`](PostgresBackend::connect_by) makes the connections, give the role a
//! `statement_timeout` of 5 s or more yourself.
//!
//! # Tables and rights
//!
//! [`PostgresBackend::migrate`] makes two tables, and the functions that decide, or [`schema_sql`] prints
//! what it would do. A `database_locks_lock` that django-database-locks made is adopted: it gets our
//! columns, Django goes on using it, and both exclude each other. What Django holds is listed, and can
//! be released by force. A user that only locks needs:
//!
//! ```sql
//! grant usage on schema locks to app;
//! grant execute on all functions in schema locks to app;  -- unless public may execute them, as by default
//! grant select, insert, update, delete
//!   on locks.database_locks_lock, locks.database_locks_lock_share to app;
//! ```
//!
//! and, on a table that Django made with a serial key, `usage` on its sequence.
//!
//! The functions' names end in a version, so that old and new programs work on one database at once: a
//! program makes and calls its own. On connections of its own a program whose user has rights on the tables asks for
//! whole locks, their renewal and their release by plain statements, which cost the server some half of the function; these
//! call the function for what is not free, or not alive. Where a user must not touch the tables otherwise, let the functions
//! act with the rights of their owner:
//!
//! ```sql
//! alter function locks.database_locks_lock_acquire_1 security definer set search_path = pg_catalog, pg_temp;
//! alter function locks.database_locks_lock_change_1 security definer set search_path = pg_catalog, pg_temp;
//! revoke all on all functions in schema locks from public;
//! grant usage on schema locks to app;
//! grant execute on function locks.database_locks_lock_acquire_1 to app;
//! grant execute on function locks.database_locks_lock_change_1 to app;
//! ```
//!
//! and the same for `database_locks_lock_fence_1`, where it is [fenced](#the-fence).
//!
//! A program finds out by its first plain statement, which is denied, and calls the functions from then on.
//! Such a user locks, and cannot list leases, release by force or clean up. A migration makes the functions
//! anew, and then this is to be said again.
//!
//! # Who holds what
//!
//! `dblock list` tells, and so does SQL. Leases of whole locks, those of a Django app included, and then shares:
//!
//! ```sql
//! select name, locked_by, expires_at - now() as remaining
//!   from locks.database_locks_lock
//!   where expires_at > now() and (attempt is not null or expires_at is distinct from lease_expires_at);
//! select h.name, h.locked_by, h.weight, h.capacity, h.expires_at - now() as remaining
//!   from locks.database_locks_lock_share h join locks.database_locks_lock l on l.name = h.name
//!   where h.expires_at > now() and l.expires_at > now()
//!     and l.attempt is null and l.expires_at = l.lease_expires_at;
//! ```
//!
//! `locked_by` stays after a release, and is `(shared)` where shares are or were held: only `expires_at` says whether the lock
//! is held.
//!
//! # The fence
//!
//! A transaction in the same database need not check the fencing token itself:
//!
//! ```sql
//! begin;
//! select locks.database_locks_lock_fence_1('nightly', 1795689941854652);  -- the lock and the token
//! -- the work
//! commit;
//! ```
//!
//! The call fails with 55000 unless the lease with this token is alive; nobody else is granted the lock
//! before the transaction has ended, and renewals pass meanwhile. It takes the name's row `for key share`, for which the user
//! needs the right to `select` and `update` the lock table, and to `select` from its `_share` table. `database-locks-fence` calls
//! it in the transactions of Rust's drivers; any other language can do so with the token that it was given.
//!
//! It fails with P0002 where the database does not know the lock, and with 25P01 outside of a transaction. The latter it can
//! tell of simple and of prepared statements, not of one that goes with its parameters and unprepared; and it says
//! so as well if BEGIN came in the same message, or if one statement calls a function that does all the work. Send
//! BEGIN by itself first.
//!
//! Call it first in the transaction, and not in a savepoint, which gives the fence back where it is rolled back. Above `READ
//! COMMITTED` a snapshot that is older than somebody else's grant is an error 40001, and one that is older than the last
//! renewal may find the lease expired.
//! A Django app that takes the lock as django-database-locks does, with `select_for_update`, waits for the
//! transaction; a plain `update` of the row does not.
//!
//! # What is written when
//!
//! - A grant or a renewal updates the name's row, and for a share its own row as well: one call of a
//!   function for a whole batch, or one statement, one round trip, as durable as `synchronous_commit=on` whatever the session's
//!   default is (`remote_apply` is kept).
//! - A busy claim writes nothing. A waiter's mark is one lazy update, when less than half of the
//!   last mark is left.
//! - A release is one lazy update (`synchronous_commit=off`): if the server crashes within the next
//!   moment, the lease ends with its TTL instead. The release of a lease without a TTL, or of one that was kept, is
//!   durable, and so are a release that keeps the name and one that revokes the lease.
//!   Only where somebody's mark is alive it sends a notification.
//! - Rows stay, and are updated in place (heap-only), until
//!   [`clean_up`](database_locks_core::LockBackend::clean_up). It reads the whole table, at most once for 5,000 names that it
//!   forgets: an index on `touched_at` or `expires_at` would be written to by each renewal.
//!
//! While anything keeps an old snapshot (a long transaction or dump, a standby's `hot_standby_feedback`, an abandoned replication
//! slot), no version of a row can be removed. A lock then costs some 45 µs more for each 1,000 times that it was granted, renewed and
//! released since the snapshot; bound what is long by `idle_in_transaction_session_timeout` and the like.
//!
//! # pgbouncer and other poolers
//!
//! Everything works in transaction mode: no prepared statements are kept (unless by `prepare=always`), no
//! startup options are sent, no session state is relied on. Hints do not arrive there, so that waiting
//! takes polls. That a wake-up stream listens at all is only known once a probe has come through it.
//!
//! # Standbys and failover
//!
//! Leases live on the primary: name all hosts in the URL. A server that refuses to write is left,
//! as is one that breaks a connection or does not answer a request in time, even if it still
//! accepts connections: the pooled ones that lead to it are closed, and the other hosts are tried
//! first from then on. If all fail, the error says what each of them said. What all of them refuse, such
//! as a password, is told as such. A name that stands for several servers is one host: its next address
//! is tried where one cannot be used, and not where one hangs later.
//!
//! With asynchronous replication a failover can lose the last grants, as it loses all other commits:
//! somebody else may then be granted a lock while its old holder still believes in it, until that
//! holder's next renewal. If that matters, replicate synchronously; a commit that gave up waiting
//! for the standby is not believed but asked again. Fencing tokens start from the new primary's
//! clock at least, so that they grow as long as clocks are sane.

mod backend;
mod config;
mod error;
mod host;
mod pool;
mod sql;
mod tls;
mod wakeups;

pub use backend::PostgresBackend;
pub use config::{PostgresConfig, Prepare, SslMode};
pub use deadpool_postgres;

/// The backend's name in errors and logs.
const NAME: &str = "postgres";

/// The schema as SQL, for people who run their own migrations. Each statement may be repeated. Without a
/// [`schema`](PostgresConfig::schema) the tables and functions are in `public`.
#[must_use]
pub fn schema_sql(config: &PostgresConfig) -> String {
    let tables = config.tables_in("public");
    let make_schema = config.named_schema().map(|_| sql::make_schema(&tables)).unwrap_or_default();
    format!("{make_schema}{}", sql::Statements::new(&tables).schema)
}
