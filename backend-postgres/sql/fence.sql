-- For the transaction that a lease protects: fails unless the lease with this token is alive, neither kept nor
-- revoked, and lets nobody else have the lock before the transaction has ended. Renewals pass meanwhile.
create or replace function {fence}(lock_name text, fencing_token bigint)
returns void
language plpgsql set enable_seqscan = off as $$
declare
  r {lock}%rowtype;
begin
  select * into r from {lock} l where l.name = lock_name for key share;
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
