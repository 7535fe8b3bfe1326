"""`lock_ttl=None`, documented as "infinite", crashes."""

from common import kind, report, rows, start

start()

from database_locks import lock

try:
    with lock("infinite", lock_ttl=None):
        outcome = "entered"
except Exception as error:
    outcome = kind(error)

report(outcome=outcome, rows=rows().count())
