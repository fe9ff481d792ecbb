"""The settings of running workspaces that tests share: the product's, with passwords at argon2's least cost.

A real hash takes a quarter of a second, and each person of a workspace has one. Tests of starts take the product's own.
"""

from gatewayadmin.settings import *  # noqa: F403

PASSWORD_HASHERS = ["tests.passwords.QuickArgon2", "oauth.client_metadata.ClientSecretHasher"]
