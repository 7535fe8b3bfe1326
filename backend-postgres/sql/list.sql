-- Live leases. $1 prefix, $2 and $3 the name and attempt to start after, $4 limit, $5 what comes after the prefix.
select e.name, e.attempt, e.token, e.locked_by, e.explicit_owner, e.weight, e.capacity,
       (extract(epoch from e.now - e.acquired_at) * 1000000)::bigint,
       case when e.expires_at < {never}
            then (extract(epoch from e.expires_at - e.now) * 1000000)::bigint end,
       coalesce(e.waiting_until > e.now, false), e.standing, e.data
from (
  select l.name, coalesce(h.attempt, l.attempt) as attempt, coalesce(h.token, l.token) as token,
         coalesce(h.locked_by, l.locked_by) as locked_by,
         coalesce(h.explicit_owner, l.explicit_owner) as explicit_owner,
         coalesce(h.weight, l.capacity) as weight, coalesce(h.capacity, l.capacity) as capacity,
         coalesce(h.acquired_at, l.acquired_at) as acquired_at,
         coalesce(h.expires_at, l.expires_at) as expires_at,
         coalesce(h.standing, l.standing) as standing,
         case when h.name is null then l.data else h.data end as data,
         l.waiting_until, clock_timestamp() as now, l.is_shared, h.name is not null as is_share
  from (
    select l.name collate "C" as name, l.locked_by, l.expires_at, l.waiting_until,
           case when f.is_foreign or l.attempt is null then {no_attempt} else l.attempt end as attempt,
           l.token + f.is_foreign::int as token,
           l.explicit_owner and not f.is_foreign as explicit_owner,
           case when f.is_foreign then 2147483647 else l.capacity end as capacity,
           case when not f.is_foreign then l.acquired_at end as acquired_at,
           case when f.is_foreign then {held} else l.standing end as standing,
           case when not f.is_foreign then l.data end as data,
           not f.is_foreign and l.attempt is null and coalesce(l.locked_by = '(shared)', false)
             as is_shared
    from {lock} l
    cross join lateral (select l.expires_at is distinct from l.lease_expires_at as is_foreign) f
    where l.expires_at > clock_timestamp()
      and l.name collate "C" >= $1 and starts_with(l.name, $1)
      and ($2::text is null or l.name collate "C" >= $2)
      and ($5::text is null or l.name collate "C" < $5)
  ) l
  left join {share} h on l.is_shared and h.name = l.name and h.expires_at > clock_timestamp()
) e
where (not e.is_shared or e.is_share)
  and ($2::text is null or (e.name, e.attempt) > ($2 collate "C", $3::uuid))
order by e.name, e.attempt
limit $4
