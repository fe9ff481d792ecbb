"""Settings of running workspaces that tests share: the product's, with argon2 at its lowest cost.

A real hash takes a quarter of a second, and each person of a workspace has one. Tests of starting the product use its
own settings.
"""

from gatewayadmin.settings import *  # noqa: F403

PASSWORD_HASHERS = ["tests.passwords.QuickArgon2", "oauth.client_metadata.ClientSecretHasher"]
