"""Roll-ups of the log: the number of calls, their outcomes and durations, by minute, hour, day and week.

The module `keeping` updates roll-ups. The module `reading` returns numbers from roll-ups and from rows not counted yet.
docs/how-to/read-the-log.md lists which numbers are exact.
"""
