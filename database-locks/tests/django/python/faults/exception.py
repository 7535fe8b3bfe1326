"""An exception in the body never releases: the lock is renewed for as long as the process lives."""

from datetime import timedelta

from common import another_gets, expiry, report, start, until

start()

from database_locks import lock
from django.utils import timezone

TTL = timedelta(seconds=6)

try:
    with lock("exception", lock_ttl=TTL.seconds, lock_ttl_renew=5):
        raise RuntimeError("the body failed")
except RuntimeError:
    failed_at = timezone.now()

another_gets_it_at_once = another_gets("exception")
until(lambda: timezone.now() > failed_at + TTL)
report(
    another_gets_it_at_once=another_gets_it_at_once,
    another_gets_it_after_its_ttl=another_gets("exception"),
    renewed_meanwhile=expiry("exception") > failed_at + TTL,
)
