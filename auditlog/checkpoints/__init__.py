"""Checkpoints of the call log: signed statements by which a row that was removed, changed or added later is told.

`sealing` makes them off the path of calls, `verifying` compares the log with them. What they promise, and what not, is
in docs/decisions/0033-checkpoints-of-the-log.md.
"""
