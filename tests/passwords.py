"""Passwords in tests: argon2 at its lowest cost, because a real hash takes a quarter of a second."""

from accounts.queues import QueuedArgon2Hasher


class QuickArgon2(QueuedArgon2Hasher):
    time_cost = 1
    memory_cost = 8
    parallelism = 1
