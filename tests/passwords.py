"""Passwords in tests: argon2 as in the product, at the least cost it has. A real hash takes a quarter of a second."""

from accounts.queues import QueuedArgon2Hasher


class QuickArgon2(QueuedArgon2Hasher):
    time_cost = 1
    memory_cost = 8
    parallelism = 1
