-- Gives leases that are alive another end, as `Ledger::renew` and `Ledger::release` do: lock, judge, write.
-- `hows` has 'renew', for `micros` from now (null is without end), 'free', 'keep', until they are `micros` old,
-- and 'revoke'.
create or replace function {change}(
  names text[], attempts uuid[], tokens bigint[], owners text[], explicits boolean[],
  weights integer[], capacities integer[], hows text[], micros bigint[], channel text,
  patient boolean)
returns table (item bigint, outcome text, by_owner text)
language plpgsql set enable_seqscan = off as $$
declare
  c record;
  r {lock}%rowtype;
  own {share}%rowtype;
  at timestamptz;
  until timestamptz;        -- null for what is free
  stands smallint;          -- whether the holder still has it
  is_there boolean;
  is_locked boolean;
  is_changed boolean;
  is_foreign boolean;
  is_shared boolean;
  is_alive boolean;
  patient_until constant timestamptz := clock_timestamp() + interval '250 milliseconds';
  ends_last boolean;        -- whether a share may have been the one that the name's row lives for
  durable boolean := false;
begin
  for c in
    select i.*, i.weight = i.capacity as exclusive,
           row_number() over same_name = 1 as is_first,
           lead(i.item) over same_name is null as is_last
    from unnest(names, attempts, tokens, owners, explicits, weights, capacities, hows,
                micros)
         with ordinality
         as i(name, attempt, token, owner, explicit, weight, capacity, how, micros, item)
    window same_name as (partition by i.name order by i.item)
    order by i.name collate "C", i.item
  loop
    if c.is_first then
      is_changed := false;
      ends_last := false;
      if patient and patient_until > clock_timestamp() then
        -- As in acquire; a renewal, which others of the process wait for, is in a hurry.
        perform set_config('lock_timeout', case c.how when 'renew' then '20ms' else '250ms' end, true);
        begin
          perform from {lock} l where l.name = c.name for no key update;
        exception when lock_not_available then null;
        end;
      end if;
      select * into r from {lock} l where l.name = c.name for no key update skip locked;
      is_there := found;
      is_locked := found;
      if not is_there then
        select * into r from {lock} l where l.name = c.name;
        is_there := found;
      end if;
    end if;

    is_foreign := r.expires_at is not null and r.expires_at is distinct from r.lease_expires_at;
    is_shared := not is_foreign and r.attempt is null and coalesce(r.locked_by = '(shared)', false);
    own := null;
    outcome := null;
    by_owner := null;
    if not is_there then
      is_alive := false;
    elsif c.exclusive then
      at := clock_timestamp();
      is_alive := not is_shared and r.expires_at > at and r.locked_by = c.owner
        and (r.explicit_owner and not is_foreign) = c.explicit
        and r.token + is_foreign::int = c.token
        and c.attempt = case when is_foreign or r.attempt is null then {no_attempt} else r.attempt end;
      stands := case when is_foreign then {held} else r.standing end;
    else
      if is_locked then
        select * into own from {share} h
        where h.name = c.name and h.attempt = c.attempt
        for no key update skip locked;
      end if;
      if own.attempt is null then
        select * into own from {share} h where h.name = c.name and h.attempt = c.attempt;
        outcome := case when found then 'skipped' end;
      end if;
      at := clock_timestamp();
      is_alive := is_shared and own.token = c.token and own.locked_by = c.owner
        and own.explicit_owner = c.explicit and own.expires_at > at and r.expires_at > at;
      stands := own.standing;
    end if;

    if not coalesce(is_alive and (stands = {held} or c.how <> 'renew'), false) then
      outcome := {reason}(c.name, c.attempt, c.token, c.owner, c.explicit, c.weight, c.capacity);
      by_owner := r.locked_by;
    elsif not is_locked or outcome = 'skipped' then
      outcome := 'skipped';
    else
      outcome := 'ok';
      is_changed := true;
      durable := durable or c.how <> 'free' or coalesce(r.expires_at >= {never}, false);
      until := case c.how
        when 'renew' then coalesce(at + c.micros * interval '1 microsecond', {never})
        when 'keep' then case when c.exclusive then r.acquired_at else own.acquired_at end
                         + c.micros * interval '1 microsecond'
        when 'revoke' then case when c.exclusive then r.expires_at else own.expires_at end
        end;
      if until <= at then
        until := null;
      end if;
      stands := case when c.how = 'keep' then {kept}
                     when c.how = 'revoke' and stands = {held} then {revoked}
                     else stands end;
      if c.exclusive then
        r.expires_at := until;
        r.standing := stands;
      else
        update {share} h set expires_at = until, standing = stands, touched_at = at
        where h.name = c.name and h.attempt = c.attempt;
        if until >= r.expires_at then
          r.expires_at := until;
          ends_last := false;
        elsif own.expires_at >= r.expires_at then
          ends_last := true;
        end if;
      end if;
      r.lease_expires_at := r.expires_at;
      r.touched_at := at;
      if c.how in ('free', 'keep') and r.waiting_until > at then
        -- Only where somebody waits: it takes a lock on the whole database at the commit.
        perform pg_notify(channel, c.name);
      end if;
    end if;

    if is_changed and (c.is_last or c.exclusive) then
      if ends_last then
        select max(h.expires_at) into r.expires_at
        from {share} h where h.name = c.name and h.expires_at > '-infinity';
        r.lease_expires_at := r.expires_at;
        ends_last := false;
      end if;
      update {lock} l
      set expires_at = r.expires_at, lease_expires_at = r.lease_expires_at,
          touched_at = r.touched_at, standing = r.standing
      where l.id = r.id;
      is_changed := false;
    end if;
    item := c.item;
    return next;
  end loop;

  -- Holders rely on their renewals. A release that is lost with the server leaves the lease to its
  -- TTL; one of a lease without a TTL must not be lost.
  if not durable or current_setting('synchronous_commit') <> 'remote_apply' then
    perform set_config('synchronous_commit', case when durable then 'on' else 'off' end, true);
  end if;
end
$$;
