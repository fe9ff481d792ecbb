"""Gateways and their servers in configuration files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from django.db.models import Prefetch, QuerySet

from accounts.models import Team
from capabilities import Capability
from configuration.fields import END, Field, choice, flag, limit, long_text, names, number, slug, text
from configuration.kinds.base import Act, Change, Found, Key, Kind, World
from configuration.kinds.servers import slug_taken
from connections.given_tools import asking_grants, refused_by
from connections.impact import cut_together, cuts, narrowed_to, refused_unlisted
from gateways.access_forms import MOST_DAYS
from gateways.models import (
    Assignment,
    Feature,
    FeatureKind,
    Gateway,
    HostsAllowed,
    IdentityScheme,
    OnArrival,
    OnChange,
    Reach,
    ToolPolicy,
    ToolsGiven,
    allow_identity,
)
from servers.models import AuthType, Identity
from ui.forms import MOST_CALLS
from ui.pages import sentences

if TYPE_CHECKING:
    from accounts.models import User

ALIAS = {"type": "string", "maxLength": 16, "pattern": r"^(?:[a-z0-9](?:-?[a-z0-9])*)?" + END}
INSTEAD_OF_ALIAS = (
    "Write an alias of at most 16 lower-case letters, digits and single hyphens. "
    "Write “” only for the sole server of a gateway."
)
MOST_TOOL_NAME = 1000
LISTS = {"enabled_tools": True, "disabled_tools": False}
OF_FEATURE = ("exposed_name", "kind", "assignment__gateway", "assignment__server")


class GatewayKind(Kind):
    name, noun, key, lookup = "gateways", "gateway", "slug", "slug"
    about = "Gateways."
    sees = frozenset({Capability.GATEWAYS_READ})
    manages, toggles = Capability.GATEWAYS_MANAGE, Capability.GATEWAYS_TOGGLE
    fields = (
        slug("slug", "Last part of its URL; never changes.", 40),
        text("name", "Name that pages show.", 80),
        long_text("description", "Text for people.", 1000),
        flag("enabled", "Whether it is enabled.", True),
        choice("reach", "Who may use it.", Reach, Reach.EVERYONE),
        names("teams", "Teams that may use the gateway if `reach` is `teams`.", 80, refers_to="teams"),
        choice("hosts_allowed", "Which apps and agents may use it.", HostsAllowed, HostsAllowed.ALL),
        choice("tools_given", "Which tools people can use on the gateway.", ToolsGiven, ToolsGiven.ALL),
        flag("takes_requests", "Whether everybody sees it and may request access.", False),
        number("request_days", "Default for the number of days in an access request.", 1, MOST_DAYS, 30),
        number("most_request_days", "Most days for which people can request access.", 1, MOST_DAYS, 90),
        limit("calls_per_minute", "Maximum calls per minute of all its connections together.", MOST_CALLS),
        choice(
            "new_definitions",
            "Whether new tools, prompts and resources can be used at once.",
            OnArrival,
            OnArrival.APPROVE,
        ),
        choice(
            "changed_definitions",
            "What happens if a server changes a tool, prompt or resource.",
            OnChange,
            OnChange.HOLD,
        ),
    )

    def read(self, world: World) -> Iterator[tuple[Key, Any, dict[str, Any]]]:
        for gateway in world.narrowed(Gateway.objects.live(), self).prefetch_related("teams"):
            values = {one.name: getattr(gateway, one.name) for one in self.fields if one.name != "teams"}
            values["teams"] = sorted(team.name for team in gateway.teams.all())
            yield (gateway.slug,), gateway, values

    def check(self, change: Change, world: World) -> Iterator[tuple[str, str]]:
        values = change.values
        if change.act is Act.ADD and (reason := slug_taken(Gateway, values["slug"])):
            yield "slug", reason
        if values["reach"] == Reach.TEAMS and not values["teams"]:
            yield "teams", "A gateway for teams needs at least one team. Name a team, or write “reach: everyone”."
        if values["reach"] == Reach.EVERYONE and values["teams"]:
            yield "teams", "A gateway for everyone has no teams. Write “reach: teams”, or “teams: []”."
        if values["request_days"] > values["most_request_days"]:
            yield "request_days", f"Write at most {values['most_request_days']}, the value of most_request_days."

    def add(self, change: Change, world: World, by: User) -> Any:
        return Gateway.objects.add(**change.settings | {"teams": _teams(change, world)}, by=by)

    def edit(self, change: Change, world: World, by: User) -> None:
        fields = change.after()
        if "teams" in fields:
            fields["teams"] = _teams(change, world)
        change.row.edit(**fields, by=by)

    def cuts(self, change: Change, world: World, viewer: User) -> str:
        if change.disables:
            return cuts(change.row, viewer)
        told = [self._narrows(change, viewer), self._refuses_unlisted(change, viewer)]
        if change.after().get("tools_given") == ToolsGiven.GRANTED:
            told.append(refused_by(change.row, viewer, asking_grants))
        return sentences(*told)

    def _narrows(self, change: Change, viewer: User) -> str:
        if change.values["reach"] != Reach.TEAMS or not change.gives("reach", "teams"):
            return ""
        teams = Team.objects.filter(name__in=change.values["teams"])
        return narrowed_to(change.row, list(teams), viewer)

    def _refuses_unlisted(self, change: Change, viewer: User) -> str:
        if change.after().get("hosts_allowed") != HostsAllowed.LISTED:
            return ""
        return refused_unlisted(change.row, viewer, list_used=False)


def _teams(change: Change, world: World) -> list[Team]:
    return [world.row("teams", name) for name in change.values["teams"]]


class AssignmentKind(Kind):
    parent, name, noun, key, lookup = "gateways", "servers", "server", "alias", "gateway__slug"
    about = "The servers of a gateway. A server that is not in the list is removed from the gateway."
    sees = frozenset({Capability.GATEWAYS_READ})
    manages, toggles = Capability.GATEWAYS_MANAGE, Capability.GATEWAYS_TOGGLE
    fields = (
        text("server", "Slug of the server.", 16, refers_to="servers", is_fixed=True),
        Field(
            "alias",
            "Prefix of tool names. If missing, the server's slug is used. “” means no prefix, for the sole server of a "
            "gateway.",
            ALIAS,
            INSTEAD_OF_ALIAS,
            None,
        ),
        flag("enabled", "Whether the server is enabled on this gateway.", True),
        choice(
            "identity_scheme",
            "Kind of credential that calls use. The default is `shared` if there is a `shared_identity`. Without a "
            "`shared_identity`, it is `per_user` if the server needs a credential, otherwise `none`.",
            IdentityScheme,
            None,
        ),
        text("shared_identity", "Label of the shared credential, if `identity_scheme` is `shared`.", 80, ""),
        choice("tool_policy", "Which tools may be called.", ToolPolicy, ToolPolicy.ALLOW_ALL),
        names("enabled_tools", "All enabled tools, by their name at the server.", MOST_TOOL_NAME, default=None),
        names(
            "disabled_tools",
            "All disabled tools. Give this list or `enabled_tools`, not both.",
            MOST_TOOL_NAME,
            default=None,
        ),
    )

    def title(self, key: Key) -> str:
        return f"server {key[-1] or '(without alias)'} on gateway {key[0]}"

    def key_of(self, given: Any) -> str:
        alias = given.get("alias")
        return str(given.get("server", "") if alias is None else alias)

    def read(self, world: World) -> Iterator[tuple[Key, Any, dict[str, Any]]]:
        shared = Prefetch("shared_identity", Identity.objects.only("label"))
        rows = world.narrowed(Assignment.objects.placed().filter(gateway__archived_at=None), self)
        tools = _switches(rows)
        for row in rows.select_related("server", "gateway").prefetch_related(shared):
            values = {
                "server": row.server.slug,
                "alias": row.alias,
                "enabled": row.enabled,
                "identity_scheme": row.identity_scheme,
                "shared_identity": row.shared_identity.label if row.shared_identity else "",
                "tool_policy": row.tool_policy,
            }
            known = tools.get(row.pk, {})
            for name, on in LISTS.items():
                values[name] = sorted(tool for tool, enabled in known.items() if enabled == on)
            yield (row.gateway.slug, row.alias), row, values

    def exported(self, found: Found) -> dict[str, Any]:
        """Return the values with only one of the two lists of tools.

        For “Allow selected”, keep `enabled_tools`. For any other policy, keep `disabled_tools`.
        """
        unlisted = "disabled_tools" if found.values["tool_policy"] == ToolPolicy.SELECTED else "enabled_tools"
        return {name: value for name, value in found.values.items() if name != unlisted}

    def complete(self, values: dict[str, Any], world: World) -> dict[str, Any]:
        if values["alias"] is None:
            values["alias"] = values["server"]
        if values["identity_scheme"] is None:
            scheme = IdentityScheme.PER_USER if _needs_credential(values["server"], world) else IdentityScheme.NONE
            values["identity_scheme"] = IdentityScheme.SHARED if values["shared_identity"] else scheme
        return values

    def check(self, change: Change, world: World) -> Iterator[tuple[str, str]]:
        values = change.values
        yield from self._check_rename(change, world)
        if change.gives("enabled_tools") and change.gives("disabled_tools"):
            yield "disabled_tools", "Write enabled_tools or disabled_tools, not both."
        if change.act is Act.ADD or change.gives("identity_scheme", "shared_identity"):
            yield from self._check_credential(values["identity_scheme"], values["shared_identity"], values, world)

    def _check_rename(self, change: Change, world: World) -> Iterator[tuple[str, str]]:
        """Yield an error if the document changes a server's alias on the gateway, but has no `moved`."""
        if change.act is not Act.ADD:
            return
        gateway, alias = change.key
        # Without `moved`, the server would be removed and added again, so connections would lose it.
        for key in world.children(self.id, (gateway,)):
            now = world.of(self.id)[key].values
            if now["server"] == change.values["server"] and (self.id, key) not in world.entries:
                moved = f"Write “moved: {{from: {key[-1] or '“”'}, to: {alias or '“”'}}}” to keep its connections"
                yield "server", f"Server {now['server']} is on this gateway as {key[-1] or '“” (no alias)'}. {moved}."

    def _check_credential(
        self, scheme: str, label: str, values: dict[str, Any], world: World
    ) -> Iterator[tuple[str, str]]:
        needed = _needs_credential(values["server"], world)
        if needed and scheme == IdentityScheme.NONE:
            yield "identity_scheme", "This server needs a credential. Write per_user or shared."
        elif not needed and scheme != IdentityScheme.NONE:
            yield "identity_scheme", "This server takes no credential. Write “none”, or remove the field."
        elif (scheme == IdentityScheme.SHARED) != bool(label):
            yield "shared_identity", "Write a shared_identity if, and only if, identity_scheme is shared."
        elif label and _shared(world.row("servers", values["server"]), label) is None:
            yield "shared_identity", "The server has no such shared credential. Add it on the server's page first."

    def needs(self, change: Change) -> set[Capability]:
        needed = super().needs(change)
        if change.after().get("shared_identity"):
            needed.add(Capability.IDENTITIES_MANAGE)
        return needed

    def add(self, change: Change, world: World, by: User) -> Any:
        gateway, server = world.row("gateways", change.key[0]), world.row("servers", change.values["server"])
        fields = {"alias": change.key[-1], "identity_scheme": change.values["identity_scheme"]}
        if identity := _allowed_identity(change, gateway, server, by):
            fields["shared_identity"] = identity
        policy = change.values["tool_policy"]
        row = Assignment.objects.assign(gateway=gateway, server=server, tool_policy=policy, **fields, by=by)
        _switch_tools(row, change, by)
        return row

    def edit(self, change: Change, world: World, by: User) -> None:
        row = change.row
        names = ("alias", "identity_scheme", "shared_identity", "tool_policy")
        fields = change.after(*names)
        if "shared_identity" in fields:
            fields["shared_identity"] = _allowed_identity(change, row.gateway, row.server, by)
        if fields:
            row.edit(**fields, by=by)
        _switch_tools(row, change, by)

    def remove(self, change: Change, world: World, by: User) -> None:
        change.row.remove(by=by)

    def cuts(self, change: Change, world: World, viewer: User) -> str:
        if change.act is Act.REMOVE or change.disables or change.after().get("tool_policy") == ToolPolicy.BLOCK_ALL:
            return cuts(change.row, viewer)
        disabled = [tool for tool in _wrong_tools(change.row, change) if tool.enabled]
        return cut_together(disabled, viewer) if disabled else ""


def _needs_credential(server: str, world: World) -> bool:
    return bool(world.planned("servers", server).get("auth_type", AuthType.NONE) != AuthType.NONE)


def _switches(assignments: QuerySet[Assignment]) -> dict[Any, dict[str, bool]]:
    """Return {assignment id: {tool name at the server: True if enabled}}."""
    found: dict[Any, dict[str, bool]] = defaultdict(dict)
    tools = Feature.objects.tools().placed().filter(assignment__in=assignments)
    for assignment, name, enabled in tools.values_list("assignment", "name", "enabled"):
        found[assignment][name] = enabled
    return found


def _shared(server: Any, label: str) -> Identity | None:
    if server is None or not label:
        return None
    return Identity.objects.live().shared().filter(server=server, label=label).first()


def _allowed_identity(change: Change, gateway: Gateway, server: Any, by: User) -> Identity | None:
    """Return the shared credential that the change names; None if the change names no shared credential.

    If the credential is not allowed on the gateway yet, allow it.
    """
    identity = _shared(server, change.values["shared_identity"])
    if identity and not identity.gateways.filter(pk=gateway.pk).exists():
        allow_identity(identity, [*identity.gateways.all(), gateway], by=by)
    return identity


def _wrong_tools(row: Assignment, change: Change) -> list[Feature]:
    """Return the known tools that must be enabled or disabled to match the list of tools in the change."""
    wrong: list[Feature] = []
    for name, on in LISTS.items():
        listed = change.after(name).get(name)
        if listed is not None:
            tools = row.features.filter(kind=FeatureKind.TOOL).select_related("assignment").order_by("name")
            wrong += [
                tool
                for tool in tools.only("name", "enabled", *OF_FEATURE)
                if tool.enabled != ((tool.name in listed) == on)
            ]
    return wrong


def _switch_tools(row: Assignment, change: Change, by: User) -> None:
    """Enable only the tools in the change's `enabled_tools`, or disable only the tools in its `disabled_tools`."""
    for name in LISTS:
        if listed := change.after(name).get(name):
            Feature.objects.expect(row, listed)
    wrong = _wrong_tools(row, change)
    to_enable, to_disable = [tool for tool in wrong if not tool.enabled], [tool for tool in wrong if tool.enabled]
    Feature.switch_all(to_enable, on=True, by=by)
    Feature.switch_all(to_disable, on=False, by=by)
