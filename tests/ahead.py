"""What several tests of a run wait for, made beside the first of them: `python -m tests.ahead`, within a run.

Each thing is made by whoever comes first, under a lock; a test that needs one earlier waits for it or makes it.
"""

from tests import cluster
from tests.clients.fixtures import install
from tests.running.conftest import finish

if __name__ == "__main__":
    cluster.tables()
    install()
    finish()
