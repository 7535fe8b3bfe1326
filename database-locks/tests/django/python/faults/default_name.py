"""Methods of one name on two classes are one lock, since the default name is `module.function`."""

from common import kind, report, rows, start

start()

from database_locks import locked


# The owners stand for two processes: one alone would be granted its own lock again.
class Invoices:
    @locked(locked_by="one", retry=None, auto_renew=False)
    def export(self, while_held):
        return while_held()


class Reports:
    @locked(locked_by="another", retry=None, auto_renew=False)
    def export(self):
        return "entered"


def another():
    try:
        return Reports().export()
    except Exception as error:
        return kind(error)


outcome = Invoices().export(while_held=another)
names = list(rows().values_list("name", flat=True))
report(outcome=outcome, names=names)
