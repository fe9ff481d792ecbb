"""The dashboard: the user's own connections and tokens, and the numbers their role may see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection
from django.db.models import Case, CharField, Count, Exists, OuterRef, Prefetch, QuerySet, Value, When
from django.db.models.functions import Lower
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from django.views.decorators.http import require_GET

from accounts.asking import open_requests
from accounts.models import User
from approvals.models import Hold
from attention.matters import access_to_decide, apps_to_approve, definitions_to_judge, servers_down
from auditlog import replica
from auditlog.charts import CallPlots, chosen_range, unread_tops
from auditlog.following import MOST_NEW, LiveList, NewCalls, answer, newest_id, newest_page
from auditlog.models import Call
from auditlog.own_calls import as_own, listed_calls
from auditlog.paging import newest_calls
from auditlog.query_language import parse_search
from auditlog.rollups.reading import Bars, book
from auditlog.search import RowCount, Search
from capabilities import Capability, own_resource
from connections.carried_identities import CarriedRow, OwnConnection, newest_lacking_identity, with_carried
from connections.models import Connection
from connections.rows import ConnectionRow
from gatewayadmin.first_steps import Setup
from gateways.models import Assignment, Feature, Gateway, GatewayQuerySet
from hosts.forms import OURS, PENDING
from hosts.forms import STATUSES as HOST_STATES
from hosts.models import Host
from servers.models import Health, Identity, Server
from sinks import archive
from sinks.models import Sink
from tokens.models import Token, TokenKind
from tokens.notices import notices
from tokens.rows import EXPIRES_SOON, TokenRow, foremost_waiting, hosts_for, needing
from ui.pages import AppRequest, show, wants_fragment

# Counts in the rail: apps, definitions, servers, access requests and held calls that need the user's attention.

COUNTED = {"hosts": apps_to_approve, "definitions": definitions_to_judge, "servers": servers_down}


def attention(request: HttpRequest) -> dict[str, Any]:
    """Context processor: adds `attention`, the counts of objects that wait for the user, queried on first use."""
    return {"attention": SimpleLazyObject(lambda: _counts(getattr(request, "user", None)))}


def _counts(reader: Any) -> dict[str, int]:
    """Return the non-zero counts of objects that wait for `reader`, by kind. Needs at most one query."""
    if not isinstance(reader, User):
        return {}
    kinds = [*_kinds(reader)]
    # `is_approver` and `is_asked_about_holds` were loaded with the session's person (accounts.backend).
    if getattr(reader, "is_approver", True) or reader.has_perm(Capability.GATEWAYS_MANAGE):
        kinds.append("access")
    if getattr(reader, "is_asked_about_holds", True) or reader.has_perm(Capability.APPROVALS_DECIDE):
        kinds.append("holds")
    if not kinds:
        return {}
    with connection.cursor() as cursor:
        person = copy(reader)  # A copy: `_statement` caches its arguments, and `request.user` keeps the request.
        rights = (person.narrowed_to, person.is_superuser or person.permissions)
        cursor.execute(*_statement(person, rights, *kinds))
        return {kind: number for kind, number in cursor.fetchall() if number}


def _kinds(reader: User) -> Iterator[str]:
    """Yield the kinds in COUNTED that the reader can see and act on."""
    if reader.has_perm(Capability.HOSTS_TOGGLE):
        yield "hosts"
    if reader.has_perm(Capability.GATEWAYS_MANAGE):
        yield "definitions"
    if reader.has_perm(Capability.SERVERS_MANAGE) or reader.has_perm(Capability.SERVERS_TOGGLE):
        yield "servers"


# Every page has these counts, and Django takes ten times as long to build the statement as PostgreSQL to answer it.
# The cached statement depends on the reader and their `rights`, not on the time: it uses the database's clock.
@lru_cache(maxsize=500)
def _statement(reader: User, rights: tuple[Any, ...], *kinds: str) -> tuple[str, tuple[Any, ...]]:
    """Return the SQL statement that counts the objects of each of `kinds`, and the parameters of the statement."""
    rows: dict[str, QuerySet[Any]] = {kind: COUNTED[kind]() for kind in COUNTED if kind in kinds}
    rows |= {"access": access_to_decide(reader), "holds": Hold.objects.to_decide(reader)}
    first, *others = (_number(kind, rows[kind]) for kind in kinds)
    statement: tuple[str, tuple[Any, ...]] = first.union(*others, all=True).order_by().query.sql_with_params()
    return statement


def _number(kind: str, rows: QuerySet[Any]) -> QuerySet[Any, Any]:
    kinds: QuerySet[Any, Any] = rows.order_by().annotate(waiting_kind=Value(kind, CharField())).values("waiting_kind")
    numbers: QuerySet[Any, Any] = kinds.annotate(number=Count("*")).values_list("waiting_kind", "number")
    return numbers


# Statistics of the last day's calls: counts, outcomes, and each server's results by hour.

DAY = timedelta(hours=24)
HOURS = 24
LISTED = 8
GROUND = f"M 0 16h{5 * HOURS - 2}"  # The style sheet dashes this line like the bars: 3 wide, 2 apart.

SERVER_FAILED = ("upstream_error", "timeout")  # Failures of the server, not of the tool.


class Traffic:
    """The calls of the last day; each part is read on first access.

    If `new` is given, the lists `recent` and `refusals` are read from the primary database, because a replica may lack
    the newest calls.
    """

    def __init__(self, request: HttpRequest, new: NewCalls | None = None) -> None:
        self._request, self._new = request, new
        since = timezone.now() - DAY
        self._all, self._refused = Search([], since), Search(parse_search("refused"), since)

    @cached_property
    def total(self) -> RowCount:
        return replica.read_from_replica(self._request, self._all.count)

    @cached_property
    def refused(self) -> RowCount:
        return replica.read_from_replica(self._request, self._refused.count)

    @cached_property
    def is_empty(self) -> bool:
        """True if the log has no call, of any age."""
        return not (self.recent or replica.read_from_replica(self._request, lambda: [*Call.objects.order_by()[:1]]))

    @cached_property
    def recent(self) -> Sequence[Call]:
        """The newest calls."""
        return self._newest(self._all)

    @cached_property
    def refusals(self) -> Sequence[Call]:
        """The newest refused calls."""
        return self._newest(self._refused)

    def _newest(self, search: Search) -> Sequence[Call]:
        if self._new:
            return newest_page(search, self._new.to, LISTED).page.rows
        return replica.read_from_replica(self._request, lambda: search.latest(LISTED))


class Hour(NamedTuple):
    """One hour of a server: whether the server was called, and whether calls failed."""

    called: bool
    failed: bool


@dataclass(frozen=True)
class ServerTraffic:
    """A server, and for each of the last 24 hours whether it was called and whether calls failed."""

    server: Server
    hours: Sequence[Hour]

    @property
    def failed(self) -> int:
        return sum(hour.failed for hour in self.hours)

    @property
    def answered(self) -> int:
        return sum(hour.called and not hour.failed for hour in self.hours)

    @property
    def drawn(self) -> list[tuple[str, str]]:
        """The chart of the hours, as pairs of a state and its SVG path. Empty paths are left out.

        The path of "none" is the ground line. The path of "ok" has a bar for each hour with calls but no failure. The
        path of "down" has a bar for each hour with failures.
        """
        paths = {"none": GROUND, "ok": "", "down": ""}
        for n, hour in enumerate(self.hours):
            if hour.called or hour.failed:
                paths["down" if hour.failed else "ok"] += f"M{5 * n} 0h3v18h-3z"
        return [(state, path) for state, path in paths.items() if path]


def health(servers: Sequence[Server]) -> list[ServerTraffic]:
    """Return the servers, each with its results of the last 24 hours."""
    since = (timezone.now() - timedelta(hours=HOURS - 1)).replace(minute=0, second=0, microsecond=0)
    hours = _hours([server.pk for server in servers], since) if servers else {}
    return [ServerTraffic(server, [hours[server.pk, n] for n in range(HOURS)]) for server in servers]


def _hours(servers: Sequence[UUID], since: datetime) -> dict[tuple[UUID, int], Hour]:
    where, until = {"server_id": list(servers)}, since + timedelta(hours=HOURS)
    with book() as opened:
        bars = Bars(since, timedelta(hours=1))
        found = opened.read(where, since, until, by=("server_id", "outcome"), bars=bars, timed=False)
    outcomes: dict[tuple[UUID, int], set[str]] = defaultdict(set)
    for (server, outcome, n), numbers in (found or {}).items():  # None until the hours have been rolled up.
        if numbers.calls:
            outcomes[server, n].add(outcome)
    places = ((server, n) for server in servers for n in range(HOURS))
    return {place: Hour(bool(outcomes[place]), not outcomes[place].isdisjoint(SERVER_FAILED)) for place in places}


SHOWN = 8
SERVERS = 12
GATEWAYS = 20
# Titles of plots on the dashboard; the time range is added to each title.
NAMED = {"plots.calls": "Requests", "plots.denied": "Refused"}


@require_GET
@own_resource("each part is the user's own or checks its capability")
def overview(request: AppRequest) -> HttpResponse:
    user = request.user
    if wants_fragment(request) and user.has_perm(Capability.LOGS_READ):
        new = NewCalls.asked(request.GET, Search([], timezone.now() - DAY))
        if new is not None:
            return _new_calls(request, new)
    # Select the keys first: with a join, PostgreSQL would scan the tokens of everybody.
    links = list(Connection.objects.own(user).live().order_by().values_list("pk", flat=True))
    own_tokens = Token.objects.live().filter(kind=TokenKind.ACCESS, connection__in=links)
    with_links = Prefetch("connection", Connection.objects.with_reach().select_related("host", "gateway", "user"))
    # Without connections there are no tokens and no missing identities.
    tokens = list(own_tokens.prefetch_related(with_links)[:SHOWN]) if links else []
    newest = _newest(links)
    usable = Gateway.objects.usable_by(user)
    context: dict[str, Any] = {
        "notices": partial(notices, user),
        "waiting": partial(foremost_waiting, user),
        "lacking": partial(newest_lacking_identity, user) if links else (),
        "refused": _refused(user),
        "to_try": partial(_gateway_to_try, user),
        "usable": [] if user.has_perm(Capability.GATEWAYS_USE) else _listed(usable, user),
        "usable_count": 0 if user.has_perm(Capability.GATEWAYS_USE) else usable.count(),
        "agents": hosts_for(user)[:SHOWN],
        "setup": Setup.of(user),
        "asking": open_requests(SHOWN) if user.has_perm(Capability.PEOPLE_MANAGE) else (),
        "carried": _carried(user, newest),
        "own_calls": None
        if user.has_perm(Capability.LOGS_READ)
        else as_own(newest_calls(listed_calls(user), SHOWN), user),
        "own_rows": [ConnectionRow(one, user) for one in newest],
        "own_count": len(links),
        "token_rows": [TokenRow(token, user) for token in tokens],
        "token_count": _active(tokens) if len(tokens) < SHOWN else own_tokens.active().count(),
    }
    if user.has_perm(Capability.LOGS_READ):
        context |= _traffic(request)
        context["tops"] = unread_tops(context["call_plots"].chosen)
    else:
        context |= _stock(user)
    return show(request, "overview.html", context | _numbers(request))


def _new_calls(request: AppRequest, new: NewCalls) -> HttpResponse:
    """Return the live parts of the dashboard with the new calls.

    If the page is paused, return only the number of new calls. If nothing changed, return 204.
    """
    return answer(
        request, _live_list(request), new, lambda: show(request, "overview.html#traffic", _traffic(request, new))
    )


def _traffic(request: AppRequest, new: NewCalls | None = None) -> dict[str, Any]:
    """Return the context of the live parts of the dashboard. The page marks the calls in `new`."""
    seen = new.to if new else newest_id()
    asked = request.GET.get("range")
    plots = CallPlots({}, {}, asked, named=NAMED) if new else CallPlots.of(request, {}, {}, named=NAMED)
    live = {"live": _live_list(request), "seen": seen, "new": new, "most_new": MOST_NEW}
    return {"call_plots": plots, "traffic": Traffic(request, new), "listed": LISTED, **live, **_stock(request.user)}


def _live_list(request: AppRequest) -> LiveList:
    chosen = chosen_range(request.GET.get("range"))
    return LiveList(
        request.path, f"range={chosen}", f"{request.path}?range={chosen}", "#traffic", "#main", is_apart=True
    )


def _active(tokens: list[Token]) -> int:
    return sum(token.status == "active" for token in tokens)


def _listed(gateways: GatewayQuerySet, user: User) -> list[Gateway]:
    """Return the first GATEWAYS gateways by name, with enabled servers, tool counts and the user's connections."""
    servers = Assignment.objects.on().select_related("server").order_by("server__name")
    named = gateways.order_by(Lower("name")).prefetch_related(
        Prefetch("assignments", servers, to_attr="offered"),
        Prefetch("connections", Connection.objects.own(user).live(), to_attr="own_connections"),
    )
    listed: list[Any] = list(named[:GATEWAYS])
    tools = Feature.objects.tools().callable().filter(assignment__gateway__in=listed).order_by()
    counted = dict(tools.values_list("assignment__gateway").annotate(number=Count("*")))  # Reads only an index.
    for gateway in listed:
        gateway.usable_tools = counted.get(gateway.pk, 0)
    return listed


def _newest(links: list[Any]) -> list[Connection]:
    """Return the newest of these connections, with their details."""
    if not links:
        return []
    rows = Connection.objects.with_details().filter(pk__in=links).order_by("-connected_at", "pk")[:SHOWN]
    return list(with_carried(rows))


def _carried(user: User, newest: list[Connection]) -> list[CarriedRow]:
    """Return at most SHOWN rows, each for a connection in `newest` and a server that needs the user's identity.

    Rows on which the user must act come first.
    """
    rows = [row for one in newest for row in OwnConnection(one, user).carried]
    return sorted(rows, key=lambda row: row.state in ("active", "blocked"))[:SHOWN]


def _refused(user: User) -> list[Identity]:
    """Return identities that their servers refuse.

    If the user may not see all connections, return only the user's own identities.
    """
    refused = Identity.objects.refused().select_related("server", "owner")
    return list((refused if user.has_perm(Capability.MCP_CONNECTIONS_READ) else refused.own(user))[:SHOWN])


def _gateway_to_try(user: User) -> Gateway | None:
    """Return the gateway that the user should try first, or None if the user can use no gateway."""
    on = Assignment.objects.live().filter(gateway=OuterRef("pk"))
    gateways = Gateway.objects.usable_by(user).annotate(has_server=Exists(on))
    # First those with servers other than built-in ones, then others with servers; the oldest first.
    return gateways.demo_last("-has_server", "created_at").first()


def _numbers(request: AppRequest) -> dict[str, Any]:
    """Return the lists and numbers that the user's capabilities allow, except those of `_stock`."""
    user = request.user
    numbers: dict[str, Any] = {}
    if user.has_perm(Capability.HOSTS_TOGGLE):
        numbers["pending_hosts"] = Host.objects.live().filter(PENDING).order_by("-first_seen_at")[:SHOWN]
    if user.has_perm(Capability.API_TOKENS_MANAGE):
        # Select the keys first. Many tokens may expire at the same time, and a join would read all of them.
        soonest = Token.objects.filter(needing("expiring"), kind=TokenKind.ACCESS).order_by("expires_at", "pk")
        keys = list(soonest.values_list("pk", flat=True)[: SHOWN + 1])
        totals = list(Token.objects.filter(pk__in=keys).select_related("connection__host").order_by("expires_at", "pk"))
        numbers |= {
            "expiring": totals[:SHOWN],
            "expiring_count": RowCount(min(len(totals), SHOWN), len(totals) <= SHOWN),
            "soon": EXPIRES_SOON,
        }
    if user.has_perm(Capability.GATEWAYS_MANAGE):
        waiting = list(Feature.objects.waiting_for(user).select_related("assignment__gateway")[: SHOWN + 1])
        numbers |= {
            "waiting_definitions": waiting[:SHOWN],
            "waiting_count": RowCount(min(len(waiting), SHOWN), len(waiting) <= SHOWN),
        }
    if user.has_perm(Capability.SINKS_MANAGE):
        numbers["failing_sinks"] = [sink for sink in Sink.objects.filter(enabled=True) if sink.status == "failing"]
        numbers["not_archived"] = archive.waiting().first() if archive.archive_enabled() else None
    if user.has_perm(Capability.SERVERS_MANAGE) or user.has_perm(Capability.SERVERS_TOGGLE):
        numbers["servers"] = health(_servers())
        numbers["no_server"] = _no_server
        numbers["down"] = [entry.server for entry in numbers["servers"] if entry.server.health == Health.DOWN]
    return numbers


def _stock(user: User) -> dict[str, Any]:
    """Return the numbers of hosts and of connections.

    Hosts are left out if the user may not toggle hosts. Connections are left out if the user may not see all
    connections.
    """
    numbers: dict[str, Any] = {}
    if user.has_perm(Capability.HOSTS_TOGGLE):  # Not useful to members, who can only see hosts.
        states = {f"{state}_count": Count("pk", filter=which) for state, which in HOST_STATES.items()}
        numbers["hosts"] = Host.objects.live().exclude(OURS).aggregate(all=Count("pk"), **states)
    if user.has_perm(Capability.MCP_CONNECTIONS_READ):
        numbers["connections"] = Connection.objects.live().count()
    return numbers


def _no_server() -> str:
    """Return why no server health is shown."""
    return "No server is enabled." if Server.objects.live().exists() else "No servers yet."


def _servers() -> list[Server]:
    """Return at most SERVERS enabled servers: first those that are down, then the others, by name."""
    trouble = Case(When(health=Health.DOWN, then=Value(0)), default=Value(1))
    return list(Server.objects.live().filter(enabled=True).order_by(trouble, Lower("name"))[:SERVERS])
