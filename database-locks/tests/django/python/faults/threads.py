"""Two threads of one process both acquire, since the owner is `hostname.pid`.

More than that: `with lock(…)` cannot be used in a thread at all. It takes the lock, then fails to
set its signal handler, and leaves the lock taken.
"""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from common import expiry, kind, report, start

start()

from database_locks import lock
from database_locks.locks import DBLock
from django.utils import timezone

HOUR = 3600


def acquire():
    """The step of `lock` that asks the database."""
    return DBLock("threads").acquire()


def enter():
    try:
        with lock("threads", lock_ttl=HOUR, auto_renew=False):
            return "entered"
    except Exception as error:
        return kind(error)


with ThreadPoolExecutor(1) as second_thread, lock("threads", auto_renew=False):
    granted = second_thread.submit(acquire).result()
    entered = second_thread.submit(enter).result()
    report(
        second_thread_is_granted=granted,
        second_thread_enters=entered,
        second_thread_has_taken_it=expiry("threads") > timezone.now() + timedelta(seconds=HOUR / 2),
    )
