"""The release of a nested use frees the outer lock."""

from common import another_gets, expiry, report, start

start()

from database_locks import lock

# Without renewals, so that the outer one's does not take the lock back some seconds later.
with lock("nested", auto_renew=False):
    before = another_gets("nested")
    with lock("nested", auto_renew=False):
        within = another_gets("nested")
    report(
        another_gets_it_before=before,
        another_gets_it_within=within,
        released=expiry("nested") is None,
        another_gets_it_after=another_gets("nested"),
    )
