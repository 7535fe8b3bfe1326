with asked as (
  select * from unnest($1, $2, $3, $4, $5, $7, $8, $9) with ordinality
    as u(name, attempt, token, owner, explicit, capacity, how, span, item)
),
{change_held}, rest as (
  select array_agg(a.item) as items, array_agg(a.name) as names, array_agg(a.attempt) as attempts,
         array_agg(a.token) as tokens, array_agg(a.owner) as owners, array_agg(a.explicit) as explicits,
         array_agg(a.capacity) as capacities, array_agg(a.how) as hows, array_agg(a.span) as spans,
         current_setting('synchronous_commit') as was
  from (select * from asked where asked.item not in (select d.item from done d) order by asked.item) a
  having count(*) > 0
), durability as (
  select bool_or(d.lasts) as lasts, exists (select from rest) as has_rest, (select r.was from rest r) as was
  from done d
)
select r.items[c.item] as item, c.outcome, c.by_owner, null as committed, null as told
from rest r,
     {change}(r.names, r.attempts, r.tokens, r.owners, r.explicits, r.capacities, r.capacities, r.hows, r.spans,
              $10, $11, $12) c
union all
select d.item, 'ok', null,
       -- As durable as the function makes it, and after that.
       case when y.lasts and coalesce(y.was, current_setting('synchronous_commit')) = 'remote_apply'
              then set_config('synchronous_commit', 'remote_apply', true)
            when y.lasts
              then set_config('synchronous_commit', 'on', true)
            when not y.lasts and not y.has_rest
              then set_config('synchronous_commit', 'off', true) end,
       case when d.is_waited_for then pg_notify($10, d.name || chr(1) || $11) is not null end
from done d, durability y
