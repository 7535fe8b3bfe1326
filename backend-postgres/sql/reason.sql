-- Why a lease that is not alive was lost, as `Ledger::why_lost` tells it. `usurped` is by another
-- client though the lease was alive: its clock is ahead of the server's, or it has the owner's name.
create or replace function {reason}(
  of_name text, of_attempt uuid, of_token bigint, of_owner text, is_explicit boolean,
  of_weight integer, of_capacity integer)
returns text
language plpgsql as $$
declare
  r {lock}%rowtype;
  own {share}%rowtype;
  is_foreign boolean;
  is_shared boolean;
  last_token bigint;
  at constant timestamptz := clock_timestamp();
begin
  select * into r from {lock} l where l.name = of_name;
  if not found then
    return 'deleted';
  end if;
  select * into own from {share} h where h.name = of_name and h.attempt = of_attempt;
  is_foreign := r.expires_at is not null and r.expires_at is distinct from r.lease_expires_at;
  is_shared := not is_foreign and r.attempt is null and coalesce(r.locked_by = '(shared)', false);
  last_token := r.token + is_foreign::int;

  return case
    when r.attempt = of_attempt and not is_foreign and r.standing <> {held} and r.expires_at > at
      or is_shared and own.standing <> {held} and own.expires_at > at and r.expires_at > at
      then case coalesce(own.standing, r.standing) when {kept} then 'released' else 'forced' end
    when r.attempt = of_attempt and r.expires_at is null and coalesce(r.locked_by = of_owner, true)
      or own.attempt is not null and own.expires_at is null and own.locked_by = of_owner
      then 'forced'
    when r.lease_expires_at > at
         and (is_foreign or r.expires_at is null and r.locked_by not in (of_owner, '(shared)'))
      then 'usurped'
    -- Released under another name.
    when r.attempt = of_attempt and r.expires_at is null
      or own.attempt is not null and own.expires_at is null
      then 'taken'
    when is_explicit
         and (not is_shared and not is_foreign and last_token > of_token
              and r.explicit_owner and r.locked_by = of_owner
              or exists (select from {share} h
                         where h.name = of_name and h.token > of_token
                           and h.explicit_owner and h.locked_by = of_owner))
      then 'superseded'
    when not is_shared and (last_token > of_token or r.attempt is null and r.expires_at > at)
      or exists (select from {share} h
                 where h.name = of_name and h.token > of_token
                   and (h.capacity <> of_capacity or h.weight::bigint + of_weight > h.capacity))
      then 'taken'
    when last_token >= of_token then 'expired'
    else 'deleted'
  end;
end
$$;
