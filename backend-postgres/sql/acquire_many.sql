with asked as (
  select * from unnest($1, $2, $3, $4, $6, $7, $8, $9, $10, $11, $12, $13, $14) with ordinality
    as u(name, attempt, owner, explicit, capacity, ttl, grace, mark, data,
         replaced_attempt, replaced_token, replaced_owner, replaced_explicit, item)
),
{grant_free}, rest as (
  select array_agg(a.item) as items, array_agg(a.name) as names, array_agg(a.attempt) as attempts,
         array_agg(a.owner) as owners, array_agg(a.explicit) as explicits, array_agg(a.capacity) as capacities,
         array_agg(a.ttl) as ttls, array_agg(a.grace) as graces, array_agg(a.mark) as marks,
         array_agg(a.data) as datas, array_agg(a.replaced_attempt) as replaced_attempts,
         array_agg(a.replaced_token) as replaced_tokens, array_agg(a.replaced_owner) as replaced_owners,
         array_agg(a.replaced_explicit) as replaced_explicits
  from (select * from asked where asked.item not in (select g.item from granted g) order by asked.item) a
  having count(*) > 0
)
select r.items[a.item] as item, a.verdict, a.granted_token, a.other_capacity, a.holder, a.holder_explicit,
       a.holder_token, a.held_for, a.remaining, a.retry_after, a.behind, a.behind_owner, a.holder_standing,
       a.holder_data, null as committed
from rest r,
     {acquire}(r.names, r.attempts, r.owners, r.explicits, r.capacities, r.capacities, r.ttls, r.graces, r.marks, r.datas,
               r.replaced_attempts, r.replaced_tokens, r.replaced_owners, r.replaced_explicits, $15) a
union all
select g.item, 'granted', g.token, null, null, null, null, null, null, null, null, null, null, null,
       -- As durable as the function makes it, and after that.
       case when current_setting('synchronous_commit') <> 'remote_apply'
            then set_config('synchronous_commit', 'on', true) end
from granted g
