"""Settings of running workspaces that tests share: the product's, with argon2 at its lowest cost.

A real hash takes a quarter of a second, and each person of a workspace has one. Tests of starting the product use its
own settings.
"""

from gatewayadmin.config import runner
from gatewayadmin.settings import *  # noqa: F403

RUNNER, STARTS_RUNNER = runner.of_environment(), False  # Not the runner of the developer's clone.
PASSWORD_HASHERS = ["tests.passwords.QuickArgon2", "oauth.client_metadata.ClientSecretHasher"]
