"""A process of a Django app that does what it is told: a JSON object a line in, one a line out.

{"do": "enter", "name": "x", "options": {"lock_ttl": 10}}   enters `with lock("x", lock_ttl=10)`
{"do": "exit", "name": "x"}                                 leaves it
{"do": "rows"}                                              all rows, as Django reads them
{"do": "begin"}                                             reads the table in a transaction
{"do": "commit"}                                            ends that

The answer has "error" where an exception was raised, "lost" with how often a lock was lost since the
last answer, and "owner" with what the process calls itself.
"""

import json
import logging
import os
import platform
import sys
import time

import django

django.setup()

# What matters of it is in the answers.
logging.disable(logging.ERROR)

from django.db import transaction  # noqa: E402

from database_locks import lock  # noqa: E402
from database_locks.models import Lock  # noqa: E402

entered = {}
lost = []


def on_lost(*_):
    lost.append(time.time())


def enter(name, options={}):
    context = lock(name, lost_lock_cb=on_lost, **options)
    context.__enter__()
    entered[name] = context


def leave(name):
    entered.pop(name).__exit__(None, None, None)


def rows():
    return [
        {"id": row.id, "name": row.name, "locked_by": row.locked_by, "active": row.active}
        for row in Lock.objects.order_by("id")
    ]


def begin():
    transaction.set_autocommit(False)
    rows()


def commit():
    transaction.commit()
    transaction.set_autocommit(True)


def answer(do, **arguments):
    commands = {"enter": enter, "exit": leave, "rows": rows, "begin": begin, "commit": commit}
    return commands[do](**arguments)


for line in sys.stdin:
    try:
        reply = {"answer": answer(**json.loads(line))}
    except Exception as error:
        reply = {"error": type(error).__name__, "message": str(error)}
    reply["lost"] = len(lost)
    reply["owner"] = f"{platform.node()}.{os.getpid()}"
    lost.clear()
    print(json.dumps(reply), flush=True)
