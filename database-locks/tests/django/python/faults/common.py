"""What the scripts of this folder share.

Each shows one fault of django-database-locks as it comes from PyPI, on the database of the
settings, and prints what it saw as one line of JSON.
"""

import json
import time

import django
from django.core.management import call_command


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
    from django.apps import apps

    return apps.get_model("database_locks", "Lock").objects.get(name=name).expires_at


def until(condition):
    """Waits for what has to come. The bound is generous, for a busy machine."""
    give_up = time.monotonic() + 30
    while not condition():
        if time.monotonic() > give_up:
            raise SystemExit("what was waited for did not come")
        time.sleep(0.02)


def kind(error):
    return f"{type(error).__name__}: {error}"


def report(**seen):
    print(json.dumps(seen), flush=True)
