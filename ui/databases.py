"""The ways to the database: pages may go through a pooler in transaction mode, work that needs a session goes direct.

Through such a pooler each transaction may have another session of the server: settings, advisory locks of the session,
prepared statements, LISTEN and cursors across transactions do not last there, or reach somebody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import datetime, timedelta
from typing import Any

import psycopg
from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import ConnectionHandler, load_backend
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

# The settings of the direct way, once pages of this process take another.
_direct: dict[str, Any] = {}


def take_pages_through(pages: dict[str, Any]) -> None:
    """Let pages of this process use these settings from the next connection on; the way of before is the direct one."""
    present = connections.settings[DEFAULT_DB_ALIAS]
    if not _direct:
        _direct.update(deepcopy(present))
    present.clear()
    present.update(complete(pages))


def take_pages_direct() -> None:
    """The same backwards."""
    if _direct:
        present = connections.settings[DEFAULT_DB_ALIAS]
        present.clear()
        present.update(_direct)
        _direct.clear()


def complete(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of one database with Django's defaults for what they do not say."""
    completed: dict[str, Any] = ConnectionHandler({DEFAULT_DB_ALIAS: deepcopy(settings)}).settings[DEFAULT_DB_ALIAS]
    return completed


def direct_settings() -> dict[str, Any]:
    """Django's settings of the direct way."""
    return _direct or connections.settings[DEFAULT_DB_ALIAS]


def wrapper(settings: dict[str, Any], alias: str = DEFAULT_DB_ALIAS) -> BaseDatabaseWrapper:
    """A connection of Django's with these settings, for this thread."""
    made: BaseDatabaseWrapper = load_backend(settings["ENGINE"]).DatabaseWrapper(settings, alias)
    return made


def now() -> datetime:
    """Return the time of the database's clock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        moment: datetime = cursor.fetchone()[0]
    return moment


def clock_difference() -> timedelta:
    """Return by how much our clock and the database's differ."""
    return abs(timezone.now() - now())


def give_back() -> None:
    """Return this thread's connection to the pool, unless a transaction needs it; Django takes another when needed."""
    if not connection.in_atomic_block:
        connection.close()


def released(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware: give the connection back before the answer is sent, which may take as long as its reader likes.

    Place it before all that use the database.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        give_back()
        return response

    return middleware


def connect_direct() -> psycopg.Connection[Any]:
    """A session of one's own, direct, in autocommit, with the types of Django's connections."""
    words: dict[str, Any] = wrapper(direct_settings()).get_connection_params()
    return psycopg.connect(**words, autocommit=True)


@contextmanager
def direct() -> Iterator[None]:
    """What this thread does in the block goes to the database direct: for work that needs a session, or takes long."""
    present = connections[DEFAULT_DB_ALIAS]
    if not _direct or present.in_atomic_block:
        yield
        return
    settings = {**_direct, "OPTIONS": {name: value for name, value in _direct["OPTIONS"].items() if name != "pool"}}
    with swapped(wrapper(settings)):
        yield


@contextmanager
def swapped(other: BaseDatabaseWrapper) -> Iterator[None]:
    """Let this thread use another connection in place of its usual one; it is closed at the end of the block."""
    usual = connections[DEFAULT_DB_ALIAS]
    connections[other.alias] = connections[DEFAULT_DB_ALIAS] = other  # Receivers of signals look for it by its name.
    try:
        yield
    finally:
        if other.alias != DEFAULT_DB_ALIAS:
            del connections[other.alias]
        connections[DEFAULT_DB_ALIAS] = usual
        other.close()
