"""Functions that describe a plan: as text for people, and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from configuration.kinds import Act, Change
from configuration.plan import Plan
from ui.pages import sentences

if TYPE_CHECKING:
    from gateways.feature_refresh import Refreshed

SIGNS = {Act.ADD: "+", Act.CHANGE: "~", Act.REMOVE: "-", Act.DISABLE: "-"}
DONE = {Act.ADD: "added", Act.CHANGE: "changed", Act.REMOVE: "removed", Act.DISABLE: "disabled"}
LONGEST = 60
MOST_CAUSES = 5


def as_text(plan: Plan) -> str:
    """Return the plan for a terminal."""
    if not plan.changes:
        digest = f"Digest: {plan.digest}\n" if plan.claimed else ""
        return f"{plan.document.name}: no changes.\n{_claimed(plan)}{_not_in_file(plan)}{digest}"
    parts = [f"{plan.document.name}: {counted(plan)}.\n"]
    parts += [_change(change) for change in plan.changes]
    parts += [_claimed(plan), _not_in_file(plan), _missing(plan), f"Digest: {plan.digest}\n"]
    return "\n".join(filter(None, parts))


def counted(plan: Plan) -> str:
    """Return the numbers of changes in words, such as `2 added, 1 changed`."""
    numbers = Counter(change.act for change in plan.changes)
    return ", ".join(f"{numbers[act]:,} {word}" for act, word in DONE.items() if numbers[act]) or "no changes"


def _change(change: Change) -> str:
    lines = [*field_lines(change), *filter(None, [change.cuts])]
    return "\n    ".join([f"{SIGNS[change.act]} {change.title}", *lines]) + "\n"


def field_lines(change: Change, longest: int = LONGEST) -> list[str]:
    """Return a line such as `timeout_seconds: 60, was 30` for each changed field, except empty fields of new objects.

    If the object is renamed, the first line has the old name. Texts are cut after `longest` characters, lists are not.
    """
    lines = [f"renamed, was {change.was[-1]}"] if change.was and change.was[-1] != change.key[-1] else []
    is_new = change.act is Act.ADD
    for name, (before, after) in change.fields.items():
        if not (is_new and after in (None, "", [])):
            lines.append(f"{name}: {difference(before, after, is_new=is_new, longest=longest)}")
    return lines


def difference(before: Any, after: Any, *, is_new: bool = False, longest: int = LONGEST) -> str:
    """Return the difference between `before` and `after` as one line of text."""
    if is_new:
        return shown(after, longest)
    if isinstance(before, list) and isinstance(after, list):
        signed = [f"+ {one}" for one in after if one not in before] + [f"- {one}" for one in before if one not in after]
        return ", ".join(signed) or "in another order"
    return f"{shown(after, longest)}, was {shown(before, longest)}"


def shown(value: Any, longest: int = LONGEST) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case list():
            return ", ".join(map(str, value)) or "none"
        case str():
            line = " ".join(value.split())
            return (f"{line[:longest]}…" if len(line) > longest else line) or "empty"
    return str(value)


def _claimed(plan: Plan) -> str:
    if not plan.claimed:
        return ""
    return f"Managed by “{plan.document.source}” once the plan is applied: {', '.join(plan.claimed)}.\n"


def _not_in_file(plan: Plan) -> str:
    titles = left_alone(plan)
    return f"Not in the file, so not changed: {', '.join(titles)}.\n" if titles else ""


def left_alone(plan: Plan) -> list[str]:
    """Return the titles of the objects that are missing from the file, except those that the plan disables."""
    disabled = {change.title for change in plan.changes if change.act is Act.DISABLE}
    return [title for title in plan.not_in_file if title not in disabled]


def _missing(plan: Plan) -> str:
    lines = lacking_lines(plan)
    listed = [f"- {line}" for line in lines]
    return "\n".join(["You lack permissions, so this plan cannot be applied:", *listed, ""]) if lines else ""


def lacking_lines(plan: Plan) -> list[str]:
    """Return a line for each capability that the person lacks, and for each object that an API key cannot change."""
    lines = [f"{title}: “{capability.label}” ({capability.slug})" for title, capability in plan.missing]
    return lines + [f"{title}: API keys cannot change it. Apply the file as a person." for title in plan.not_by_key]


def unanswered(asked: Iterable[Refreshed]) -> str:
    """Return a line about the servers that did not list their tools; empty if all did."""
    causes = [*dict.fromkeys(one.cause for one in asked if one.cause)]  # A server can be on several gateways.
    if not causes:
        return ""
    more = f"{len(causes) - MOST_CAUSES:,} more did not list their tools." if len(causes) > MOST_CAUSES else ""
    whose = "Its" if len(causes) == 1 else "Their"
    return sentences(*causes[:MOST_CAUSES], more, f"{whose} tools are not known yet.")


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as a dictionary that can be written as JSON."""
    return {
        "files": plan.document.files,
        "digest": plan.digest,
        "changes": [
            {
                "act": change.act.value,
                "kind": change.kind.id,
                "object": change.title,
                "key": list(change.key),
                "fields_changed": [
                    {"name": name, "now": now, "then": then} for name, (now, then) in change.fields.items()
                ],
                "cuts": change.cuts,
            }
            for change in plan.changes
        ],
        "not_in_file": plan.not_in_file,
        "claimed": plan.claimed,
        "missing_capabilities": [
            {"object": title, "capability": capability.slug} for title, capability in plan.missing
        ],
        "summary": counted(plan),
        "unanswered": plan.unanswered,
        "text": as_text(plan),
    }
