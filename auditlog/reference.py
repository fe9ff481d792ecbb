"""The reference page of the log and of admin events (docs/reference/log-fields.md)."""

import re
from collections.abc import Iterable

from auditlog.actions import Action
from auditlog.api import CALL_HELP, EVENT_HELP
from auditlog.fields import EVENT_EXPORT_COLUMNS, EXPORT_COLUMNS
from auditlog.sentences import FACTS, RETIRED

BEGIN = """# Fields of the log, and admin events

The fields of a line in an [export](../how-to/read-the-log.md#export) or [sink](../how-to/send-the-logs.md#lines), and
all admin events. `make lists` writes this page.
"""
EVENTS = f"""## Admin events

Consider an alert in your SIEM for `user.break_glass_used`, `user.break_glass_changed`, `user.sign_in_refused`,
`user.rescued`, `user.role_changed`, `user.password_link_made`, `user.second_factor_removed`, `user.staff_changed`,
`role.updated`, `api_key.created`, `provisioning_key.created`, `organisation.updated`, `workspace.updated`,
`workspace.shorter_retention_asked`, `sink.updated`, `sink.disabled` and `sink.removed`.

Only older releases recorded {" and ".join(f"`{action}`" for action in RETIRED)}.
"""
# Actions whose sentences have different meanings; those of other actions only name more or fewer objects.
SEVERAL = {
    *(Action.FEATURE_CHANGED, Action.FEATURE_EFFECT_SAID, Action.SIGN_IN_REFUSED, Action.USER_BREAK_GLASS_CHANGED),
    *(Action.USER_STAFF_CHANGED, Action.WORKSPACE_MAIL_TESTED),
}
MORE_HELP = {"uid": "Id of the row.", "created_at": "When it happened (UTC)."}


def page() -> str:
    """Return the page as Markdown."""
    calls = _table("field", "meaning", ((name, _help(column)) for name, column in EXPORT_COLUMNS.items()))
    events = _table("field", "meaning", ((name, _help(column)) for name, column in EVENT_EXPORT_COLUMNS.items()))
    actions = _table("action", "meaning", sorted((action.value, _meaning(action)) for action in Action))
    return f"{BEGIN}\n## Fields of a call\n\n{calls}\n## Fields of an admin event\n\n{events}\n{EVENTS}\n{actions}"


def _table(first: str, second: str, rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join([f"| {first} | {second} |", "| --- | --- |", *(f"| `{a}` | {b} |" for a, b in rows), ""])


def _help(column: str) -> str:
    return MORE_HELP.get(column) or (CALL_HELP | EVENT_HELP)[column]


def _meaning(action: Action) -> str:
    """Return the action's last and most general sentence; or all, if they have different meanings."""
    words = action.sentences if action in SEVERAL else action.sentences[-1:]
    return " / ".join(_shortened(one) for one in words)


def _shortened(sentence: str) -> str:
    """Return a sentence without the actor, and with an ellipsis for each name."""
    facts = "|".join(f"{{{fact}}}" for fact in FACTS)
    text = re.sub(r"\{\w+\}", "…", re.sub(facts, "", sentence).removeprefix("{actor} ")).removesuffix(".")
    return text[0].upper() + text[1:]
