"""The matrix of a gateway: who may use which tools, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from uuid import UUID

from django import forms
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET

from accounts.models import Team, User
from capabilities import Capability, requires
from connections.given_tools import NAMED_KINDS, GivenTools, given_tools
from connections.models import HostAtGateway
from connections.tool_sets import features_at
from gateways.models import Feature, FeatureQuerySet, Gateway, ToolGrant, ToolSet
from gateways.views import gateway_or_404
from hosts.models import Host, HostQuerySet
from ui.forms import ListFilter
from ui.pages import AppRequest, is_for, page_of, show, text_of

MOST_COLUMNS = 12
EVERYBODY, TEAM, PERSON, AGENT = "everybody", "team", "person", "agent"


@dataclass(frozen=True)
class MatrixColumn:
    """A column of the matrix: everybody, a team, a person, or an app or agent that is limited to a tool set."""

    kind: str
    name: str
    pk: UUID | None = None
    may_use_gateway: bool = True  # False for a person who may use no tool, whatever the grants are.

    @classmethod
    def of_person(cls, user: User, gateway: Gateway) -> MatrixColumn:
        return cls(PERSON, user.email, user.pk, user.is_active and gateway.is_reachable_by(user))

    @property
    def key(self) -> str:
        return f"{self.kind}:{self.pk}" if self.pk else self.kind

    def sets(self, given: GivenTools) -> Sequence[UUID] | None:
        """Return the ids of the tool sets that the column's people or agent may use; None if they may use all tools."""
        if self.kind == AGENT:
            limit = given.limits.get(self.pk) if self.pk else None
            return None if limit is None else [limit]
        if not given.asks_grants:
            return None
        if self.kind == PERSON and self.pk:
            return [*given.sets_of(self.pk)]
        more = given.teams.get(self.pk, frozenset()) if self.pk else frozenset()
        return [*given.everyone | more]


@dataclass(frozen=True)
class MatrixCell:
    """A cell of the matrix. It shows whether the people, app or agent of a column may use a tool."""

    column: MatrixColumn
    feature: Feature
    is_given: bool

    @property
    def access(self) -> str:
        """`yes`, `no`, `limit` (not in the set that limits the app or agent) or `off` (tool disabled or blocked)."""
        if not self.feature.enabled or self.feature.blocked:
            return "off"
        if not self.column.may_use_gateway:
            return "no"
        return "yes" if self.is_given else "limit" if self.column.kind == AGENT else "no"

    @property
    def words(self) -> str:
        return {
            "yes": "yes",
            "no": "no, not granted" if self.column.may_use_gateway else "no, without access to the gateway",
            "limit": "no, beyond its limit",
            "off": f"no, {self.feature.blocked or 'tool disabled'}",
        }[self.access]


class MatrixFilter(ListFilter):
    """The filters of the matrix.

    `q` selects tools by name, title or description. `person`, `team` and `agent` select columns. An app
    or agent has a column only if a tool set limits it on the gateway.
    """

    person = forms.EmailField(required=False)
    team = forms.UUIDField(required=False)
    agent = forms.UUIDField(required=False)

    def narrow(self, rows: FeatureQuerySet) -> FeatureQuerySet:
        return rows.matching(self.values.get("q", ""))


def _columns(gateway: Gateway, filters: MatrixFilter) -> list[MatrixColumn]:
    """Return the columns of the person, team and agent that the filters name.

    If the filters name none of the three, return the first MOST_COLUMNS + 1 columns.
    """
    told: Any = filters.values
    if not any(told.get(name) for name in ("person", "team", "agent")):
        return [*islice(_all_columns(gateway), MOST_COLUMNS + 1)]
    found: list[MatrixColumn] = []
    if email := told.get("person"):
        found += [MatrixColumn.of_person(user, gateway) for user in User.objects.filter(email__iexact=email)]
    found += [MatrixColumn(TEAM, team.name, team.pk) for team in Team.objects.filter(pk=told.get("team"))]
    found += [MatrixColumn(AGENT, host.name, host.pk) for host in _limited(gateway).filter(pk=told.get("agent"))]
    return found


def _all_columns(gateway: Gateway) -> Iterator[MatrixColumn]:
    grants = ToolGrant.objects.live().filter(gateway=gateway.pk)
    yield MatrixColumn(EVERYBODY, "Everybody with access")
    for team in Team.objects.filter(pk__in=grants.exclude(team=None).values("team")).order_by("name"):
        yield MatrixColumn(TEAM, team.name, team.pk)
    for user in User.objects.filter(pk__in=grants.exclude(user=None).values("user")).order_by("email"):
        yield MatrixColumn.of_person(user, gateway)
    for host in _limited(gateway):
        yield MatrixColumn(AGENT, host.name, host.pk)


def _limited(gateway: Gateway) -> HostQuerySet:
    """Return the apps and agents that are limited to a tool set on the gateway."""
    limits = HostAtGateway.objects.filter(gateway=gateway.pk, tool_set__isnull=False)
    return Host.objects.live().filter(pk__in=limits.values("host")).order_by("name", "pk")


def _cell(column: MatrixColumn, feature: Feature, given: GivenTools) -> MatrixCell:
    sets = column.sets(given)
    return MatrixCell(column, feature, sets is None or any(given.has(pk, feature.exposed_name) for pk in sets))


@require_GET
@requires(Capability.GATEWAYS_READ)
@requires(Capability.GATEWAYS_MANAGE, Capability.PEOPLE_READ)
def matrix(request: AppRequest, slug: str) -> HttpResponse:
    """Show which people, teams, apps and agents may use which tools and prompts of a gateway."""
    gateway = gateway_or_404(request.user, slug)
    if is_for(request, "why"):
        return render(request, "connections/tool_matrix.html#why", {"why": _why(request, gateway)})
    filters = MatrixFilter(request.GET)
    tools = filters.narrow(features_at(gateway).filter(kind__in=NAMED_KINDS))
    page = page_of(request, tools.order_by("exposed_name", "pk").select_related("assignment__server"))
    given = given_tools(gateway, [feature.exposed_name for feature in page])
    columns = _columns(gateway, filters)
    is_cut = len(columns) > MOST_COLUMNS
    columns = columns[:MOST_COLUMNS]
    context = {
        "gateway": gateway,
        "tab": "access",
        "columns": columns,
        "cut": f"Only the first {MOST_COLUMNS} columns are shown. Choose others above." if is_cut else "",
        "page": page,
        "rows": [(feature, [_cell(column, feature, given) for column in columns]) for feature in page],
        "teams": Team.objects.order_by("name"),
        "limited": _limited(gateway),
        "filters": filters.values,
        "narrowed": filters.is_narrow,
        "why": _why(request, gateway) if "tool" in request.GET else None,
    }
    return show(request, "connections/tool_matrix.html", context)


# The reasons for the state of one cell.


def _why(request: AppRequest, gateway: Gateway) -> dict[str, Any]:
    """Return the template context that explains one cell. The query names the cell's tool and column."""
    tools = features_at(gateway).filter(kind__in=NAMED_KINDS).select_related("assignment__server")
    try:
        feature = get_object_or_404(tools, pk=UUID(text_of(request.GET, "tool")))
        column = _column(text_of(request.GET, "of"), gateway)
    except ValueError:
        raise Http404 from None
    given = given_tools(gateway, [feature.exposed_name])
    having = [pk for pk, names in given.names.items() if names]
    sets = ToolSet.objects.live().filter(pk__in=having).order_by("name")
    members = {*sets.filter(members=feature).values_list("pk", flat=True)}
    held = column.sets(given)
    return {
        "cell": _cell(column, feature, given),
        "asks_grants": given.asks_grants,
        "reasons": [(one, "chosen one by one" if one.pk in members else "by its rule") for one in sets],
        "held": held,
        "grants": [
            grant
            for grant in ToolGrant.objects.live().filter(tool_set__in=having).select_related("tool_set", "team", "user")
            if held is not None and column.kind != AGENT and _is_theirs(grant, column, given)
        ],
        "limit": ToolSet.objects.filter(pk__in=held or ()).first() if column.kind == AGENT else None,
    }


def _column(key: str, gateway: Gateway) -> MatrixColumn:
    """Return the column with this key. Raises ValueError or Http404."""
    kind, _, pk = key.partition(":")
    match kind:
        case "everybody":
            return MatrixColumn(EVERYBODY, "Everybody with access")
        case "team":
            return MatrixColumn(TEAM, get_object_or_404(Team, pk=UUID(pk)).name, UUID(pk))
        case "person":
            return MatrixColumn.of_person(get_object_or_404(User, pk=UUID(pk)), gateway)
        case "agent":
            return MatrixColumn(AGENT, get_object_or_404(Host.objects.live(), pk=UUID(pk)).name, UUID(pk))
    raise ValueError(key)


def _is_theirs(grant: ToolGrant, column: MatrixColumn, given: GivenTools) -> bool:
    if grant.everyone:
        return True
    if column.kind == TEAM:
        return grant.team_id == column.pk
    is_member = column.pk is not None and grant.team_id in {*given.teams_of(column.pk)}
    return column.kind == PERSON and (grant.user_id == column.pk or is_member)
