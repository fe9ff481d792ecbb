"""Settings of the workspaces that tests share: the product's settings, with argon2 at its lowest cost.

At the normal cost, hashing one person's password takes a quarter of a second. Tests of the product's start use the
product's own settings.
"""

from gatewayadmin.config import runner
from gatewayadmin.settings import *  # noqa: F403

RUNNER, STARTS_RUNNER = runner.of_environment(), False  # Not the runner of the developer's clone.
PASSWORD_HASHERS = ["tests.passwords.QuickArgon2", "oauth.client_metadata.ClientSecretHasher"]
