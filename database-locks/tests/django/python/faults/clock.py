"""The client's clock decides expiry.

While this process holds the lock, another one tries to get it: with the same clock, and with one
that the command in the arguments gives it.
"""

import subprocess
import sys

from common import expiry, report, start

start()

from database_locks import lock
from database_locks.locks import LockException

TRY = "try"


def ask_once():
    try:
        with lock("clock", retry=None, auto_renew=False):
            print("entered")
    except LockException:
        print("refused")


def another_process(clock):
    command = [*clock, sys.executable, __file__, TRY]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if sys.argv[1] == TRY:
    ask_once()
else:
    with lock("clock", lock_ttl=60):
        report(with_our_clock=another_process([]), with_its_clock=another_process(sys.argv[1:]))
