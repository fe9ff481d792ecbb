"""Agents in configuration files, and what they may use on gateways. Files list no apps: most apps add themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from capabilities import Capability
from configuration.fields import Field, flag, text
from configuration.kinds.base import Change, Key, Kind, World
from connections.given_tools import limited_to, refused_by
from connections.impact import cuts
from connections.models import HostAtGateway
from gateways.models import HostsAllowed
from hosts.models import Host, HostKind

if TYPE_CHECKING:
    from accounts.models import User


class AgentKind(Kind):
    name, noun = "agents", "agent"
    about = "Agents. Files do not contain their API access tokens."
    sees = frozenset({Capability.HOSTS_READ})
    manages, toggles = Capability.API_TOKENS_MANAGE, Capability.HOSTS_TOGGLE
    fields = (
        text("name", "Name of the agent.", 120),
        text("description", "Text for people.", 500, ""),
        flag("enabled", "Whether it is enabled.", True),
        flag("allow_enrolment", "Whether people may create their own tokens for the agent.", False),
    )

    def read(self, world: World) -> Iterator[tuple[Key, Any, dict[str, Any]]]:
        for host in world.narrowed(Host.objects.live().filter(kind=HostKind.TOKEN), self):
            yield (host.name,), host, {one.name: getattr(host, one.name) for one in self.fields}

    def add(self, change: Change, world: World, by: User) -> Any:
        return Host.objects.add_agent(**change.settings, by=by)

    def edit(self, change: Change, world: World, by: User) -> None:
        host, after = change.row, change.after()
        if change.gives("name", "description"):
            host.rename(name=change.values["name"], description=change.values["description"], by=by)
        if "allow_enrolment" in after:
            host.set_enrolment(after["allow_enrolment"], by=by)

    def cuts(self, change: Change, world: World, viewer: User) -> str:
        return cuts(change.row, viewer) if change.disables else ""


ALLOWED = Field(
    "allowed",
    "Whether the agent is allowed (true) or blocked (false). If null, `hosts_allowed` of the gateway decides.",
    {"type": ["boolean", "null"]},
    "Write true, false or null.",
    None,
)


class AgentGatewayKind(Kind):
    parent, name, noun, key, lookup = "agents", "gateways", "agent", "gateway", "host__name"
    about = (
        "The gateways on which the agent is allowed, blocked, or limited to a tool set. On other gateways, "
        "`hosts_allowed` decides whether the agent is allowed, and no tool set limits the agent."
    )
    sees = frozenset({Capability.HOSTS_READ, Capability.GATEWAYS_READ})
    manages = Capability.GATEWAYS_MANAGE
    cuts_when_new = True
    fields = (
        text("gateway", "Slug of the gateway.", 40, refers_to="gateways", is_fixed=True),
        ALLOWED,
        text("tool_set", "Tool set to which the agent is limited on the gateway. If empty, there is no limit.", 80, ""),
    )

    def title(self, key: Key) -> str:
        return f"agent {key[0]} on gateway {key[-1]}"

    def read(self, world: World) -> Iterator[tuple[Key, Any, dict[str, Any]]]:
        rows = HostAtGateway.objects.live().filter(host__kind=HostKind.TOKEN, gateway__archived_at=None)
        for row in world.narrowed(rows, self).select_related("host", "gateway", "tool_set"):
            tool_set = row.tool_set.name if row.tool_set else ""
            values = {"gateway": row.gateway.slug, "allowed": row.allowed, "tool_set": tool_set}
            yield (row.host.name, row.gateway.slug), row, values

    def check(self, change: Change, world: World) -> Iterator[tuple[str, str]]:
        allowed, tool_set = change.values["allowed"], change.values["tool_set"]
        if allowed is None and not tool_set:
            yield "gateway", "Write “allowed” or “tool_set”, or remove this gateway from the list."
        if tool_set and not world.planned("gateways.tool_sets", change.values["gateway"], tool_set):
            message = "The gateway has no such tool set. Add it to the gateway's tool_sets, or correct the name."
            yield "tool_set", message

    def add(self, change: Change, world: World, by: User) -> Any:
        host, gateway = world.row("agents", change.key[0]), world.row("gateways", change.key[1])
        self._set(change, HostAtGateway.objects.at(gateway, host), world, by)
        return HostAtGateway.objects.at(gateway, host)

    def edit(self, change: Change, world: World, by: User) -> None:
        self._set(change, change.row, world, by)

    def _set(self, change: Change, row: HostAtGateway, world: World, by: User) -> None:
        tool_set = change.values["tool_set"]
        row.limit(world.row("gateways.tool_sets", change.key[1], tool_set) if tool_set else None, by=by)
        {None: row.reset, True: row.allow, False: row.block}[change.values["allowed"]](by=by)

    def remove(self, change: Change, world: World, by: User) -> None:
        change.row.limit(None, by=by)
        change.row.reset(by=by)

    def cuts(self, change: Change, world: World, viewer: User) -> str:
        host, gateway = world.row("agents", change.key[0]), world.row("gateways", change.key[1])
        row = change.row or (HostAtGateway.objects.at(gateway, host) if host and gateway else None)
        if row is None:
            return ""
        only_listed = world.planned("gateways", change.key[1]).get("hosts_allowed") == HostsAllowed.LISTED
        allowed = change.values.get("allowed")
        if (allowed is False and row.allowed is not False) or (allowed is None and row.allowed and only_listed):
            return cuts(row, viewer)
        limit = change.after().get("tool_set")
        tool_set = world.row("gateways.tool_sets", change.key[1], limit) if limit else None
        return refused_by(row.gateway, viewer, limited_to(row.host, tool_set)) if tool_set else ""
