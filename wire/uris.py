"""How a resource is addressed at a gateway with several servers, and which URIs a template means. Needs no Django.

A URI says nothing of its server, so with several it is given out as `gateway://<alias>/<the URI, percent-encoded>`;
one of the scheme `ui`, by which hosts know a page that they show (MCP Apps), as `ui://gateway/<alias>/...`.
In a template (RFC 6570) the expressions must not be encoded: each stands in parentheses, `(` and `)`, and whatever is
in parentheses when the URI comes back is taken as it is. So a value a client encoded into the template stays encoded.
"""

import re
import string
from functools import lru_cache
from operator import is_not
from typing import Any
from urllib.parse import quote, unquote

PREFIX = "gateway://"
UI, UI_PREFIX = "ui://", "ui://gateway/"

MOST_EXPRESSIONS = 20
FEW_MARKS = 16
DEEPEST, DEEPEST_ARGUMENT = 10, 100  # Levels at which a result and an argument can hold a URI.

_EXPRESSION = re.compile(r"(\{[^{}]*\})")
_MAPPED = re.compile(r"(?:gateway://|ui://gateway/)([^/]*)/(.*)", re.DOTALL).fullmatch

# What ends the value of an expression that expands into one segment (RFC 6570 section 3.2.2).
_RESERVED = frozenset(":/?#[]@!$&'()*+,;=")


def exposed_uri(alias: str, uri: str) -> str:
    """The URI under which clients are given `uri` of the server `alias`; the same without an alias."""
    return f"{_prefix(uri)}{alias}/{_encoded(uri)}" if alias else uri


def exposed_template(alias: str, template: str) -> str:
    """The template under which clients are given `template`; expanding and mapping it back is expanding `template`."""
    if not alias:
        return template
    parts = _EXPRESSION.split(template)
    encoded = (f"({part})" if number % 2 else _encoded(part) for number, part in enumerate(parts))
    return f"{_prefix(template)}{alias}/{''.join(encoded)}"


def _prefix(uri: str) -> str:
    return UI_PREFIX if uri.startswith(UI) else PREFIX


def alias_and_uri(exposed: str) -> tuple[str, str]:
    """The alias and the server's own URI that a client's URI means; the alias is empty when it names none."""
    mapped = _MAPPED(exposed)
    return (mapped[1], _decoded(mapped[2])) if mapped else ("", exposed)


# The members of results, prompts and notifications in which further ones stand, and those that hold a URI.
_CONTAINERS = ("content", "contents", "messages", "resource")
_UI, _UI_FLAT = "ui", "ui/resourceUri"

_is_web = re.compile(r"https?://", re.IGNORECASE).match


def exposed(value: Any, alias: str, level: int = 0) -> Any:
    """A result, or a part of one, with every URI in it as clients are given it; `value` itself when it has none.

    Links, embedded resources, contents of a resource, and the page of a tool (`_meta.ui.resourceUri`) have one. A link
    to the web stays as it is: clients may open it themselves.
    """
    if level > DEEPEST or not alias:
        return value
    if isinstance(value, list):
        items = [exposed(item, alias, level + 1) for item in value]
        return items if any(map(is_not, items, value)) else value
    if not isinstance(value, dict):
        return value
    changed: dict[str, Any] = {}
    uri = value.get("uri")
    if isinstance(uri, str) and not (value.get("type") == "resource_link" and _is_web(uri)):
        changed["uri"] = exposed_uri(alias, uri)
    for key in _CONTAINERS:
        if (inner := value.get(key)) is not None and (new := exposed(inner, alias, level + 1)) is not inner:
            changed[key] = new
    if isinstance(meta := value.get("_meta"), dict) and (new := exposed_meta(meta, alias)) is not meta:
        changed["_meta"] = new
    return {**value, **changed} if changed else value


def own(value: Any, alias: str, level: int = 0) -> Any:
    """An argument with each string that is a URI given out for the server `alias` as that server's own URI.

    Strings that only hold such a URI stay as they are, and so do URIs of other servers.
    """
    if level > DEEPEST_ARGUMENT:
        return value
    if isinstance(value, str):
        named, uri = alias_and_uri(value)
        return uri if named == alias else value
    if isinstance(value, list):
        return [own(item, alias, level + 1) for item in value]
    if isinstance(value, dict):
        return {key: own(item, alias, level + 1) for key, item in value.items()}
    return value


def may_hold_exposed(body: bytes) -> bool:
    """Return False where no string in this JSON text is a URI that was given out, unless its letters are escaped."""
    return b"gateway" in body


def exposed_meta(meta: dict[str, Any], alias: str) -> dict[str, Any]:
    """A `_meta` with the page of a tool (MCP Apps) as clients are given it; `meta` itself when it names none."""
    changed: dict[str, Any] = {}
    ui = meta.get(_UI)
    if isinstance(ui, dict) and isinstance(ui.get("resourceUri"), str):
        changed[_UI] = {**ui, "resourceUri": exposed_uri(alias, ui["resourceUri"])}
    if isinstance(meta.get(_UI_FLAT), str):
        changed[_UI_FLAT] = exposed_uri(alias, meta[_UI_FLAT])
    return {**meta, **changed} if changed and alias else meta


def literal_length(template: str) -> int:
    """How much of a template is no expression: of two that match, the one with more says more."""
    return len(_EXPRESSION.sub("", template))


class MatchBudget:
    """Steps that may be spent on finding the template of one URI, some 30 ms: servers may list thousands."""

    def __init__(self, steps: int = 200_000) -> None:
        self._left = steps

    def spend(self, steps: int) -> bool:
        """Return whether so many steps were left."""
        self._left -= steps
        return self._left >= 0


def template_matches(template: str, uri: str, *, narrowly: bool, budget: MatchBudget | None = None) -> bool:
    """Return whether `uri` can be an expansion of `template`.

    `narrowly` only when no simple expression stands for more than one segment; else any expression may be any text, and
    a template with very many of them, or one for which no budget is left, anything.
    """
    parts = _EXPRESSION.split(template)
    if len(parts) > 2 * MOST_EXPRESSIONS:
        return not narrowly
    if not uri.startswith(parts[0]) or not uri.endswith(parts[-1]):
        return False
    budget = budget or MatchBudget()
    ends: set[int] = {0}
    for number, part in enumerate(parts):
        if number % 2 == 0:
            ends = {end + len(part) for end in ends if uri.startswith(part, end)} if part else ends
        elif not narrowly or part[1:2] in tuple("+#./;?&"):
            ends = _ends_of_any_text(uri, min(ends), parts[number + 1], is_last=number + 2 == len(parts))
        else:
            ends = _simple_ends(uri, ends)
        if not ends:
            return False
        if not budget.spend(len(ends) + 10):
            return not narrowly
    return len(uri) in ends


def _ends_of_any_text(uri: str, start: int, following: str, *, is_last: bool) -> set[int]:
    """Return where any text that begins at `start` may end: before what follows it in the template."""
    if is_last:
        end = len(uri) - len(following)
        return {end} if end >= start else set()
    if not following:
        return set(range(start, len(uri) + 1))
    ends, at = set(), uri.find(following, start)
    while at >= 0:
        ends.add(at)
        at = uri.find(following, at + 1)
    return ends


def _simple_ends(uri: str, starts: set[int]) -> set[int]:
    ends: set[int] = set()
    for start in sorted(starts):
        end = start
        while end not in ends:
            ends.add(end)
            if end == len(uri) or uri[end] in _RESERVED:
                break
            end += 1
    return ends


_SAFE = frozenset(string.ascii_letters + string.digits + "_.-~")


def _encoded(text: str) -> str:
    unsafe = set(text) - _SAFE
    if len(unsafe) > FEW_MARKS:
        return _quoted(text)
    # `quote` takes each character by itself: three times as long for the few different ones of a usual URI.
    if "%" in unsafe:
        unsafe.discard("%")
        text = text.replace("%", "%25")
    for mark in unsafe:
        text = text.replace(mark, _quoted_mark(mark))
    return text


def _quoted(text: str) -> str:
    return quote(text, safe="", errors="surrogatepass")


_quoted_mark = lru_cache(1_000)(_quoted)


def _decoded(text: str) -> str:
    """`text` percent-decoded, but for what stands in parentheses, which goes on as it is, without them."""
    if "(" not in text:
        return unquote(text, errors="surrogatepass")
    parts, depth, begin = [], 0, 0
    for at, character in enumerate(text):
        if character == "(":
            depth += 1
            if depth == 1:
                parts.append(unquote(text[begin:at], errors="surrogatepass"))
                begin = at + 1
        elif character == ")" and depth:
            depth -= 1
            if depth == 0:
                parts.append(text[begin:at])
                begin = at + 1
    rest = text[begin:]
    return "".join((*parts, rest if depth else unquote(rest, errors="surrogatepass")))
