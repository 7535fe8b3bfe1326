-- For the transaction that a lease protects: fails unless the lease with this token is alive, neither kept nor
-- revoked, and lets nobody else have the lock before the transaction has ended. Renewals pass meanwhile.
--
-- `for key share` conflicts with the `for update` of every claim, also where the transaction's snapshot is older than the
-- claim: above `READ COMMITTED` that is an error 40001. What is judged may then be of before a release, which lets nobody in.
create or replace function {fence}(lock_name text, fencing_token bigint)
returns void
language plpgsql set enable_seqscan = off as $$
declare
  r {lock}%rowtype;
begin
  -- A transaction that began with this very statement ends with it, and then nothing is fenced: it began when the statement
  -- came, or when its portal was made. The same goes for a BEGIN in the same message, and for a function that does all the
  -- work: these are refused too. An unprepared statement with parameters outside of a transaction looks like any other.
  if transaction_timestamp() = statement_timestamp()
     or exists (select from pg_cursors c where c.creation_time = transaction_timestamp()) then
    raise exception 'the fence of % is outside of any transaction', lock_name
      using errcode = 'no_active_sql_transaction',
            hint = 'Send BEGIN first, by itself, and call the fence and do the work before COMMIT.';
  end if;
  select * into r from {lock} l where l.name = lock_name for key share;
  if not found then
    raise exception 'the lock % is not in this database', lock_name
      using errcode = 'no_data_found',
            hint = 'Is the transaction of another database than the locks? Otherwise the lease has ended: roll back.';
  end if;
  if r.expires_at > clock_timestamp() and r.expires_at = r.lease_expires_at
     and (r.attempt is not null and r.token = fencing_token and r.standing = {held}
          or r.attempt is null and exists (
            select from {share} h
            where h.name = lock_name and h.token = fencing_token and h.standing = {held}
              and h.expires_at > clock_timestamp())) then
    return;
  end if;
  raise exception 'the lease of % with the fencing token % has ended', lock_name, fencing_token
    using errcode = 'object_not_in_prerequisite_state',
          hint = 'Roll back: somebody else may have the lock.';
end
$$;
