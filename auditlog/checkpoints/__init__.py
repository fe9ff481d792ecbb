"""Signed checkpoints of the calls and admin events, which reveal rows that were removed, changed or added later.

The module `sealing` makes checkpoints outside the request path, `verifying` compares the logs with them.
docs/decisions/0033-checkpoints-of-the-log.md explains what checkpoints prove and do not prove.
"""
