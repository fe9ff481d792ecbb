"""Settings of the workspaces that tests share: the product's settings, with argon2 at its lowest cost.

A password hash of normal cost takes a quarter of a second for each person. Tests of the product's start use the
product's own settings.
"""

from gatewayadmin.config import runner
from gatewayadmin.settings import *  # noqa: F403

RUNNER, STARTS_RUNNER = runner.of_environment(), False  # Not the runner of the developer's clone.
PASSWORD_HASHERS = ["tests.passwords.QuickArgon2", "oauth.client_metadata.ClientSecretHasher"]
