"""One failed renewal counts as loss, though the lease has most of its time left.

The failure is an ordinary one: the server ends the idle connection of the renewal thread. For
Postgres.
"""

import time

from common import another_gets, expiry, kind, report, start, until

start()

from database_locks import lock
from django.db import connection
from django.utils import timezone

OTHERS = "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"


def end_other_connections():
    with connection.cursor() as cursor:
        cursor.execute(f"select count(pg_terminate_backend(pid)) {OTHERS}")
        return cursor.fetchone()[0]


try:
    with lock("failed-renewal", lock_ttl=60, lock_ttl_renew=59):
        first = expiry("failed-renewal")
        until(lambda: expiry("failed-renewal") > first)
        ended = end_other_connections()
        # The next renewal comes within a second.
        time.sleep(30)
        outcome = "kept"
except Exception as error:
    outcome = kind(error)

report(
    connections_ended=ended,
    outcome=outcome,
    seconds_left=(expiry("failed-renewal") - timezone.now()).total_seconds(),
    another_gets_it=another_gets("failed-renewal"),
)
