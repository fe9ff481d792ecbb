"""Every command of Gateway Admin: `gateway-admin help` lists them. In a checkout they are `python manage.py`'s."""

import gc
import os
import sys
from argparse import ArgumentParser


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gatewayadmin.settings")
    gc.disable()  # Nothing that is loaded here is garbage, and to look for some was a sixth of each start.
    from gatewayadmin.config.environment import Refused, set_for_children

    if port := port_to_serve_at(sys.argv[1:]):
        set_for_children("PORT", port)
    try:
        import gatewayadmin.settings  # noqa: F401  A refused variable is one line here, a traceback inside Django.
    except Refused as refused:
        sys.exit(f"Error: {refused}")

    import django
    from django.core.management import execute_from_command_line

    try:
        django.setup()
        gc.freeze()  # Nor do workers, which are forks, look at it again: that would copy the memory they share.
        gc.enable()
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
