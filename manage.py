#!/usr/bin/env python
"""Every command of Gateway Admin: `python manage.py help` lists them."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gatewayadmin.settings")
    from gatewayadmin.environment import Refused

    try:
        import gatewayadmin.settings  # noqa: F401  A refused variable is one line here, a traceback inside Django.
    except Refused as refused:
        sys.exit(f"Error: {refused}")

    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
