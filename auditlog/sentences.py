"""Admin events as sentences, for all pages and the API.

A sentence uses only values stored in the event, so renaming or removing an object does not change it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from string import Formatter
from typing import Any, NamedTuple

from auditlog.actions import Action
from auditlog.models import Event
from capabilities import Capability

MOST_NAMED = 3
LONGEST_LABEL = 200  # A label of this length may be truncated.
ASIDE = frozenset({"through", "owner", "note", "because", "file"})  # Keys of `changes` that are not changed fields.
# Keys of `changes` whose values appear in sentences, each with the kind of name ("" if the value is no name).
STATED = {
    "role": "name",
    "security_key": "name",
    "more": "",
    "requests": "",
    "tool_set": "name",
    "effect": "",
    "row": "",
    "reason": "",
    "owner": "person",
    "calls": "",
    "days": "",
    "partition": "name",
    "to": "person",
    "email": "person",
    "list": "",
    "rule": "name",
    "mode": "",
    "place": "",
    "lines": "",
    "answer": "",
    "reviewer": "person",
}
# Labels that name several objects: the separator, and the kinds of the objects.
JOINED: dict[str, tuple[str, tuple[str, ...]]] = {
    "accessrequest": (" / ", ("gateway", "user")),
    "assignment": (" on ", ("server", "gateway")),
    "feature": (" on ", ("feature", "gateway")),
    "hostatgateway": (" on ", ("host", "gateway")),
    "connection": (" / ", ("host", "user", "gateway")),
    "hold": (" / ", ("tool", "host", "gateway")),
    "allowance": (" / ", ("tool", "host", "gateway")),
    "gatewaygrant": (" / ", ("gateway", "user")),
    "toolgrant": (" / ", ("tool_set", "subject", "gateway")),
    "toolset": (" on ", ("tool_set", "gateway")),
}
FACTS = ("is_staff", "sent", "break_glass")  # Changes that only select a sentence, and add no text.
UNQUOTED = ("user", "address")
MARKS = (("“", "”"), ("«", "»"))
NO_ADDRESS = frozenset(' “”«»"')  # Characters that no plain address contains.

# The names of changed fields in sentences, if they are not the key with spaces.
FIELD_NAMES = {"when": "condition", "expires_at": "expiry", "payload_limit_bytes": "payload limit"}

_ACTIONS = {action.value: action.sentences for action in Action}
# Actions that only older releases recorded.
RETIRED: dict[str, tuple[str, ...]] = {
    "tool.disabled": ("{actor} disabled the tool {target}.",),
    "tool.enabled": ("{actor} enabled the tool {target}.",),
}
UNKNOWN = ("{actor} acted on {target} in a way that this version does not know.",)


class SentencePart(NamedTuple):
    """A part of a sentence: fixed text of this product, or a name that a person chose. `of` is the kind of name."""

    text: str
    of: str = ""  # "actor", "target", "name", "person", or "" for fixed text.


def sentence(event: Event) -> str:
    """Return the event as a sentence of plain text. Names are quoted, except plain e-mail addresses of people."""
    plain = {"actor", "person"} | ({"target"} if event.target_type in UNQUOTED else set())
    return "".join(_quoted(part.text) if _is_quoted(part, plain) else part.text for part in parts(event))


def _is_quoted(part: SentencePart, plain: set[str]) -> bool:
    is_one_word = part.text.isprintable() and not NO_ADDRESS.intersection(part.text)
    return bool(part.of) and (part.of not in plain or not is_one_word)


def _quoted(name: str) -> str:
    # A name must not be able to end its own quotation, so marks that it contains are not used. JSON also escapes
    # unprintable characters.
    for opening, closing in MARKS:
        if name.isprintable() and opening not in name and closing not in name:
            return f"{opening}{name}{closing}"
    return json.dumps(name, ensure_ascii=not name.isprintable())


def parts(event: Event) -> list[SentencePart]:
    """Return the sentence about an event in parts, for pages that link or mark the names."""
    values = dict(_values(event))
    alternatives = _ACTIONS.get(event.action) or RETIRED.get(event.action) or UNKNOWN
    found = next((words for words in alternatives if _fields(words) <= values.keys()), UNKNOWN[0])
    pieces = [
        piece
        for words, name in _split(found)
        for piece in (SentencePart(words), values[name] if name else SentencePart(""))
    ]
    if through := _plain(event.changes.get("through")):
        pieces[-2] = SentencePart(pieces[-2].text.removesuffix("."))
        key = SentencePart(through.removeprefix("API key "), "name")
        pieces += [SentencePart(" with the API key "), key, SentencePart(".")]
    if file := _plain(event.changes.get("file")):
        pieces[-1 if through else -2] = SentencePart(pieces[-1 if through else -2].text.removesuffix("."))
        pieces += [SentencePart(" by the file "), SentencePart(file, "name"), SentencePart(".")]
    return [piece for piece in pieces if piece.text]


def _split(words: str) -> Iterator[tuple[str, str]]:
    return ((text, name or "") for text, name, _, _ in Formatter().parse(words))


def _fields(words: str) -> set[str]:
    return {name for _, name in _split(words) if name}


def _values(event: Event) -> Iterator[tuple[str, SentencePart]]:
    """Yield the values that sentences can contain, by field name. `actor` and `target` are never missing."""
    target = SentencePart(event.target_label or "something", "target")
    by_itself = event.target_type == "token" and event.actor_email.endswith("(self)")
    yield (
        "actor",
        SentencePart("The system") if event.actor_email in ("", "system") else SentencePart(event.actor_email, "actor"),
    )
    yield "target", target
    if by_itself or (event.actor_id is not None and str(event.actor_id) == event.target_id):
        yield "self", target
    yield from _of_label(event)
    yield from _of_changes(event)


def _of_label(event: Event) -> Iterator[tuple[str, SentencePart]]:
    """Yield the kind and the name of each object that the event's label names.

    Yields nothing if it is not certain where one name in the label ends and the next begins.
    """
    if len(event.target_label) >= LONGEST_LABEL:
        return
    joint, kinds = JOINED.get(event.target_type, ("", ()))
    names = event.target_label.split(joint) if joint else []
    if names and len(names) == len(kinds):  # Not equal if a name contains the separator.
        first, *others = zip(kinds, names, strict=True)
        yield first[0], SentencePart(first[1], "target")
        yield from ((kind, SentencePart(name, "person" if kind == "user" else "name")) for kind, name in others)


def _of_changes(event: Event) -> Iterator[tuple[str, SentencePart]]:
    changes = event.changes
    for name, of in STATED.items():
        value = _plain(_after(changes.get(name)))
        # The owner is left out if they are the actor.
        if value and not (name == "owner" and value == event.actor_email):
            yield name, SentencePart(value, of)
    yield from ((name, SentencePart("")) for name in FACTS if _after(changes.get(name)) is True)
    asked = changes.get("capability")  # [None, capability] for a request, [capability, None] for a declined request.
    if slug := _plain(next(filter(None, asked), "") if isinstance(asked, list) else asked):
        yield "capability", SentencePart(next((one.label for one in Capability if one.slug == slug), slug), "name")
    fields = [name for name in changes if name not in ASIDE]
    if fields:
        yield "fields", SentencePart(_named([FIELD_NAMES.get(name, name.replace("_", " ")) for name in fields]))
        yield "first", SentencePart(fields[0], "name")
    if fields == ["name"] and (before := _before(changes["name"])):
        yield "old_name", SentencePart(str(before), "name")
    if before := _before(changes.get("security_key")):
        yield "old_key", SentencePart(str(before), "name")
    if fields == ["users"]:
        yield from _members(*([str(one) for one in side(changes["users"]) or ()] for side in (_before, _after)))


def _members(before: list[str], after: list[str]) -> Iterator[tuple[str, SentencePart]]:
    if joined := [one for one in after if one not in before]:
        yield "joined", SentencePart(_named(joined), "person")
    if left := [one for one in before if one not in after]:
        yield "left", SentencePart(_named(left), "person")


def _before(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 2 else None


def _after(value: Any) -> Any:
    return value[1] if isinstance(value, list) and len(value) == 2 else value


def _plain(value: Any) -> str:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _named(names: Sequence[str]) -> str:
    """Return a phrase with the first MOST_NAMED of these names, and the number of the others."""
    named, more = list(names[:MOST_NAMED]), len(names) - MOST_NAMED
    named += [f"{more} more"] if more > 0 else []
    return " and ".join(filter(None, (", ".join(named[:-1]), named[-1])))
