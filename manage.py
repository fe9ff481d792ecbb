#!/usr/bin/env python
"""Every command of Gateway Admin: `python manage.py help` lists them."""

import os
import sys
from argparse import ArgumentParser
from importlib.util import find_spec

OURS = "`make setup` makes the right one: .venv/bin/python manage.py ..."
if sys.version_info < (3, 12):  # noqa: UP036  Older ones end here in one line, and not in a syntax error.
    sys.exit(f"Error: Gateway Admin needs Python 3.12 or newer. {OURS}")
if find_spec("django") is None:
    sys.exit(f"Error: {sys.executable} has none of the packages of Gateway Admin. {OURS}")


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gatewayadmin.settings")
    from gatewayadmin.config.environment import Refused, set_for_children

    if port := port_to_serve_at(sys.argv[1:]):
        set_for_children("PORT", port)
    try:
        import gatewayadmin.settings  # noqa: F401  A refused variable is one line here, a traceback inside Django.
    except Refused as refused:
        sys.exit(f"Error: {refused}")

    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except KeyboardInterrupt:
        sys.exit(130)


def port_to_serve_at(arguments: list[str]) -> str | None:
    """What `serve --port` says, if it does: links are built from it, so the settings must know."""
    if arguments[:1] != ["serve"]:
        return None
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--port", nargs="?")  # That its value is missing is for the command to say.
    port: str | None = parser.parse_known_args(arguments[1:])[0].port
    return port


if __name__ == "__main__":
    main()
