"""Counts in a file without any synchronisation but the lock: fleet.py ROUNDS FOLDER."""

import logging
import os
import random
import sys
import threading
import time

import django

django.setup()

from database_locks import lock  # noqa: E402
from database_locks.locks import RenewThread  # noqa: E402

rounds, folder = int(sys.argv[1]), sys.argv[2]
me = f"python-{os.getpid()}"
history = os.open(f"{folder}/history", os.O_WRONLY | os.O_APPEND)


def count():
    os.write(history, f"begin {me}\n".encode())
    with open(f"{folder}/counter") as file:
        number = int(file.read())
    time.sleep(random.uniform(0, 0.01))
    with open(f"{folder}/counter", "w") as file:
        file.write(str(number + 1))
    os.write(history, f"end {me}\n".encode())


# A round may be over before its first renewal, which then finds that somebody else has the lock:
# that is no loss.
logging.disable(logging.ERROR)
for _ in range(rounds):
    with lock("counter", retry=0.01, lost_lock_cb=lambda *_: None):
        count()

# Such a renewal also takes the lock again, and nobody has use for that now.
for thread in threading.enumerate():
    if isinstance(thread, RenewThread):
        thread.join()
with lock("counter", retry=0.01, auto_renew=False):
    pass
