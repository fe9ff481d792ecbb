"""Passwords in tests: argon2 as in the product, at the least cost it has. A real hash takes a quarter of a second."""

from django.contrib.auth.hashers import Argon2PasswordHasher


class QuickArgon2(Argon2PasswordHasher):
    time_cost = 1
    memory_cost = 8
    parallelism = 1
