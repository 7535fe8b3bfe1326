"""Two processes that create one lock at once, step by step, under two isolation levels.

Django's own default on MySQL is READ COMMITTED; `isolation_level` in the database's `OPTIONS` sets
another one, or with `None` leaves the server's own.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

from common import kind, report, start

start()

from database_locks.locks import DBLock
from django.db import connection, connections


def isolation_level(name):
    if connection.vendor == "postgresql":
        from psycopg import IsolationLevel

        return IsolationLevel[name.upper().replace(" ", "_")]
    return name


def acquire(name, owner, both_have_looked):
    # Timing is forced at one place: neither goes on before both have seen that there is no row.
    def look_then_wait(execute, sql, params, many, context):
        result = execute(sql, params, many, context)
        if "FOR UPDATE" in sql:
            both_have_looked.wait(timeout=30)
        return result

    with connection.execute_wrapper(look_then_wait):
        try:
            # Not by `lock`, which cannot set its signal handler in a thread.
            return "granted" if DBLock(name, locked_by=owner).acquire() else "refused"
        except Exception as error:
            return kind(error)
        finally:
            connection.close()


def outcomes(isolation):
    options = connections.settings["default"].setdefault("OPTIONS", {})
    options["isolation_level"] = isolation_level(isolation)
    both_have_looked = threading.Barrier(2)
    with ThreadPoolExecutor(2) as two:
        acquiring = [
            two.submit(acquire, isolation, owner, both_have_looked) for owner in ["one", "another"]
        ]
        return sorted(outcome.result() for outcome in acquiring)


report(**{isolation: outcomes(isolation) for isolation in ["read committed", "repeatable read"]})
