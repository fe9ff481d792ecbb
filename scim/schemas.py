"""The SCIM schemas of this service, and the deviations it accepts from directories (RFC 7643).

Imports the optional package, so only imported where /scim/v2/ is served.
"""

from __future__ import annotations

from functools import cache

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
