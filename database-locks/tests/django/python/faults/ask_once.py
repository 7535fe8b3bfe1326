"""Whether the lock that the argument names is free: another process of the app asks for it once."""

import sys

from common import another_gets, report, start

start()
report(granted=another_gets(sys.argv[1]))
