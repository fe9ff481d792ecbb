"""/api/access: who may use which gateways and tools."""

from __future__ import annotations

from datetime import date
from typing import Any

from django.utils import timezone
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from access.lines import AccessLine
from access.report import SORTS, AccessReport, Asked
from access.views import SEES_USE
from capabilities import Capability
from capabilities.rest import must_hold
from connections.subjects import by_gateway, by_host, by_person, by_server, by_team
from gateways.api import GatewayReference
from tokens.rows import SEES as SEES_TOKENS
from ui.forms import IDLE_DAYS
from ui.operations import ListQuery, operation
from ui.rest import Reference, Resource, UtcDateTimeField

NEEDS = frozenset({Capability.GATEWAYS_READ, Capability.PEOPLE_READ})


class AccessSourceSerializer(serializers.Serializer[Any]):
    """A reason for the access: a team, a role, a grant, superuser status, or a gateway that is open to everyone."""

    kind = serializers.CharField(help_text="`everyone`, `team`, `role`, `superuser` or `grant`.")
    name = serializers.CharField(
        help_text="Name of the team or role; for `everyone` and `grant`, name of the gateway; for `superuser`, e-mail "
        "address of the person."
    )
    since = UtcDateTimeField(allow_null=True, help_text="When this source began; null if that is not known.")
    until = UtcDateTimeField(allow_null=True, help_text="When this source ends; null if no end is set.")


class AccessSerializer(serializers.Serializer[AccessLine]):
    """One person's access to one gateway, or to one tool there."""

    key = serializers.CharField(help_text="Unique and stable: the ids of person, gateway and tool.")
    user_id = serializers.UUIDField(source="person.pk", help_text="Id of the person.")
    user_email = serializers.EmailField(source="person.email", help_text="E-mail address of the person.")
    gateway = GatewayReference(help_text="The gateway.")
    tool = serializers.CharField(
        source="feature.exposed_name",
        default=None,
        allow_null=True,
        help_text="Exposed name of the tool; null without the filter `tool`.",
    )
    sources = AccessSourceSerializer(many=True, help_text="Reasons why the person may use the gateway.")
    tool_sets = serializers.ListField(
        child=serializers.CharField(),
        source="sets",
        help_text="Tool sets that the person has, each with its recipient: a team, the person or everybody. "
        "Empty if the gateway gives all its tools.",
    )
    tools_count = serializers.IntegerField(
        source="tools", help_text="Number of the gateway's tools that the person may use."
    )
    hosts = serializers.SerializerMethodField(
        help_text="Connected apps and agents; null without the permission to see connections."
    )
    tokens_count = serializers.SerializerMethodField(
        help_text="Number of the person's active API tokens for the gateway; null without the permission to see tokens."
    )
    identities_count = serializers.SerializerMethodField(
        help_text="Number of the person's credentials for the gateway's servers; null if you may not see credentials."
    )
    since = UtcDateTimeField(allow_null=True, help_text="When the access began; null if that is not known.")
    until = UtcDateTimeField(allow_null=True, help_text="When the access ends; null if no end is set.")
    last_used_at = serializers.SerializerMethodField(
        help_text="Time of the person's last call on the gateway. Null if there was no call, if `on` is a past day, or "
        "if you may not see connections."
    )

    def _sees(self, *capabilities: Capability) -> bool:
        return any(map(self.context["view"].me.has_perm, capabilities))

    def get_hosts(self, line: AccessLine) -> list[Any] | None:
        hosts = {connection.host.pk: connection.host for connection in line.connections}
        return Reference(hosts.values(), many=True).data if self._sees(SEES_USE) else None  # type: ignore[return-value]

    def get_tokens_count(self, line: AccessLine) -> int | None:
        return len(line.tokens) if self._sees(*SEES_TOKENS) else None

    def get_identities_count(self, line: AccessLine) -> int | None:
        return len(line.identities) if self._sees(Capability.IDENTITIES_READ) else None

    def get_last_used_at(self, line: AccessLine) -> Any:
        return UtcDateTimeField().to_representation(line.last_used_at) if self._sees(SEES_USE) else None


class AccessReportQuery(ListQuery):
    """Filters of the access report."""

    q = serializers.CharField(
        required=False, help_text="Text contained in the name or address of the person, or in the name of the gateway."
    )
    user = by_person()
    team = by_team()
    gateway = by_gateway()
    server = by_server()
    host = by_host()
    tool = serializers.CharField(
        required=False,
        help_text="Text contained in the exposed name of tools. With this filter, each line is about one tool.",
    )
    unused = serializers.ChoiceField(
        IDLE_DAYS, required=False, help_text="Only access that was not used for this number of days."
    )
    on = serializers.DateField(
        required=False,
        help_text="Show the access that people had at the end of this day (UTC). If the day is today, show the present "
        "access. For a past day, `last_used_at` is null, and the filter `unused` is ignored. For a day before the "
        "history of access began, the teams, roles and access are derived from admin events.",
    )

    def validate_on(self, on: date) -> date:
        if on > timezone.now().date():
            raise serializers.ValidationError("The day must not be in the future.")
        return on


class AccessResource(Resource):
    """People, and the gateways and tools that they may use."""

    serializer_class = AccessSerializer

    @operation(needs=NEEDS, query=AccessReportQuery, orderings=("person", *SORTS))
    def list(self, request: Request) -> Response:
        """List who may use which gateways and tools.

        The filters `host` and `unused`, and sorting by `used`, also require `api-keys:read`. A report of more than
        1,000 lines is always sorted by person.
        """
        asked = self.query_data
        if "host" in asked or "unused" in asked or self.ordering.endswith("used"):
            must_hold(self.me, SEES_USE)
        report = AccessReport(
            Asked(
                q=asked.get("q", ""),
                people=asked.get("user", ()),
                teams=asked.get("team", ()),
                gateways=asked.get("gateway", ()),
                servers=asked.get("server", ()),
                hosts=asked.get("host"),
                tool=asked.get("tool", ""),
                unused=int(asked.get("unused", 0)),
                on=asked.get("on"),
            ),
            self.ordering,
        )
        page: Any = self.paginate_queryset(report)  # type: ignore[arg-type]  # A sequence will do.
        return self.get_paginated_response(self.serialize(page, many=True))
