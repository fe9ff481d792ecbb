"""Roll-ups of the log: how many calls there were, how they ended and how long they took, by minute, hour and day.

`keeping` adds to them what the log got, off the path of calls; `reading` answers from them and from the rows they do
not hold yet. docs/explanation/roll-ups.md says what is exact.
"""
