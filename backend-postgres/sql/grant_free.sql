-- Grants whole locks that nobody holds, or whose holder gives them back to the claim, all at once, and leaves the others alone.
free as (
  select f.id, a.*
  from asked a, lateral (
    select l.id from {lock} l
    where l.name = a.name and l.lease_expires_at is not distinct from l.expires_at
      and l.attempt <> a.attempt
      and case when a.replaced_attempt is null
            then (l.expires_at is null or l.expires_at <= clock_timestamp() - a.grace * interval '1 microsecond')
              and (l.waiting_until > clock_timestamp() and l.waiting_weight > a.capacity) is not true
            else l.attempt = a.replaced_attempt and l.token = a.replaced_token and l.locked_by = a.replaced_owner
              and l.explicit_owner = a.replaced_explicit and l.capacity = a.capacity
              and l.expires_at > clock_timestamp() and l.standing = {held} end
    for update skip locked
  ) f
), granted as (
  update {lock} l
  set locked_by = f.owner, attempt = f.attempt, explicit_owner = f.explicit, capacity = f.capacity,
      token = greatest(l.token + 1, (extract(epoch from n.at) * 1000000)::bigint),
      acquired_at = n.at, touched_at = n.at, expires_at = n.until, lease_expires_at = n.until,
      waiting_weight = case when l.waiting_weight > f.capacity then l.waiting_weight else 0 end,
      standing = {held}, data = f.data
  from free f,
       lateral (select c.at, case when f.ttl is null then {never}
                                  else c.at + f.ttl * interval '1 microsecond' end as until
                from (select case when f.id is not null then clock_timestamp() end as at) c) n
  where l.id = f.id
  returning f.item, l.token
)
