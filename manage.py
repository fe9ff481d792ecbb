#!/usr/bin/env python
"""Run a command of Gateway Admin. `python manage.py help` lists all commands."""

import sys
from importlib.util import find_spec

OURS = "Run `make setup`, then `.venv/bin/python manage.py ...`."
if sys.version_info < (3, 12):  # noqa: UP036  Older versions show this error instead of a syntax error.
    sys.exit(f"Error: Gateway Admin needs Python 3.12 or newer. {OURS}")
if find_spec("django") is None:
    sys.exit(f"Error: {sys.executable} has none of the packages of Gateway Admin. {OURS}")

if __name__ == "__main__":
    from gatewayadmin.__main__ import main

    main()
