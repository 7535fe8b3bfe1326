"""Which names are one lock depends on the server's collation."""

from common import another_gets, report, start

start()

from database_locks import lock

with lock("Job", auto_renew=False):
    report(
        **{
            name: "granted" if another_gets(name) else "refused"
            for name in ["Job", "job", "job ", "jób"]
        }
    )
