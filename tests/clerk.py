"""Run management commands in one process: read a line of arguments, and print the command's output as one line.

A separate process for each command would take a second or two just to start Django.
"""

import contextlib
import io
import json
import sys

import django.db

from gatewayadmin.__main__ import main


def run(arguments: list[str]) -> dict[str, object]:
    """Return the output and exit status of `manage.py` with these arguments."""
    sys.argv = ["manage.py", *arguments]
    printed, told, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception as error:  # noqa: BLE001 - as the process would: told, and counted as a failure
            print(repr(error), file=sys.stderr)  # noqa: T201 - to the file that stands for it
            code = 1
        finally:
            django.db.connections.close_all()
    return {"printed": printed.getvalue(), "told": told.getvalue(), "code": code}


if __name__ == "__main__":
    for line in sys.stdin:
        answer = json.dumps(run(json.loads(line)))
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()
