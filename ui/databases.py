"""Database connections: pages may use a pooler in transaction mode; work that needs a session connects directly.

In this mode, each transaction may run in another session of PostgreSQL. Settings, session advisory locks, prepared
statements, LISTEN and cursors are then lost after a transaction, or affect other clients.
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

# Settings of the direct connection. Empty if the pages of this process use the same settings.
_direct: dict[str, Any] = {}


def take_pages_through(pages: dict[str, Any]) -> None:
    """Use these settings for new database connections that serve pages.

    Direct connections keep the original settings.
    """
    present = connections.settings[DEFAULT_DB_ALIAS]
    if not _direct:
        _direct.update(deepcopy(present))
    present.clear()
    present.update(complete(pages))


def complete(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a database, with Django's defaults for missing settings."""
    completed: dict[str, Any] = ConnectionHandler({DEFAULT_DB_ALIAS: deepcopy(settings)}).settings[DEFAULT_DB_ALIAS]
    return completed


def direct_settings() -> dict[str, Any]:
    """Return Django's settings of the direct connection."""
    return _direct or connections.settings[DEFAULT_DB_ALIAS]


def wrapper(settings: dict[str, Any], alias: str = DEFAULT_DB_ALIAS) -> BaseDatabaseWrapper:
    """Create a Django connection with these settings, for this thread."""
    made: BaseDatabaseWrapper = load_backend(settings["ENGINE"]).DatabaseWrapper(settings, alias)
    return made


def database_now() -> datetime:
    """Return the time of the database's clock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        moment: datetime = cursor.fetchone()[0]
    return moment


def clock_difference() -> timedelta:
    """Return the absolute difference between our clock and the database's."""
    return abs(timezone.now() - database_now())


def give_back() -> None:
    """Return this thread's connection to the pool; Django takes another connection when it needs one.

    Do nothing in a transaction, which still needs the connection.
    """
    if not connection.in_atomic_block:
        connection.close()


def released(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Give the connection back to the pool before the response is sent, since clients may be slow.

    This middleware must come before all middleware that uses the database.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        give_back()
        return response

    return middleware


def connect_direct() -> psycopg.Connection[Any]:
    """Open a separate direct connection in autocommit mode, with the type adapters of Django."""
    words: dict[str, Any] = wrapper(direct_settings()).get_connection_params()
    return psycopg.connect(**words, autocommit=True)


@contextmanager
def direct() -> Iterator[None]:
    """Use a direct connection in the block, for work that needs a session or takes long.

    In a transaction, use the current connection instead.
    """
    present = connections[DEFAULT_DB_ALIAS]
    if not _direct or present.in_atomic_block:
        yield
        return
    with apart():
        yield


@contextmanager
def apart() -> Iterator[None]:
    """Use a new direct connection in the block, not one from the connection pool.

    In a transaction, use the current connection instead.
    """
    if connections[DEFAULT_DB_ALIAS].in_atomic_block:
        yield
        return
    settings = direct_settings()
    options = {name: value for name, value in settings["OPTIONS"].items() if name != "pool"}
    with swapped(wrapper({**settings, "OPTIONS": options})):
        yield


@contextmanager
def swapped(other: BaseDatabaseWrapper) -> Iterator[None]:
    """Replace this thread's default connection by `other` in the block, and close `other` at the end."""
    usual = connections[DEFAULT_DB_ALIAS]
    connections[other.alias] = connections[DEFAULT_DB_ALIAS] = other  # Signal receivers look connections up by alias.
    try:
        yield
    finally:
        if other.alias != DEFAULT_DB_ALIAS:
            del connections[other.alias]
        connections[DEFAULT_DB_ALIAS] = usual
        other.close()
