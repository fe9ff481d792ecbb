"""Hashing of client secrets."""

from django.contrib.auth.hashers import PBKDF2PasswordHasher


class ClientSecretHasher(PBKDF2PasswordHasher):
    """One round of PBKDF2, because 128 random characters cannot be guessed.

    With a slow hash at each token request, anybody who knows a client_id could exhaust our CPUs.
    """

    algorithm = "client_secret"
    iterations = 1
