"""An exception in the body never releases: the lock is renewed for as long as the process lives."""

from datetime import timedelta

from common import another_gets, expiry, report, start, until

start()

from database_locks import lock
from django.utils import timezone

TTL = 2

try:
    with lock("exception", lock_ttl=TTL, lock_ttl_renew=1):
        raise RuntimeError("the body failed")
except RuntimeError:
    failed_at = timezone.now()

another_gets_it_at_once = another_gets("exception")
# The renewal thread's first renewal may still be under way. This one is a later one.
until(lambda: expiry("exception") > failed_at + timedelta(seconds=TTL + 0.5))
report(
    another_gets_it_at_once=another_gets_it_at_once,
    another_gets_it_after_its_ttl=timezone.now() > failed_at + timedelta(seconds=TTL)
    and another_gets("exception"),
)
