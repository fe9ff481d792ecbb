"""Django's PostgreSQL backend for the embedded PostgreSQL, which starts at the first connection."""

import atexit
from typing import Any

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.postgresql import base

from gatewayadmin.embedded.cluster import cluster

_cluster = cluster(settings.DATA_DIR)


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's PostgreSQL backend; each new connection starts the embedded PostgreSQL if it does not run."""

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        _cluster.ensure()
        return super().get_new_connection(conn_params)


@atexit.register  # Runs before the cluster's exit handler, which was registered earlier.
def _close() -> None:
    """Close this process's database connections at exit, while the embedded PostgreSQL still runs."""
    connections.close_all()
    wrapper = connections[DEFAULT_DB_ALIAS]
    if isinstance(wrapper, base.DatabaseWrapper):
        wrapper.close_pool()
