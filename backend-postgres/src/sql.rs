//! All SQL of this backend.
//!
//! Every verb is one statement of the same shape, and these rules make it exact:
//!
//! - **Judge a version, lock that version.** A statement reads the name's row and its shares in
//!   its snapshot and judges them. It then locks the name's row with `SKIP LOCKED`, which never
//!   waits, and acts only if the row it locked is the very version (`ctid`) that it judged. Each
//!   change of a name's shares also writes the name's row under that lock, so an unchanged
//!   version means that nothing of the judgment has changed. Whoever finds another version, or a
//!   locked row, has decided nothing ("contended"). The version is compared outside the locking
//!   subquery, because a check inside it is not repeated for every kind of scan.
//! - **Time is read after the lock.** What was alive in the snapshot is compared with
//!   `clock_timestamp()` again in a materialized step that follows the lock; `now()` appears
//!   nowhere.
//! - **Contended shares wait a moment, exclusive claims do not.** Shares fit beside each other, so
//!   a try must not fail because another one was just granted: the statement is repeated in a
//!   `READ COMMITTED` transaction that locks the rows first, in a statement of its own and for at
//!   most [`PATIENCE`], so that the judging snapshot is taken after the wait.
//! - **One row decides everything exclusive.** `expires_at` of the name's row is never earlier than
//!   that of any live share. A share is alive only while the name's row says `(shared)` and is
//!   alive too, so that others who write only this row, such as a Django app, decide over all.
//! - **What others write is theirs.** Only we write `lease_expires_at`, along with `expires_at`.
//!   Where the two differ somebody else has taken or renewed the lock since, be it under the name of
//!   our owner: that is a lease of all of the lock, and nothing else in the row says anything of it.
//!
//! No statement depends on the isolation level for its safety. Above `READ COMMITTED` a locked
//! row that has changed is an error 40001 instead of "contended"; the backend then wraps its
//! statements into explicit `READ COMMITTED` transactions.

use crate::config::PostgresConfig;

/// The oldest server that speaks all of the SQL here.
pub(crate) const MIN_SERVER_VERSION: i32 = 120_000;

/// What a session's own defaults are, and which server this is.
pub(crate) const INSPECT: &str = "\
select current_setting('server_version_num')::int,
       current_setting('default_transaction_isolation') = 'read committed'
       and not exists (
         select from pg_settings
         where name = 'statement_timeout' and setting::bigint between 1 and 4999)";

/// Opens a transaction in which no default of the session counts.
pub(crate) const BEGIN: &str = "\
begin transaction isolation level read committed read write; set local statement_timeout = 0";

pub(crate) const COMMIT: &str = "commit";

/// Bounds the wait for a row that [`Statements::lock_rows`] takes. Longer than a few commits of
/// others, and short for whoever waits for the rest of the batch.
pub(crate) const PATIENCE: &str = "set local lock_timeout = '250ms'";

/// Goes before [`schema`] in one simple query, which is one transaction. One migration at a time;
/// the lock is released with the transaction.
///
/// Waiting for an advisory lock does not refresh what the session has cached of the catalogs, and
/// `if not exists` would go by that: opening a table does refresh it.
///
/// Whoever waits to alter a table keeps all others from it who come later, which must be over before
/// a lease is.
pub(crate) const MIGRATE: &str = "\
set transaction isolation level read committed read write;
set local statement_timeout = 0;
set local lock_timeout = 0;
select pg_advisory_xact_lock(hashtextextended('database-locks migration', 0));
select from pg_catalog.pg_namespace limit 0;
set local lock_timeout = '1s';
";

/// Sends a notification. `$1` channel, `$2` payload.
pub(crate) const NOTIFY: &str = "select pg_notify($1, $2)";

/// In `locked_by` of a name that is held by shares. Its `attempt` is null then.
const SHARED: &str = "(shared)";

/// The expiry of a lease that never expires. Not `infinity`, which other drivers cannot read.
const NEVER: &str = "timestamptz '9999-01-01 00:00:00+00'";

/// In place of the attempt of a lease that somebody else's client wrote.
const NO_ATTEMPT: &str = "uuid '00000000-0000-0000-0000-000000000000'";

/// Whether the name's row `l` says that somebody else's client has the lease.
const FOREIGN: &str =
    "(l.expires_at is not null and l.expires_at is distinct from l.lease_expires_at)";

/// The statements for one pair of tables.
#[derive(Debug)]
pub(crate) struct Statements {
    /// Decides one claim. Parameters as of `acquire_many`, none of them an array.
    pub(crate) acquire_one: String,
    /// Decides claims: `$1` names, `$2` attempts, `$3` owners, `$4` whether explicit, `$5`
    /// weights, `$6` capacities, `$7` TTLs, `$8` graces, `$9` marks, the last three in µs.
    pub(crate) acquire_many: String,
    /// Locks the rows of names, in order, waiting. `$1` names.
    pub(crate) lock_rows: String,
    /// Extends leases: `$1` names, `$2` attempts, `$3` tokens, `$4` owners, `$5` whether explicit,
    /// `$6` weights, `$7` capacities, `$8` TTLs in µs.
    pub(crate) renew: String,
    /// Ends leases: `$1` to `$7` as of `renew`, `$8` the channel for hints.
    pub(crate) release: String,
    /// Lists live leases: `$1` prefix, `$2` and `$3` name and attempt to start after, `$4` limit.
    pub(crate) list: String,
    /// Forgets names: `$1` idle time in µs.
    pub(crate) clean_up: String,
    /// Whether the schema is there as [`schema`] makes it: `$1` and `$2` the tables.
    pub(crate) is_migrated: &'static str,
}

impl Statements {
    pub(crate) fn new(config: &PostgresConfig) -> Self {
        let lock = &config.lock_table();
        let share = &config.share_table();
        Self {
            acquire_one: acquire(lock, share, ONE_CLAIM),
            acquire_many: acquire(lock, share, MANY_CLAIMS),
            lock_rows: format!(
                "select from {lock} l where l.name = any($1) order by l.name \
                 for no key update of l"
            ),
            renew: renew(lock, share),
            release: release(lock, share),
            list: list(lock, share),
            clean_up: clean_up(lock, share),
            is_migrated: IS_MIGRATED,
        }
    }
}

/// What [`schema`] makes must be listed here too, newest column last.
const IS_MIGRATED: &str = "\
select (select count(*) from pg_attribute
        where attrelid = to_regclass($1) and not attisdropped
          and attname in ('attempt', 'token', 'explicit_owner', 'capacity', 'acquired_at',
                          'lease_expires_at', 'touched_at', 'waiting_until', 'waiting_weight')) = 9
   and (select count(*) from pg_attribute
        where attrelid = to_regclass($2) and not attisdropped
          and attname in ('name', 'attempt', 'token', 'locked_by', 'explicit_owner', 'weight',
                          'capacity', 'acquired_at', 'expires_at', 'touched_at')) = 10";

/// Makes the tables, or adds to the table of a Django app what it lacks. Each statement may be
/// repeated.
///
/// `expires_at` of the lock table stands in no index, so that a renewal is a heap-only update.
pub(crate) fn schema(config: &PostgresConfig) -> Vec<String> {
    let lock = config.lock_table();
    let share = config.share_table();
    let index = config.share_index();
    let mut statements = Vec::new();
    if let Some(schema) = config.quoted_schema() {
        statements.push(format!("create schema if not exists {schema}"));
    }
    statements.extend([
        format!(
            "create table if not exists {lock} (
  id bigint generated by default as identity primary key,
  name text collate \"C\" not null unique,
  locked_by text,
  expires_at timestamptz
) with (fillfactor = 70)"
        ),
        format!(
            "alter table {lock}
  add column if not exists attempt uuid,
  add column if not exists token bigint not null default 0,
  add column if not exists explicit_owner boolean not null default false,
  add column if not exists capacity integer not null default 2147483647,
  add column if not exists acquired_at timestamptz,
  add column if not exists lease_expires_at timestamptz,
  add column if not exists touched_at timestamptz,
  add column if not exists waiting_until timestamptz,
  add column if not exists waiting_weight integer not null default 0"
        ),
        format!(
            "create table if not exists {share} (
  name text collate \"C\" not null,
  attempt uuid not null,
  token bigint not null,
  locked_by text not null,
  explicit_owner boolean not null,
  weight integer not null,
  capacity integer not null,
  acquired_at timestamptz not null,
  expires_at timestamptz,
  touched_at timestamptz not null,
  primary key (name, attempt)
) with (fillfactor = 70)"
        ),
        format!(
            "create index if not exists {index} on {share} (name) where expires_at is not null"
        ),
    ]);
    statements
}

const ONE_CLAIM: &str = "\
select $1::text as name, $2::uuid as attempt, $3::text as owner, $4::boolean as explicit,
         $5::int as weight, $6::int as capacity, $7::bigint as ttl, $8::bigint as grace,
         $9::bigint as mark, 1::bigint as ord, 1::bigint as turn,";

const MANY_CLAIMS: &str = "\
select c.*, row_number() over (partition by c.name order by c.ord) as turn,";

/// What the name's row `l` says of the lease that it has, where `f.is_foreign` is [`FOREIGN`]:
/// somebody else's is later than any of ours.
fn lease_columns() -> String {
    format!(
        "\
case when not f.is_foreign then coalesce(l.attempt, {NO_ATTEMPT}) else {NO_ATTEMPT} end
           as held_attempt,
         l.token + f.is_foreign::int as last_token,
         l.explicit_owner and not f.is_foreign as explicit_owner,
         case when f.is_foreign then 2147483647 else l.capacity end as held_capacity,
         case when not f.is_foreign then l.acquired_at end as acquired_at,
         not f.is_foreign and l.attempt is null and coalesce(l.locked_by = '{SHARED}', false)
           as shared"
    )
}

/// A claim's verdict is computed in `judged` and carried out, where it is a grant or a replay, by
/// the steps below it. Of several claims of one name only the first counts.
///
/// The row of a missing name is inserted with a time from before a possible wait for somebody
/// else's uncommitted row; the wait is bounded far below the shortest TTL.
fn acquire(lock: &str, share: &str, claims: &str) -> String {
    let from = if claims == ONE_CLAIM {
        "from"
    } else {
        "from unnest($1::text[], $2::uuid[], $3::text[], $4::boolean[], $5::int[], $6::int[],
              $7::bigint[], $8::bigint[], $9::bigint[]) with ordinality
         as c(name, attempt, owner, explicit, weight, capacity, ttl, grace, mark, ord),"
    };
    let next_token = |last: &str, at: &str| {
        format!("greatest({last} + 1, (extract(epoch from {at}) * 1000000)::bigint)")
    };
    let token = next_token("l.token", "r.at");
    let first_token = next_token("0", "n.at");
    let until = |of: &str| {
        format!(
            "case when {of}.ttl is null then {NEVER} \
             else {of}.at + {of}.ttl * interval '1 microsecond' end"
        )
    };
    let ready_until = until("j");
    let row_until = format!(
        "case
        when r.exclusive then r.until
        else greatest(r.until,
               (select max(h.expires_at) from {share} h
                where r.shared and h.name = r.name and h.attempt <> r.attempt
                  and not (r.explicit and h.explicit_owner and h.locked_by = r.owner)),
               case when not r.shared
                     and not (r.explicit and r.explicit_owner and r.locked_by = r.owner)
                    then r.expires_at end)
        end"
    );
    let lease = lease_columns();
    let first_until = until("n");
    format!(
        "\
with claims as materialized (
  {claims} bound.set_config as bound
  {from} (select set_config('lock_timeout', '50ms', true)) as bound
),
seen as materialized (
  select c.*, c.weight = c.capacity as exclusive, clock_timestamp() as now,
         l.id, l.ctid as version, l.name is not null as known,
         l.attempt as last_attempt, {lease}, l.locked_by, l.expires_at,
         case when f.is_foreign then l.touched_at - l.expires_at end as behind,
         l.waiting_until, l.waiting_weight,
         h.attempt is not null as had_share, h.token as share_token, h.expires_at as share_until
  from claims c
  left join {lock} l on l.name = c.name
  cross join lateral (select {FOREIGN} as is_foreign) f
  left join {share} h on h.name = c.name and h.attempt = c.attempt
),
judged as materialized (
  select s.*, w.holder, w.holder_explicit, w.holder_token, w.holder_since, w.holder_until,
         w.first_until, w.other_capacity,
         case when s.exclusive then s.expires_at else least(s.expires_at, s.share_until) end
           as own_until,
         case
           when s.turn > 1 then 'contended'
           when s.last_attempt = s.attempt then
             case when s.held_attempt = s.attempt and s.locked_by = s.owner
                       and s.expires_at > s.now
                  then 'replay' else 'ended' end
           when s.had_share then
             case when s.shared and s.expires_at > s.now and s.share_until > s.now
                  then 'replay' else 'ended' end
           when w.other_capacity is not null then 'mismatch'
           when coalesce(w.taken, 0) + s.weight > s.capacity then 'busy'
           when s.waiting_until > s.now and s.waiting_weight > s.weight then 'standback'
           else 'grant'
         end as verdict
  from seen s
  left join lateral (
    select e.owner as holder, e.explicit as holder_explicit, e.token as holder_token,
           e.acquired_at as holder_since, e.expires_at as holder_until,
           sum(e.weight) over () as taken,
           min(e.expires_at) over () as first_until,
           max(e.capacity) filter (where e.capacity <> s.capacity) over () as other_capacity
    from (
      select s.locked_by as owner, s.explicit_owner as explicit, s.last_token as token,
             s.held_capacity::bigint as weight, s.held_capacity as capacity,
             s.acquired_at, s.expires_at
      where not s.shared
      union all
      select h.locked_by, h.explicit_owner, h.token, h.weight, h.capacity,
             h.acquired_at, h.expires_at
      from {share} h
      where s.shared and h.name = s.name
        and h.expires_at > s.now - s.grace * interval '1 microsecond'
    ) e
    where s.expires_at > s.now - s.grace * interval '1 microsecond'
      and e.expires_at > s.now - s.grace * interval '1 microsecond'
      and not (s.explicit and e.explicit and e.owner = s.owner)
    order by e.expires_at desc, e.token desc
    limit 1
  ) w on true
),
marking as materialized (
  select j.id, j.version, j.weight, j.mark
  from judged j
  where j.verdict = 'busy' and j.mark is not null
    and (j.waiting_until is null or j.waiting_until <= j.now or j.waiting_weight < j.weight
         or j.waiting_weight = j.weight
            and j.waiting_until < j.now + j.mark * interval '0.5 microseconds')
),
locked as materialized (
  select l.id, l.ctid as version
  from {lock} l
  where l.id in (select id from judged where verdict in ('grant', 'replay')
                 union all select id from marking)
  for no key update of l skip locked
),
marked as (
  update {lock} l
  set waiting_until = clock_timestamp() + m.mark * interval '1 microsecond',
      waiting_weight = m.weight
  from locked k join marking m on m.id = k.id and m.version = k.version
  where l.id = k.id
),
ready as materialized (
  select j.*, {ready_until} as until
  from (
    select j.*, clock_timestamp() as at
    from locked k join judged j on j.id = k.id and j.version = k.version
    where j.verdict in ('grant', 'replay')
  ) j
  where j.verdict = 'grant' or j.own_until > j.at
),
granted as (
  update {lock} l
  set locked_by = case when r.exclusive then r.owner else '{SHARED}' end,
      attempt = case when r.exclusive then r.attempt end,
      explicit_owner = r.exclusive and r.explicit,
      capacity = r.capacity,
      token = case when r.verdict = 'grant' then {token} else l.token end,
      acquired_at = case when r.verdict = 'grant' then r.at else l.acquired_at end,
      touched_at = r.at,
      expires_at = {row_until},
      lease_expires_at = {row_until},
      waiting_weight = case when r.verdict = 'grant' and l.waiting_weight <= r.weight then 0
                            else l.waiting_weight end
  from ready r
  where l.id = r.id
  returning r.ord, r.at, r.until,
    case when r.verdict = 'replay' and not r.exclusive then r.share_token else l.token end as token
),
inserted as (
  insert into {lock} (name, locked_by, attempt, explicit_owner, capacity, token, acquired_at,
                      touched_at, expires_at, lease_expires_at)
  select n.name, case when n.exclusive then n.owner else '{SHARED}' end,
         case when n.exclusive then n.attempt end, n.exclusive and n.explicit, n.capacity,
         {first_token}, n.at, n.at, {first_until}, {first_until}
  from (
    select j.*, clock_timestamp() as at
    from judged j
    where j.verdict = 'grant' and not j.known
    order by j.name
  ) n
  on conflict (name) do nothing
  returning name, token, acquired_at, expires_at
),
won as materialized (
  select g.ord, g.token, g.at, g.until from granted g
  union all
  select j.ord, i.token, i.acquired_at, i.expires_at
  from inserted i join judged j on j.name = i.name and j.turn = 1
),
new_share as materialized (
  select j.*, w.token as won_token, w.at, w.until
  from won w join judged j on j.ord = w.ord
  where not j.exclusive
),
taken as (
  insert into {share} (name, attempt, token, locked_by, explicit_owner, weight, capacity,
                       acquired_at, expires_at, touched_at)
  select n.name, n.attempt, n.won_token, n.owner, n.explicit, n.weight, n.capacity,
         n.at, n.until, n.at
  from new_share n where n.verdict = 'grant'
),
extended as (
  update {share} h set expires_at = n.until, touched_at = n.at
  from new_share n
  where n.verdict = 'replay' and h.name = n.name and h.attempt = n.attempt
),
remembered as (
  insert into {share} (name, attempt, token, locked_by, explicit_owner, weight, capacity,
                       acquired_at, expires_at, touched_at)
  select n.name, n.held_attempt, n.last_token, n.locked_by, n.explicit_owner, n.held_capacity,
         n.held_capacity, coalesce(n.acquired_at, n.at),
         case when n.explicit and n.explicit_owner and n.locked_by = n.owner
                   and n.expires_at is not null
              then '-infinity' else n.expires_at end,
         n.at
  from new_share n
  where n.verdict = 'grant' and n.held_attempt <> {NO_ATTEMPT} and n.locked_by is not null
  on conflict do nothing
),
superseded as (
  update {share} h set expires_at = '-infinity', touched_at = n.at
  from new_share n
  where n.verdict = 'grant' and h.name = n.name and h.attempt <> n.attempt
    and h.expires_at > '-infinity'
    and (not n.shared or n.explicit and h.explicit_owner and h.locked_by = n.owner)
),
forgotten as (
  delete from {share} h
  using new_share n
  where n.verdict = 'grant' and n.won_token % 64 = 0
    and h.name = n.name and h.attempt <> n.attempt
    and (h.expires_at is null or h.expires_at = '-infinity'
         or n.shared and h.expires_at < n.at - interval '1 minute')
    and h.touched_at < n.at - interval '1 minute'
),
durability as materialized (
  select set_config('synchronous_commit', case
    when current_setting('synchronous_commit') = 'remote_apply' then 'remote_apply'
    when exists (select from won) then 'on' else 'off' end, true)
)
select j.ord,
       case when w.ord is not null then 'granted'
            when j.verdict in ('grant', 'replay') then 'contended'
            else j.verdict end,
       w.token, j.other_capacity,
       j.holder, j.holder_explicit, j.holder_token,
       (extract(epoch from j.now - j.holder_since) * 1000000)::bigint,
       case when j.holder_until < {NEVER}
            then (extract(epoch from j.holder_until - j.now) * 1000000)::bigint end,
       case when j.first_until < {NEVER}
            then (extract(epoch from j.first_until - j.now) * 1000000)::bigint + j.grace end,
       case when j.behind > interval '0' and j.verdict = 'grant' then
            (extract(epoch from j.behind) * 1000000)::bigint end, j.locked_by
from durability, judged j left join won w on w.ord = j.ord"
    )
}

/// The steps that renewal and release share: which of the leases are alive, their rows locked.
///
/// `due` holds the leases that were still alive after the lock, with that moment as `at`.
fn due(lock: &str, share: &str, parameters: &str, columns: &str) -> String {
    let lease = lease_columns();
    format!(
        "\
with leases as materialized (
  select r.*, row_number() over (partition by r.name, r.attempt order by r.ord) as turn
  from unnest($1::text[], $2::uuid[], $3::bigint[], $4::text[], $5::boolean[], $6::int[],
              $7::int[]{parameters}) with ordinality
       as r(name, attempt, token, owner, explicit, weight, capacity{columns}, ord)
),
seen as materialized (
  select r.*, r.weight = r.capacity as exclusive, clock_timestamp() as now,
         l.id, l.ctid as version, l.name is not null as known, {lease}, l.locked_by,
         l.expires_at,
         l.lease_expires_at > clock_timestamp()
           and (f.is_foreign
                or l.expires_at is null and l.locked_by not in (r.owner, '{SHARED}')) as usurped,
         l.waiting_until,
         h.attempt is not null as had_share, h.token as share_token,
         h.locked_by as share_owner, h.expires_at as share_until
  from leases r
  left join {lock} l on l.name = r.name
  cross join lateral (select {FOREIGN} as is_foreign) f
  left join {share} h on h.name = r.name and h.attempt = r.attempt
),
judged as materialized (
  select s.*, case
    when s.turn > 1 then null
    when s.exclusive then
      case when not s.shared and s.held_attempt = s.attempt and s.last_token = s.token
                and s.locked_by = s.owner and s.expires_at > s.now
           then s.expires_at end
    when s.shared and s.share_token = s.token and s.share_owner = s.owner
         and s.expires_at > s.now and s.share_until > s.now
      then least(s.expires_at, s.share_until)
    end as alive_until
  from seen s
),
locked as materialized (
  select l.id, l.ctid as version
  from {lock} l
  where l.id in (select id from judged where alive_until is not null)
  for no key update of l skip locked
),
found as materialized (
  select j.*, clock_timestamp() as at
  from locked k join judged j on j.id = k.id and j.version = k.version
  where j.alive_until is not null
),
due as materialized (select f.* from found f where f.alive_until > f.at)"
    )
}

/// How each lease of `judged` fared: `ok`, `skipped`, or why it was lost. `usurped` is by somebody
/// else's client, though a lease of ours was alive; it may have released the lock since.
fn outcome(share: &str) -> String {
    format!(
        "\
case
    when d.ord is not null then 'ok'
    when j.turn > 1 then 'skipped'
    when j.alive_until is not null then
      case when exists (select from found f where f.ord = j.ord)
           then 'expired' else 'skipped' end
    when not j.shared and j.held_attempt = j.attempt and j.expires_at is null
         and (j.locked_by is null or j.locked_by = j.owner)
         or j.had_share and j.share_until is null then 'forced'
    when not j.known then 'deleted'
    when j.usurped then 'usurped'
    when j.explicit and (
           not j.shared and j.last_token > j.token and j.explicit_owner and j.locked_by = j.owner
           or exists (select from {share} h
                      where h.name = j.name and h.token > j.token
                        and h.explicit_owner and h.locked_by = j.owner)) then 'superseded'
    when not j.shared and (j.last_token > j.token
                           or j.held_attempt <> j.attempt and j.expires_at > j.now)
         or not j.shared and j.held_attempt = j.attempt and j.locked_by <> j.owner
         or exists (select from {share} h
                    where h.name = j.name and h.token > j.token
                      and h.expires_at is distinct from '-infinity'
                      and (h.capacity <> j.capacity
                           or h.weight::bigint + j.weight > h.capacity)) then 'taken'
    when j.last_token >= j.token then 'expired'
    else 'deleted'
  end"
    )
}

/// A renewal must be as durable as a grant: the holder relies on it.
///
/// The name's row takes the later of its own expiry and the share's, which needs no other share.
fn renew(lock: &str, share: &str) -> String {
    let due = due(lock, share, ", $8::bigint[]", ", ttl");
    let outcome = outcome(share);
    format!(
        "\
{due},
renewed as materialized (
  select d.*, case when d.ttl is null then {NEVER}
                   else d.at + d.ttl * interval '1 microsecond' end as until
  from due d
),
names as (
  update {lock} l
  set expires_at = case when d.exclusive then d.until else greatest(l.expires_at, d.until) end,
      lease_expires_at =
        case when d.exclusive then d.until else greatest(l.expires_at, d.until) end,
      touched_at = d.at
  from (select id, bool_or(exclusive) as exclusive, max(until) as until, max(at) as at
        from renewed group by id) d
  where l.id = d.id
),
shares as (
  update {share} h set expires_at = d.until, touched_at = d.at
  from renewed d
  where not d.exclusive and h.name = d.name and h.attempt = d.attempt
),
durability as materialized (
  select set_config('synchronous_commit', case
    when current_setting('synchronous_commit') = 'remote_apply' then 'remote_apply'
    else 'on' end, true)
)
select j.ord, {outcome}, j.locked_by
from durability, judged j left join due d on d.ord = j.ord"
    )
}

/// A release may be lost in a crash of the server: the lease then ends with its TTL. One that
/// would never end is as durable as its grant was.
///
/// The hint is sent only where a waiter's mark is alive, because it takes a lock on the whole
/// database at commit.
fn release(lock: &str, share: &str) -> String {
    let due = due(lock, share, "", "");
    let outcome = outcome(share);
    format!(
        "\
{due},
names as (
  update {lock} l
  set expires_at = d.until, lease_expires_at = d.until, touched_at = d.at
  from (select g.*, case when not g.exclusive then
          (select max(h.expires_at) from {share} h
           where h.name = g.name and h.expires_at > '-infinity'
             and not exists (select from due f where f.name = h.name and f.attempt = h.attempt))
          end as until
        from (select id, name, bool_or(exclusive) as exclusive, max(at) as at
              from due group by id, name) g) d
  where l.id = d.id
),
shares as (
  update {share} h set expires_at = null, touched_at = d.at
  from due d
  where not d.exclusive and h.name = d.name and h.attempt = d.attempt
),
durability as materialized (
  select set_config('synchronous_commit', case
    when exists (select from due where alive_until >= {NEVER}) then 'on' else 'off' end, true)
)
select j.ord, {outcome}, j.locked_by,
       case when d.waiting_until > d.at then pg_notify($8, j.name) end
from durability, judged j left join due d on d.ord = j.ord"
    )
}

fn list(lock: &str, share: &str) -> String {
    let lease = lease_columns();
    format!(
        "\
select e.name, e.attempt, e.token, e.locked_by, e.explicit_owner, e.weight, e.capacity,
       (extract(epoch from e.now - e.acquired_at) * 1000000)::bigint,
       case when e.expires_at < {NEVER}
            then (extract(epoch from e.expires_at - e.now) * 1000000)::bigint end,
       coalesce(e.waiting_until > e.now, false)
from (
  select l.name, coalesce(h.attempt, l.held_attempt) as attempt,
         coalesce(h.token, l.last_token) as token,
         coalesce(h.locked_by, l.locked_by) as locked_by,
         coalesce(h.explicit_owner, l.explicit_owner) as explicit_owner,
         coalesce(h.weight, l.held_capacity) as weight,
         coalesce(h.capacity, l.held_capacity) as capacity,
         coalesce(h.acquired_at, l.acquired_at) as acquired_at,
         coalesce(h.expires_at, l.expires_at) as expires_at,
         l.waiting_until, clock_timestamp() as now, l.shared, h.name is not null as is_share
  from (
    select l.name collate \"C\" as name, {lease}, l.locked_by, l.expires_at, l.waiting_until
    from {lock} l
    cross join lateral (select {FOREIGN} as is_foreign) f
    where l.expires_at > clock_timestamp()
      and l.name collate \"C\" >= $1 and starts_with(l.name, $1)
      and ($2::text is null or l.name collate \"C\" >= $2)
  ) l
  left join {share} h on l.shared and h.name = l.name and h.expires_at > clock_timestamp()
) e
where (not e.shared or e.is_share)
  and ($2::text is null or (e.name, e.attempt) > ($2 collate \"C\", $3::uuid))
order by e.name, e.attempt
limit $4"
    )
}

/// Only rows that this library has written (`touched_at`), so that a Django app keeps its own.
fn clean_up(lock: &str, share: &str) -> String {
    format!(
        "\
with idle as materialized (
  select l.id
  from {lock} l,
       (select clock_timestamp() as now, $1 * interval '1 microsecond' as idle, $1 as micros) c
  where l.touched_at <= c.now - c.idle
    and (l.expires_at is null or l.expires_at <= c.now - c.idle)
    and (l.waiting_until is null or l.waiting_until <= c.now)
    and l.token <= (extract(epoch from c.now) * 1000000)::bigint - c.micros
  limit 5000
  for update of l skip locked
),
gone as (delete from {lock} l using idle i where l.id = i.id returning l.name),
shares as (delete from {share} h using gone g where h.name = g.name)
select count(*) from gone"
    )
}
