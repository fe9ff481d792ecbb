"""Prepares shared fixtures of a run in the background: `python -m tests.ahead`, within a run.

Each fixture is made once, under a lock, by the first process that needs it; others wait.
"""

from tests import cluster
from tests.clients.fixtures import install
from tests.running.conftest import finish

if __name__ == "__main__":
    cluster.tables()
    install()
    finish()
