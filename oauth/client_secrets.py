"""Hashing of client secrets."""

from django.contrib.auth.hashers import PBKDF2PasswordHasher


class Hasher(PBKDF2PasswordHasher):
    """One round: 128 random characters cannot be guessed, and a slow hash at every token request would let anybody

    who knows a client_id keep our processors busy.
    """

    algorithm = "client_secret"
    iterations = 1
