//! What is asked of the server. The statements and functions stand in `sql/`, a file each, where
//! `{lock}` and the like stand for names; this makes them fit one pair of tables.
//!
//! The verbs that decide are PL/pgSQL functions of the database, made by `migrate`. These rules make
//! them exact:
//!
//! - **Lock, then judge.** Each statement of a function has a snapshot of its own. A function locks
//!   the name's row with `SKIP LOCKED`, which never waits, and judges what it reads after that
//!   (for what cannot be skipped, a row that is made just now or that of a share, it waits 50 ms). Each
//!   change of a name's shares is made under that lock and writes the name's row too, so whoever has
//!   the row sees all of them. Only what decides nothing for anybody else (busy, another capacity) is
//!   answered without the lock, so that a busy poll writes nothing.
//!   Sets, and single locks that need no function, are judged and locked by one statement: it never waits either, and judges a
//!   row again, once it has locked it, that has changed since its snapshot.
//! - **Time is read after the lock,** by `clock_timestamp()`; `now()` appears nowhere.
//! - **The strength of the lock says what for.** A claim takes the row `FOR UPDATE`, a renewal or a
//!   release `FOR NO KEY UPDATE`, a fence in a user's transaction `FOR KEY SHARE`: so a fence holds
//!   back claims and lets renewals pass.
//! - **Contended shares wait a moment, exclusive claims do not.** Shares fit beside each other, so a
//!   try must not fail because another one was just granted: the contended ones are asked again, and
//!   then they wait for their rows, a moment for all of them together.
//! - **One row decides everything exclusive.** `expires_at` of the name's row is never earlier than
//!   that of any live share. A share is alive only while the name's row says `(shared)` and is
//!   alive too, so that others who write only this row, such as a Django app, decide over all.
//! - **What others write is theirs.** Only we write `lease_expires_at`, along with `expires_at`.
//!   Where the two differ somebody else has taken or renewed the lock since, be it under the name of
//!   our owner: that is a lease of all of the lock, and nothing else in the row says anything of it.
//! - **Functions have a version in their names,** so that old and new programs work on one database:
//!   what a function does may change only under a new name, once it was published.
//!
//! Above `READ COMMITTED` all statements of a function share a snapshot, and a locked row that has
//! changed since is an error 40001 instead of "contended"; the backend then wraps its statements into
//! explicit `READ COMMITTED` transactions.

use std::sync::Arc;

use database_locks_core::Standing;
use database_locks_core::ledger::Ledger;

use crate::config::Tables;

/// The oldest server that speaks all of the SQL here.
pub(crate) const MIN_SERVER_VERSION: i32 = 120_000;

/// The first words on a connection: whether it takes no writes, and whether it has the very ends that we
/// opened, `$1` and `$2` ours, `$3` and `$4` the server's, so that the session is ours alone. Then it is
/// also bounded, since a server that waits for a lock does not notice that its client has gone, and its
/// statements are planned for tables of any size, since they are prepared while these are small, and once: a plan for the
/// values of each call seems cheaper than it is. What needs a sequential scan all the same seems dear then, and would be compiled.
pub(crate) const MEET: &str = "\
select m.is_read_only, m.is_direct,
       case when m.is_direct then set_config('statement_timeout', '10s', false)
                                  || set_config('enable_seqscan', 'off', false)
                                  || set_config('jit', 'off', false)
                                  || set_config('plan_cache_mode', 'force_generic_plan', false) end
from (select current_setting('transaction_read_only') = 'on' as is_read_only,
             coalesce((host(inet_client_addr()), inet_client_port()) = ($1, $2)
                      and (host(inet_server_addr()), inet_server_port()) = ($3, $4), false)
               as is_direct
      offset 0) m";

/// What a session's own defaults are, which server this is, and where the table is or would be made.
/// `$1` the lock table, as a name that `search_path` finds.
pub(crate) const INSPECT: &str = "\
select current_setting('server_version_num')::int,
       current_setting('default_transaction_isolation') = 'read committed'
       and not exists (
         select from pg_settings
         where name = 'statement_timeout' and setting::bigint between 1 and 4999),
       coalesce((select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where c.oid = to_regclass($1)), current_schema())::text";

/// Opens a transaction in which no default of the session counts.
pub(crate) const BEGIN: &str = "\
begin transaction isolation level read committed read write; set local statement_timeout = '10s'";

pub(crate) const COMMIT: &str = "commit";

/// Goes before [`Statements::schema`] in one simple query, which is one transaction. One migration at
/// a time; the lock is released with the transaction.
///
/// Waiting for an advisory lock does not refresh what the session has cached of the catalogs, and
/// `if not exists` would go by that: opening a table does refresh it.
pub(crate) const MIGRATE: &str = "\
set transaction isolation level read committed read write;
set local statement_timeout = 0;
set local lock_timeout = 0;
select pg_advisory_xact_lock(hashtextextended('database-locks migration', 0));
select from pg_catalog.pg_namespace limit 0;
set local lock_timeout = '1s';
";

/// Whether the schema is there. `$1` its name.
pub(crate) const HAS_SCHEMA: &str = "select to_regnamespace($1) is not null";

/// Makes the schema. Needs the right to make schemas even where it is there.
pub(crate) fn make_schema(tables: &Tables) -> String {
    format!("create schema if not exists {};\n", tables.quoted_schema())
}

/// Sends a notification. `$1` channel, `$2` payload.
pub(crate) const NOTIFY: &str = "select pg_notify($1, $2)";

/// The expiry of a lease that never expires. Not `infinity`, which other drivers cannot read.
const NEVER: &str = "timestamptz '9999-01-01 00:00:00+00'";

/// In place of the attempt of a lease that somebody else's client wrote.
const NO_ATTEMPT: &str = "uuid '00000000-0000-0000-0000-000000000000'";

fn standing(standing: Standing) -> String {
    format!("smallint '{}'", standing.code())
}

/// Of the functions: another one for each change of what they do, once they were published.
const VERSION: u32 = 1;

/// The columns that the functions use, newest last. What `tables.sql` makes must be listed here too.
const IS_MIGRATED: &str = "\
select (select count(*) from pg_attribute
        where attrelid = to_regclass($1) and not attisdropped
          and attname in ('attempt', 'token', 'explicit_owner', 'capacity', 'acquired_at',
                          'lease_expires_at', 'touched_at', 'waiting_until', 'waiting_weight',
                          'standing', 'data')) = 11
   and (select count(*) from pg_attribute
        where attrelid = to_regclass($2) and not attisdropped
          and attname in ('name', 'attempt', 'token', 'locked_by', 'explicit_owner', 'weight',
                          'capacity', 'acquired_at', 'expires_at', 'touched_at', 'standing', 'data')) = 12
   and (select count(*) from unnest($3::text[]) f where to_regprocedure(f) is not null)
         = cardinality($3::text[])";

/// The statements for one pair of tables.
#[derive(Debug)]
pub(crate) struct Statements {
    /// Decides claims: `$1` names, `$2` attempts, `$3` owners, `$4` whether explicit, `$5`
    /// weights, `$6` capacities, `$7` TTLs, `$8` graces, `$9` marks, these three in µs, `$10` data, `$11`
    /// to `$14` attempts, tokens, owners and whether these are explicit of the leases whose places are taken, `$15` whether to
    /// wait a moment for rows that are locked.
    pub(crate) acquire: String,
    /// As `acquire`, of one whole lock or of different ones, and at once what is free: for sessions of ours whose user has
    /// rights on the table.
    pub(crate) acquire_whole: OneOrMany,
    /// Extends or ends leases: `$1` names, `$2` attempts, `$3` tokens, `$4` owners, `$5` whether
    /// explicit, `$6` weights, `$7` capacities, `$8` in which way, `$9` TTLs or ages in µs, `$10` the channel for
    /// hints, `$11` who releases, for these, `$12` as the last of `acquire`.
    pub(crate) change: String,
    /// As `change`, of one whole lock or of different ones that are renewed or freed, and at once where their leases live.
    pub(crate) change_whole: OneOrMany,
    /// Lists live leases: `$1` prefix, `$2` and `$3` name and attempt to start after, `$4` limit, `$5` what comes after
    /// all that starts with the prefix.
    pub(crate) list: String,
    /// Forgets names: `$1` idle time in µs.
    pub(crate) clean_up: String,
    /// Fences a transaction of the user's own: `$1` name, `$2` token.
    pub(crate) fence: Arc<str>,
    /// Makes tables and functions, or adds what is missing. Each statement may be repeated.
    pub(crate) schema: String,
    /// Whether all of that is there: `$1` and `$2` the tables, `$3` the functions.
    pub(crate) is_migrated: &'static str,
    /// What [`is_migrated`](Self::is_migrated) looks for: each with the types of its arguments, since one of another
    /// signature may have its name.
    pub(crate) functions: Vec<String>,
}

/// Two statements for the same: to take lists apart costs one item more than all the rest does.
#[derive(Debug)]
pub(crate) struct OneOrMany {
    one: String,
    many: String,
}

impl OneOrMany {
    /// The one for these names, which are in order. `None` where one of them comes twice.
    pub(crate) fn of(&self, names: &[&str]) -> Option<&str> {
        match names {
            [_] => Some(&self.one),
            _ if names.windows(2).all(|pair| pair[0] != pair[1]) => Some(&self.many),
            _ => None,
        }
    }
}

impl Statements {
    pub(crate) fn new(tables: &Tables) -> Self {
        let functions = ["acquire", "change", "reason", "fence"]
            .map(|verb| (verb, tables.qualified(&format!("_{verb}_{VERSION}"))));
        let named = |sql: &str| {
            let mut sql = sql
                .replace("{grant_free}", include_str!("../sql/grant_free.sql"))
                .replace("{change_held}", include_str!("../sql/change_held.sql"))
                .replace("{lock}", &tables.lock())
                .replace("{share}", &tables.share())
                .replace("{never}", NEVER)
                .replace("{no_attempt}", NO_ATTEMPT)
                .replace("{held}", &standing(Standing::Held))
                .replace("{kept}", &standing(Standing::Kept))
                .replace("{revoked}", &standing(Standing::Revoked))
                .replace("{most_remembered}", &Ledger::MOST_REMEMBERED.to_string())
                .replace("{least_remembered}", &Ledger::LEAST_REMEMBERED.to_string());
            for (verb, function) in &functions {
                sql = sql.replace(&format!("{{{verb}}}"), function);
            }
            sql
        };
        let definitions = [
            include_str!("../sql/reason.sql"),
            include_str!("../sql/acquire.sql"),
            include_str!("../sql/change.sql"),
            include_str!("../sql/fence.sql"),
        ];
        Self {
            acquire: named(
                "select * from {acquire}($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
            ),
            acquire_whole: OneOrMany {
                one: named(include_str!("../sql/acquire_one.sql")),
                many: named(include_str!("../sql/acquire_many.sql")),
            },
            change: named(
                "select * from {change}($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
            ),
            change_whole: OneOrMany {
                one: named(include_str!("../sql/change_one.sql")),
                many: named(include_str!("../sql/change_many.sql")),
            },
            list: named(include_str!("../sql/list.sql")),
            clean_up: named(include_str!("../sql/clean_up.sql")),
            fence: named("select {fence}($1, $2)").into(),
            schema: named(
                &[&[include_str!("../sql/tables.sql")], &definitions[..]].concat().join("\n"),
            ),
            is_migrated: IS_MIGRATED,
            functions: definitions.iter().map(|definition| named(&signature(definition))).collect(),
        }
    }
}

/// The function that `definition` makes, with the types of its arguments alone.
fn signature(definition: &str) -> String {
    let head = definition.split_once("create or replace function ").map_or("", |it| it.1);
    let (function, rest) = head.split_once('(').unwrap_or_default();
    let arguments = rest.split_once(')').map_or("", |it| it.0).split(',');
    let types: Vec<_> =
        arguments.filter_map(|it| it.trim().split_once(' ')).map(|it| it.1).collect();
    format!("{function}({})", types.join(", "))
}
