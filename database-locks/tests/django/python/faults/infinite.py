"""`lock_ttl=None`, documented as "infinite", crashes."""

from common import kind, report, start

start()

from database_locks import lock
from django.apps import apps

try:
    with lock("infinite", lock_ttl=None):
        outcome = "entered"
except Exception as error:
    outcome = kind(error)

report(outcome=outcome, rows=apps.get_model("database_locks", "Lock").objects.count())
