"""Entry point of `gateway-admin` (in a checkout: `python manage.py`); `gateway-admin help` lists the commands."""

import gc
import os
import sys
from argparse import ArgumentParser
from pathlib import Path

from wire import versions


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gatewayadmin.settings")
    gc.disable()  # Nothing loaded here is garbage, and collecting took a sixth of the start time.
    from gatewayadmin.config.environment import Refused, commit, set_for_children

    # The version is printed before the settings are loaded, because loading the settings would create keys.
    if sys.argv[1:] in (["--version"], ["version"]):
        sys.stdout.write(f"{versions.NAME} {versions.with_commit(commit(Path(__file__).resolve().parent.parent))}\n")
        return
    if port := port_to_serve_at(sys.argv[1:]):
        set_for_children("PORT", port)
    try:
        import gatewayadmin.settings  # noqa: F401  An error is one line here, but a traceback inside Django.
    except Refused as refused:
        sys.exit(f"Error: {refused}")

    import django
    from django.core.management import execute_from_command_line

    try:
        django.setup()
        gc.freeze()  # Later collections need not scan what was loaded.
        gc.enable()
        execute_from_command_line(sys.argv)
    except KeyboardInterrupt:
        sys.exit(130)


def port_to_serve_at(arguments: list[str]) -> str | None:
    """Return the value of `serve --port`, or None. The settings need the port, because links contain it."""
    if arguments[:1] != ["serve"]:
        return None
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--port", nargs="?")  # The command `serve` reports a missing value.
    port: str | None = parser.parse_known_args(arguments[1:])[0].port
    return port


if __name__ == "__main__":
    main()
