"""Parse configuration files (YAML) into plain data, with the line and column of each value."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from wire.jsonrpc import is_storable

type Path = tuple[str | int, ...]

MOST_CHARACTERS = 4_000_000
MOST_PROBLEMS = 200  # Reported at once.
TAG = "tag:yaml.org,2002:"
_whole = re.compile(r"[-+]?[0-9]{1,18}").fullmatch
_decimal = re.compile(r"[-+]?[0-9]{1,18}\.[0-9]{1,18}").fullmatch
WORDS: Mapping[str, Any] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """A place in a file. Its line and column are numbered from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """A mistake in a file, and what to write instead."""

    at: Mark
    message: str

    def __str__(self) -> str:
        return f"{self.at}: {self.message}"

    def as_json(self) -> dict[str, Any]:
        return {"file": self.at.file, "line": self.at.line, "column": self.at.column, "message": self.message}


class ConfigurationError(Exception):
    """The configuration has mistakes. Nothing was changed."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = sorted(set(mistakes))[:MOST_PROBLEMS]
        super().__init__("\n".join(map(str, self.mistakes)))


@dataclass
class ConfigDocument:
    """The data of one or more files.

    `marks` maps the path of each value to its position. `key_marks` maps the path of each key to its position.
    """

    files: list[str]
    data: dict[str, Any] = field(default_factory=dict)
    marks: dict[Path, Mark] = field(default_factory=dict)
    key_marks: dict[Path, Mark] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The names of the files, for messages and events."""
        return ", ".join(self.files)

    @property
    def source(self) -> str:
        """The owner of the files, from their field `source`; empty if they have no such field."""
        return str(self.data.get("source", ""))

    def at(self, path: Path) -> Mark:
        """Return the position of the value at `path`, or of the nearest value that contains it."""
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks.get(path) or Mark(self.files[0], 1, 1)

    def at_key(self, path: Path) -> Mark:
        """Return the position of the key at `path`, or the result of `at` if no key has this path."""
        return self.key_marks.get(path) or self.at(path)

    def include(self, other: "ConfigDocument") -> list[Mistake]:
        """Append the lists of `other` to the lists of this document.

        Return a mistake for each value that is not a list and differs between the documents.
        """
        mistakes = []
        self.files += other.files
        for name, value in other.data.items():
            offset = 0
            if name not in self.data:
                self.data[name] = value
            elif isinstance(value, list) and isinstance(self.data[name], list):
                offset = len(self.data[name])
                self.data[name] = [*self.data[name], *value]
            elif value != self.data[name]:
                first = self.at_key((name,))
                mistakes.append(Mistake(other.at_key((name,)), f"“{name}” is also in {first}. Write it in one file."))
                continue
            self._take_marks(other, name, offset)
        return mistakes

    def _take_marks(self, other: "ConfigDocument", name: str, offset: int) -> None:
        for mine, theirs in ((self.marks, other.marks), (self.key_marks, other.key_marks)):
            for path, position in theirs.items():
                if path[:1] == (name,):
                    index = tuple(part + offset for part in path[1:2] if isinstance(part, int)) or path[1:2]
                    mine.setdefault((name, *index, *path[2:]), position)


def read(files: Mapping[str, str]) -> ConfigDocument:
    """Return the document in `files`, which maps the name of each file to its text. Raises ConfigurationError."""
    if not files:
        raise ConfigurationError([Mistake(Mark("(none)", 1, 1), "There is no file. Choose a folder with .yaml files.")])
    mistakes: list[Mistake] = []
    documents = [_parsed(name, text, mistakes) for name, text in files.items()]
    whole = documents[0]
    for more in documents[1:]:
        mistakes += whole.include(more)
    if mistakes:
        raise ConfigurationError(mistakes)
    return whole


class AliasFound(yaml.MarkedYAMLError):
    """The file has an alias. Aliases can make a small file expand without limit."""


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise AliasFound(problem_mark=self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)


def _parsed(file: str, text: str, mistakes: list[Mistake]) -> ConfigDocument:
    document = ConfigDocument([file])
    if len(text) > MOST_CHARACTERS:
        mistakes.append(
            Mistake(Mark(file, 1, 1), f"The file has over {MOST_CHARACTERS:,} characters. Split it into several files.")
        )
        return document
    try:
        node = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        mistakes.append(_syntax_mistake(file, text, error))
        return document
    if not isinstance(node, yaml.MappingNode):
        mistakes.append(Mistake(Mark(file, 1, 1), "The file has no fields. Begin it with “version: 1”."))
        return document
    document.data = _NodeReader(document, mistakes).value(node, ())
    return document


def _syntax_mistake(file: str, text: str, error: Exception) -> Mistake:
    mark = getattr(error, "problem_mark", None)
    at = Mark(file, mark.line + 1, mark.column + 1) if mark else Mark(file, 1, 1)
    if isinstance(error, AliasFound):
        return Mistake(at, "Aliases (*name) and merges (<<) are not allowed. Write the values out.")
    if isinstance(error, RecursionError):
        return Mistake(at, "The file is nested too deeply. Use only the levels that the schema has.")
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        at = Mark(file, before.count("\n") + 1, len(before.rpartition("\n")[2]) + 1)
        line = "Remove the control character, or write the text in double quotes with an escape such as “\\t”."
        return Mistake(at, f"This is not text of YAML (character U+{_code(error):04X}). {line}")
    said = str(getattr(error, "problem", "") or "it cannot be read")
    if "expected a single document" in str(error):
        return Mistake(at, "The file has several documents. Remove the line “---” between them.")
    return Mistake(at, f"This is not YAML: {said}. Check indentation, quotes and colons here and in the line above.")


def _code(error: yaml.reader.ReaderError) -> int:
    found: Any = error.character
    return found if isinstance(found, int) else ord(found[:1] or "\0")


class _NodeReader:
    """Converts nodes of YAML into data, and records positions and mistakes."""

    def __init__(self, document: ConfigDocument, mistakes: list[Mistake]) -> None:
        self._document, self._mistakes = document, mistakes

    def value(self, node: yaml.Node, path: Path) -> Any:
        self._document.marks[path] = self._at(node)
        match node:
            case yaml.MappingNode():
                return self._mapping(node, path)
            case yaml.SequenceNode():
                self._must_be_plain(node, f"{TAG}seq")
                return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        self._must_be_plain(node, f"{TAG}map")
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._mistake(key, "A field needs a name. Write “name: value”.")
                continue
            name = self._text(key)
            if name in found:
                first = self._document.key_marks[*path, name].line
                self._mistake(key, f"“{name}” is already in line {first}. Remove one of the two.")
                continue
            self._document.key_marks[*path, name] = self._at(key)
            found[name] = self.value(value, (*path, name))
        return found

    def _scalar(self, node: yaml.Node) -> Any:
        text = self._text(node)
        if node.tag.removeprefix(TAG) not in ("str", "int", "float", "bool", "null", "timestamp", "value", "merge"):
            self._mistake(node, f"The tag {node.tag.replace(TAG, '!!')} is not supported. Remove it.")
        if getattr(node, "style", None) is not None:
            return text
        if text in WORDS:
            return WORDS[text]
        if _whole(text):
            return int(text)
        return float(text) if _decimal(text) else text

    def _text(self, node: yaml.Node) -> str:
        text = str(node.value)
        if is_storable(text):
            return text
        self._mistake(node, "This text has a NUL or half of a surrogate pair, which cannot be stored. Remove it.")
        return ""

    def _must_be_plain(self, node: yaml.Node, tag: str) -> None:
        if node.tag != tag:
            self._mistake(node, f"The tag {node.tag.replace(TAG, '!!')} is not supported. Remove it.")

    def _at(self, node: yaml.Node) -> Mark:
        mark = node.start_mark
        return Mark(self._document.files[0], mark.line + 1, mark.column + 1)

    def _mistake(self, node: yaml.Node, message: str) -> None:
        self._mistakes.append(Mistake(self._at(node), message))


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent lists below their key."""
        return super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


# Write StrEnum values, such as those of choices, as plain strings.
_Dumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str(text)))


def write(data: Mapping[str, Any]) -> str:
    """Return `data` as YAML. Equal data give equal bytes."""
    return str(
        yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=False)
    )
