-- Renews and frees leases of whole locks that live, all at once, and leaves the others alone.
held as (
  select h.id, a.item, a.how, a.span, a.how = 'renew' or h.expires_at >= {never} as lasts,
         a.how = 'free' and h.is_waited_for as is_waited_for
  from asked a, lateral (
    select l.id, l.expires_at, l.waiting_until > clock_timestamp() as is_waited_for
    from {lock} l
    where l.name = a.name and l.attempt = a.attempt and l.token = a.token and l.locked_by = a.owner
      and l.explicit_owner = a.explicit and l.lease_expires_at = l.expires_at
      and l.expires_at > clock_timestamp() and l.standing = {held}
    for no key update skip locked
  ) h
), done as (
  update {lock} l
  set expires_at = n.until, lease_expires_at = n.until, touched_at = n.at
  from held d,
       lateral (select c.at, case when d.how = 'renew'
                                  then coalesce(c.at + d.span * interval '1 microsecond', {never}) end as until
                from (select case when d.id is not null then clock_timestamp() end as at) c) n
  where l.id = d.id
  returning d.item, l.name, d.lasts, d.is_waited_for
)
