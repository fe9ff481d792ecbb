"""How a resource is addressed at a gateway with several servers, and which URIs a template means. Needs no Django.

A URI says nothing of its server, so with several it is given out as `gateway://<alias>/<the URI, percent-encoded>`;
one of the scheme `ui`, by which hosts know a page that they show (MCP Apps), as `ui://gateway/<alias>/...`.
In a template (RFC 6570) the expressions must not be encoded: each stands in parentheses, `(` and `)`, and whatever is
in parentheses when the URI comes back is taken as it is. So a value a client encoded into the template stays encoded.
"""

import re
from typing import Any
from urllib.parse import quote, unquote

PREFIX = "gateway://"
UI, UI_PREFIX = "ui://", "ui://gateway/"

MOST_EXPRESSIONS = 20

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


def exposed(value: Any, alias: str) -> Any:
    """A result, or a part of one, with every URI in it as clients are given it; `value` itself when it has none.

    Links, embedded resources, contents of a resource, and the page of a tool (`_meta.ui.resourceUri`) have one.
    """
    if isinstance(value, list):
        items = [exposed(item, alias) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if not isinstance(value, dict) or not alias:
        return value
    changed: dict[str, Any] = {}
    if isinstance(uri := value.get("uri"), str):
        changed["uri"] = exposed_uri(alias, uri)
    for key in _CONTAINERS:
        if (inner := value.get(key)) is not None and (new := exposed(inner, alias)) is not inner:
            changed[key] = new
    if isinstance(meta := value.get("_meta"), dict) and (new := exposed_meta(meta, alias)) is not meta:
        changed["_meta"] = new
    return {**value, **changed} if changed else value


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


def template_matches(template: str, uri: str, *, narrowly: bool) -> bool:
    """Whether `uri` can be an expansion of `template`.

    `narrowly` only when no simple expression stands for more than one segment; else any expression may be any text, and
    a template with very many of them anything.
    """
    parts = _EXPRESSION.split(template)
    if len(parts) > 2 * MOST_EXPRESSIONS:
        return not narrowly
    ends = {0}
    for number, part in enumerate(parts):
        if number % 2 == 0:
            ends = {end + len(part) for end in ends if uri.startswith(part, end)}
        elif not narrowly or part[1:2] in tuple("+#./;?&"):
            ends = set(range(min(ends), len(uri) + 1))
        else:
            ends = _simple_ends(uri, ends)
        if not ends:
            return False
    return len(uri) in ends


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


def _encoded(text: str) -> str:
    return quote(text, safe="", errors="surrogatepass")


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
