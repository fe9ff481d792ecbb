"""Context of the playground page: the available features, the form, and the user's own runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.db import transaction
from django.urls import reverse

from accounts.models import NewAppPolicy, User, WorkspaceSettings
from auditlog.models import Call
from auditlog.own_calls import OwnCall, own_calls
from auditlog.search.keyset import page
from capabilities import Capability
from connections.models import Connection, ConnectionRefused
from gatewayadmin.playground import arguments_form
from gatewayadmin.playground.arguments_form import ArgumentsForm
from gatewayadmin.playground.endpoint_call import AgentRequest
from gateways.models import Assignment, Effect, Feature, FeatureKind, Gateway
from hosts.models import PLAYGROUND, Host
from servers.models import Identity
from tokens.models import Token
from wire import definitions
from wire.uris import alias_and_uri, exposed_template, exposed_uri

# The user's own connection of the app Playground, opened by the same verbs as for other apps.


def host(*, by: User) -> Host:
    """Return the app Playground, which needs approval if new apps do."""
    waits = WorkspaceSettings.load().new_app_policy == NewAppPolicy.APPROVE
    return Host.objects.playground(needs_approval=waits, by=by)


def live_connection(user: User, gateway: Gateway) -> Connection | None:
    """Return the user's playground connection to this gateway, if any."""
    rows = Connection.objects.own(user).live().filter(host__dedupe_key=PLAYGROUND, gateway=gateway)
    return rows.select_related("host", "gateway", "user").first()


def connect(user: User, gateway: Gateway) -> Connection:
    """Return the user's playground connection to this gateway, opening one if needed.

    For servers with personal identities it carries the newest usable one. An existing connection may still be blocked;
    its calls check that. Raises ConnectionRefused if the user cannot connect apps.
    """
    if (live := live_connection(user, gateway)) is not None:
        return live
    if not user.has_perm(Capability.OAUTH_CONNECT):
        raise ConnectionRefused(f"Your role lacks {Capability.OAUTH_CONNECT.label}.")
    app = host(by=user)  # Outside the transaction: an app that waits for approval must remain.
    with transaction.atomic():
        opened = Connection.objects.open(
            host=app, gateway=gateway, user=user, identities=_own_identities(user, gateway), by=user
        )
        Token.objects.provide_key(opened, by=user)
    return opened


def _own_identities(user: User, gateway: Gateway) -> dict[Assignment, Identity]:
    usable = Identity.objects.own(user).usable().order_by("created_at")
    newest = {identity.server_id: identity for identity in sorted(usable, key=lambda one: one.status == "active")}
    asking = Assignment.objects.per_user().filter(gateway=gateway).select_related("server")
    return {each: newest[each.server_id] for each in asking if each.server_id in newest}


MOST_OFFERED = 120  # Names in the list,
MOST_CHARACTERS = 12_000  # and their total length; beyond either, users type a name.
RUNS = 8
LONGEST_NAME = 4096
KINDS = {"tool": "Tool", "prompt": "Prompt", "resource": "Resource"}
OF_KIND = {
    "tool": (FeatureKind.TOOL,),
    "prompt": (FeatureKind.PROMPT,),
    "resource": (FeatureKind.RESOURCE, FeatureKind.TEMPLATE),
}


@dataclass(frozen=True)
class Chosen:
    """The selection in the URL: a reachable gateway, a kind, and a feature name, each optional."""

    user: User
    gateway: Gateway | None
    kind: str
    name: str

    @classmethod
    def of(cls, user: User, asked: Any) -> Chosen:
        slug, kind = asked.get("gateway", ""), asked.get("kind", "")
        within = Gateway.objects.reachable_by(user) if "\0" not in slug else Gateway.objects.none()
        gateway = within.filter(slug=slug).first() if slug else within.order_by("name").first()
        name = asked.get("name", "")
        is_name = len(name) <= LONGEST_NAME and "\0" not in name
        return cls(user, gateway, kind if kind in KINDS else "tool", name if is_name else "")

    @property
    def url(self) -> str:
        """The URL of the page with this selection."""
        return playground_url(self.gateway, self.kind, self.name)

    @cached_property
    def features(self) -> list[Feature]:
        """The first features of this kind, enabled or not (one more than MOST_OFFERED, to detect more)."""
        if self.gateway is None:
            return []
        rows = Feature.objects.offered().placed().filter(kind__in=OF_KIND[self.kind], assignment__gateway=self.gateway)
        listed = rows.select_related("assignment__server").order_by("assignment__server__name", "exposed_name")
        return list(listed[: MOST_OFFERED + 1])

    @property
    def is_typed(self) -> bool:
        """True if there are too many features for a list, so that users type a name."""
        return sum(map(len, self.offers.values())) < len(self.features)

    @cached_property
    def offers(self) -> dict[str, list[tuple[str, Feature]]]:
        """The names in the list, by server."""
        by_server: dict[str, list[tuple[str, Feature]]] = {}
        left = MOST_CHARACTERS
        for one in self.features[:MOST_OFFERED]:
            left -= len(called(one))
            if left >= 0:
                by_server.setdefault(one.assignment.server.name, []).append((called(one), one))
        return by_server

    @cached_property
    def feature(self) -> Feature | None:
        """The selected feature, if known. Names that are not in any list can be called too."""
        if self.gateway is None or not self.name:
            return None
        rows = Feature.objects.placed().filter(kind__in=OF_KIND[self.kind], assignment__gateway=self.gateway)
        live = rows.select_related("assignment")
        if self.kind != "resource":
            return live.filter(exposed_name=self.name).order_by("missing_since").first()
        alias, uri = alias_and_uri(self.name)
        named = live.filter(name=uri, **({"assignment__alias": alias} if alias else {})).first()
        return named or next((one for one in self.features if called(one) == self.name), None)

    @property
    def is_template(self) -> bool:
        return self.feature is not None and self.feature.kind == FeatureKind.TEMPLATE

    @property
    def schema(self) -> Any:
        """The schema of the arguments; None if the feature is unknown."""
        if self.feature is None:
            return None
        return _prompt_schema(self.feature) if self.kind == "prompt" else _tool_schema(self.feature)

    @property
    def is_destructive(self) -> bool:
        """True if the server marks the feature as destructive; a run must then be confirmed."""
        return self.feature is not None and self.feature.effect == Effect.DESTRUCTIVE

    def asked(self, form: ArgumentsForm) -> AgentRequest:
        """Return the request for the selected feature with the arguments of the form."""
        return AgentRequest(self.kind, self.name, form.arguments)


def called(feature: Feature) -> str:
    """Return the name or URI clients use for a feature."""
    match feature.kind:
        case FeatureKind.RESOURCE:
            return exposed_uri(feature.assignment.alias, feature.name)
        case FeatureKind.TEMPLATE:
            return exposed_template(feature.assignment.alias, feature.name)
    return feature.exposed_name


def playground_url(gateway: Gateway | None, kind: str = "tool", name: str = "", **more: str) -> str:
    """Return the URL of the playground with this selection."""
    told = {"gateway": gateway.slug if gateway else "", "kind": kind if name and kind != "tool" else "", "name": name}
    query = urlencode({key: value for key, value in (told | more).items() if value})
    return f"{reverse('playground')}?{query}" if query else reverse("playground")


def _tool_schema(feature: Feature) -> Any:
    """Return the schema in its original order, which the JSON column does not keep."""
    told = definitions.definition_in(feature.approved).value.get("inputSchema") if feature.approved else None
    return told if isinstance(told, dict) else feature.input_schema


def _prompt_schema(feature: Feature) -> Any:
    """Build a schema from the arguments of a prompt, which are all strings."""
    told = definitions.definition_in(feature.approved).value.get("arguments") if feature.approved else None
    known = [one for one in told if isinstance(one, dict)] if isinstance(told, list) else []
    named = [one for one in known if isinstance(one.get("name"), str)]
    return {
        "properties": {one["name"]: {"type": "string", "description": one.get("description")} for one in named},
        "required": [one["name"] for one in named if one.get("required") is True],
    }


@dataclass(frozen=True)
class Run:
    """One of the user's own runs, and the URL to run it again."""

    own: OwnCall
    url: str


@dataclass(frozen=True)
class RunHistory:
    """The last runs of a person, from the log."""

    runs: list[Run] = field(default_factory=list)

    @classmethod
    def of(cls, user: User) -> RunHistory:
        app = Host.objects.filter(dedupe_key=PLAYGROUND).first()
        if app is None:
            return cls()
        rows = page([own_calls(user).filter(host_id=app.pk)], None, RUNS).rows
        slugs = dict(Gateway.objects.filter(pk__in={row.gateway_id for row in rows}).values_list("pk", "slug"))
        return cls(
            [Run(OwnCall(row), _again(row, slugs.get(row.gateway_id, "") if row.gateway_id else "")) for row in rows]
        )


def _again(call: Call, slug: str) -> str:
    told = {"gateway": slug, "kind": call.feature_type, "name": call.feature_name, "again": str(call.uid)}
    return f"{reverse('playground')}?{urlencode(told)}"


def form_again(chosen: Chosen, uid: str) -> ArgumentsForm | None:
    """Return the form with the arguments of an earlier run, if they were recorded and the user can view them."""
    try:
        call = Call.objects.find(UUID(uid))
    except (ValueError, Call.DoesNotExist):
        return None
    if call.user_id != chosen.user.pk or not chosen.user.has_perm(Capability.LOGS_PAYLOADS) or call.payload_truncated:
        return None
    sent = call.request_payload.get("params") if isinstance(call.request_payload, dict) else None
    arguments = sent.get("arguments") if isinstance(sent, dict) else None
    return arguments_form.of_arguments(chosen.schema, arguments) if isinstance(arguments, dict) else None


def others(user: User, gateway: Gateway | None) -> list[Connection]:
    """Return the user's connections to this gateway through other apps and agents, for checks."""
    if gateway is None:
        return []
    rows = Connection.objects.own(user).live().filter(gateway=gateway).exclude(host__dedupe_key=PLAYGROUND)
    return list(rows.select_related("host", "gateway", "user").order_by("host__name", "connected_at")[:50])


def own(user: User, gateway: Gateway | None) -> Connection | None:
    """Return the connection used for runs, if it exists."""
    return live_connection(user, gateway) if gateway else None
