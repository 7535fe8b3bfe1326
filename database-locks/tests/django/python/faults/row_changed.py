"""Under REPEATABLE READ, a row that another process changes is an exception for whoever asks.

For Postgres, whose default isolation is that of the database.
"""

from common import kind, lock_row_until_it_is_waited_for, report, start

start()

from database_locks import lock

with lock("changed", auto_renew=False):
    pass
# As the release by another process does.
row_lock = lock_row_until_it_is_waited_for("changed", then=lambda row: row.save())
try:
    with lock("changed", auto_renew=False):
        outcome = "entered"
except Exception as error:
    outcome = kind(error)
report(row=row_lock.result(), outcome=outcome)
