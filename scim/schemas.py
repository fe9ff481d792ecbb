"""The SCIM schemas of this service (RFC 7643). Some deviations of directories from the RFC are accepted.

This module imports the optional SCIM package, so it is imported only where /scim/v2/ is served.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, reduce
from operator import and_, or_
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

from accounts.models import Team

USER = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP = "urn:ietf:params:scim:schemas:core:2.0:Group"
MOST_RESULTS = 200  # Resources per page.

# The attributes of RFC 7643 section 4 that are used. Other attributes that directories send are dropped, so that no
# unneeded personal data is stored.
_KEPT = {
    USER: {"userName", "name", "displayName", "active", "emails", "groups"},
    GROUP: {"displayName", "members"},
}
_ALWAYS_THERE = {"active", "emails"}
_LEFT_OUT = {"display"}  # Omit `display` from members and emails, where it would only repeat names.

# Accept the deviations of Microsoft Entra ID and Okta from the RFC.
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
    """Remove unused attributes from a schema of the RFC, require `active` and `emails`, and return the schema."""
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

NOBODY = Q(pk__in=[])
ALL = Q()
CORE = "urn:ietf:params:scim:schemas:core:2.0:"

type Narrowed = tuple[Q, bool]
type Equals = Callable[[Any], Q | None]


def filter_condition(node: FilterNode, kind: str) -> Narrowed:
    """Return a condition for the filter, and whether the condition is exact.

    All rows that match the filter meet the condition. If the condition is exact, no other rows meet the condition.
    """
    match node:
        case Comparison() if node.op == CompareOperator.eq:
            path = node.attr_path
            is_of_kind = not path.uri or path.uri.lower() == f"{CORE}{kind}".lower()
            name = f"{path.attr}.{path.sub_attr}" if path.sub_attr else path.attr
            equals = CONDITIONS[kind].get(name.lower()) if is_of_kind else None
            condition = equals(node.value) if equals else None
            return (ALL, False) if condition is None else (condition, True)
        case LogicalExpr():
            terms = [filter_condition(term, kind) for term in node.terms]
            is_exact = all(exact for _, exact in terms)
            if node.op == LogicalOperator.and_:
                return reduce(and_, (condition for condition, _ in terms)), is_exact
            if any(condition == ALL for condition, _ in terms):
                return ALL, is_exact
            return reduce(or_, (condition for condition, _ in terms)), is_exact
        case ValuePath():  # `emails[value eq "x" and ...]` and `members[value eq "x"]`.
            inner = node.val_filter
            parts = inner.terms if isinstance(inner, LogicalExpr) and inner.op == LogicalOperator.and_ else (inner,)
            for part in parts:
                if isinstance(part, Comparison) and part.attr_path.attr.lower() == "value":
                    path = AttrPath(node.attr_path.attr, "value", node.attr_path.uri)
                    condition, is_exact = filter_condition(Comparison(path, part.op, part.value), kind)
                    return condition, is_exact and len(parts) == 1
    return ALL, False


def _by_id(column: str, **more: Any) -> Equals:
    """Return a function that makes the condition "this column equals the id". An invalid id matches no row."""

    def equals(value: Any) -> Q | None:
        try:
            return Q(**{column: UUID(value)}, **more) if isinstance(value, str) else None
        except ValueError:
            return NOBODY

    return equals


def _by_text(condition: Callable[[str], Q | None]) -> Equals:
    return lambda value: condition(value) if isinstance(value, str) else None


def _address(address: str) -> Q:
    """Match people for whom a directory sent `address`, even if their e-mail address in the gateway is another one.

    Also match a person for whom no directory sent an address, if `address` is the person's address in the gateway.
    """
    unsent = Q(directory_person__isnull=True) | Q(directory_person__email="")
    return Q(directory_person__email=address.lower()) | Q(email=address.lower()) & unsent


def _user_name(name: str) -> Q:
    if not name:  # Stored if the user name is the e-mail address.
        return NOBODY
    same_as_email = Q(directory_person__isnull=True) | Q(directory_person__user_name="")
    own = Q(directory_person__user_name=name.lower())
    return own if "@" not in name else own | _address(name) & same_as_email


def _emails(address: str) -> Q:
    unsaid = Q(directory_person__isnull=True) | Q(directory_person__addresses=[])
    return Q(directory_person__addresses__contains=[address.lower()]) | _address(address) & unsaid


def _members(value: Any) -> Q | None:
    is_member = _by_id("user", user__directory_person__removed_at__isnull=True)(value)
    # A subquery, because conditions on two members must not ask for one row that is both.
    return is_member and Q(pk__in=Team.users.through.objects.filter(is_member).values("team"))


# For each attribute, a function that makes the condition "the attribute equals this value". The function returns None
# if the value in the filter has another type than the attribute.
CONDITIONS: dict[str, dict[str, Equals]] = {
    "User": {
        "id": _by_id("pk"),
        "username": _by_text(_user_name),
        "externalid": _by_text(lambda text: Q(directory_person__external_id=text) if text else None),
        "active": lambda value: Q(is_active=value) if isinstance(value, bool) else None,
        "emails": _by_text(_emails),
        "emails.value": _by_text(_emails),
    },
    "Group": {
        "id": _by_id("pk"),
        "externalid": _by_text(lambda text: Q(directory_team__external_id=text) if text else None),
        "displayname": _by_text(lambda text: Q(lower_name=text.lower())),
        "members": _members,
        "members.value": _members,
    },
}
