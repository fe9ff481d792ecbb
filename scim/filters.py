"""Translate SCIM filters (RFC 7644 section 3.4.2.2) to database conditions, where possible.

Imports the optional package, so only imported where /scim/v2/ is served.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.db.models import Q
from scim2_models.path import AttrPath, CompareOperator, Comparison, FilterNode, LogicalExpr, LogicalOperator, ValuePath

NOBODY = Q(pk__in=[])
ALL = Q()

type Narrowed = tuple[Q, bool]


def filter_condition(node: FilterNode, kind: str) -> Narrowed:
    """Return a condition that all matching rows fulfil, and whether it is exact."""
    match node:
        case Comparison() if node.op == CompareOperator.eq:
            return _equal(node, kind)
        case LogicalExpr():
            return _joined(node, kind)
        case ValuePath():
            return _selected(node, kind)
    return ALL, False


def _joined(node: LogicalExpr, kind: str) -> Narrowed:
    terms = [filter_condition(term, kind) for term in node.terms]
    is_exact = all(exact for _, exact in terms)
    condition = ALL
    if node.op == LogicalOperator.and_:
        for term, _ in terms:
            condition &= term
        return condition, is_exact
    if any(term == ALL for term, _ in terms):
        return ALL, is_exact
    for term, _ in terms:
        condition |= term
    return condition, is_exact


def _selected(node: ValuePath, kind: str) -> Narrowed:
    """Translate `emails[value eq "x" and ...]` and `members[value eq "x"]`."""
    inner = node.val_filter
    terms = inner.terms if isinstance(inner, LogicalExpr) and inner.op == LogicalOperator.and_ else (inner,)
    for term in terms:
        if isinstance(term, Comparison) and term.op == CompareOperator.eq and term.attr_path.attr.lower() == "value":
            path = AttrPath(node.attr_path.attr, "value", node.attr_path.uri)
            condition, is_exact = _equal(Comparison(path, CompareOperator.eq, term.value), kind)
            return condition, is_exact and len(terms) == 1
    return ALL, False


def _equal(node: Comparison, kind: str) -> Narrowed:
    path = node.attr_path
    if path.uri and path.uri.lower() != f"urn:ietf:params:scim:schemas:core:2.0:{kind.lower()}":
        return ALL, False
    name = f"{path.attr}.{path.sub_attr}" if path.sub_attr else path.attr
    condition = CONDITIONS[kind].get(name.lower())
    found = condition(node.value) if condition else None
    return (ALL, False) if found is None else (found, True)


def _id(value: Any) -> Q | None:
    try:
        return Q(pk=UUID(value)) if isinstance(value, str) else None
    except ValueError:
        return NOBODY


def _user_name(value: Any) -> Q | None:
    if not isinstance(value, str):
        return None
    said = value.lower()
    same_as_email = Q(directory_person__isnull=True) | Q(directory_person__user_name="")
    return (
        Q(directory_person__user_name=said)
        if said and "@" not in said
        else (Q(directory_person__user_name=said) | Q(email=said) & same_as_email)
    )


def _external_id(relation: str) -> Callable[[Any], Q | None]:
    def condition(value: Any) -> Q | None:
        return Q(**{f"{relation}__external_id": value}) if isinstance(value, str) and value else None

    return condition


def _active(value: Any) -> Q | None:
    return Q(is_active=value) if isinstance(value, bool) else None


def _emails(value: Any) -> Q | None:
    if not isinstance(value, str):
        return None
    said = value.lower()
    unsaid = Q(directory_person__isnull=True) | Q(directory_person__addresses=[])
    return Q(directory_person__addresses__contains=[said]) | Q(email=said) & unsaid


def _members(value: Any) -> Q | None:
    try:
        pk = UUID(value) if isinstance(value, str) else None
    except ValueError:
        return NOBODY
    return None if pk is None else Q(users=pk, users__directory_person__removed_at__isnull=True)


def _display_name(value: Any) -> Q | None:
    return Q(lower_name=value.lower()) if isinstance(value, str) else None


CONDITIONS: dict[str, dict[str, Callable[[Any], Q | None]]] = {
    "User": {
        "id": _id,
        "username": _user_name,
        "externalid": _external_id("directory_person"),
        "active": _active,
        "emails": _emails,
        "emails.value": _emails,
    },
    "Group": {
        "id": _id,
        "externalid": _external_id("directory_team"),
        "displayname": _display_name,
        "members": _members,
        "members.value": _members,
    },
}
