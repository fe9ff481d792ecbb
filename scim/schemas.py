"""The SCIM schemas of this service, and the deviations it accepts from directories (RFC 7643).

Imports the optional package, so only imported where /scim/v2/ is served.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any
from uuid import UUID

from django.db.models import Q
from scim2_models import (
    AuthenticationScheme,
    Bulk,
    ChangePassword,
    ETag,
    External,
    Filter,
    Patch,
    Reference,
    Required,
    ResourceType,
    Schema,
    ScimPolicy,
    ScimProvider,
    ServiceProviderConfig,
    Sort,
)
from scim2_models.path import AttrPath, CompareOperator, Comparison, FilterNode, LogicalExpr, LogicalOperator, ValuePath
from scim2_server.utils import load_default_schemas

USER = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP = "urn:ietf:params:scim:schemas:core:2.0:Group"
MOST_RESULTS = 200  # Per page.

# The attributes of RFC 7643 section 4 in use. Others that directories send are dropped, to store no unneeded personal
# data.
_KEPT = {
    USER: {"userName", "name", "displayName", "active", "emails", "groups"},
    GROUP: {"displayName", "members"},
}
_ALWAYS_THERE = {"active", "emails"}
_LEFT_OUT = {"display"}  # Of members and emails; it would duplicate names.

# Deviations of Microsoft Entra ID and Okta from the RFC.
FORGIVING = ScimPolicy(
    unknown=ScimPolicy.Unknown.ignore,
    remove_value_as_filter=ScimPolicy.RemoveValue.apply,
    unmatched_path_filter=ScimPolicy.UnmatchedPathFilter.create,
)


@cache
def provider() -> ScimProvider:
    """Return the service's configuration, which the discovery endpoints show."""
    schemas = load_default_schemas()
    return ScimProvider.from_discovery(
        [_narrowed(schemas[urn]) for urn in _KEPT],
        [
            _resource_type("User", "A person", USER),
            _resource_type("Group", "A team", GROUP),
        ],
        config=ServiceProviderConfig(
            patch=Patch(supported=True),
            bulk=Bulk(supported=False, max_operations=0, max_payload_size=0),
            filter=Filter(supported=True, max_results=MOST_RESULTS),
            change_password=ChangePassword(supported=False),
            sort=Sort(supported=False),
            etag=ETag(supported=True),
            authentication_schemes=[
                AuthenticationScheme(
                    type=AuthenticationScheme.Type.oauthbearertoken,
                    name="Provisioning key",
                    description="A bearer credential made on Settings, Provisioning",
                    spec_uri=Reference[External]("https://www.rfc-editor.org/rfc/rfc6750"),
                    primary=True,
                )
            ],
        ),
        policy=FORGIVING,
    )


def _resource_type(name: str, description: str, urn: str) -> ResourceType:
    said = {"id": name, "name": name, "description": description, "endpoint": f"/{name}s", "schema": urn}
    return ResourceType.model_validate(said)


def _narrowed(schema: Schema) -> Schema:
    """Limit the schema of the RFC to the attributes in use; `active` and `emails` are required."""
    schema.attributes = [one for one in schema.attributes or [] if one.name in _KEPT[str(schema.id)]]
    for attribute in schema.attributes:
        if attribute.name in _ALWAYS_THERE:
            attribute.required = Required.true
        if attribute.name in {"members", "emails"}:
            attribute.sub_attributes = [one for one in attribute.sub_attributes or [] if one.name not in _LEFT_OUT]
        for sub in attribute.sub_attributes or ():
            if attribute.name == "members" and sub.name == "type":
                sub.canonical_values = ["User"]
            if attribute.name == "members" and sub.name == "$ref":
                sub.reference_types = ["User"]
            if attribute.name == "emails" and sub.name == "value":
                sub.required = Required.true
    return schema


# Translate SCIM filters (RFC 7644 section 3.4.2.2) to database conditions, where possible.
#
# Imports the optional package, so only imported where /scim/v2/ is served.

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
