"""Signed checkpoints of the logs. They reveal rows that were removed, changed or added later.

`sealing` makes checkpoints, `verifying` compares the logs with them. docs/decisions/0033-checkpoints-of-the-log.md
explains what checkpoints prove and do not prove.
"""
