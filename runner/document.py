"""Parse runner.yaml. The message for a mistake has the line and column, and says what to write instead."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema  # type: ignore[import-untyped]
import yaml

SECRET_NAME = re.compile(r"(?i)(token|secret|passw|api_?key|private_?key|credential|authorization|cookie)")
# Matches values that look secret: a long run of letters and digits, like a token, or a URL with a password.
SECRET_VALUE = re.compile(r"(?=[\w\-+=]*[A-Za-z])(?=[\w\-+=]*\d)[\w\-+=]{20,}|://[^/\s:@]*:[^/\s@]+@")
REFERENCE = re.compile(r"(env|file):(.+)", re.DOTALL)
PACKAGE = (
    r"(npm:(@[a-z0-9._-]+/)?[a-z0-9._-]+@\d+\.\d+\.\d+([-+][A-Za-z0-9.+-]+)?|"
    r"pypi:[A-Za-z0-9._-]+==\d[A-Za-z0-9.+_-]*)"
)
NAME = "[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?"


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": 4000, "description": description, **more}


def _number(description: str, low: int, high: int, **more: Any) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high, "description": description, **more}


def _object(description: str, properties: dict[str, Any], *required: str) -> dict[str, Any]:
    fixed = {"additionalProperties": False, "properties": properties, "required": list(required)}
    return {"type": "object", "description": description, **fixed}


def _values(description: str) -> dict[str, Any]:
    values = {"type": ["string", "integer", "boolean"], "maxLength": 4000}
    return {"type": "object", "description": description, "additionalProperties": values}


def _list(description: str, items: dict[str, Any], least: int = 0) -> dict[str, Any]:
    return {"type": "array", "description": description, "items": items, "minItems": least}


_WORD = {"type": "string", "minLength": 1, "maxLength": 4000, "pattern": "^[^\\x00]*$"}
_COMMON = {
    "name": _text("Name in the URL: small letters, digits and hyphens.", pattern=f"^{NAME}$"),
    "title": _text("Name on pages. If missing, `name` is shown.", maxLength=80),
    "description": _text("Text for people.", maxLength=1000),
}
LIMITS = {
    "memory_mb": _number(
        "Maximum memory in MB, including child processes. Checked each second.", 16, 1_000_000, default=512
    ),
    "processes": _number(
        "Maximum processes and threads; with `isolation: none`, processes only.", 1, 10_000, default=64
    ),
    "open_files": _number("Maximum open files of each process.", 16, 1_000_000, default=256),
    "cpu_seconds": _number("Maximum processor seconds of each process. If missing, there is no limit.", 1, 10_000_000),
    "call_seconds": _number("Seconds until a call ends with an error.", 1, 86_400, default=300),
    "start_seconds": _number("Seconds that the program may take to answer `initialize`.", 1, 600, default=30),
    "programs": _number("Maximum programs at once, in `mode: session`.", 1, 1000, default=20),
}
SERVER = _object(
    "A program that speaks MCP on standard input and output.",
    {
        **_COMMON,
        "command": _list("Program and arguments, one list item each. No shell reads them.", _WORD, 1),
        "package": _text(
            "Package with the program: `npm:NAME@1.2.3` or `pypi:NAME==1.2.3`, an exact version.",
            pattern=f"^{PACKAGE}$",
        ),
        "environment": _values(
            "The program's environment variables. `env:NAME` takes the value from the runner's environment. "
            "`file:PATH` takes the value from a file. Use `env:` or `file:` for secrets. "
            "`${HOME}` is the program's home folder."
        ),
        "folder": _text("Absolute path of the working folder. By default, it is the program's home.", pattern="^/"),
        "mode": {
            "enum": ["shared", "session"],
            "default": "shared",
            "description": "`shared`: one program for all. `session`: one for each MCP session.",
        },
        "person": _text(
            "Name of the environment variable that contains the value of the header `X-Gateway-User`. "
            "Only with `mode: session`.",
            pattern="^[A-Za-z_][A-Za-z0-9_]*$",
        ),
        "idle_seconds": _number(
            "Seconds without a call until the program is ended. 0: never.", 0, 604_800, default=600
        ),
        "limits": _object("Limits.", LIMITS),
    },
    "name",
    "command",
)
OPENAPI = _object(
    "An HTTP API. Clients get its operations as tools.",
    {
        **_COMMON,
        "document": _text("The OpenAPI description: a file or an http(s) URL."),
        "url": _text("Base URL of the API.", pattern="^https?://"),
        "operations": _list("`operationId` of each allowed operation.", _WORD, 1),
        "headers": _values("Headers of each request. Give each value as `env:NAME` or `file:PATH`."),
        "call_seconds": _number("Seconds until a request ends with an error.", 1, 3600, default=30),
    },
    "name",
    "document",
    "url",
    "operations",
)
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "runner.yaml",
    **_object(
        "Programs that gateway-admin-runner serves.",
        {
            "version": {"const": 1, "description": "Version of the format, 1."},
            "listen": _text("Address and port.", pattern=r"^\S+:\d{1,5}$", default="127.0.0.1:8900"),
            "hosts": _list("Further accepted values of the header `Host`, such as `runner:8900`.", _WORD),
            "data": _text(
                "Folder for the programs' homes and installed packages, relative to `runner.yaml`.",
                default="runner-data",
            ),
            "isolation": {
                "enum": ["uid", "none"],
                "default": "uid",
                "description": "`uid`: each program has a UID of its own. `none`: all programs use the runner's UID.",
            },
            "uids": _text(
                "UIDs that nothing else uses, as FIRST-LAST. The runner itself uses FIRST; programs use the others.",
                pattern=r"^[1-9]\d{3,8}-[1-9]\d{3,8}$",
                default="200000-200999",
            ),
            "servers": _list("Programs.", SERVER),
            "openapi": _list("OpenAPI descriptions.", OPENAPI),
        },
        "version",
    ),
}


class FilePosition(NamedTuple):
    """Line and column, from 1."""

    line: int
    column: int


class FileMistakes(Exception):
    """The file has mistakes. This error's text has a line for each mistake: `file:line:column: message`."""


@dataclass(frozen=True)
class RunnerEntry:
    """An entry of the file: a program or an OpenAPI description."""

    name: str
    fields: dict[str, Any]
    values: dict[str, str] = field(default_factory=dict, repr=False)  # With resolved references.
    secrets: tuple[str, ...] = field(default=(), repr=False)
    error: str = ""  # The reason why the entry cannot be served, for example a missing reference.

    @property
    def is_openapi(self) -> bool:
        return "document" in self.fields

    @property
    def mode(self) -> str:
        return str(self.fields.get("mode", "shared"))

    @property
    def idle_seconds(self) -> int:
        return int(self.fields.get("idle_seconds", 600))

    def limit(self, name: str) -> int:
        """Return the entry's limit `name`. If the entry does not set it, return the default, or 0 without a default."""
        given = self.fields.get("limits", {}).get(name)
        return int(given or LIMITS[name].get("default", 0))

    def variables(self, home: Path) -> dict[str, str]:
        """Return the program's environment variables. `${HOME}` becomes `home`, but not in secrets."""
        return {
            name: value if value in self.secrets else value.replace("${HOME}", str(home))
            for name, value in self.values.items()
        }

    def masked(self, text: str) -> str:
        """Return the text without the secrets that the entry was given."""
        for secret in self.secrets:
            text = text.replace(secret, "•••")
        return text


@dataclass(frozen=True)
class RunnerFile:
    """A valid runner.yaml."""

    path: Path
    fields: dict[str, Any]
    entries: list[RunnerEntry]

    def value(self, name: str) -> Any:
        properties: Any = SCHEMA["properties"]
        return self.fields.get(name, properties[name].get("default"))

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.value("listen").rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def data(self) -> Path:
        return (self.path.parent / str(self.value("data"))).resolve()

    @property
    def uids(self) -> range:
        first, last = map(int, self.value("uids").split("-"))
        return range(first, last + 1)


class _FileLoader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read; write the values out", problem_mark=mark)
        return super().compose_node(parent, index)


def read_file(path: Path, environment: Mapping[str, str]) -> RunnerFile:
    """Return the parsed file. Raises FileMistakes.

    References `env:NAME` are resolved from `environment`, and references `file:PATH` from the folder of the file.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise FileMistakes(f"{path}:1:1: Cannot be read: {error}. Name a YAML file with --file.") from None
    data, marks, mistakes = _parsed(text)
    if not mistakes:
        mistakes = [(_nearest(marks, at), message) for at, message in _mistakes_in(data)]
    if mistakes:
        raise FileMistakes("\n".join(f"{path}:{at.line}:{at.column}: {text}" for at, text in sorted(mistakes)))
    entries = [_resolved(each, path.parent, environment) for each in _entries(data)]
    return RunnerFile(path, data, entries)


type _Marks = dict[tuple[Any, ...], FilePosition]


def _parsed(text: str) -> tuple[Any, _Marks, list[tuple[FilePosition, str]]]:
    marks: _Marks = {}
    mistakes: list[tuple[FilePosition, str]] = []
    try:
        node = yaml.compose(text, Loader=_FileLoader)
        if node is None:
            return None, marks, [(FilePosition(1, 1), "The file is empty. Begin it with “version: 1”.")]
        return _plain(node, (), marks, mistakes), marks, mistakes
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        at = FilePosition(mark.line + 1, mark.column + 1) if mark else FilePosition(1, 1)
        problem = getattr(error, "problem", None) or "it cannot be read"
        return None, marks, [(at, f"This is not YAML: {problem}. Check indentation, quotes and colons.")]


def _plain(node: yaml.Node, path: tuple[Any, ...], marks: _Marks, mistakes: list[tuple[FilePosition, str]]) -> Any:
    marks[path] = FilePosition(node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(each, (*path, index), marks, mistakes) for index, each in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node, marks[path], mistakes)
    found: dict[str, Any] = {}
    for key, value in node.value:
        name = str(key.value)
        at = FilePosition(key.start_mark.line + 1, key.start_mark.column + 1)
        if name in found:
            mistakes.append((at, f"“{name}” is there twice. Remove one of the two."))
        found[name] = _plain(value, (*path, name), marks, mistakes)
        marks[(*path, name, None)] = at
    return found


def _scalar(node: yaml.Node, at: FilePosition, mistakes: list[tuple[FilePosition, str]]) -> Any:
    """Return a whole number, true, false or null as a Python value. Return any other scalar as text."""
    match node.tag.removeprefix("tag:yaml.org,2002:"), str(node.value):
        case "int", text if re.fullmatch(r"[-+]?\d{1,18}", text):
            return int(text)
        case "bool", text if text.lower() in ("true", "false"):
            return text.lower() == "true"
        case "null", _:
            return None
        case tag, text:
            if tag.startswith("!") or tag == "binary":
                mistakes.append((at, f"The tag {tag} is not supported. Remove it."))
            return text


def _nearest(marks: _Marks, path: tuple[Any, ...]) -> FilePosition:
    while path not in marks and path:
        path = path[:-1]
    return marks.get(path, FilePosition(1, 1))


def _entries(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [*(data.get("servers") or []), *(data.get("openapi") or [])]


def _mistakes_in(data: Any) -> Iterator[tuple[tuple[Any, ...], str]]:
    found = list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(data))
    for error in found:
        yield from _explained(error)
    if not found:
        yield from _contradictions(data)


def _explained(error: jsonschema.ValidationError) -> Iterator[tuple[tuple[Any, ...], str]]:
    path = tuple(error.absolute_path)
    described: Any = error.schema
    if error.validator == "additionalProperties":
        known = described["properties"]
        for name in error.instance:
            if name not in known:
                yield (*path, name, None), f"There is no field “{name}”. Write one of: {', '.join(known)}."
        return
    if error.validator == "required":
        missing = [name for name in described["required"] if name not in error.instance]
        if error.message.startswith(f"'{missing[0]}'"):  # jsonschema reports each missing name; report all in one.
            yield path, f"Missing: {', '.join(missing)}."
        return
    name = str(path[-1]) if path else "the file"
    help_text = described.get("description", "")
    wanted = _wanted(described)
    yield path, f"“{name}” cannot be {json.dumps(error.instance, ensure_ascii=False)[:80]}. {help_text} Write {wanted}."


def _wanted(schema: dict[str, Any]) -> str:
    if "const" in schema or "enum" in schema:
        return " or ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "integer":
        return f"a whole number from {schema['minimum']} to {schema['maximum']}"
    if schema.get("type") == "array":
        return "a list with an item" if schema["minItems"] else "a list"
    if schema.get("type") == "object":
        return "fields, “name: value”"
    return (
        f"text like {schema['pattern']}" if "pattern" in schema else f"text of at most {schema['maxLength']} characters"
    )


def _contradictions(data: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], str]]:
    seen = {"programs", "healthz"}
    first, last = map(int, data.get("uids", "1000-1001").split("-"))
    if first >= last or last >= 2**31:
        yield ("uids",), "The first ID has to be the smaller one. Write FIRST-LAST, such as 200000-200999."
    for kind, key in (("servers", "environment"), ("openapi", "headers")):
        for index, fields in enumerate(data.get(kind) or []):
            if fields["name"] in seen:
                yield (kind, index, "name"), f"“{fields['name']}” is taken. Write another name."
            seen.add(fields["name"])
            if "person" in fields and fields.get("mode") != "session":
                yield (kind, index, "person"), "“person” needs a program per session. Add “mode: session”."
            for at, message in _mistaken_values(fields["name"], fields.get(key) or {}, kind):
                yield (kind, index, key, *at), message


def _mistaken_values(name: str, values: dict[str, Any], kind: str) -> Iterator[tuple[tuple[Any, ...], str]]:
    letters = r"[A-Za-z_][A-Za-z0-9_]*" if kind == "servers" else r"[A-Za-z0-9-]+"
    for variable, value in values.items():
        if not re.fullmatch(letters, variable):
            yield (variable, None), f"“{variable}” is not a valid name here. Write a letter, then letters and digits."
        elif _is_plain_secret(variable, str(value), kind):
            instead = re.sub(r"\W", "_", f"{name}_{variable}").upper()
            yield (variable,), f"This may be a secret. Write env:{instead} or file:PATH."


def _is_plain_secret(variable: str, value: str, kind: str) -> bool:
    if REFERENCE.fullmatch(value):
        return False
    return bool(kind == "openapi" or SECRET_NAME.search(variable) or SECRET_VALUE.search(value))


def _resolved(fields: dict[str, Any], folder: Path, environment: Mapping[str, str]) -> RunnerEntry:
    values: dict[str, str] = {}
    secrets, missing = [], []
    for variable, given in (fields.get("environment") or fields.get("headers") or {}).items():
        text = str(given).lower() if isinstance(given, bool) else str(given)
        reference = REFERENCE.fullmatch(text)
        if not reference:
            values[variable] = text
            continue
        try:
            values[variable] = _referenced(reference[1], reference[2], folder, environment)
            secrets += [part for part in {values[variable], *values[variable].splitlines()} if len(part) > 3]
        except LookupError as error:
            missing.append(f"{variable}: {error.args[0]}")
    ordered = tuple(sorted(secrets, key=len, reverse=True))
    return RunnerEntry(fields["name"], fields, values, ordered, "; ".join(missing))


def _referenced(kind: str, name: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Return the value of a reference. Raises LookupError with a text that names the reference."""
    if kind == "env":
        if not environment.get(name):
            raise LookupError(f"env:{name} is not set. Set this variable of the runner")
        return environment[name]
    try:
        with (folder / name).open() as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise LookupError(f"file:{name} can be read by others. Run chmod 600 on it")
            text = file.read().rstrip("\n")
    except (OSError, UnicodeDecodeError):
        raise LookupError(f"file:{name} cannot be read") from None
    if not text or "\0" in text:
        raise LookupError(f"file:{name} is empty or no text")
    return text
