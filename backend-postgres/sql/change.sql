-- Gives leases that are alive another end, as `Ledger::renew` and `Ledger::release` do: lock, judge, write.
-- `hows` has 'renew', for `micros` from now (null is without end), 'free', 'keep', until they are `micros` old,
-- and 'revoke'. A notification says which name was released by which `client`, for the others to take turns.
create or replace function {change}(
  names text[], attempts uuid[], tokens bigint[], owners text[], explicits boolean[],
  weights integer[], capacities integer[], hows text[], micros bigint[], channel text,
  client text, patient boolean)
returns table (item bigint, outcome text, by_owner text)
language plpgsql as $$
declare
  c_name text;              -- the lease that is changed
  c_attempt uuid;
  c_owner text;
  how text;
  is_exclusive boolean;
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
  is_owners boolean;
  label text;
  patient_until constant timestamptz := clock_timestamp() + interval '250 milliseconds';
  ends_last boolean;        -- whether a share may have been the one that the name's row lives for
  durable boolean := false;
  ignored text;
  is_done boolean[];        -- what was changed at once
  done_items bigint[];
  freed text[];             -- names that somebody waits for, of those
  changed bigint[];         -- the rows of names of whose shares some are among those
begin
  is_done := array_fill(false, array[cardinality(names)]);
  ignored := set_config('enable_seqscan', 'off', true) || set_config('jit', 'off', true);

  -- Many leases of whole locks that are renewed or freed: those that live, as one statement. All others are judged below.
  if cardinality(names) > 2 and weights = capacities and hows <@ array['renew', 'free']
     and cardinality(names) = (select count(distinct u.name) from unnest(names) as u(name)) then
    with asked as (
      select * from unnest(names, attempts, tokens, owners, explicits, hows, micros) with ordinality
        as u(name, attempt, token, owner, explicit, how, span, item)
    ),
    {change_held}
    select array_agg(d.item), coalesce(bool_or(d.lasts), false),
           array_agg(d.name) filter (where d.is_waited_for)
    into done_items, durable, freed
    from done d;
  -- Many shares likewise: all of a name, or none, since the loop looks at a name once. Not where rows are waited for, which
  -- must not be while those of later names are locked.
  elsif not patient and cardinality(names) > 2 and hows <@ array['renew', 'free']
     and (select bool_and(u.weight < u.capacity) and count(distinct u.attempt) = count(*)
          from unnest(weights, capacities, attempts) as u(weight, capacity, attempt)) then
    with asked as (
      select * from unnest(names, attempts, tokens, owners, explicits, hows, micros) with ordinality
        as u(name, attempt, token, owner, explicit, how, span, item)
    ), locked as (
      select l.id, l.name, l.expires_at, l.waiting_until > clock_timestamp() as is_waited_for
      from {lock} l
      where l.name in (select a.name from asked a)
        and l.attempt is null and l.locked_by = '(shared)' and l.lease_expires_at = l.expires_at
        and l.expires_at > clock_timestamp()
      order by l.name
      for no key update of l skip locked
    ), held as (
      select h.name, h.attempt, l.id, a.item, a.how, a.span, a.how = 'renew' or l.expires_at >= {never} as lasts,
             a.how = 'free' and l.is_waited_for as is_waited_for
      from locked l
      join asked a on a.name = l.name
      join {share} h on h.name = a.name and h.attempt = a.attempt
      where h.token = a.token and h.locked_by = a.owner and h.explicit_owner = a.explicit
        and h.expires_at > clock_timestamp() and h.standing = {held}
      for no key update of h skip locked
    ), whole as (
      select a.name from asked a left join held d on d.item = a.item group by a.name having count(d.item) = count(*)
    ), done as (
      update {share} h
      set expires_at = n.until, touched_at = n.at
      from (select * from held where held.name in (select w.name from whole w)) d,
           lateral (select c.at, case when d.how = 'renew'
                                      then coalesce(c.at + d.span * interval '1 microsecond', {never}) end as until
                    from (select case when d.id is not null then clock_timestamp() end as at) c) n
      where h.name = d.name and h.attempt = d.attempt
      returning d.item, d.id, d.name, d.lasts, d.is_waited_for
    )
    select array_agg(d.item), coalesce(bool_or(d.lasts), false),
           array_agg(distinct d.name) filter (where d.is_waited_for), array_agg(distinct d.id)
    into done_items, durable, freed, changed
    from done d;
    update {lock} l
    set expires_at = n.until, lease_expires_at = n.until, touched_at = clock_timestamp()
    from (select k.id, (select max(h.expires_at) from {share} h
                        where h.name = k.name and h.expires_at > '-infinity') as until
          from {lock} k where k.id = any (changed)) n
    where l.id = n.id;
  end if;
  outcome := 'ok';
  for i in 1 .. coalesce(cardinality(done_items), 0) loop
    item := done_items[i];
    is_done[item] := true;
    return next;
  end loop;
  for i in 1 .. coalesce(cardinality(freed), 0) loop
    perform pg_notify(channel, freed[i] || chr(1) || client);
  end loop;

  for i in 1 .. cardinality(names) loop
    continue when is_done[i];
    item := i;
    c_name := names[i];
    c_attempt := attempts[i];
    c_owner := owners[i];
    how := hows[i];
    is_exclusive := weights[i] = capacities[i];
    if names[i - 1] is distinct from c_name then
      is_changed := false;
      ends_last := false;
      if patient and patient_until > clock_timestamp() then
        -- As in acquire; a renewal, which others of the process wait for, is in a hurry.
        ignored := set_config('lock_timeout', case how when 'renew' then '20ms' else '250ms' end, true);
        begin
          perform from {lock} l where l.name = c_name for no key update;
        exception when lock_not_available then null;
        end;
      end if;
      select * into r from {lock} l where l.name = c_name for no key update skip locked;
      is_there := found;
      is_locked := found;
      if not is_there then
        select * into r from {lock} l where l.name = c_name;
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
    elsif is_exclusive then
      at := clock_timestamp();
      is_owners := r.locked_by = c_owner;
      if is_foreign then
        -- What others store is listed as `Owner::lossy` tells it: without control characters, and not longer than 255 bytes.
        label := regexp_replace(coalesce(r.locked_by, ''), e'[\\u0001-\\u001f\\u007f-\\u009f]', '', 'g');
        is_owners := c_owner = coalesce(nullif(label, ''), 'unknown')
          or octet_length(label) > 255 and octet_length(c_owner) > 251 and starts_with(label, c_owner);
      end if;
      is_alive := not is_shared and r.expires_at > at and is_owners
        and (r.explicit_owner and not is_foreign) = explicits[i]
        and r.token + is_foreign::int = tokens[i]
        and c_attempt = case when is_foreign or r.attempt is null then {no_attempt} else r.attempt end;
      stands := case when is_foreign then {held} else r.standing end;
    else
      if is_locked then
        select * into own from {share} h
        where h.name = c_name and h.attempt = c_attempt
        for no key update skip locked;
      end if;
      if own.attempt is null then
        select * into own from {share} h where h.name = c_name and h.attempt = c_attempt;
        outcome := case when found then 'skipped' end;
      end if;
      at := clock_timestamp();
      is_alive := is_shared and own.token = tokens[i] and own.locked_by = c_owner
        and own.explicit_owner = explicits[i] and own.expires_at > at and r.expires_at > at;
      stands := own.standing;
    end if;

    if not coalesce(is_alive and (stands = {held} or how <> 'renew'), false) then
      outcome := {reason}(c_name, c_attempt, tokens[i], c_owner, explicits[i], weights[i], capacities[i]);
      by_owner := r.locked_by;
    elsif not is_locked or outcome = 'skipped' then
      outcome := 'skipped';
    else
      outcome := 'ok';
      is_changed := true;
      durable := durable or how <> 'free' or stands = {kept}
        or coalesce(r.expires_at >= {never}, false);
      until := case how
        when 'renew' then coalesce(at + micros[i] * interval '1 microsecond', {never})
        when 'keep' then case when is_exclusive then r.acquired_at else own.acquired_at end
                         + micros[i] * interval '1 microsecond'
        when 'revoke' then case when is_exclusive then r.expires_at else own.expires_at end
        end;
      if until <= at then
        until := null;
      end if;
      stands := case when how = 'keep' then {kept}
                     when how = 'revoke' and stands = {held} then {revoked}
                     else stands end;
      if is_exclusive then
        r.expires_at := until;
        r.standing := stands;
      else
        update {share} h set expires_at = until, standing = stands, touched_at = at
        where h.name = c_name and h.attempt = c_attempt;
        if until >= r.expires_at then
          r.expires_at := until;
          ends_last := false;
        elsif own.expires_at >= r.expires_at then
          ends_last := true;
        end if;
      end if;
      r.lease_expires_at := r.expires_at;
      r.touched_at := at;
      if how in ('free', 'keep') and r.waiting_until > at then
        -- Only where somebody waits: it takes a lock on the whole database at the commit.
        perform pg_notify(channel, c_name || chr(1) || client);
      end if;
    end if;

    if is_changed and (is_exclusive or names[i + 1] is distinct from c_name) then
      if ends_last then
        select max(h.expires_at) into r.expires_at
        from {share} h where h.name = c_name and h.expires_at > '-infinity';
        r.lease_expires_at := r.expires_at;
        ends_last := false;
      end if;
      update {lock} l
      set expires_at = r.expires_at, lease_expires_at = r.lease_expires_at,
          touched_at = r.touched_at, standing = r.standing
      where l.id = r.id;
      is_changed := false;
    end if;
    return next;
  end loop;

  -- Holders rely on their renewals. A release that is lost with the server leaves the lease to its
  -- TTL; one of a lease without a TTL must not be lost.
  if not durable or current_setting('synchronous_commit') <> 'remote_apply' then
    ignored := set_config('synchronous_commit', case when durable then 'on' else 'off' end, true);
  end if;
end
$$;
