"""The commands of gateway-admin-runner: serve, check, install, schema."""

import argparse
import asyncio
import json
import logging
import os
import pwd
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner import VERSION
from runner.document import SCHEMA, FileMistakes, RunnerFile, read_file
from runner.packages import InstallFailed, command_of, install
from runner.process import lacking_capabilities

if TYPE_CHECKING:
    from runner.server import RunnerApp

logger = logging.getLogger("runner")
SHORTEST_SECRET = 32


class CannotStart(Exception):
    """The runner refuses to start; the message says why and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Return the exit code: 0 for success, 1 for a failure, 2 for mistakes in the file."""
    parser = argparse.ArgumentParser(prog="gateway-admin-runner", description=__doc__)
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("serve", "serve the programs of the file"),
        ("check", "say what is wrong with the file"),
        ("install", "install the packages that the file names"),
        ("schema", "print the JSON Schema of the file"),
    ):
        command = commands.add_parser(name, help=text)
        if name != "schema":
            command.add_argument("--file", type=Path, default=Path("runner.yaml"), help="default: runner.yaml")
    chosen = parser.parse_args(arguments)
    try:
        return _run(chosen)
    except FileMistakes as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (CannotStart, InstallFailed) as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _run(chosen: argparse.Namespace) -> int:
    if chosen.command == "schema":
        sys.stdout.write(json.dumps(SCHEMA, indent=2, ensure_ascii=False) + "\n")
        return 0
    file = read_file(chosen.file.resolve(), os.environ)
    if chosen.command == "install":
        sys.stdout.write("".join(f"Installed {name}\n" for name in install(file)))
        return 0
    if chosen.command == "check":
        problems = _problems(file)
        sys.stdout.write(
            "".join(f"{each}\n" for each in problems) or f"{file.path}: entries: {len(file.entries)}, no mistake\n"
        )
        return 1 if problems else 0
    return asyncio.run(_serve(file))


def _problems(file: RunnerFile) -> list[str]:
    """Return a line for each problem that prevents an entry of the file from starting on this machine."""
    found = [f"{entry.name}: {entry.error}" for entry in file.entries if entry.error]
    for entry in file.entries:
        if not entry.is_openapi:
            try:
                command_of(file, entry)
            except LookupError as error:
                found.append(f"{entry.name}: {error.args[0]}")
    return found


def _secret() -> str:
    path = os.environ.get("GATEWAY_RUNNER_SECRET_FILE")
    try:
        text = Path(path).read_text().strip() if path else os.environ.get("GATEWAY_RUNNER_SECRET", "")
        if path and Path(path).stat().st_mode & 0o077:
            raise CannotStart(f"Others can read {path}. Run chmod 600 on it.")
    except OSError as error:
        raise CannotStart(f"GATEWAY_RUNNER_SECRET_FILE: {error}") from None
    if len(text) < SHORTEST_SECRET:
        raise CannotStart(
            f"Set GATEWAY_RUNNER_SECRET (or GATEWAY_RUNNER_SECRET_FILE) to at least {SHORTEST_SECRET} characters, for "
            "example from openssl rand -hex 32. The gateway needs the same secret."
        )
    return text


async def _serve(file: RunnerFile) -> int:
    import uvicorn

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for noisy in ("mcp", "fastmcp", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    app = _checked(file, _secret())
    host, port = file.address
    config = uvicorn.Config(
        app,
        host,
        port,
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=5,
        server_header=False,
        ws="none",
    )
    server = uvicorn.Server(config)
    tasks: set[asyncio.Task[None]] = set()

    def reload() -> None:
        tasks.add(task := asyncio.create_task(app.reload(lambda: read_file(file.path, os.environ))))
        task.add_done_callback(tasks.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    # After a signal has stopped uvicorn, uvicorn raises the signal again. Ignore it: the programs have to end first.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    async with app.serving():
        logger.info("Serving %d entries at http://%s:%d", len(file.entries), host, port)
        await server.serve()
    return 0


def _checked(file: RunnerFile, secret: str) -> "RunnerApp":
    """Return the app. Raises CannotStart if a package is missing or programs cannot be isolated as the file says."""
    try:
        from runner.server import RunnerApp
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("runner", "wire"):
            raise
        install = 'In a clone, run: make install EXTRAS="runner"'
        raise CannotStart(f"The package {error.name} of the extra “runner” is missing. {install}") from None

    if file.value("isolation") == "none":
        logger.warning(
            "isolation: none. Programs run as the runner's user. They can read each other's memory, files and secrets. "
            "If the gateway runs as the same user, they can also read the gateway's keys."
        )
    elif accounts := [each.pw_name for each in pwd.getpwall() if each.pw_uid in file.uids]:
        raise CannotStart(f"“uids” has the UIDs of {', '.join(accounts)}. Write a range that no account is in.")
    elif lacking := lacking_capabilities():
        raise CannotStart(
            f"The runner cannot give each program a user of its own: it lacks {', '.join(lacking)}. Run it as root or "
            "with these capabilities. Or write “isolation: none”: programs can then read each other's secrets."
        )
    app = RunnerApp(file, secret)
    if closed := app.accounts.closed_folder():
        raise CannotStart(
            f"Programs cannot enter {closed}, which contains their homes. Write another folder as “data”."
        )
    return app


if __name__ == "__main__":
    sys.exit(main())
