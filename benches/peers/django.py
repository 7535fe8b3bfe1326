"""The real django-database-locks, which speaks what the worker library speaks: a Job in, "ready", "go", an Outcome out.

A lease of 10 s in a row, taken in a transaction with `SELECT .. FOR UPDATE` by the client's clock, and asked for every
25 ms here. Each lock starts a thread that renews it at once, over a connection of its own; such a renewal may come
after the release and take the lock again. It has no fencing token, and all locks of a process have one owner.

The system "django" leaves it at its defaults; "django-no-renewal" starts no such threads.
"""

import json
import logging
import math
import os
import random
import sys
import time
from urllib.parse import unquote, urlsplit

# Else this file is the django that is imported.
sys.path.pop(0)

import django  # noqa: E402
import pymysql  # noqa: E402
from django.conf import settings  # noqa: E402

# Django asks for the version of mysqlclient, which PyMySQL stands in for.
pymysql.version_info = (2, 2, 1, "final", 0)
pymysql.install_as_MySQLdb()

ENGINES = {"postgres": "django.db.backends.postgresql", "mysql": "django.db.backends.mysql"}
SYSTEMS = {"django": {}, "django-no-renewal": {"auto_renew": False}}
RETRY = 0.025

job = json.loads(sys.stdin.readline())
options = SYSTEMS[job["system"]]
url = urlsplit(job["url"])
settings.configure(
    DATABASES={
        "default": {
            "ENGINE": ENGINES[url.scheme],
            "NAME": unquote(url.path[1:]),
            "USER": unquote(url.username or ""),
            "PASSWORD": unquote(url.password or ""),
            "HOST": url.hostname,
            "PORT": url.port or "",
        }
    },
    INSTALLED_APPS=["database_locks"],
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    USE_TZ=True,
)
django.setup()
# What matters of it is counted.
logging.disable(logging.ERROR)

from database_locks import lock  # noqa: E402
from database_locks.locks import LockException  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402


def enter(name, timeout=0):
    # A renewal that finds the lock released, and taken by somebody else, says that it is lost: that is no loss.
    return lock(name, timeout=timeout, retry=RETRY, lost_lock_cb=lambda *_: None, **options)


class Meter:
    """As meter.rs."""

    def __init__(self):
        self.micros, self.sections, self.errors, self.error = [], [], 0, None
        self.cpu, self.began = time.process_time(), time.monotonic_ns()

    def record(self, nanos):
        self.micros.append(-(-nanos // 1000))

    def section(self, asked, held, to):
        self.sections.append({"asked": asked, "from": held, "to": to})

    def failed(self, error):
        self.errors += 1
        self.error = self.error or f"{type(error).__name__}: {error}"

    def finish(self, **figures):
        seconds = (time.monotonic_ns() - self.began) / 1e9
        cpu = time.process_time() - self.cpu
        figures |= {"seconds": seconds, "client_cpu_seconds": cpu, "errors": self.errors}
        figures["resident_bytes"] = resident_bytes()
        outcome = {"figures": figures}
        if self.micros:
            self.micros.sort()
            operations = len(self.micros)
            figures["operations"] = operations
            figures["per_second"] = operations / seconds
            figures["client_cpu"] = cpu * 1e6 / operations
            figures["mean"] = sum(self.micros) / operations
            for name, quantile in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1)]:
                figures[name] = self.quantile(quantile)
            hundredths = [n / 100 for n in range(100)]
            outcome["percentiles"] = [self.quantile(q) for q in [*hundredths, 0.999]]
        if self.sections:
            outcome["sections"] = self.sections
        if self.error:
            outcome["error"] = self.error
        return outcome

    def quantile(self, quantile):
        return self.micros[max(math.ceil(quantile * len(self.micros)), 1) - 1]


def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def say(line):
    print(line, flush=True)


def ready():
    say("ready")
    if sys.stdin.readline().strip() != "go":
        sys.exit("the benchmark has gone")


def pairs(tasks, names, hold_ms, for_ms):
    if tasks != 1 or names != "Known":
        sys.exit("only one task, on a known name")
    name = f"{job['prefix']}-0"
    for _ in range(3):
        with enter(name):
            pass
    ready()
    meter = Meter()
    end = time.monotonic_ns() + for_ms * 1_000_000
    while (asked := time.monotonic_ns()) < end:
        try:
            with enter(name):
                held = time.monotonic_ns()
                if hold_ms:
                    time.sleep(hold_ms / 1000)
                to = time.monotonic_ns()
            meter.record(time.monotonic_ns() - asked - (to - held))
        except Exception as error:
            meter.failed(error)
    return meter.finish()


def hot(tasks, for_ms):
    if tasks != 1:
        sys.exit("only one task")
    name = f"{job['prefix']}-hot"
    with enter(name):
        pass
    ready()
    meter = Meter()
    end = time.monotonic_ns() + for_ms * 1_000_000
    while (asked := time.monotonic_ns()) < end:
        try:
            with enter(name, timeout=for_ms * 2 / 1000):
                held = time.monotonic_ns()
                meter.record(held - asked)
                # Somebody else could come in here.
                os.sched_yield()
                meter.section(asked, held, time.monotonic_ns())
        except LockException as error:
            meter.failed(error)
            break
        except Exception as error:
            meter.failed(error)
    return meter.finish(task_0=len(meter.sections))


def hand_over(for_ms):
    name = f"{job['prefix']}-handed"
    with enter(name):
        pass
    ready()
    meter = Meter()
    end = time.monotonic_ns() + for_ms * 1_000_000
    while (asked := time.monotonic_ns()) < end:
        try:
            with enter(name, timeout=for_ms / 1000):
                held = time.monotonic_ns()
                # Long enough that the other one waits, and at no fixed phase of its polls.
                time.sleep(random.uniform(0.010, 0.030))
                meter.section(asked, held, time.monotonic_ns())
        except LockException:
            break
        except Exception as error:
            meter.failed(error)
            continue
        # Now it is the other one's.
        time.sleep(0.005)
    return meter.finish()


# database-locks makes or adopts the same table, with columns of its own beside Django's.
if "database_locks_lock" not in connection.introspection.table_names():
    call_command("migrate", verbosity=0)
[(work, arguments)] = job["work"].items()
outcome = {"Pairs": pairs, "Hot": hot, "HandOver": hand_over}[work](**arguments)
say(json.dumps(outcome))
# Its renewals may not want to end by themselves.
os._exit(0)
