"""The status file stays at 2 after the lock was released."""

from common import expiry, report, start

start()

from database_locks import lock
from django.conf import settings


def status():
    with open(settings.DATABASE_LOCKS_STATUS_FILE) as file:
        return file.read()


with lock("status", auto_renew=False):
    held = status()
report(held=held, released=expiry("status") is None, after=status())
