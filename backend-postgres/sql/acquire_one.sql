with asked as (
  select ($1)[1] as name, ($2)[1] as attempt, ($3)[1] as owner, ($4)[1] as explicit,
         ($6)[1] as capacity, ($7)[1] as ttl, ($8)[1] as grace, ($10)[1] as data,
         ($11)[1] as replaced_attempt, ($12)[1] as replaced_token, ($13)[1] as replaced_owner,
         ($14)[1] as replaced_explicit, bigint '1' as item
),
{grant_free}
select g.item, 'granted' as verdict, g.token as granted_token, null as other_capacity,
       null as holder, null as holder_explicit, null as holder_token, null as held_for, null as remaining,
       null as retry_after, null as behind, null as behind_owner, null as holder_standing, null as holder_data,
       -- As durable as the functions make it.
       case when current_setting('synchronous_commit') <> 'remote_apply'
            then set_config('synchronous_commit', 'on', true) end as committed
from granted g
union all
select a.*, null
from {acquire}($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) a
where not exists (select from granted)
