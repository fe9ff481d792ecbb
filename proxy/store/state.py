"""Reads and writes of what lasts between requests: sessions, pending requests, sealed results.

Everything but the one SELECT, the COPY lane and the usage has its connections here, so that none of it waits for calls
and no call waits for it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from proxy.store.database import DatabaseUnavailable

CONNECTIONS = 2
CONNECT_SECONDS = 5.0
MOST_WAITING = 1000
SETUP = b"SET application_name = 'gateway state'; SET statement_timeout = '5s'; SET lock_timeout = '2s'"

type Parameters = Sequence[Any] | Mapping[str, Any]


class State:
    """A small pool of connections; each statement is a transaction of its own."""

    def __init__(self, conninfo: str) -> None:
        self._pool = AsyncConnectionPool(
            conninfo,
            min_size=1,
            max_size=CONNECTIONS,
            max_waiting=MOST_WAITING,
            timeout=CONNECT_SECONDS,
            kwargs={"autocommit": True, "connect_timeout": int(CONNECT_SECONDS)},
            configure=_configure,
            check=AsyncConnectionPool.check_connection,  # A server that restarted is noticed before the statement.
            open=False,
            name="state",
        )

    async def start(self) -> None:
        """Begin to connect; a database that is away is tried again."""
        await self._pool.open()

    async def stop(self) -> None:
        """Close the connections."""
        await self._pool.close()

    async def fetch(self, sql: str, params: Parameters = ()) -> list[tuple[Any, ...]]:
        """Run one statement, with parameters as psycopg writes them; its rows, if it gives any.

        Raises DatabaseUnavailable, also when nobody knows whether it was carried out.
        """
        try:
            async with self._pool.connection() as connection:
                cursor = await connection.execute(sql.encode(), params)
                return await cursor.fetchall() if cursor.description else []
        except (psycopg.Error, OSError, PoolTimeout, PoolClosed, TooManyRequests) as error:
            raise DatabaseUnavailable(" ".join(str(error).split())) from error


async def _configure(connection: AsyncConnection) -> None:
    await connection.execute(SETUP)
