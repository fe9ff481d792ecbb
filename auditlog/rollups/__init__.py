"""Roll-ups of the log: the number of calls, their outcomes and durations, by minute, hour and day.

`keeping` updates them outside the request path; `reading` answers from them and from rows not counted yet.
docs/how-to/read-the-log.md says which numbers are exact.
"""
