"""What an admin event says of a change, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

# Verbs record no secret. Should one ever forget, its value stays off the page all the same.
SECRET = frozenset({"secret", "password", "token", "refresh", "authorization", "cookie", "api_key"})


class Change(NamedTuple):
    """One field: from what to what. A mere fact has no `before`."""

    field: str
    before: str | None
    after: str


def told(changes: Mapping[str, Any]) -> list[Change]:
    """The changes of an event, one by one."""
    return [_change(name, value) for name, value in changes.items()]


def _change(name: str, value: Any) -> Change:
    field = name.replace("_", " ")
    if name.lower() in SECRET:
        return Change(field, None, "***")
    if not (isinstance(value, list) and len(value) == 2):
        return Change(field, None, _say(value))
    before, after = value
    if isinstance(before, list) and isinstance(after, list):
        # Of two long lists only the difference is news.
        before, after = [one for one in before if one not in after], [one for one in after if one not in before]
    return Change(field, _say(before), _say(after))


def _say(value: Any) -> str:
    match value:
        case None | "" | []:
            return "none"
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(_say(one) for one in value)
        case dict():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return str(value)
