"""Roll-ups of the log: the number of calls, their outcomes and durations, by minute, hour, day and week.

The module `keeping` updates the roll-ups. The module `reading` returns numbers. It reads them from the
roll-ups, and counts the rows of the log that are not in the roll-ups yet.
docs/how-to/read-the-log.md lists which numbers are exact.
"""
