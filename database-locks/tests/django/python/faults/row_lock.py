"""A try waits behind a row lock: somebody's open transaction holds up even `retry=None`.

For Postgres.
"""

from common import lock_row_until_it_is_waited_for, report, start

start()

from database_locks import lock

with lock("row-lock", auto_renew=False):
    pass
row_lock = lock_row_until_it_is_waited_for("row-lock")
with lock("row-lock", retry=None, timeout=0.1, auto_renew=False):
    outcome = "entered"
report(row=row_lock.result(), outcome=outcome)
