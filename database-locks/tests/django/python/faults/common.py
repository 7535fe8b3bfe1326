"""What the scripts of this folder share.

Each shows one fault of django-database-locks as it comes from PyPI, on the database of the
settings, and prints what it saw as one line of JSON.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import django
from django.apps import apps
from django.core.management import call_command
from django.db import connection, transaction


def start():
    """Sets Django up, and makes the tables where they are missing."""
    django.setup()
    call_command("migrate", verbosity=0)


def another_gets(name):
    """Whether another process gets the lock by asking once: it differs only by its owner's name."""
    from database_locks.locks import DBLock

    return DBLock(name, locked_by="another").acquire(lock_ttl=60)


def expiry(name):
    """Until when the lock's row says that it is held; `None` once it was released."""
    return rows().get(name=name).expires_at


def rows():
    return apps.get_model("database_locks", "Lock").objects


def lock_row_until_it_is_waited_for(name, then=lambda row: None):
    """Locks a row in another session until that of this thread waits for it, and then does `then`.

    The result is there once that transaction has ended. For Postgres, which tells who waits.
    """
    with connection.cursor() as cursor:
        cursor.execute("select pg_backend_pid()")
        [waiter] = cursor.fetchone()
    row_is_locked = Event()

    def work():
        with transaction.atomic(), connection.cursor() as cursor:
            row = rows().select_for_update().get(name=name)
            row_is_locked.set()

            def waits():
                waiting = "select exists (select from pg_locks where not granted and pid = %s)"
                cursor.execute(waiting, [waiter])
                return cursor.fetchone()[0]

            until(waits)
            then(row)
        return "was waited for"

    thread = ThreadPoolExecutor(1)
    done = thread.submit(work)
    thread.shutdown(wait=False)
    row_is_locked.wait()
    return done


def until(condition):
    """Waits for what has to come. The bound is generous, for a busy machine."""
    give_up = time.monotonic() + 30
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError("what was waited for did not come")
        time.sleep(0.02)


def kind(error):
    return f"{type(error).__name__}: {error}"


def report(**seen):
    print(json.dumps(seen), flush=True)
