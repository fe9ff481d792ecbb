"""Signed checkpoints of the call log, which reveal rows that were removed, changed or added later.

The module `sealing` makes checkpoints outside the request path, `verifying` compares the log with them. For what
checkpoints prove and do not prove, see docs/decisions/0033-checkpoints-of-the-log.md.
"""
