"""Fences a transaction of Django's by a lease of another language's, whose name and token are given.

For Postgres. Prints what became of the work, in a transaction and outside of any.
"""

import json
import sys

import django

django.setup()

from django.db import DatabaseError, connection, transaction  # noqa: E402

FENCE = "select database_locks_lock_fence_1(%s, %s)"


def work(name, token):
    with connection.cursor() as cursor:
        cursor.execute(FENCE, [name, token])
        cursor.execute("insert into work values (1)")


def outcome(work):
    try:
        work()
    except DatabaseError as error:
        return error.__cause__.sqlstate
    return "committed"


name, token = sys.argv[1], int(sys.argv[2])
seen = {
    "outside": outcome(lambda: work(name, token)),
    "inside": outcome(lambda: transaction.atomic(work)(name, token)),
}
print(json.dumps(seen), flush=True)
