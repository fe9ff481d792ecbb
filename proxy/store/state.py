"""Connections for state that outlives requests: sessions, pending requests, sealed results.

Everything except the access query, the call log and the usage uses this pool, so that neither waits for the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from proxy.store.database import DatabaseUnavailable

CONNECTIONS = 2
POOL_SECONDS = 5.0
MOST_WAITING = 1000
SETUP = b"SET application_name = 'gateway state'; SET statement_timeout = '5s'; SET lock_timeout = '2s'"

type Parameters = Sequence[Any] | Mapping[str, Any]


class StatePool:
    """A small pool of connections; each statement is a transaction of its own."""

    def __init__(self, conninfo: str) -> None:
        self._pool = AsyncConnectionPool(
            conninfo,
            min_size=1,
            max_size=CONNECTIONS,
            max_waiting=MOST_WAITING,
            timeout=POOL_SECONDS,
            kwargs={"autocommit": True, "connect_timeout": int(POOL_SECONDS)},
            configure=_configure,
            check=AsyncConnectionPool.check_connection,  # A server that restarted is noticed before the statement.
            open=False,
            name="state",
        )

    async def start(self) -> None:
        """Start connecting; retried while the database is unavailable."""
        await self._pool.open()

    async def stop(self) -> None:
        """Close the connections."""
        await self._pool.close()

    async def fetch(self, sql: str, params: Parameters = ()) -> list[tuple[Any, ...]]:
        """Run one statement with psycopg parameters; return its rows, if any.

        Raises DatabaseUnavailable, also if it is unknown whether the statement was executed.
        """
        try:
            async with self._pool.connection() as connection:
                cursor = await connection.execute(sql.encode(), params)
                return await cursor.fetchall() if cursor.description else []
        except (psycopg.Error, OSError, PoolTimeout, PoolClosed, TooManyRequests) as error:
            raise DatabaseUnavailable(" ".join(str(error).split())) from error


async def _configure(connection: AsyncConnection) -> None:
    await connection.execute(SETUP)
