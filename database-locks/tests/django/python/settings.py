"""Django's settings, from the environment.

DJANGO_DATABASE_URL   postgres://user:password@host:port/database, or mysql://…
DJANGO_SETTINGS       more settings, as a JSON object: {"USE_TZ": false}
"""

import json
import os
from urllib.parse import unquote, urlsplit

import pymysql

# Django asks for the version of mysqlclient, which PyMySQL stands in for.
pymysql.version_info = (2, 2, 1, "final", 0)
pymysql.install_as_MySQLdb()

ENGINES = {"postgres": "django.db.backends.postgresql", "mysql": "django.db.backends.mysql"}

url = urlsplit(os.environ["DJANGO_DATABASE_URL"])
database = {
    "ENGINE": ENGINES[url.scheme],
    "NAME": unquote(url.path[1:]),
    "USER": unquote(url.username),
    "PASSWORD": unquote(url.password or ""),
    "HOST": url.hostname,
    "PORT": url.port or "",
}
DATABASES = {"default": database}
INSTALLED_APPS = ["database_locks"]
SECRET_KEY = "for tests"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = True

given = json.loads(os.environ.get("DJANGO_SETTINGS", "{}"))
# Those of the database itself, such as OPTIONS.
database.update(given.pop("DATABASE", {}))
globals().update(given)
