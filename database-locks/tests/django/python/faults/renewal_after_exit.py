"""A renewal that is under way takes the lock again after a clean exit.

Timing is forced at one place: the renewal thread's connection takes as long to be made as the body
takes to end.
"""

import threading

from common import another_gets, expiry, report, start

start()

from database_locks import lock
from database_locks.locks import RenewThread
from django.db.backends.signals import connection_created

connecting, connected = threading.Event(), threading.Event()


def take_long(**_):
    if isinstance(threading.current_thread(), RenewThread):
        connecting.set()
        connected.wait()


connection_created.connect(take_long)

with lock("renewal", lock_ttl=60):
    connecting.wait()

released = expiry("renewal") is None
renewing = [thread for thread in threading.enumerate() if isinstance(thread, RenewThread)]
connected.set()
for thread in renewing:
    thread.join()
report(
    released=released,
    held_again=expiry("renewal") is not None,
    another_gets_it=another_gets("renewal"),
)
