-- Forgets names. $1 how long idle, in µs. Only rows that this library has written (`touched_at`), so
-- that a Django app keeps its own.
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
select count(*) from gone
