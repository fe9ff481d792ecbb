"""Read the programs of the runner (gateway-admin-runner), their state, and their standard error.

A server is one of the runner's programs if its URL is the runner's origin followed by `/NAME/mcp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from ipaddress import ip_network
from typing import Any, NamedTuple
from urllib.parse import quote

from django.conf import settings
from django.utils.dateparse import parse_datetime

from accounts.queues import released_while_waiting
from capabilities import Capability
from servers.models import Server
from servers.upstream_guard import upstream_guard
from wire.guard import Guard
from wire.outbound import NoAnswer, OutboundClient
from wire.runner import Runner

SECONDS = 3.0
BIGGEST = 4 << 20
MOST_LINES = 200
LONGEST_LINE = 4_000
READS_STANDARD_ERROR = frozenset({Capability.SERVERS_READ, Capability.LOGS_READ, Capability.LOGS_PAYLOADS})
STATES = ("idle", "starting", "running", "failing")
# The operator chose the runner's address, so it may be in any network. Only requests to the runner use this list.
ANYWHERE = tuple(map(ip_network, ("0.0.0.0/0", "::/0")))


class RunnerUnavailable(Exception):
    """The runner did not give a usable answer; the message says why and what to do."""


class NoRunner(RunnerUnavailable):
    """No runner is set up."""


@dataclass(frozen=True, slots=True)
class LastExit:
    """The end of a program's process: its exit code or signal, and the reason in words."""

    at: datetime | None
    code: int | None
    signal: str
    reason: str

    @property
    def how(self) -> str:
        """The exit code or signal, such as "exit 1" or "signal SIGKILL"; empty if neither is known."""
        if self.signal:
            return f"signal {self.signal}"
        return "" if self.code is None else f"exit {self.code}"


@dataclass(frozen=True, slots=True)
class RunnerProgram:
    """A program of the runner, as the runner describes it."""

    name: str
    title: str
    description: str
    kind: str
    mode: str
    url: str
    state: str
    error: str
    running: int
    restarts: int
    started_at: datetime | None
    last_exit: LastExit | None
    memory_bytes: int | None

    @property
    def badge(self) -> str:
        """The kind of the badge that shows the state."""
        return {"running": "active", "starting": "pending", "failing": "down"}.get(self.state, "unknown")


@dataclass(frozen=True, slots=True)
class Line:
    """A line that a process wrote to standard error."""

    at: datetime | None
    pid: int | None
    text: str


@dataclass(frozen=True, slots=True)
class RunnerListing:
    """All programs of a runner. If `isolation` is "none", they can read each other's secrets."""

    version: str
    isolation: str
    programs: tuple[RunnerProgram, ...]

    def find(self, name: str) -> RunnerProgram:
        """Return the program of this name. Raises RunnerUnavailable."""
        for program in self.programs:
            if program.name == name:
                return program
        raise RunnerUnavailable(f"The runner has no program “{name}”. Its name in runner.yaml may have changed.")


class ProgramOffer(NamedTuple):
    """A program of the runner, and its server. `server` is None if nobody has added the program as a server."""

    program: RunnerProgram
    server: Server | None


def program_name(server: Server) -> str | None:
    """Return the name of the server's program; None if the server is not a program of the runner."""
    return upstream_guard().program_at(server.url)


def list_programs() -> RunnerListing:
    """Ask the runner for its programs. Raises RunnerUnavailable."""
    told = _ask("/programs")
    entries = told.get("programs")
    if not isinstance(entries, list):
        raise RunnerUnavailable(
            f"The runner at {_runner().url} does not answer as a runner. Correct GATEWAY_RUNNER_URL."
        )
    programs = (_program(entry) for entry in entries if isinstance(entry, Mapping))
    found = sorted((each for each in programs if each is not None), key=lambda each: each.title.casefold())
    return RunnerListing(_text(told.get("version"), 40), _text(told.get("isolation"), 40), tuple(found))


def title_of(url: str) -> str:
    """Return the title of the runner's program at this URL.

    The result is empty if the runner has no program at this URL, or if the runner is down.
    """
    name = upstream_guard().program_at(url)
    try:
        return list_programs().find(name).title if name else ""
    except RunnerUnavailable:
        return ""


def offers() -> list[ProgramOffer]:
    """Return the runner's programs for *Add a server*. Raises RunnerUnavailable."""
    found = list_programs().programs
    added = {program_name(server): server for server in Server.objects.live().filter(url__icontains="/mcp")}
    return [ProgramOffer(program, added.get(program.name)) for program in found]


def state_of(server: Server, name: str) -> dict[str, Any]:
    """Return the context of the page's card *Program*: the program and its runner, or why they are not known."""
    context: dict[str, Any] = {"server": server, "program_name": name, "runner_url": _runner().url}
    try:
        listing = list_programs()
        return context | {"runner": listing, "program": listing.find(name)}
    except RunnerUnavailable as fault:
        return context | {"program_fault": str(fault)}


def standard_error_of(server: Server, name: str) -> dict[str, Any]:
    """Return the context of the page's card *Standard error*."""
    try:
        return {"server": server, "lines": standard_error(name)}
    except RunnerUnavailable as fault:
        return {"server": server, "lines_fault": str(fault)}


def standard_error(name: str) -> list[Line]:
    """Return the last lines that the program wrote to standard error, oldest first. Raises RunnerUnavailable."""
    lines = _ask(f"/programs/{quote(name, safe='')}/stderr").get("lines")
    if not isinstance(lines, list):
        return []
    return [
        Line(_moment(line.get("at")), _whole(line.get("pid")), _text(line.get("text"), LONGEST_LINE))
        for line in lines[-MOST_LINES:]
        if isinstance(line, Mapping)
    ]


def _ask(path: str) -> Mapping[str, Any]:
    """Return the JSON object at this path of the runner. Raises RunnerUnavailable."""
    runner = _runner()
    try:
        with released_while_waiting(), OutboundClient(Guard(ANYWHERE), BIGGEST, SECONDS) as client:
            answer = client.ask("GET", runner.url + path, runner.headers() | {"Accept": "application/json"})
    except NoAnswer as error:
        raise RunnerUnavailable(
            f"The runner at {runner.url} {error}. Start it, or correct GATEWAY_RUNNER_URL."
        ) from None
    if answer.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise RunnerUnavailable(
            f"The runner at {runner.url} refused the secret. Give the gateway and the runner the same "
            "GATEWAY_RUNNER_SECRET, and restart both."
        )
    if answer.status == HTTPStatus.MISDIRECTED_REQUEST:
        raise RunnerUnavailable(
            f"The runner at {runner.url} does not accept requests to this host name. Add the host name to “hosts” in "
            "runner.yaml."
        )
    if answer.status != HTTPStatus.OK or answer.document is None:
        raise RunnerUnavailable(
            f"The runner at {runner.url} answered {answer.status}. Read its log, or correct GATEWAY_RUNNER_URL."
        )
    return answer.document


def _runner() -> Runner:
    """Return the runner of this installation. Raises NoRunner."""
    runner: Runner | None = settings.RUNNER
    if runner is None:
        raise NoRunner("No runner is set up: GATEWAY_RUNNER_URL is not set.")
    return runner


def _program(entry: Mapping[str, Any]) -> RunnerProgram | None:
    """Parse an entry of the runner's answer. Return None if its path is not the endpoint of a program."""
    url = _runner().url + _text(entry.get("path"), 200)
    name = _runner().program_at(url)
    if name is None or name != entry.get("name"):
        return None
    state = _text(entry.get("state"), 20)
    return RunnerProgram(
        name=name,
        title=_text(entry.get("title"), 80).strip() or name,
        description=_text(entry.get("description"), 300),
        kind=_text(entry.get("kind"), 20),
        mode=_text(entry.get("mode"), 20),
        url=url,
        state=state if state in STATES else "",
        error=_text(entry.get("error"), 300),
        running=_whole(entry.get("running")) or 0,
        restarts=_whole(entry.get("restarts")) or 0,
        started_at=_moment(entry.get("started_at")),
        last_exit=_last_exit(entry.get("last_exit")),
        memory_bytes=_whole(entry.get("memory_bytes")),
    )


def _last_exit(told: Any) -> LastExit | None:
    if not isinstance(told, Mapping):
        return None
    signal = told.get("signal")
    named = str(signal) if isinstance(signal, int) and not isinstance(signal, bool) else _text(signal, 20)
    return LastExit(_moment(told.get("at")), _whole(told.get("code")), named, _text(told.get("reason"), 300))


def _text(value: Any, most: int) -> str:
    return value[:most] if isinstance(value, str) else ""


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def _moment(value: Any) -> datetime | None:
    """Parse a time with a time zone; None for anything else."""
    try:
        moment = parse_datetime(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return moment if moment is not None and moment.tzinfo is not None else None
