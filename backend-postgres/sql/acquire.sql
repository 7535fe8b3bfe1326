-- Decides claims, as `Ledger::acquire` does: one after the other, those of one name together. Look, lock, judge
-- again, write.
create or replace function {acquire}(
  names text[], attempts uuid[], owners text[], explicits boolean[], weights integer[],
  capacities integer[], ttls bigint[], graces bigint[], marks bigint[], datas text[],
  replaced_attempts uuid[], replaced_tokens bigint[], replaced_owners text[], replaced_explicits boolean[],
  patient boolean)
returns table (
  item bigint, verdict text, granted_token bigint, other_capacity integer,
  holder text, holder_explicit boolean, holder_token bigint, held_for bigint, remaining bigint,
  retry_after bigint, behind bigint, behind_owner text, holder_standing smallint, holder_data text)
language plpgsql as $$
declare
  c_name text;              -- the claim that is decided
  c_attempt uuid;
  c_owner text;
  c_explicit boolean;
  c_weight integer;
  c_capacity integer;
  c_ttl bigint;
  c_mark bigint;
  c_patience interval;
  is_exclusive boolean;
  r {lock}%rowtype;         -- the row of its name
  own {share}%rowtype;      -- the share that its attempt has or had
  e record;
  at timestamptz;
  until timestamptz;
  is_there boolean;         -- whether the name has a row
  is_locked boolean;        -- whether we have locked it: only then does a judgment stand
  is_changed boolean;
  is_made boolean := false; -- whether rows were made for the names that had none
  patient_until constant timestamptz := clock_timestamp() + interval '250 milliseconds';
  is_foreign boolean;       -- whether another client, which writes its columns alone, has the lock
  is_shared boolean;
  has_shares boolean;       -- whether there may be rows of shares, dead ones included
  supersedes boolean;
  taken bigint;             -- the weights that count
  is_counted boolean;       -- whether `living`, `lapsed` and `ended` are known, for this patience
  counted_patience interval;
  living bigint;            -- the weights of the shares that count
  lapsed bigint;            -- how many count as dead, and are not yet marked as such
  ended bigint;             -- how many count as dead
  locked_shares bigint;
  durable boolean := false;
  ignored text;
  is_granted boolean[];     -- what was granted at once
  granted_items bigint[];
  granted_tokens bigint[];
  following integer;        -- how many claims of its name come after the one that is decided, if they are granted with it
begin
  is_granted := array_fill(false, array[cardinality(names)]);
  -- A plan is made while the table is small, and kept while it grows. Where it needs a sequential scan all the same it
  -- seems dear, and would be compiled.
  ignored := set_config('enable_seqscan', 'off', true) || set_config('jit', 'off', true);
  -- For what cannot be skipped: a row that is made right now, and rows of shares that somebody locks.
  ignored := set_config('lock_timeout', '50ms', true);

  -- Many claims of whole locks that are free: as one statement. All others are judged below.
  if cardinality(names) > 2 and weights = capacities
     and cardinality(names) = (select count(distinct u.name) from unnest(names) as u(name)) then
    with asked as (
      select * from unnest(names, attempts, owners, explicits, capacities, ttls, graces, datas,
                           replaced_attempts, replaced_tokens, replaced_owners, replaced_explicits) with ordinality
        as u(name, attempt, owner, explicit, capacity, ttl, grace, data,
             replaced_attempt, replaced_token, replaced_owner, replaced_explicit, item)
    ),
    {grant_free}
    select array_agg(g.item), array_agg(g.token) into granted_items, granted_tokens from granted g;
    verdict := 'granted';
    for i in 1 .. coalesce(cardinality(granted_items), 0) loop
      item := granted_items[i];
      granted_token := granted_tokens[i];
      is_granted[item] := true;
      durable := true;
      return next;
    end loop;
  end if;

  for i in 1 .. cardinality(names) loop
    continue when is_granted[i];
    item := i;
    c_name := names[i];
    c_attempt := attempts[i];
    c_owner := owners[i];
    c_explicit := explicits[i];
    c_weight := weights[i];
    c_capacity := capacities[i];
    c_ttl := ttls[i];
    c_mark := marks[i];
    c_patience := graces[i] * interval '1 microsecond';
    is_exclusive := c_weight = c_capacity;
    if names[i - 1] is distinct from c_name then
      is_locked := false;
      is_changed := false;
      is_counted := false;
      select * into r from {lock} l where l.name = c_name;
      is_there := found;
      if not is_there and not is_made then
        -- Waits for whoever makes the same row right now, though not for a long transaction.
        is_made := true;
        begin
          insert into {lock} (name)
          select n.name from (select distinct u.name from unnest(names) as u(name)) n
          where not exists (select from {lock} l where l.name = n.name)
          order by n.name collate "C"
          on conflict (name) do nothing;
        exception when lock_not_available then
          ignored := set_config('lock_timeout', '5ms', true);
          for e in select distinct u.name from unnest(names) as u(name) order by u.name loop
            begin
              insert into {lock} (name) values (e.name) on conflict (name) do nothing;
            exception when lock_not_available then null;
            end;
          end loop;
          ignored := set_config('lock_timeout', '50ms', true);
        end;
        select * into r from {lock} l where l.name = c_name;
        is_there := found;
      end if;
      if patient and is_there and patient_until > clock_timestamp() then
        -- Shares fit beside each other: it is worth a moment to wait for one that is written now. Not
        -- more than one moment for all names together.
        ignored := set_config('lock_timeout', '250ms', true);
        begin
          select * into r from {lock} l where l.name = c_name for update;
          is_there := found;
          is_locked := found;
        exception when lock_not_available then null;
        end;
        ignored := set_config('lock_timeout', '50ms', true);
      end if;
    end if;

    granted_token := null; other_capacity := null; behind := null; behind_owner := null;
    holder := null; holder_explicit := null; holder_token := null; held_for := null;
    remaining := null; retry_after := null; holder_standing := null; holder_data := null;

    loop
      if not is_there then
        verdict := 'contended';
        exit;
      end if;
      at := clock_timestamp();
      is_foreign := r.expires_at is not null and r.expires_at is distinct from r.lease_expires_at;
      is_shared := not is_foreign and r.attempt is null and coalesce(r.locked_by = '(shared)', false);
      has_shares := r.attempt is null;

      own := null;
      if has_shares then
        select * into own from {share} h where h.name = c_name and h.attempt = c_attempt;
      end if;
      if r.attempt = c_attempt then
        verdict := case
          when is_foreign or r.locked_by is distinct from c_owner or (r.expires_at > at) is not true
               or r.standing = {kept} then 'ended'
          when r.standing = {revoked} then 'revoked'
          else 'replay' end;
      elsif own.attempt is not null then
        verdict := case
          when (is_shared and r.expires_at > at and own.expires_at > at) is not true
               or own.standing = {kept} then 'ended'
          when own.standing = {revoked} then 'revoked'
          else 'replay' end;
      elsif replaced_attempts[i] is not null then
        -- It takes the place of a lease that is given back to it, or none.
        verdict := case
          when is_exclusive and not is_foreign and r.attempt = replaced_attempts[i]
               and r.token = replaced_tokens[i] and r.locked_by = replaced_owners[i]
               and r.explicit_owner = replaced_explicits[i] and r.capacity = c_capacity
               and r.expires_at > at and r.standing = {held} then 'grant'
          else 'contended' end;
      else
        taken := 0;
        supersedes := false;
        if is_shared then
          -- All that count have one capacity, since a grant marks those that do not as ended.
          if not is_counted or c_explicit or c_patience <> counted_patience then
            select coalesce(sum(h.weight) filter (where counts.it and not counts.is_mine), 0),
                   count(*) filter (where not counts.it and h.expires_at > '-infinity'),
                   count(*) filter (where not counts.it),
                   coalesce(bool_or(counts.is_mine and counts.it), false)
            into living, lapsed, ended, supersedes
            from {share} h,
            lateral (select (h.expires_at > at - c_patience and r.expires_at > at - c_patience) is true as it,
                            c_explicit and h.explicit_owner and h.locked_by = c_owner
                            and h.standing = {held} as is_mine)
              as counts
            where h.name = c_name;
            is_counted := not c_explicit;
            counted_patience := c_patience;
          end if;
          taken := living;
        elsif r.expires_at > at - c_patience then
          supersedes := c_explicit and r.explicit_owner and not is_foreign and r.locked_by = c_owner
            and r.standing = {held};
          if not supersedes then
            taken := case when is_foreign then 2147483647 else r.capacity end;
          end if;
        end if;
        other_capacity := case
          when taken = 0 then null
          when is_foreign then nullif(2147483647, c_capacity)
          else nullif(r.capacity, c_capacity) end;
        verdict := case
          when other_capacity is not null then 'mismatch'
          when taken + c_weight > c_capacity then 'busy'
          when r.waiting_until > at and r.waiting_weight > c_weight then 'standback'
          else 'grant' end;
      end if;

      exit when is_locked
        or verdict in ('mismatch', 'standback', 'contended')
        or verdict = 'busy' and (c_mark is null
             or r.waiting_until > at and r.waiting_weight > c_weight
             or r.waiting_until >= at + c_mark * interval '1 microsecond' / 2
                and r.waiting_weight = c_weight);
      select * into e from {lock} l where l.name = c_name for update skip locked;
      if not found then
        if verdict <> 'busy' then
          verdict := 'contended';
        end if;
        exit;
      end if;
      r := e;
      is_locked := true;
      is_counted := false;
    end loop;

    if verdict = 'grant' and is_exclusive and has_shares then
      -- Rows of shares that have ended go. One that somebody has locked is not waited for: it would hold up the other names.
      perform from {share} h where h.name = c_name for update skip locked;
      get diagnostics locked_shares = row_count;
      if locked_shares < (select count(*) from {share} h where h.name = c_name) then
        verdict := 'contended';
      end if;
    end if;

    until := case when c_ttl is null then {never} else at + c_ttl * interval '1 microsecond' end;

    if verdict = 'busy' then
      if is_shared then
        select h.locked_by as owner, h.explicit_owner as explicit, h.token, h.acquired_at, h.standing, h.data,
               h.expires_at, min(h.expires_at) over () as first_expires_at
        into e
        from {share} h
        where h.name = c_name and h.attempt <> c_attempt and h.expires_at > at - c_patience
          and not (c_explicit and h.explicit_owner and h.locked_by = c_owner
                   and h.standing = {held})
        order by h.expires_at desc, h.token desc
        limit 1;
      else
        select r.locked_by as owner, r.explicit_owner and not is_foreign as explicit,
               r.token + is_foreign::int as token,
               case when not is_foreign then r.acquired_at end as acquired_at,
               case when is_foreign then {held} else r.standing end as standing,
               case when not is_foreign then r.data end as data,
               r.expires_at, r.expires_at as first_expires_at
        into e;
      end if;
      holder := e.owner;
      holder_explicit := e.explicit;
      holder_token := e.token;
      holder_standing := e.standing;
      holder_data := e.data;
      held_for := (extract(epoch from at - e.acquired_at) * 1000000)::bigint;
      if e.expires_at < {never} then
        remaining := (extract(epoch from e.expires_at - at) * 1000000)::bigint;
      end if;
      if e.first_expires_at < {never} then
        retry_after := (extract(epoch from e.first_expires_at - at) * 1000000)::bigint + graces[i];
      end if;
      if is_locked and c_mark is not null
         and (r.waiting_until > at
              and (r.waiting_weight > c_weight
                   or r.waiting_weight = c_weight
                      and r.waiting_until >= at + c_mark * interval '1 microsecond' / 2)) is not true then
        r.waiting_until := at + c_mark * interval '1 microsecond';
        r.waiting_weight := c_weight;
        is_changed := true;
      end if;

    elsif verdict = 'revoked' then
      granted_token := coalesce(own.token, r.token);

    elsif verdict = 'replay' then
      granted_token := r.token;
      if is_exclusive then
        r.expires_at := until;
      else
        granted_token := own.token;
        update {share} h set expires_at = until, touched_at = at
        where h.name = c_name and h.attempt = c_attempt;
        if until < r.expires_at and own.expires_at >= r.expires_at then
          select max(h.expires_at) into r.expires_at
          from {share} h where h.name = c_name and h.expires_at > '-infinity';
        else
          r.expires_at := greatest(r.expires_at, until);
        end if;
      end if;

    elsif verdict = 'grant' then
      granted_token := greatest(r.token + is_foreign::int + 1,
                                (extract(epoch from at) * 1000000)::bigint);
      if is_foreign and r.touched_at > r.expires_at then
        behind := (extract(epoch from r.touched_at - r.expires_at) * 1000000)::bigint;
        behind_owner := r.locked_by;
      end if;
      if is_exclusive then
        if has_shares then
          delete from {share} h where h.name = c_name;
        end if;
        r.locked_by := c_owner;
        r.attempt := c_attempt;
        r.expires_at := until;
        is_counted := false;
      else
        if is_shared and ended > {most_remembered} then
          -- By token: a join by the name alone takes the square of the time where one name has most of the rows.
          delete from {share} h
          where h.name = c_name
            and (h.expires_at > at - c_patience and r.expires_at > at - c_patience) is not true
            and h.token <= (select d.token from {share} d
                            where d.name = c_name
                              and (d.expires_at > at - c_patience and r.expires_at > at - c_patience) is not true
                            order by d.token desc offset {least_remembered} limit 1);
          ended := {least_remembered};
        end if;
        if has_shares and (not is_shared or lapsed > 0 or supersedes) then
          -- What this grant counted as dead has ended for good, whatever the clock says later.
          update {share} h set expires_at = '-infinity'
          where h.name = c_name and h.expires_at > '-infinity'
            and (not is_shared
                 or (h.expires_at > at - c_patience and r.expires_at > at - c_patience) is not true
                 or c_explicit and h.explicit_owner and h.locked_by = c_owner
                    and h.standing = {held});
          is_counted := false;
        end if;
        if r.attempt is not null and not is_foreign and r.locked_by is not null then
          insert into {share} (name, attempt, token, locked_by, explicit_owner, weight, capacity,
                               acquired_at, expires_at, touched_at)
          values (r.name, r.attempt, r.token, r.locked_by, r.explicit_owner, r.capacity, r.capacity,
                  r.acquired_at, case when r.expires_at is not null then '-infinity'::timestamptz end,
                  at)
          on conflict do nothing;
        end if;
        insert into {share} (name, attempt, token, locked_by, explicit_owner, weight, capacity,
                             acquired_at, expires_at, touched_at, data)
        values (c_name, c_attempt, granted_token, c_owner, c_explicit, c_weight, c_capacity,
                at, until, at, datas[i]);
        living := living + c_weight;
        if not is_shared then
          r.expires_at := until;
          is_counted := false;
        elsif lapsed > 0 or supersedes then
          select max(h.expires_at) into r.expires_at
          from {share} h where h.name = c_name and h.expires_at > '-infinity';
        else
          r.expires_at := greatest(r.expires_at, until);
        end if;
        r.locked_by := '(shared)';
        r.attempt := null;
      end if;
      r.explicit_owner := is_exclusive and c_explicit;
      r.capacity := c_capacity;
      r.standing := {held};
      r.data := case when is_exclusive then datas[i] end;
      r.token := granted_token;
      r.acquired_at := at;
      if r.waiting_weight <= c_weight then
        r.waiting_weight := 0;
      end if;
    end if;

    if verdict in ('grant', 'replay') then
      verdict := 'granted';
      r.lease_expires_at := r.expires_at;
      r.touched_at := at;
      is_changed := true;
      durable := true;
    end if;

    -- The first share of a name is granted just now, and many are asked for: if there is room for all, as one statement.
    following := 0;
    if verdict = 'granted' and r.acquired_at = at and not is_exclusive
       and names[i + 2] = c_name and names[i - 1] is distinct from c_name then
      if not is_counted then
        select coalesce(sum(h.weight), 0) into living
        from {share} h where h.name = c_name and h.expires_at > at - c_patience;
      end if;
      following := cardinality(array_positions(names, c_name)) - 1;
      with asked as (
        select * from unnest(
          attempts[i + 1 : i + following], owners[i + 1 : i + following], explicits[i + 1 : i + following],
          weights[i + 1 : i + following], capacities[i + 1 : i + following], ttls[i + 1 : i + following],
          graces[i + 1 : i + following], datas[i + 1 : i + following], replaced_attempts[i + 1 : i + following])
          with ordinality as u(attempt, owner, explicit, weight, capacity, ttl, grace, data, replaced, place)
      ), granted as (
        insert into {share} as h (name, attempt, token, locked_by, explicit_owner, weight, capacity,
                                  acquired_at, expires_at, touched_at, data)
        select c_name, a.attempt, r.token + a.place, a.owner, false, a.weight, c_capacity,
               at, case when a.ttl is null then {never} else at + a.ttl * interval '1 microsecond' end, at, a.data
        from asked a
        where (select count(distinct o.attempt) = count(*) and living + sum(o.weight) <= c_capacity
                      and bool_and(o.capacity = c_capacity and o.weight < c_capacity and not o.explicit
                                   and o.grace = graces[i] and o.replaced is null
                                   and (r.waiting_until > at and r.waiting_weight > o.weight) is not true)
               from asked o)
          and not exists (select from asked o join {share} h on h.name = c_name and h.attempt = o.attempt)
        returning h.expires_at
      )
      select count(*) as grants, greatest(r.expires_at, max(g.expires_at)) as expires_at into e from granted g;
      following := e.grants;
      if following > 0 then
        r.token := r.token + following;
        r.expires_at := e.expires_at;
        r.lease_expires_at := e.expires_at;
      end if;
    end if;

    if is_changed and (following > 0 or names[i + 1] is distinct from c_name) then
      update {lock} l
      set locked_by = r.locked_by, attempt = r.attempt, explicit_owner = r.explicit_owner,
          capacity = r.capacity, token = r.token, acquired_at = r.acquired_at,
          touched_at = r.touched_at, expires_at = r.expires_at,
          lease_expires_at = r.lease_expires_at, waiting_until = r.waiting_until,
          waiting_weight = r.waiting_weight, standing = r.standing, data = r.data
      where l.id = r.id;
    end if;
    return next;

    behind := null; behind_owner := null;
    for place in 1 .. following loop
      item := i + place;
      granted_token := r.token - following + place;
      is_granted[item] := true;
      return next;
    end loop;
  end loop;

  -- A grant is as durable as the server can make it, whatever the session's default is; a mark need
  -- not be.
  if current_setting('synchronous_commit') <> 'remote_apply' then
    ignored := set_config('synchronous_commit', case when durable then 'on' else 'off' end, true);
  end if;
end
$$;
