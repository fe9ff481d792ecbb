"""Compute the number that a page must show for each `data-count` key, by a query for the rows the viewer may see.

The queries are written independently of the pages. The expected states are those in which the test world created its
objects.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django.db.models import Q, QuerySet
from django.http import QueryDict
from django.utils import timezone

from access.models import Review, ReviewLine
from accounts.models import ApiKey, Role, Team, User
from approvals.models import Allowance, Hold
from auditlog.events import changes_in_words
from auditlog.facets import AT_FIRST
from auditlog.fields import FIELDS
from auditlog.models import Call, Checkpoint, Event
from auditlog.outcomes import REASONS, Step
from auditlog.templatetags.calls import ms
from capabilities import Capability
from connections.models import Connection, HostAtGateway
from directory.models import DirectoryAddress
from gateways.models import AccessRequest, Assignment, Feature, Gateway, Listing, ToolGrant, ToolPolicy, ToolSet
from hosts.models import Host
from oauth.models import Registration
from proxy.models import Session
from rules.models import Rule
from scim.models import ProvisioningKey
from servers.models import Identity, Server
from sinks.models import Sink
from tests.house.every_state import World
from tokens.models import Token

DAY = timedelta(days=1)
type Answer = int | str | tuple[float, ...]


@dataclass(frozen=True)
class Ask:
    """The viewer, the page, and the object a number is about."""

    world: World
    viewer: User
    address: str
    view: str
    of: str = ""

    def about(self, of: str) -> "Ask":
        return replace(self, of=of)

    @property
    def kind(self) -> str:
        return self.of.partition(":")[0]

    @property
    def pk(self) -> Any:
        """Return the object's id; for gateways and servers, look the id up by slug."""
        kind, _, name = self.of.partition(":")
        named: Any = {"gateway": self.world.gateways, "server": self.world.servers}.get(kind, {})
        return str(named[name].pk) if name in named else name

    @property
    def query(self) -> QueryDict:
        return QueryDict(self.address.partition("?")[2])

    @property
    def path(self) -> list[Any]:
        return self.address.partition("?")[0].strip("/").split("/")

    @property
    def sees_connections(self) -> bool:
        return self.viewer.has_perm(Capability.MCP_CONNECTIONS_READ)

    def connections(self, **of: Any) -> "QuerySet[Connection]":
        """Return the connections the viewer may see."""
        rows = Connection.objects.filter(**of)
        return rows if self.sees_connections else rows.filter(user=self.viewer)

    def states(self, rows: "QuerySet[Any]") -> list[str]:
        """Return the states in which the test world created these rows."""
        return [self.world.states[str(pk)] for pk in rows.values_list("pk", flat=True)]

    def said(self, number: int) -> str:
        """Return the displayed count of connections: "3 of yours" for viewers who see only their own."""
        if self.sees_connections:
            return str(number)
        return f"{number} of yours" if number else "none of yours"

    @property
    def state(self) -> str:
        return self.world.states.get(self.pk, "")


LIVE = {"revoked_at": None}
STILL = {"archived_at": None}
PLACED = {"assignment__removed_at": None, "assignment__gateway__archived_at": None}

# ---- Lists: only rows that match the page's filters count.


def _gateways(ask: Ask) -> int:
    rows = Gateway.objects.filter(**STILL)
    return rows.count() if ask.viewer.has_perm(Capability.GATEWAYS_READ) else rows.filter(reach="everyone").count()


def _gateways_to_ask_for(ask: Ask) -> int:
    rows = Gateway.objects.filter(**STILL)
    if ask.viewer.has_perm(Capability.GATEWAYS_READ):
        return rows.count()
    return rows.filter(Q(reach="everyone") | Q(takes_requests=True)).count()


def _requests(ask: Ask) -> int:
    if ask.query.get("show") == "decide":
        return _requests_to_decide(ask)
    rows = AccessRequest.objects.all()
    return rows.count() if ask.viewer.has_perm(Capability.GATEWAYS_READ) else rows.filter(user=ask.viewer).count()


def _requests_to_decide(ask: Ask) -> int:
    others = AccessRequest.objects.exclude(user=ask.viewer)
    return others.count() if ask.viewer.has_perm(Capability.GATEWAYS_MANAGE) else 0


def _strange_hosts() -> Any:
    """Return the hosts that are not archived, including our own Playground only while it waits for approval."""
    ours = Host.objects.filter(dedupe_key="playground")
    return Host.objects.filter(**STILL).exclude(
        pk__in=[host.pk for host in ours if not host.needs_approval or host.approved_at]
    )


def _hosts(ask: Ask) -> int:
    rows = _strange_hosts()
    if ask.query.get("type") == "built-in":
        rows = Host.objects.filter(**STILL).exclude(pk__in=rows)
    elif kind := ask.query.get("type"):
        rows = rows.filter(kind={"app": "headed", "agent": "token"}[kind])
    wanted = ask.query.getlist("status")
    return sum(not wanted or state in wanted for state in ask.states(rows))


def _servers(ask: Ask) -> int:
    health = ask.query.getlist("health")
    rows = Server.objects.filter(**STILL)
    return rows.filter(health__in=health).count() if health else rows.count()


def _people(ask: Ask) -> int:
    wanted = ask.query.getlist("status")
    return sum(not wanted or _person_state(ask, person) in wanted for person in User.objects.all())


def _person_state(ask: Ask, person: User) -> str:
    return ask.world.states.get(
        str(person.pk), "active" if person.is_active and person.password == "set" else "invited"
    )


def _connections(ask: Ask, **of: Any) -> list[str]:
    """Return the states of the connections in a list."""
    rows = ask.connections(**of)
    kind = ask.query.get("type", "app" if ask.view == "connections:mcp" else "")
    if kind in ("app", "agent"):
        rows = rows.filter(host__kind={"app": "headed", "agent": "token"}[kind])
    wanted = ask.query.getlist("status")
    if "live" in wanted:
        rows = rows.filter(**LIVE)
        wanted = []
    return [state for state in ask.states(rows) if not wanted or state in wanted]


def _listed(ask: Ask) -> str:
    number = len(_connections(ask))
    return f"{number} connection{'' if number == 1 else 's'}"


def _tokens(ask: Ask) -> "QuerySet[Token]":
    rows = Token.objects.filter(kind="access")
    return rows if ask.query.get("owner") == "all" else rows.filter(connection__user=ask.viewer)


def _token_states(ask: Ask) -> list[str]:
    return [state.partition(":")[0] for state in ask.states(_tokens(ask))]


def _active_tokens(ask: Ask) -> int:
    """Count active tokens, including those blocked by something else, such as a disabled connection."""
    states = _token_states(ask)
    return states.count("active") + states.count("blocked")


def _lasting(rows: "QuerySet[Token]") -> "QuerySet[Token]":
    rows = rows.filter(revoked_at=None, digest__isnull=False)
    return rows.filter(Q(expires_at=None) | Q(expires_at__gt=timezone.now()))


def _expiring(ask: Ask, rows: "QuerySet[Token] | None" = None) -> int:
    now = timezone.now()
    rows = Token.objects.filter(kind="access") if rows is None else rows
    return rows.filter(revoked_at=None, digest__isnull=False, expires_at__range=(now, now + 14 * DAY)).count()


def _key_states(ask: Ask) -> list[str]:
    rows = ApiKey.objects.all()
    return ask.states(rows if ask.query.get("owner") == "all" else rows.filter(user=ask.viewer))


# ---- Gateways, their servers, and the features of the servers.


def _gateway(ask: Ask) -> Gateway:
    return Gateway.objects.get(pk=ask.pk)


def _features(ask: Ask, **of: Any) -> "QuerySet[Feature]":
    return Feature.objects.filter(**(PLACED | of))


def _offered(ask: Ask, kind: str | None = None, **of: Any) -> int:
    rows = _features(ask, missing_since=None, **of)
    return (rows.filter(kind=kind) if kind and kind != "all" else rows).count()


def _of_gateway(kind: str) -> "Callable[[Ask], int]":
    return lambda ask: _offered(ask, kind, assignment__gateway=ask.pk)


def _asked_kind(ask: Ask) -> str:
    return ask.query.get("kind", "tool")


def _usable(ask: Ask, kind: str, **of: Any) -> int:
    """Count the features that clients see: approved, enabled with assignment and server, and not under BLOCK_ALL."""
    rows = _features(ask, missing_since=None, enabled=True, state__in=("approved", "held"), **of)
    rows = rows.filter(assignment__enabled=True, assignment__server__enabled=True)
    rows = rows.exclude(assignment__tool_policy=ToolPolicy.BLOCK_ALL)
    return (rows if kind == "all" else rows.filter(kind=kind)).count()


def _assignment_features(ask: Ask) -> tuple[float, ...]:
    kind = _asked_kind(ask)
    return _usable(ask, kind, assignment=ask.pk), _offered(ask, kind, assignment=ask.pk)


def _assignment_tools(ask: Ask) -> str:
    offered = _offered(ask, "tool", assignment=ask.pk)
    if not offered and not Listing.objects.filter(assignment=ask.pk, kind="tool", learnt_at__isnull=False).exists():
        return "not yet"  # The server has never answered, so there is no number.
    return f"{_usable(ask, 'tool', assignment=ask.pk)}/{offered}"


def _waiting(ask: Ask, **of: Any) -> int:
    """Count definitions that wait for a decision."""
    rows = _features(ask, missing_since=None, **of)
    return sum(ask.world.states[str(pk)] in ("held", "new") for pk in rows.values_list("pk", flat=True))


def _listed_features(ask: Ask) -> int:
    kind = _asked_kind(ask)
    rows = _features(ask, assignment__gateway=ask.pk)
    rows = rows if kind == "all" else rows.filter(kind=kind)
    if ask.query.get("state") == "attention":
        return sum(state in ("held", "new") for state in ask.states(rows))
    if ask.query.get("enabled") == "off":
        return rows.filter(enabled=False).count()
    return rows.filter(missing_since=None).count()


def _catalogue(ask: Ask) -> int:
    """Count the tools on visible gateways; a server's tool that is on several gateways counts once."""
    rows = _features(ask, missing_since=None, kind="tool", assignment__server__archived_at=None)
    if not ask.viewer.has_perm(Capability.GATEWAYS_READ):
        rows = rows.filter(assignment__gateway__reach="everyone")
    if ask.query.get("show") == "changed":
        rows = rows.filter(pk__in=[pk for pk in rows.values_list("pk", flat=True) if _is_undecided(ask, pk)])
    return len({*rows.values_list("assignment__server", "name")})


def _is_undecided(ask: Ask, pk: Any) -> bool:
    return ask.world.states[str(pk)] in ("held", "new")


def _catalogue_calls(ask: Ask) -> int:
    return _tool_calls(Feature.objects.get(pk=ask.pk), 30 * DAY).count()


def _tool_calls(tool: Feature, span: timedelta) -> "QuerySet[Call]":
    since = timezone.now() - span
    return Call.objects.filter(_of_feature(tool)[1], method="tools/call", created_at__gte=since)


def _tool_of_person(ask: Ask) -> int:
    return _tool_calls(Feature.objects.get(pk=ask.kind), 7 * DAY).filter(user_email=ask.pk).count()


def _went_on(ask: Ask) -> QuerySet[Call]:
    """Return the tool calls of the last 30 days that reached a server."""
    since = timezone.now() - 30 * DAY
    rows = (
        Call.objects.filter(created_at__gte=since, method="tools/call").exclude(feature_name="").exclude(server_id=None)
    )
    return rows.exclude(outcome__in=("denied", "unauthorized", "rate_limited")).exclude(deny_reason="unknown_tool")


def _tools_used(ask: Ask) -> tuple[float, ...]:
    """Return how many of a server's tools on a gateway were called, and how many tools the server offers there."""
    assignment = Assignment.objects.get(pk=ask.pk)
    tools = Feature.objects.filter(assignment=assignment, kind="tool", missing_since=None)
    called = _went_on(ask).filter(gateway_id=assignment.gateway_id, server_id=assignment.server_id)
    used = [one for one in tools if called.filter(feature_name=one.exposed_name).exists()]
    return len(used), tools.count()


def _tools_unused(ask: Ask) -> Answer:
    used, offered = _tools_used(ask)
    return int(offered - used)


def _tool_tokens(**where: Any) -> int:
    """Estimate the LLM tokens of all listed tool definitions: one per four bytes, rounded up for each definition."""
    tools = Feature.objects.filter(
        kind="tool", missing_since=None, enabled=True, state__in=("approved", "held"), **where
    )
    tools = tools.filter(assignment__enabled=True, assignment__tool_policy__in=("allow_all", "selected"))
    tools = tools.filter(assignment__server__enabled=True)
    return sum(-(-len((one.approved if one.shown is None else one.shown).encode()) // 4) for one in tools)


def _gateway_tokens(ask: Ask) -> Answer:
    places = {"assignment__removed_at": None, "assignment__server__archived_at": None}
    return f"about {_tool_tokens(assignment__gateway=ask.pk, **places)} LLM tokens"


def _used_by_token(ask: Ask) -> tuple[float, ...]:
    token = Token.objects.get(pk=ask.pk)
    rows = _went_on(ask).filter(token_id=token.pk).values("server_id", "feature_name").distinct()
    places = Assignment.objects.filter(gateway=token.connection.gateway, removed_at=None, server__archived_at=None)
    if not token.scope_all:
        places = places.filter(pk__in=token.scopes.values("assignment"))
    servers = list(places.values_list("server", flat=True))
    same = Feature.objects.filter(assignment__gateway=token.connection.gateway, assignment__server__in=servers)
    return rows.count(), same.filter(assignment__removed_at=None, kind="tool", missing_since=None).count()


def _used_by(ask: Ask, rows: "QuerySet[Call]") -> "QuerySet[Call]":
    """Return the calls in `rows` that belong to the connection and to the page's gateway."""
    gateway = Gateway.objects.get(slug=ask.path[1])
    return rows.filter(connection_id=ask.pk, gateway_id=gateway.pk)


def _calls_by(ask: Ask) -> int:
    rows = Call.objects.filter(method="tools/call", created_at__gte=timezone.now() - 30 * DAY)
    return _used_by(ask, rows).count()


def _missing(ask: Ask) -> int:
    rows = _features(ask, assignment__gateway=ask.pk).exclude(missing_since=None)
    kind = _asked_kind(ask)
    return (rows if kind == "all" else rows.filter(kind=kind)).count()


def _asked_as(ask: Ask) -> tuple[float, ...]:
    people = Listing.objects.filter(assignment=ask.pk).exclude(identity=None)
    return (people.count(),) if people.count() > 1 else ()


def _server_gateways(ask: Ask) -> int:
    rows = Assignment.objects.filter(server=ask.pk, removed_at=None, gateway__archived_at=None)
    return rows.values("gateway").distinct().count()


def _in_set(ask: Ask) -> int:
    """Count a tool set's features. “Everything” has all features of its gateway; other sets have read-only tools."""
    features = Feature.objects.filter(assignment__gateway__slug="wide", missing_since=None, **PLACED)
    everything = ToolSet.objects.get(pk=ask.pk).name == "Everything"
    return features.count() if everything else features.filter(kind="tool", effect="read_only").count()


def _gateway_servers(ask: Ask) -> int:
    return Assignment.objects.filter(gateway=ask.pk, removed_at=None, server__archived_at=None).count()


def _servers_on(ask: Ask) -> int:
    """Count the servers of a gateway that are enabled, and whose assignment to the gateway is enabled."""
    rows = Assignment.objects.filter(gateway=ask.pk, removed_at=None, enabled=True)
    return rows.filter(server__enabled=True, server__archived_at=None).count()


# ---- People.


def _role_users(ask: Ask) -> int:
    return User.objects.filter(role=ask.pk).count()


def _lacking(held: set[str], ask: Ask) -> int:
    """Count the capabilities in `held` that the viewer lacks. The page names three of them, which do not count.

    Capabilities that another missing capability includes do not count either.
    """
    missing = {one for one in Capability if one.slug in held and not ask.viewer.has_perm(one)}
    return max(len(missing - {included for one in missing for included in one.includes}) - 3, 0)


def _held_by(role: Role | None) -> set[str]:
    if role is None:
        return set()
    named = {f"{app}.{name}" for app, name in role.permissions.values_list("content_type__app_label", "codename")}
    return {one.slug for one in Capability if str(one) in named}


def _role_of(ask: Ask) -> Role | None:
    return Role.objects.get(pk=ask.pk) if ask.kind == "role" else User.objects.get(pk=ask.pk).role


# ---- Calls and events.

ERRORS = ("tool_error", "rpc_error", "upstream_error", "timeout", "bad_request")
DENIED = ("denied", "unauthorized", "rate_limited")
ENDINGS = {"ok": ("ok", "not_offered"), "error": ERRORS, "denied": DENIED, "cancelled": ("cancelled",)}
SPANS = {"7d": 7 * DAY, "24h": DAY, "30d": 30 * DAY}


def _calls(ask: Ask) -> "QuerySet[Call]":
    """Return the calls that a page is about, limited to the page's object, time range and search."""
    rows = Call.objects.filter(created_at__gte=timezone.now() - SPANS[ask.query.get("range", "24h")])
    if ask.query.get("q") == "error":
        rows = rows.filter(outcome__in=ERRORS)
    if ask.query.get("tab") == "host":
        rows = rows.filter(host_id=str(ask.query["host"]))
    match ask.path:
        case ["gateways", slug, "logs"]:
            rows = rows.filter(gateway_id=Gateway.objects.get(slug=slug).pk)
        case ["servers", slug, "logs"]:
            rows = rows.filter(server_id=Server.objects.get(slug=slug).pk)
        case ["hosts", pk, "logs"]:
            rows = rows.filter(host_id=pk)
    return rows


def _ended(ending: str) -> "Callable[[Ask], int]":
    return lambda ask: _calls(ask).filter(outcome__in=ENDINGS[ending]).count()


def _outcomes(ask: Ask) -> tuple[float, ...]:
    found = [_ended(ending)(ask) for ending in ENDINGS]
    return tuple(found if found[-1] else found[:-1])


def _call(ask: Ask) -> Call:
    return Call.objects.get(uid=ask.pk)


def _call_parts(ask: Ask) -> tuple[float, ...]:
    """Return the times of a test call: its duration, and the delay of its row if the row was written late."""
    call = _call(ask)
    late = (call.recorded_at - call.created_at).total_seconds() * 1000 - call.duration_ms if call.recorded_at else -1
    return (call.duration_ms, *([float(ms(late).split()[0].replace(",", ""))] if 0 < late <= 60_000 else []))


def _in_span(noun: str, number: int, span: str) -> str:
    return f"{number}{noun} in {span}"


def _events(ask: Ask) -> tuple[float, ...]:
    return (Event.objects.filter(created_at__gte=timezone.now() - 30 * DAY).count(),)


def _group(ask: Ask) -> "QuerySet[Call]":
    """Return the page's calls of one group, identified by the value of the grouped column."""
    columns = {"user": "user_id", "gateway": "gateway_id", "server": "server_id", "tool": "feature_name"}
    column = columns.get(ask.query.get("by", "host"), "deny_reason" if ask.query.get("by") == "reason" else "host_id")
    return _calls(ask).filter(**{column: ask.of.partition(":")[2]})


def _plotted(ask: Ask) -> "QuerySet[Call]":
    """Return the calls of the page's object, in the range of its plots."""
    rows = Call.objects.filter(created_at__gte=timezone.now() - SPANS[ask.query.get("range", "24h")])
    match ask.path:
        case ["gateways", slug]:
            return rows.filter(gateway_id=Gateway.objects.get(slug=slug).pk)
        case ["servers", slug]:
            return rows.filter(server_id=Server.objects.get(slug=slug).pk)
        case ["hosts", pk]:
            return rows.filter(host_id=pk)
        case ["people", pk]:
            return rows.filter(user_id=pk)
        case ["features", pk]:
            tool = Feature.objects.select_related("assignment").get(pk=pk)
            return rows.filter(server_id=tool.assignment.server_id, feature_name=tool.exposed_name)
    return rows


def _busiest(ask: Ask) -> "QuerySet[Call]":
    columns = {"tool": "feature_name", "reason": "deny_reason"}
    return _plotted(ask).filter(**{columns.get(ask.kind, f"{ask.kind}_id"): ask.of.partition(":")[2]})


def _used(ask: Ask) -> "QuerySet[Call]":
    """Return the gateway's tool calls by known people: by all, by one person, or by one person to one tool."""
    since = timezone.now() - SPANS[ask.query.get("range", "30d")]
    gateway = Gateway.objects.get(slug=ask.path[1])
    rows = Call.objects.filter(gateway_id=gateway.pk, method="tools/call", created_at__gte=since).exclude(user_id=None)
    kind, _, rest = ask.of.partition(":")
    person, _, tool = rest.partition(":")
    if kind in ("user", "used"):
        rows = rows.filter(user_id=person)
    return rows.filter(feature_name=tool) if kind == "used" else rows


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if part else "0 %"


def _listed_calls(ask: Ask) -> tuple[float, ...]:
    return (_calls(ask).count(),)


def _same_request(ask: Ask) -> int:
    model = Call if ask.kind == "call" else Event
    one = model.objects.get(uid=ask.pk)
    return model.objects.filter(correlation_id=one.correlation_id).count()


def _refused_since(ask: Ask) -> str:
    """Return a text such as "Refused 2 times since".

    It counts the calls of the event's object that were refused for the given reason since the event.
    """
    uid, _, reason = ask.pk.partition(":")
    event = Event.objects.get(uid=uid)
    named = {"feature": "feature_name", "assignment": "server_id"}.get(event.target_type, f"{event.target_type}_id")
    of = event.target_label.partition(" on ")[0] if event.target_type == "feature" else event.target_id
    if event.target_type == "assignment":
        of = str(Assignment.objects.get(pk=event.target_id).server_id)
    since = event.created_at.replace(microsecond=0)
    number = Call.objects.filter(deny_reason=reason, created_at__gte=since, **{named: of}).count()
    return f"Refused {'once' if number == 1 else f'{number} times'} since"


def _not_reached(ask: Ask) -> int:
    """Count the checks after the one that refused the call, out of eleven."""
    return sum(step > REASONS[_call(ask).deny_reason].step for step in Step)


def _facet_calls(ask: Ask) -> int:
    return _calls(ask).filter(**{FIELDS[ask.kind].group_column: ask.pk}).count()


def _more_values(ask: Ask) -> int:
    """Count the values of a filter beyond those listed beside the table."""
    column = FIELDS[ask.pk].group_column
    return int(_calls(ask).exclude(**{column: None}).values(column).distinct().count()) - AT_FIRST


# ---- Confirmations: what the action cuts off, as the sentence states it.


def _links(ask: Ask) -> "tuple[Any, QuerySet[Connection], QuerySet[Call]]":
    """Return the page's object, the live connections that depend on the object, and the object's calls."""
    room, name = ask.path[0], ask.path[1]
    model, by_slug = MODELS[room]
    thing: Any = model.objects.get(**{"slug" if by_slug else "pk": name})
    rows, calls = OF[room](thing)
    return thing, Connection.objects.filter(rows, **LIVE), Call.objects.filter(calls)


def _gateways_of(**of: Any) -> Q:
    """Return the condition for connections of gateways that have an assignment with these field values."""
    places = Assignment.objects.filter(removed_at=None, gateway__archived_at=None, **of)
    return Q(gateway__in=places.values("gateway"))


def _of_feature(tool: Feature) -> tuple[Q, Q]:
    place = tool.assignment
    through = Q(gateway_id=place.gateway_id, server_id=place.server_id, feature_name=tool.exposed_name)
    return Q(gateway=place.gateway_id), through


def _of_identity(identity: Identity) -> tuple[Q, Q]:
    own = Q(identities__identity=identity) if identity.owner_id else _gateways_of(shared_identity=identity)
    return own, Q(identity_id=identity.pk)


MODELS: dict[str, tuple[Any, bool]] = {
    "hosts": (Host, False),
    "gateways": (Gateway, True),
    "servers": (Server, True),
    "connections": (Connection, False),
    "people": (User, False),
    "assignments": (Assignment, False),
    "tools": (Feature, False),
    "features": (Feature, False),
    "identities": (Identity, False),
}
OF: dict[str, "Callable[[Any], tuple[Q, Q]]"] = {
    "hosts": lambda host: (Q(host=host), Q(host_id=host.pk)),
    "gateways": lambda gateway: (Q(gateway=gateway), Q(gateway_id=gateway.pk)),
    "servers": lambda server: (_gateways_of(server=server), Q(server_id=server.pk)),
    "connections": lambda connection: (Q(pk=connection.pk), Q(connection_id=connection.pk)),
    "people": lambda user: (Q(user=user), Q(user_id=user.pk)),
    "assignments": lambda one: (Q(gateway=one.gateway_id), Q(gateway_id=one.gateway_id, server_id=one.server_id)),
    "tools": _of_feature,
    "features": _of_feature,
    "identities": _of_identity,
}


def _cut(ask: Ask) -> tuple[float, ...]:
    """Return the numbers of hosts, people and identities that the action cuts off, then the numbers of `_lately`.

    A viewer who may not see these connections gets only the numbers of `_lately`.
    """
    thing, rows, calls = _links(ask)
    owner = getattr(thing, "user_id", None) or getattr(thing, "owner_id", None)
    lately = _lately(ask, calls, is_own=owner == ask.viewer.pk)
    if not ask.sees_connections and owner != ask.viewer.pk:
        return lately
    hosts = rows.values("host").distinct().count()
    people = rows.values("user").distinct().count()
    carried = Q(connection_identities__connection__in=rows)
    placed = Q(assignments__removed_at=None)
    match thing:
        case Identity():
            identities = 0
        case Gateway():
            shared = Identity.objects.filter(placed, assignments__gateway=thing)
            identities = _distinct(Identity.objects.filter(carried), shared)
        case Server():
            shared = Identity.objects.filter(placed, assignments__server=thing)
            identities = _distinct(Identity.objects.filter(carried, server=thing), shared)
        case Assignment():
            shared = Identity.objects.filter(assignments=thing)
            identities = _distinct(Identity.objects.filter(carried, server=thing.server_id), shared)
        case Feature():
            identities = _distinct(Identity.objects.filter(carried, server=thing.assignment.server_id))
        case _:
            identities = _distinct(Identity.objects.filter(carried))
    return (hosts, people, *([identities] if identities else []), *lately)


def _lately(ask: Ask, calls: "QuerySet[Call]", *, is_own: bool = False) -> tuple[float, ...]:
    """Return how many calls were not refused, how many callers made them, and the calls per caller.

    Calls since midnight (UTC) seven days ago are counted. Returns () if there are none, or the viewer may see none.
    """
    if not is_own and not ask.viewer.has_perm(Capability.LOGS_READ):
        return ()
    today = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)
    rows = calls.filter(created_at__gte=today - 7 * DAY).exclude(outcome__in=("denied", "unauthorized", "rate_limited"))
    # All calls in the world come from one agent, so only the agent's own page counts callers by person.
    caller = "user_id" if "hosts" in ask.path[:4] else "host_id"
    by_caller = sorted(Counter(rows.values_list(caller, flat=True)).values(), reverse=True)
    return (sum(by_caller), len(by_caller), *by_caller) if by_caller else ()


def _distinct(*found: "QuerySet[Identity]") -> int:
    return len({pk for rows in found for pk in rows.filter(**LIVE).values_list("pk", flat=True)})


def _stops(number: int) -> tuple[float, ...]:
    """Return `(number,)`, or `()` for zero, because the page leaves a zero out."""
    return (number,) if number else ()


def _ask_block(ask: Ask) -> tuple[float, ...]:
    """Return the same numbers as `_cut`, for the page that blocks an app or agent on a gateway."""
    here = {"gateway_id": Gateway.objects.get(slug=ask.path[1]).pk, "host_id": ask.path[4]}
    rows = Connection.objects.filter(**here, **LIVE)
    people = (rows.values("host").distinct().count(), rows.values("user").distinct().count())
    carried = _distinct(Identity.objects.filter(connection_identities__connection__in=rows))
    cut = (*people, *_stops(carried)) if ask.sees_connections else ()
    return *cut, *_lately(ask, Call.objects.filter(**here))


def _ask_gateway(ask: Ask) -> tuple[float, ...]:
    _, rows, _ = _links(ask)
    return (*(_stops(rows.count()) if ask.sees_connections else ()), *_cut(ask))


def _ask_server(ask: Ask) -> tuple[float, ...]:
    server, _, _ = _links(ask)
    places = Assignment.objects.filter(server=server, removed_at=None, gateway__archived_at=None)
    return (*_stops(places.values("gateway").distinct().count()), *_cut(ask))


def _ask_assignment(ask: Ask) -> tuple[float, ...]:
    return (*_stops(_usable(ask, "tool", assignment=ask.path[1])), *_cut(ask))


def _ask_identity(ask: Ask) -> tuple[float, ...]:
    identity, _, _ = _links(ask)
    uses = (
        Connection.objects.filter(identities__identity=identity, **LIVE)
        if identity.owner_id
        else Assignment.objects.filter(shared_identity=identity, removed_at=None)
    )
    parts = [_stops(uses.count()), _cut(ask)]
    return tuple(number for part in (parts if ask.path[2] == "disable" else reversed(parts)) for number in part)


def _first_names(number: int) -> tuple[float, ...]:
    """Return a tuple with the number of names that a page hides after the first five; empty if it hides none."""
    return (number - 5,) if number > 5 else ()


def _ask_revoke(ask: Ask) -> tuple[float, ...]:
    tokens = Token.objects.filter(connection=ask.path[1], revoked_at=None).count()
    thing, _, calls = _links(ask)
    lately = _lately(ask, calls, is_own=thing.user_id == ask.viewer.pk)
    return (*((tokens,) if tokens > 1 else ()), *lately)


def _ask_archive(ask: Ask) -> tuple[float, ...]:
    thing, rows, _ = _links(ask)
    if isinstance(thing, Server):
        places = Assignment.objects.filter(server=thing, removed_at=None, gateway__archived_at=None)
        return _first_names(places.count())
    return _first_names(rows.count())


def _stopped(ask: Ask) -> "QuerySet[Connection]":
    """Return the live connections that the incident's action ends; none if it ends no connections."""
    column = {"hosts": "host", "people": "user", "connections": "pk"}.get(ask.path[1])
    return Connection.objects.filter(**{column: ask.path[2]}, **LIVE) if column else Connection.objects.none()


def _ended_keys(ask: Ask) -> int:
    """Count the API keys that a person's incident page revokes; 0 on all other pages."""
    keys = ApiKey.objects.filter(revoked_at=None, expires_at__gt=timezone.now())
    return keys.filter(user=ask.path[2]).count() if ask.path[1] == "people" else 0


def _ended_sign_ins(ask: Ask) -> int:
    """Count the sign-ins at issuers that a person's incident page ends; 0 on all other pages."""
    own = Identity.objects.filter(owner=ask.path[2], revoked_at=None).exclude(issuer="")
    return own.count() if ask.path[1] == "people" else 0


def _act_ends(ask: Ask) -> int:
    """Return the number on the action button of an agent's or person's incident page; 0 on all other pages."""
    if ask.path[0] != "incident" or ask.path[1] not in ("hosts", "people"):
        return 0
    return _stopped(ask).count() + _ended_keys(ask) + _ended_sign_ins(ask)


def _ask_stop(ask: Ask) -> tuple[float, ...]:
    return (*_act_effect(ask), *_lately(ask, Call.objects.filter(**{_stopped_column(ask): ask.path[2]})))


def _act_effect(ask: Ask) -> tuple[float, ...]:
    """Return how many connections, tokens, sessions, API keys and sign-ins end. Zeros are left out.

    For a server, return the number of its gateways. For a token, return an empty tuple.
    """
    if ask.path[1] == "tokens":
        return ()
    if ask.path[1] == "servers":
        return (_server_gateways(ask.about(f"server:{ask.path[2]}")),)
    rows = _stopped(ask)
    tokens = Token.objects.filter(kind="access", connection__in=rows, **LIVE)
    lasting = tokens.filter(Q(expires_at=None) | Q(expires_at__gt=timezone.now())).count()
    sessions = Session.objects.filter(connection__in=rows).count()
    ends = (rows.count(), lasting, sessions, _ended_keys(ask), _ended_sign_ins(ask))
    return tuple(number for number in ends if number)


def _of_day(ask: Ask) -> "QuerySet[Call]":
    """Return the calls of the incident's object in the last 24 hours, including the whole first hour."""
    since = timezone.now().replace(minute=0, second=0, microsecond=0) - DAY
    return Call.objects.filter(**{_stopped_column(ask): ask.path[2]}, created_at__gte=since)


def _stopped_column(ask: Ask) -> str:
    column = {"hosts": "host_id", "people": "user_id", "connections": "connection_id", "tokens": "token_id"}
    return column.get(ask.path[1], "server_id")


def _ask_narrow(ask: Ask) -> tuple[float, ...]:
    """Return the numbers of used tools, all tools, tools to disable, live connections, and hidden names of tools.

    The page hides the names of tools to disable after the first five. Without hidden names, there is no last number.
    """
    assignment = Assignment.objects.get(pk=ask.path[1])
    tools = Feature.objects.filter(assignment=assignment, kind="tool", missing_since=None)
    called = _went_on(ask).filter(gateway_id=assignment.gateway_id, server_id=assignment.server_id)
    off = [one for one in tools if one.enabled and not called.filter(feature_name=one.exposed_name).exists()]
    live = Connection.objects.filter(gateway=assignment.gateway, revoked_at=None).count()
    more = (len(off) - 5,) if len(off) > 5 else ()
    return *_tools_used(ask.about(f"assignment:{assignment.pk}")), len(off), live, *more


ASKS: dict[str, "Callable[[Ask], tuple[float, ...]]"] = {
    "rules:turn_on": lambda ask: (0, 0) if ask.viewer.has_perm(Capability.LOGS_READ) else (),  # It watched no call.
    "hosts:disable": _cut,
    "hosts:archive": _ask_archive,
    "gateways:disable": _ask_gateway,
    "gateways:archive": _ask_archive,
    "gateways:disable_assignment": _ask_assignment,
    "gateways:remove_assignment": _ask_assignment,
    "gateways:narrow": _ask_narrow,
    "gateways:disable_tool": _cut,
    "gateways:quarantine": _cut,
    "servers:disable": _ask_server,
    "servers:archive": _ask_archive,
    "servers:disable_identity": _ask_identity,
    "servers:revoke_identity": _ask_identity,
    "connections:block_host": _ask_block,
    "connections:disable": _cut,
    "connections:revoke": _ask_revoke,
    "accounts:deactivate": _cut,
    **{f"incident:stop_{kind}": _ask_stop for kind in ("connection", "host", "server", "token", "user")},
    "access:close_review": lambda ask: (_review_lines(ask).count(),),
    "access:remind_reviewers": lambda ask: (_review_lines(ask).count(),),
    "accounts:remove_role": lambda ask: _stops(User.objects.filter(role=ask.path[2]).count()),
}


def _review_lines(ask: Ask) -> "QuerySet[ReviewLine]":
    """Return all lines of the page's review; in the test world, none has been answered."""
    return ReviewLine.objects.filter(review=ask.path[2]).order_by()


def _asked(ask: Ask) -> tuple[float, ...]:
    """Return the numbers in a confirmation; empty for most confirmations."""
    question = ASKS.get(ask.view)
    return question(ask) if question else ()


# ---- Other numbers.


def _calls_of_feature(ask: Ask) -> int:
    """Count an app's or agent's calls of a feature in the last 7 days; `ask.of` names the feature and the caller."""
    tool = Feature.objects.get(pk=ask.kind)
    rows = Call.objects.filter(_of_feature(tool)[1], created_at__gte=timezone.now() - 7 * DAY)
    return rows.filter(host_name=ask.pk).count()


def _week(ask: Ask, column: str) -> int:
    """Count the last 7 days' calls of the object in a list's row. Only viewers of the whole log see this number."""
    return Call.objects.filter(**{column: ask.pk}, created_at__gte=timezone.now() - 7 * DAY).count()


def _others(ask: Ask) -> int:
    """Count the viewer's other connections that lack an identity for the same server."""
    connection, _, assignment = ask.pk.partition(":")
    asking = Assignment.objects.filter(server=Assignment.objects.get(pk=assignment).server, identity_scheme="per_user")
    rows = Connection.objects.filter(user=ask.viewer, gateway__in=asking.values("gateway"), **LIVE)
    return rows.exclude(pk=connection).filter(identities=None).count()


def _identities(ask: Ask) -> Answer:
    rows = Identity.objects.filter(server=ask.pk)
    if ask.viewer.has_perm(Capability.IDENTITIES_READ):
        return str(rows.count())
    shared = Q(owner=None) if ask.viewer.has_perm(Capability.SERVERS_MANAGE) else Q()
    own = rows.filter(Q(owner=ask.viewer) | shared) if shared else rows.filter(owner=ask.viewer)
    return f"{own.count()} you may see"


def _limits(ask: Ask) -> tuple[float, ...]:
    server = Server.objects.get(pk=ask.pk)
    return server.timeout_seconds, server.total_seconds


def _hours(ask: Ask) -> tuple[float, ...]:
    """Count the hours of the last day in which a server answered without a failure, and the hours with a failure."""
    since = (timezone.now() - 23 * timedelta(hours=1)).replace(minute=0, second=0, microsecond=0)
    calls = Call.objects.filter(server_id=ask.pk, created_at__gte=since).values_list("created_at", "outcome")
    called = {at.replace(minute=0, second=0, microsecond=0) for at, _ in calls}
    failed = {
        at.replace(minute=0, second=0, microsecond=0) for at, how in calls if how in ("upstream_error", "timeout")
    }
    return len(called - failed), len(failed)


def _first_steps(ask: Ask) -> tuple[float, ...]:
    """Return how many first steps are done, and how many there are. The test world lacks only the mail server."""
    return (5, 6)


# ---- The table.

GATEWAY_LIVE = Q(gateway__archived_at=None)


def _is_old() -> Q:
    limit = timezone.now() - 90 * DAY
    return Q(rotated_at__lt=limit) | Q(rotated_at=None, created_at__lt=limit)


QUESTIONS: dict[str, "Callable[[Ask], Answer]"] = {
    "ask": _asked,
    "act.ends": _act_ends,
    "incident.act": _act_ends,
    "incident.effect": _act_effect,
    "incident.calls": lambda ask: _of_day(ask).count(),
    "incident.refused": lambda ask: _of_day(ask).filter(outcome__in=("denied", "unauthorized", "rate_limited")).count(),
    "incident.tools": lambda ask: (
        _of_day(ask).filter(method="tools/call").exclude(feature_name="").values("feature_name").distinct().count()
    ),
    "incident.addresses": lambda ask: _of_day(ask).values("client_ip").distinct().count(),
    "host in Calls": lambda ask: _week(ask, "host_id"),
    "gateway in Calls": lambda ask: _week(ask, "gateway_id"),
    "server in Calls": lambda ask: _week(ask, "server_id"),
    "connection in Calls": lambda ask: _week(ask, "connection_id"),
    "host in Connections": lambda ask: ask.connections(host=ask.pk, **LIVE).count(),
    "host in Users": lambda ask: (
        (ask.connections(host=ask.pk, **LIVE).values("user").distinct().count(),) if ask.sees_connections else ()
    ),
    "hostatgateway in People": lambda ask: (
        ask.connections(host=ask.pk, gateway__slug=ask.path[1], **LIVE).values("user").distinct().count()
    ),
    "toolset in Tools": _in_set,
    "access in Tools": lambda ask: Feature.objects.callable().filter(kind="tool", assignment__gateway=ask.pk).count(),
    "accessrequest in Days": lambda ask: AccessRequest.objects.get(pk=ask.pk).days,
    "gateway in Servers": _gateway_servers,
    "gateway in Tools": lambda ask: _offered(ask, "tool", assignment__gateway=ask.pk),
    "gateway in Connections": lambda ask: ask.said(ask.connections(gateway=ask.pk, **LIVE).count()),
    "assignment in Tools": _assignment_tools,
    "server in Gateways": _server_gateways,
    "role in Users": _role_users,
    "role in Capabilities": lambda ask: (len(_held_by(Role.objects.get(pk=ask.pk))), len(Capability)),
    "team in People": lambda ask: User.objects.filter(teams=ask.pk).count(),
    "team in Gateways for teams": lambda ask: Team.objects.get(pk=ask.pk).gateways.filter(**STILL).count(),
    "call in Status": lambda ask: _call(ask).http_status,
    "call in Duration": lambda ask: f"{_call(ask).duration_ms} ms",
    "gateways.listed": _gateways,
    "access.listed": _gateways_to_ask_for,
    "access-requests.listed": _requests,
    "access-reviews.listed": lambda ask: (
        Review.objects.filter(reviewers=ask.viewer) if ask.query.get("show") else Review.objects.all()
    ).count(),
    "access-review.listed": lambda ask: _review_lines(ask).count(),
    "review in Lines": lambda ask: ReviewLine.objects.filter(review=ask.pk).count(),
    "review in Open": lambda ask: ReviewLine.objects.filter(review=ask.pk, answer="").count(),
    "review in Ended": lambda ask: ReviewLine.objects.filter(review=ask.pk, answer="end").count(),
    "review.progress": lambda ask: (
        *(0, _review_lines(ask).values("person").distinct().count()),
        *(0, _review_lines(ask).count()),
    ),
    "review.answers": lambda ask: (0, 0, 0, _review_lines(ask).count()),
    "review.waiting": lambda ask: _review_lines(ask).count(),
    "review.keepable": lambda ask: _review_lines(ask).count(),
    "review.endable": lambda ask: _review_lines(ask).exclude(kind__in=("role", "everyone")).count(),
    "review.given_since": lambda ask: 0,
    "access-tools.listed": lambda ask: Feature.objects.callable().filter(assignment__gateway__slug=ask.path[2]).count(),
    "gateway.request_days": lambda ask: _gateway(ask).request_days,
    "gateway.most_request_days": lambda ask: _gateway(ask).most_request_days,
    "hosts.listed": _hosts,
    "servers.listed": _servers,
    "people.listed": _people,
    "roles.listed": lambda ask: Role.objects.count(),
    "teams.listed": lambda ask: Team.objects.count(),
    "directory.listed": lambda ask: DirectoryAddress.objects.count(),
    "directory.gateways": lambda ask: DirectoryAddress.objects.get(pk=ask.pk).gateways().count(),
    "events.listed": _events,
    "calls.listed": _listed_calls,
    "calls.exported": _listed_calls,
    "calls.ok": _ended("ok"),
    "calls.error": _ended("error"),
    "calls.denied": _ended("denied"),
    "calls.cancelled": _ended("cancelled"),
    "calls.outcomes": _outcomes,
    "usage.cell": lambda ask: _used(ask).count(),
    "usage.calls": lambda ask: _used(ask).count(),
    "usage.tools": lambda ask: _used(ask).exclude(feature_name="").values("feature_name").distinct().count(),
    "usage.people": lambda ask: _used(ask).values("user_id").distinct().count(),
    "plots.calls": lambda ask: _plotted(ask).count(),
    "plots.errors": lambda ask: _plotted(ask).filter(outcome__in=ERRORS).count(),
    "plots.denied": lambda ask: _plotted(ask).filter(outcome__in=DENIED).count(),
    "plots.top": lambda ask: _busiest(ask).count(),
    "calls.group": lambda ask: _group(ask).count(),
    "calls.group.denied": lambda ask: _group(ask).filter(outcome__in=ENDINGS["denied"]).count(),
    "calls.group.errors": lambda ask: _percent(_group(ask).filter(outcome__in=ERRORS).count(), _group(ask).count()),
    "calls.day": lambda ask: _calls(ask).count(),
    "calls.day.denied": _ended("denied"),
    "call.status": lambda ask: _call(ask).http_status,
    "call.duration": lambda ask: f"{_call(ask).duration_ms} ms",
    "call.parts": _call_parts,
    "call.size": lambda ask: (_call(ask).request_bytes, _call(ask).response_bytes),
    "call.same_request": _same_request,
    "call.not_reached": _not_reached,
    "cause.calls": _refused_since,
    "event.same_request": _same_request,
    "event.more": lambda ask: f"+{len(changes_in_words(Event.objects.get(uid=ask.pk).changes)) - 3}",
    "facet.calls": _facet_calls,
    "facet.more": _more_values,
    "connections.listed": _listed,
    "connections.live": lambda ask: Connection.objects.filter(**LIVE).count(),
    "connection.tokens": lambda ask: _lasting(Token.objects.filter(connection=ask.pk)).count(),
    "connection.tokens.more": lambda ask: Token.objects.filter(connection=ask.pk, revoked_at=None).count() - 3,
    "hosts.more": lambda ask: Host.objects.filter(kind="token", enabled=True, **STILL).count() - 8,
    "host.connections": lambda ask: ask.said(ask.connections(host=ask.pk).count()),
    "host.connections.live": lambda ask: ask.connections(host=ask.pk, **LIVE).count(),
    "host.connections.listed": lambda ask: ask.said(len(_connections(ask, host=ask.pk))),
    "host.users": lambda ask: (
        (ask.connections(host=ask.pk, **LIVE).values("user").distinct().count(),) if ask.sees_connections else ()
    ),
    "host.enrolled": lambda ask: ask.said(ask.connections(host=ask.pk, **LIVE).count()),
    "host.registrations": lambda ask: Registration.objects.filter(host=ask.pk).count(),
    "hosts.all": lambda ask: _strange_hosts().count(),
    "hosts.by_state": lambda ask: "{} disabled, {} waiting".format(
        *(ask.states(_strange_hosts()).count(state) for state in ("disabled", "pending"))
    ),
    "gateway.connections": lambda ask: ask.said(ask.connections(gateway=ask.pk).count()),
    "gateway.connections.live": lambda ask: ask.connections(gateway=ask.pk, **LIVE).count(),
    "gateway.connections.listed": lambda ask: ask.said(len(_connections(ask, gateway=ask.pk))),
    "gateway.people": lambda ask: ask.connections(gateway=ask.pk, **LIVE).values("user").distinct().count(),
    "gateway.servers": _gateway_servers,
    "gateway.tools": _of_gateway("tool"),
    "gateway.features.tool": _of_gateway("tool"),
    "gateway.features.prompt": _of_gateway("prompt"),
    "gateway.features.resource": _of_gateway("resource"),
    "gateway.features.template": _of_gateway("template"),
    "gateway.features.all": _of_gateway("all"),
    "gateway.waiting": lambda ask: _waiting(ask, assignment__gateway=ask.pk),
    "gateway.limit": lambda ask: _gateway(ask).calls_per_minute or 0,
    "features.waiting": _waiting,
    "rail.lock": _requests_to_decide,
    "rail.apps": lambda ask: ask.states(Host.objects.filter(**STILL)).count("pending"),
    "rail.server": lambda ask: Server.objects.filter(enabled=True, health="down", **STILL).count(),
    "rail.tool": _waiting,
    "features.listed": _listed_features,
    "features.found": _listed_features,
    "features.missing": _missing,
    "feature.people": lambda ask: Feature.objects.get(pk=ask.pk).identities.count(),
    "feature.calls": _calls_of_feature,
    "feature.versions": lambda ask: Feature.objects.get(pk=ask.pk).versions.count(),
    "assignment.features.offered": lambda ask: _offered(ask, _asked_kind(ask), assignment=ask.pk),
    "assignment.features": _assignment_features,
    "assignment.asked_as": _asked_as,
    "catalogue.listed": _catalogue,
    "feature in Calls 30 d": _catalogue_calls,
    "tool.person": _tool_of_person,
    "usage.server": _tools_used,
    "usage.unused": _tools_unused,
    "usage.tokens": _gateway_tokens,
    "usage.bytes": lambda ask: 4,
    "usage.server.tokens": lambda ask: f"about {_tool_tokens(assignment=ask.pk)} LLM tokens",
    "usage.tool.tokens": lambda ask: f"{_tool_tokens(pk=ask.pk)} LLM tokens",
    "token.tools": _used_by_token,
    "usage.caller.calls": _calls_by,
    "usage.caller.tools": lambda ask: _used_by(ask, _went_on(ask)).values("feature_name").distinct().count(),
    "server.gateways": _server_gateways,
    "server.identities": _identities,
    "server.limits": lambda ask: "Idle {} s, total {} s".format(*_limits(ask)),
    "server.places": lambda ask: Server.objects.get(pk=ask.pk).max_concurrent,
    "server.hours": _hours,
    "carried.others": _others,
    "identity.uses.more": lambda ask: Connection.objects.filter(identities__identity=ask.pk, **LIVE).count() - 3,
    "flow.step": lambda ask: (1, 1),  # On this gateway, one server asks for an identity.
    "gateway.servers.offered": _servers_on,
    "gateway.consent": lambda ask: (_servers_on(ask), _usable(ask, "tool", assignment__gateway=ask.pk)),
    "own.connections.live": lambda ask: Connection.objects.filter(user=ask.viewer, **LIVE).count(),
    "own.gateways": lambda ask: Gateway.objects.filter(reach="everyone", enabled=True, **STILL).count(),
    "own.gateway.tools": lambda ask: f"{_usable(ask, 'tool', assignment__gateway=ask.pk)} tools open to you",
    "setup.done": _first_steps,
    "own.identities": lambda ask: Identity.objects.filter(owner=ask.viewer).count(),
    "own.recovery_codes": lambda ask: "0 of 10 left",
    "own.sessions": lambda ask: UserSession.objects.filter(user=ask.viewer).count(),
    "own.tokens": lambda ask: _lasting(Token.objects.filter(connection__user=ask.viewer, kind="access")).count(),
    "tokens.active": _active_tokens,
    "tokens.blocked": lambda ask: _token_states(ask).count("blocked"),
    "tokens.waiting": lambda ask: _token_states(ask).count("waiting"),
    "tokens.expired": lambda ask: _token_states(ask).count("expired"),
    "tokens.revoked": lambda ask: _token_states(ask).count("revoked"),
    "tokens.unused": lambda ask: _lasting(_tokens(ask)).filter(last_used_at=None).count(),
    "tokens.idle": lambda ask: _lasting(_tokens(ask)).filter(last_used_at__lt=timezone.now() - 90 * DAY).count(),
    "tokens.unlimited": lambda ask: _lasting(_tokens(ask)).filter(expires_at=None).count(),
    "tokens.old": lambda ask: _lasting(_tokens(ask)).filter(_is_old()).count(),
    "tokens.expiring": lambda ask: _expiring(ask, _tokens(ask) if ask.view == "tokens:list" else None),
    "keys.active": lambda ask: _key_states(ask).count("active") + _key_states(ask).count("blocked"),
    "keys.blocked": lambda ask: _key_states(ask).count("blocked"),
    "keys.expired": lambda ask: _key_states(ask).count("expired"),
    "keys.revoked": lambda ask: _key_states(ask).count("revoked"),
    "role.users": _role_users,
    "sink.delivered": lambda ask: Sink.objects.get(pk=ask.pk).delivered,
    "provisioning.all": lambda ask: ProvisioningKey.objects.count(),
    "sink.refused": lambda ask: Sink.objects.get(pk=ask.pk).refused,
    "sinks.late": lambda ask: (
        ask.states(Sink.objects.all()).count("failing") + ask.states(Sink.objects.all()).count("behind")
    ),
    "own.connections.lacking": lambda ask: 2,  # The walk creates these connections on the gateway `asking`.
    "own.identities.needing": lambda ask: 0,
    "sinks.all": lambda ask: Sink.objects.count(),
    "role.lacking": lambda ask: _lacking(_held_by(_role_of(ask)), ask),
    "person.lacking": lambda ask: _lacking(_held_by(_role_of(ask)), ask),
    "person.sessions": lambda ask: UserSession.objects.filter(user=ask.pk).count(),
    "person.gateways": lambda ask: Gateway.objects.reachable_by(User.objects.get(pk=ask.pk)).count(),
    "person.grants": lambda ask: ToolGrant.objects.to(User.objects.get(pk=ask.pk)).filter(GATEWAY_LIVE).count(),
    "person.tokens": lambda ask: Token.objects.filter(connection__user=ask.pk, kind="access").active().count(),
    "person.identities": lambda ask: Identity.objects.filter(owner=ask.pk, revoked_at=None).count(),
    "grants.listed": lambda ask: (
        ToolGrant.objects.live().filter(gateway__in=Gateway.objects.visible_to(ask.viewer)).count()
    ),
    "holds.listed": lambda ask: Hold.objects.visible_to(ask.viewer).filter(state="waiting").count(),
    "decided-holds.listed": lambda ask: Hold.objects.visible_to(ask.viewer).exclude(state="waiting").count(),
    "allowances.listed": lambda ask: Allowance.objects.visible_to(ask.viewer).filter(ended_at=None).count(),
    "allowance in Calls": lambda ask: 0,
    "rules.listed": lambda ask: Rule.objects.count(),
    "rule in Order": lambda ask: Rule.objects.get(pk=ask.pk).position,
    "checkpoints.all": lambda ask: Checkpoint.objects.count(),
    "person.connections": lambda ask: Connection.objects.filter(user=ask.pk, **LIVE).count(),
    "team.people": lambda ask: User.objects.filter(teams=ask.pk).count(),
    "team.gateways": lambda ask: Team.objects.get(pk=ask.pk).gateways.filter(**STILL).count(),
}


# Numbers from a server's live answer, and parts of pages that count no rows.
NOT_STORED = {
    "attention.matters",  # The three `matter` numbers: tests/attention compares them with the lists they link to.
    "matter.number",
    "matter.unnamed",
    "least.connections",  # All `least` numbers: tests/hosts/test_least_privilege.py.
    "least.more",
    "least.not_given",
    "least.refused",
    "least.tool",
    "least.tools",
    "least.unused",
    "least.used",
    "incident.reached",  # All `incident` numbers: tests/gatewayadmin/test_incident.py.
    "incident.tool",
    "incident.usual",
    "calls.group.took",
    "plots.took",
    "plots.change",
    "plots.moment",  # tests/house/test_numbers_agree.py.
    "probe.answer",
    "probe.tools",
    "calls.of_bar",
    "calls.new",
    "calls.slowest_bar",
    "facet.newest",
    "feature.parts",
    "rule.selected",  # The tools that the form selects, saved or not.
    "playground.not_given",  # Both: tests/connections/test_tool_sets.py.
    "tool_set.chosen",
    "tool_set.found",
}

# Texts of the product with fixed numbers (limits, times and codes), which count nothing.
UNITS = "days?|hours?|hour|minutes?|h|d|seconds|s|characters|bytes"
FIXED = re.compile(
    rf"\b\d[\d,]* ({UNITS})\b|^\d+ lines$|\d+ KB at most|at most \d+|0 to \d\d|1 is Monday, 7 is Sunday|version 1"
    r"|from \d+ to [\d,]+|\b\d+ to \d+ days|[\d,]+ at most|for more than \d+"
    r"|1Password|SAML 2\.0|Python 3\.(9|11)|Exit code [12]|fail with 401|get 40[34]|get 429|±10 %"
    r"|\{\"amount\": 600\}|starts with 50 |with 4 for others|http://localhost:8000/"
    r"|24 random bytes|-base64 32|30 to 45 seconds|https://93\.184\.216\.34"  # The address of the channel in the world.
    r"|\d{4}-\d\d-\d\d|gw[apk]_\w+|“No expiry” for new tokens, besides 7, 30 and 90 days"
)


# ---- States: the badges and words that pages must show for the states of the world's objects.


def _pair(states: dict[str, tuple[str, str]]) -> "Callable[[Ask], set[tuple[str, str]]]":
    return lambda ask: {states[ask.state]}


SINK_BADGES = {
    "current": ("ok", "Up to date"),
    "behind": ("attention", "Behind"),
    "failing": ("down", "Failing"),
    "paused": ("disabled", "Paused"),
    "waiting": ("unknown", "Not begun"),
}
IDENTITY_BADGES = {
    "active": ("active", "active"),
    "disabled": ("disabled", "disabled"),
    "unconfirmed": ("unconfirmed", "to be confirmed"),
    "sign_in_needed": ("unconfirmed", "sign in again"),
    "revoked": ("revoked", "revoked"),
}
PERSON_BADGES = {
    "active": ("active", "active"),
    "invited": ("pending", "invited"),
    "expired": ("expired", "invitation expired"),
    "revoked": ("disabled", "invitation revoked"),
    "deactivated": ("disabled", "deactivated"),
    "provisioned": ("pending", "provisioned"),
}


def _connection_badges(ask: Ask) -> set[tuple[str, str]]:
    if ask.pk in ask.world.lacking:
        return {("active", "active") if ask.view == "connections:enrolled" else ("attention", "needs attention")}
    if ask.state == "expired":
        return {("expired", "no active token"), ("expired", "expired")}
    if ask.state == "blocked":
        ((_, why),) = _switch_of_connection(ask)
        return {("blocked", "blocked"), ("blocked", f"blocked: {why}")}
    return {(ask.state, ask.state)}


def _token_badges(ask: Ask) -> set[tuple[str, str]]:
    if ask.state == "waiting":
        return {("pending", "to be collected")}
    state = ask.state.partition(":")[0]
    return {(state, state), (state, ask.state)} | ({("expired", "")} if ask.pk in ask.world.expiring else set())


def _assignment_badges(ask: Ask) -> set[tuple[str, str]]:
    row = Assignment.objects.get(pk=ask.pk)
    if ask.view == "oauth:identity":
        shared = row.shared_identity_id and ask.world.states[str(row.shared_identity_id)] != "active"
        if ask.state != "active":
            return {("disabled", "disabled")}
        return {("attention", "needs an administrator") if shared else ("ok", "Ready, nothing to do")}
    if ask.view == "servers:gateways":
        return {("active", "active") if ask.state == "active" else ("disabled", ask.state)}
    if ask.view == "gateways:tools":
        return {("disabled", "disabled")} if not (row.enabled and row.server.enabled) else set()
    found = {(row.server.health, row.server.health)}
    if not row.server.enabled:
        found = {("disabled", "server disabled")}
    if row.shared_identity:
        found |= {IDENTITY_BADGES[ask.world.states[str(row.shared_identity_id)]]}
    return found


def _server_badges(ask: Ask) -> set[tuple[str, str]]:
    server = Server.objects.get(pk=ask.pk)
    if ask.state == "disabled":
        return {("disabled", "Disabled"), ("unknown", "not asked")}
    return {(server.health, server.health), ("enabled", "Enabled")}


def _feature_badges(ask: Ask) -> set[tuple[str, str]]:
    row = Feature.objects.get(pk=ask.pk)
    return {
        (row.state, row.get_state_display()), (row.state, row.get_state_display().lower()), ("held", "held"),
        ("approved", "shown to clients"), ("held", "offered now"),
    }  # fmt: skip


def _host_badges(ask: Ask) -> set[tuple[str, str]]:
    host = Host.objects.get(pk=ask.pk)
    word = "Waiting for approval" if ask.state == "pending" else ask.state.capitalize()
    enrolment = ("enabled", "Allowed") if host.allow_enrolment else ("disabled", "Off")
    return {(ask.state, word), enrolment}


def _carried_badges(ask: Ask) -> set[tuple[str, str]]:
    connection, _, assignment = ask.pk.partition(":")
    row = Connection.objects.get(pk=connection).identities.filter(assignment=assignment).first()
    return {("active", "connected")} if row else {("missing", "missing")}


def _endings_of(call: Call) -> set[tuple[str, str]]:
    """Return both badges that may show how a call ended: without the reason, and with it."""
    label = str(call.get_outcome_display())
    why = call.deny_reason.replace("_", " ")
    return {(call.outcome, label), (call.outcome, f"{label}: {why}" if why else label)}


def _at_gateway_badges(ask: Ask) -> set[tuple[str, str]]:
    """Return the badge of an app or agent on the page's gateway. No gateway of the world has an allowlist."""
    blocked = HostAtGateway.objects.filter(host=ask.pk, gateway__slug=ask.path[1], allowed=False).exists()
    return {("disabled", "Blocked") if blocked else ("enabled", "Allowed")}


def _access_badges(ask: Ask) -> set[tuple[str, str]]:
    gateway = Gateway.objects.get(pk=ask.pk)
    by_role = ask.viewer.has_perm(Capability.GATEWAYS_READ)
    is_open = gateway.reach == "everyone" or by_role or gateway.teams.filter(users=ask.viewer).exists()
    asked = AccessRequest.objects.filter(user=ask.viewer, gateway=gateway).exists()
    return {("active", "Yes")} if is_open and not asked else {("active", "Yes"), ("pending", "Requested")}


STATES: dict[str, "Callable[[Ask], set[tuple[str, str]]]"] = {
    "access": _access_badges,
    "access-tool": lambda ask: {("active", "Yes")},
    "accessrequest": lambda ask: {("pending", "Waiting")},
    "hold": lambda ask: {("held", "Waiting")},
    "rule": lambda ask: {("attention", "Watching")},
    "directoryaddress": lambda ask: {("enabled", "Enabled")},
    "review": lambda ask: {("pending", "open"), ("blocked", "you")},
    "reviewline": lambda ask: {("attention", "unused")} if ReviewLine.objects.get(pk=ask.pk).unused else set(),
    "gateway": lambda ask: {(ask.state, ask.state.capitalize())},
    "host": _host_badges,
    "hostatgateway": _at_gateway_badges,
    "server": _server_badges,
    "connection": _connection_badges,
    "carried": _carried_badges,
    "token": _token_badges,
    "identity": lambda ask: {
        ("ok", "usable") if (ask.view, ask.state) == ("oauth:identity", "active") else IDENTITY_BADGES[ask.state]
    },
    "person": lambda ask: {PERSON_BADGES[_person_state(ask, User.objects.get(pk=ask.pk))]},
    "key": lambda ask: {(ask.state, "blocked: person deactivated" if ask.state == "blocked" else ask.state)},
    "assignment": _assignment_badges,
    "feature": _feature_badges,
    "call": lambda ask: _endings_of(_call(ask)),
    "session": lambda ask: {("active", "This one")},
    "sink": lambda ask: {SINK_BADGES[ask.state]},
    "provisioning-key": lambda ask: {(ask.state, ask.state)},
    "factor": lambda ask: {
        ("enabled", "Enabled") if Authenticator.objects.filter(user=ask.viewer) else ("disabled", "Disabled")
    },
}


# ---- Switches: their positions, and what stops an enabled object from working.


def _switch_of_connection(ask: Ask) -> set[tuple[bool, str]]:
    row = Connection.objects.get(pk=ask.pk)
    if ask.state != "blocked":
        return {(ask.state != "disabled", "")}
    if not row.user.is_active:
        return {(True, "person deactivated")}
    if not row.host.enabled:
        return {(True, "app or agent disabled")}
    if row.host.needs_approval:
        return {(True, "app waiting for approval")}
    if HostAtGateway.objects.filter(host=row.host, gateway=row.gateway, allowed=False).exists():
        return {(True, "app or agent not allowed on this gateway")}
    return {(True, "person has no access" if row.gateway.enabled else "gateway disabled")}


def _switch_of_feature(ask: Ask) -> set[tuple[bool, str]]:
    row = Feature.objects.get(pk=ask.pk)
    if row.assignment.tool_policy == ToolPolicy.BLOCK_ALL:
        return {(False, "")}
    why = {
        "new": "waiting to be accepted",
        "quarantined": "in quarantine",
        "missing": "no longer offered by its server",
    }
    blocked = why.get(ask.state, "")
    if not row.assignment.server.enabled:
        blocked = "server disabled"
    elif not row.assignment.enabled:
        blocked = "server disabled on this gateway"
    return {(row.enabled, blocked)}


def _switch_of_assignment(ask: Ask) -> set[tuple[bool, str]]:
    row = Assignment.objects.get(pk=ask.pk)
    return {(row.enabled, "" if row.server.enabled or not row.enabled else "server disabled")}


IDENTITY_BLOCKED = {"unconfirmed": "it waits for confirmation", "sign_in_needed": "it waits for a new sign-in"}

SWITCHED_ON: dict[str, "Callable[[Ask], set[tuple[bool, str]]]"] = {
    "rule": lambda ask: {(True, "")},
    "directoryaddress": lambda ask: {(True, "")},
    "gateway": lambda ask: {(ask.state == "enabled", "")},
    "host": lambda ask: {(ask.state == "enabled", ""), (Host.objects.get(pk=ask.pk).allow_enrolment, "")},
    "server": lambda ask: {(ask.state == "enabled", "")},
    "connection": _switch_of_connection,
    "assignment": _switch_of_assignment,
    "feature": _switch_of_feature,
    "identity": lambda ask: {(ask.state != "disabled", IDENTITY_BLOCKED.get(ask.state, ""))},
    "sink": lambda ask: {(ask.state != "paused", "")},
}
