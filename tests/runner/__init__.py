"""Tests of the runner. Most of them start its command, as people do, and run real programs."""
