"""The runner, as the command that people start, with real programs."""
