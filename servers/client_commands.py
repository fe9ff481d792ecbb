"""Read the commands in configuration files of MCP clients.

A command may start a bridge, which is a program that connects the client to a remote server. Any other command starts
a server itself. If a runner can start this server, the text for runner.yaml is made from the command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.text import slugify

from configuration import document
from proxy.store.redaction import REDACTED, names_a_secret, without_secrets

# Options that take a value, of npx, uvx and similar programs.
_WITH_VALUE = frozenset({"-p", "--package", "--from", "--with", "--python", "--index", "--index-url", "-c", "--call"})
_PACKAGE_OF = frozenset({"-p", "--package", "--from"})
_exact = re.compile(r"v?\d+(?:\.\d+)+[\w.+-]*").fullmatch
_local_path = re.compile(
    r"(?:/(?:Users|home|path|opt|tmp)/|~|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\$\{(?:workspace|user)\w+)"
).match
_script = re.compile(r"[^-].*(?:[/\\].*|\.(?:m?js|ts|py|jar|sh))").fullmatch
INTERPRETERS = frozenset("node bun deno python python3 java ruby php sh bash dotnet go uv poetry pipenv".split())  # noqa: SIM905
CONTAINERS = frozenset({"docker", "podman", "nerdctl"})


@dataclass(frozen=True, slots=True)
class ClientPackage:
    """A package of a registry, such as `npm:mcp-remote`, with the version as written."""

    kind: str
    name: str
    version: str

    @property
    def is_exact(self) -> bool:
        return _exact(self.version) is not None

    @property
    def program(self) -> str:
        """The usual name of the package's program."""
        scope, _, bare = self.name.rpartition("/")
        return f"mcp-{bare}" if scope == "@modelcontextprotocol" else bare.partition("[")[0]

    def __str__(self) -> str:
        sign = "@" if self.kind == "npm" else "=="
        return f"{self.kind}:{self.name}{sign}{self.version if self.is_exact else 'VERSION'}"


@dataclass(frozen=True)
class ClientCommand:
    """A command with its arguments and environment, without `cmd /c` and the options of npx or uvx."""

    program: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    package: ClientPackage | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ClientCommand | None:
        """Return the command of an entry; None if the entry has no command."""
        words, environment = [values.get("command")], values.get("env")
        words += values["args"] if isinstance(values.get("args"), list) else []
        first, *rest = [str(word) for word in words if isinstance(word, str | int | float)] or [""]
        if not first.strip():
            return None
        if not rest and " " in first.strip() and not _local_path(first):
            first, *rest = first.split()
        if _bare(first) == "cmd" and rest[:1] and rest[0].lower() == "/c" and rest[1:]:
            first, *rest = rest[1:]
        named = {str(key): str(value) for key, value in environment.items()} if isinstance(environment, dict) else {}
        package, program, arguments = _package(_bare(first), rest)
        return cls(program or first, tuple(arguments), named, package)

    def bridged(self) -> tuple[str, dict[str, str], str] | None:
        """Return the URL, headers and transport of the remote server to which a bridge connects.

        Return None if the command is not a known bridge such as mcp-remote, or if it contains no URL.
        """
        name = self.package.name if self.package else _bare(self.program)
        if name not in ("mcp-remote", "supergateway", "mcp-proxy"):
            return None
        words = [self._filled(word) for word in self.arguments]
        url = next((word for word in words if re.match("https?://", word)), "")
        is_old = "sse-only" in words or "--sse" in words
        if name == "mcp-proxy" and "streamablehttp" not in words:
            is_old |= url.rstrip("/").endswith("/sse")
        return (url, dict(self._headers(words)), "sse" if is_old else "http") if url else None

    def _headers(self, words: Sequence[str]) -> Iterator[tuple[str, str]]:
        for at, word in enumerate(words):
            following = [*words[at + 1 :], "", ""]
            if word in ("--header", "-H", "--headers") and ":" in following[0]:
                name, _, value = following[0].partition(":")
                yield name.strip(), value.strip()
            elif word in ("-H", "--headers"):
                yield following[0], following[1]
            elif word == "--oauth2Bearer":
                yield "Authorization", f"Bearer {following[0]}"
        if token := self.environment.get("API_ACCESS_TOKEN"):
            yield "Authorization", f"Bearer {token}"

    def _filled(self, word: str) -> str:
        """Return `word` with `${NAME}` replaced by the value of NAME in the command's environment, if it has one."""
        return re.sub(r"\$\{(\w+)\}", lambda found: self.environment.get(found[1], found[0]), word)

    @property
    def unusable(self) -> str:
        """The reason why the runner cannot start the program; empty if it can."""
        if _bare(self.program) in CONTAINERS:
            return "It starts a container. The runner starts no containers: use the package or the URL of this server."
        first = next((word for word in self.arguments if not word.startswith("-")), "")
        is_local = _local_path(self.program) or "\\" in self.program or self.program.startswith("/")
        if not self.package and (is_local or (_bare(self.program) in INTERPRETERS and _script(first))):
            return "It is a program on another machine. Install it on the runner's machine and add it to runner.yaml."
        return ""

    @property
    def notes(self) -> Iterator[str]:
        """Sentences on the changes that are needed before the runner can start the program."""
        if self.package and not self.package.is_exact:
            given = f"“{self.package.version}” is not an exact version" if self.package.version else "It has no version"
            yield f"{given}: replace VERSION by the version you checked."
        if self.package and self.package.kind == "npm":
            yield f"Check the name of its program: “{self.program}” is the usual one."
        if self.environment:
            yield f"Set {', '.join(self.environment)} where the runner runs. The values are not copied."
        if self._shown_arguments() != list(self.arguments):
            yield f"An argument contains a secret, shown as {REDACTED}. Give the secret as an environment variable."
        if paths := [word for word in self.arguments if _local_path(word)]:
            yield f"{paths[0][:80]} is a path of another machine. Write a path of the runner's machine."

    def runner_block(self, name: str) -> str:
        """Return the item for the list `servers` of runner.yaml, without any secret."""
        slug = slugify(name).replace("_", "-")[:40].strip("-") or "program"
        entry: dict[str, Any] = {"name": slug} | ({"title": name[:80]} if name != slug else {})
        if self.package:
            entry["package"] = str(self.package)
        entry["command"] = [self.program, *self._shown_arguments()]
        if self.environment:
            entry["environment"] = {key: f"env:{key}" for key in self.environment}
        return document.write({"servers": [entry]}).partition("\n")[2]

    def _shown_arguments(self) -> list[str]:
        before = ("", *self.arguments)
        hidden = (
            word.startswith("-") and "=" not in word and (names_a_secret(word) or "key" in word) for word in before
        )
        return [
            REDACTED if hide and not word.startswith("-") else without_secrets(word)
            for hide, word in zip(hidden, self.arguments, strict=False)
        ]


def _bare(program: str) -> str:
    """Return the name of a program without folder and suffix."""
    return re.split(r"[/\\]", program.strip())[-1].lower().removesuffix(".exe").removesuffix(".cmd")


def _package(program: str, words: Sequence[str]) -> tuple[ClientPackage | None, str, list[str]]:
    """Return the package that the command starts, the program of the package, and the arguments.

    A package is started by npx, uvx or the like. If no package is started, return None, "" and the arguments.
    """
    words = list(words)
    starts = {"npx": "npm", "bunx": "npm", "uvx": "pypi", "pipx": "pypi", "pnpm": "npm", "yarn": "npm", "npm": "npm"}
    kind = "pypi" if program == "uv" and words[:2] == ["tool", "run"] else starts.get(program, "")
    words = words[2:] if program == "uv" and kind else words
    if program in ("pipx", "pnpm", "yarn", "npm"):
        kind, words = (kind, words[1:]) if words[:1] in (["run"], ["dlx"], ["exec"]) else ("", words)
    if not kind:
        return None, "", words
    named = ""
    while words and words[0].startswith("-"):
        option, sign, value = words.pop(0).partition("=")
        if option in _WITH_VALUE and not sign and words:
            value = words.pop(0)
        named = value if option in _PACKAGE_OF else named
    started = words.pop(0) if words else ""
    text = named or started
    if not text:
        return None, "", words
    found = re.match(r"(@?[^@=<>~! ]+)(?:[@=<>~! ]+(.*))?", text)
    package = ClientPackage(kind, found[1], found[2] or "") if found else ClientPackage(kind, text, "")
    return package, started if named else package.program, words
