"""Signed checkpoints of the call log, which reveal rows that were removed, changed or added later.

`sealing` makes them outside the request path, `verifying` compares the log with them. For what they prove and what they
do not, see docs/decisions/0033-checkpoints-of-the-log.md.
"""
