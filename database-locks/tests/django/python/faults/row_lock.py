"""A try waits behind a row lock: somebody's open transaction holds up even `retry=None`.

For Postgres, which tells who waits.
"""

import threading

from common import expiry, report, start, until

start()

from database_locks import lock
from django.apps import apps
from django.db import connection, transaction

row_is_locked = threading.Event()
seen = {}


def lock_the_row_until_somebody_waits(waiter):
    rows = apps.get_model("database_locks", "Lock").objects
    with transaction.atomic(), connection.cursor() as cursor:
        rows.select_for_update().get(name="row-lock")
        row_is_locked.set()

        def waits():
            waiting = "select exists (select from pg_locks where not granted and pid = %s)"
            cursor.execute(waiting, [waiter])
            return cursor.fetchone()[0]

        until(waits)
        seen["the_try_waits"] = True


with lock("row-lock", auto_renew=False):
    pass
waiter = connection.connection.info.backend_pid
blocker = threading.Thread(target=lock_the_row_until_somebody_waits, args=[waiter])
blocker.start()
row_is_locked.wait()
with lock("row-lock", retry=None, timeout=0.1, auto_renew=False):
    seen["entered_after_the_transaction"] = True
blocker.join()
report(**seen)
