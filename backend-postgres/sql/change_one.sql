with asked as (
  select ($1)[1] as name, ($2)[1] as attempt, ($3)[1] as token, ($4)[1] as owner,
         ($5)[1] as explicit, ($8)[1] as how, ($9)[1] as span, bigint '1' as item
),
{change_held}
select d.item, 'ok' as outcome, null as by_owner,
       case when not d.lasts or current_setting('synchronous_commit') <> 'remote_apply'
            then set_config('synchronous_commit', case when d.lasts then 'on' else 'off' end, true) end as committed,
       case when d.is_waited_for then pg_notify($10, d.name || chr(1) || $11) is not null end as told
from done d
union all
select c.*, null, null
from {change}($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) c
where not exists (select from done)
