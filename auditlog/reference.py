"""The reference page of the log and of admin events (docs/reference/log-fields.md)."""

import re
from collections.abc import Iterable

from auditlog.actions import Action
from auditlog.api import CALL_HELP, EVENT_HELP
from auditlog.fields import EVENT_EXPORT_COLUMNS, EXPORT_COLUMNS
from auditlog.sentences import FACTS, RETIRED

BEGIN = """# Fields of the log, and admin events

All admin events, and the fields of a line in an [export](../how-to/read-the-log.md#export) or
[sink](../how-to/send-the-logs.md#lines). `make lists` writes this page.
"""
ALERTS = (
    *(Action.USER_BREAK_GLASS_USED, Action.USER_BREAK_GLASS_CHANGED, Action.SIGN_IN_REFUSED, Action.USER_RESCUED),
    *(Action.USER_ROLE_CHANGED, Action.USER_PASSWORD_LINK_MADE, Action.SECOND_FACTOR_REMOVED),
    *(Action.USER_STAFF_CHANGED, Action.ROLE_UPDATED, Action.API_KEY_CREATED, Action.PROVISIONING_KEY_CREATED),
    *(Action.ORGANISATION_UPDATED, Action.WORKSPACE_UPDATED, Action.RETENTION_ASKED),
    *(Action.SINK_UPDATED, Action.SINK_DISABLED, Action.SINK_REMOVED),
)
# Actions whose sentences have different meanings; those of other actions only name more or fewer objects.
SEVERAL = {
    *(Action.FEATURE_CHANGED, Action.FEATURE_EFFECT_SAID, Action.SIGN_IN_REFUSED, Action.USER_BREAK_GLASS_CHANGED),
    *(Action.USER_STAFF_CHANGED, Action.WORKSPACE_MAIL_TESTED),
}
CALLS = CALL_HELP | {"uid": "Id of the row.", "created_at": "When the gateway received the request (UTC)."}
EVENTS = EVENT_HELP | {"uid": "Id of the row.", "created_at": "When it happened (UTC)."}


def page() -> str:
    """Return the page as Markdown."""
    calls, events = (
        _table("field", ((name, help_texts[column]) for name, column in columns.items()))
        for columns, help_texts in ((EXPORT_COLUMNS, CALLS), (EVENT_EXPORT_COLUMNS, EVENTS))
    )
    actions = _table("action", sorted((action.value, _meaning(action)) for action in Action))
    return f"""{BEGIN}
## Fields of a call

{calls}
## Fields of an admin event

{events}
## Admin events

Consider an alert in your SIEM for {_named(ALERTS)}.

Only older releases recorded {_named(RETIRED)}.

{actions}"""


def _table(first: str, rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(
        [f"| {first} | meaning |", "| --- | --- |", *(f"| `{name}` | {text} |" for name, text in rows), ""]
    )


def _named(actions: Iterable[str]) -> str:
    *others, last = (f"`{action}`" for action in actions)
    return f"{', '.join(others)} and {last}"


def _meaning(action: Action) -> str:
    """Return the sentence that describes an event of this action.

    If the action has several sentences, return the last one, which is the most general. If the sentences have
    different meanings, return all of them.
    """
    words = action.sentences if action in SEVERAL else action.sentences[-1:]
    return " / ".join(_shortened(one) for one in words)


def _shortened(sentence: str) -> str:
    """Return a sentence without its actor, and with an ellipsis in place of each name."""
    text = re.sub(r"\{(\w+)\}", lambda found: "" if found[1] in FACTS else "…", sentence.removeprefix("{actor} "))
    return text[0].upper() + text[1:].removesuffix(".")
