"""Tool sets of gateways, with their grants to teams and everybody, in configuration files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accounts.models import Team, User
from capabilities import Capability
from configuration.fields import Field, flag, names, several, text
from configuration.kinds.base import Act, Change, Key, Kind, World
from connections.tool_sets import MOST_PATTERNS
from gateways.models import STATED_EFFECTS, Assignment, Feature, Gateway, GatewayError, ToolGrant, ToolSet
from ui.pages import number_of
from wire.definitions import SEPARATOR

LONGEST_PATTERN = 200
PATTERNS = {
    "type": "array",
    "items": {"type": "string", "minLength": 1, "maxLength": LONGEST_PATTERN},
    "maxItems": MOST_PATTERNS,
    "uniqueItems": True,
}
INSTEAD = f"Write a list of at most {MOST_PATTERNS} patterns, such as ['github__get_*']."


class ToolSetKind(Kind):
    parent, name, noun, lookup = "gateways", "tool_sets", "tool set", "gateway__slug"
    about = (
        "The tool sets of a gateway. A set that is not in the list is archived: its grants to teams and to everybody "
        "end. But if a person has the set, or if it limits an app or agent, the file is refused."
    )
    sees = frozenset({Capability.GATEWAYS_READ})
    manages = Capability.GATEWAYS_MANAGE
    is_removed_last = True
    fields = (
        text("name", "Name of the set.", 80),
        Field("patterns", "Tools by name, with `*` and `?`.", PATTERNS, INSTEAD, []),
        several("effects", "Only tools with one of these effects.", [effect for effect, _ in STATED_EFFECTS]),
        names("tools", "Further tools, by the names that clients see.", 1000),
        flag("everyone", "Whether everybody has the set.", False),
        names(
            "teams",
            "Teams that have the set. Files contain neither grants with an end date nor grants to people.",
            80,
            refers_to="teams",
        ),
    )

    def title(self, key: Key) -> str:
        return f"tool set {key[-1]} on gateway {key[0]}"

    def read(self, world: World) -> Iterator[tuple[Key, Any, dict[str, Any]]]:
        rows = ToolSet.objects.live().filter(gateway__archived_at=None).select_related("gateway")
        for row in world.narrowed(rows, self).prefetch_related("members"):
            grants = [grant for grant in _grants(row) if grant.ends_at is None]
            values = {
                "name": row.name,
                "patterns": row.patterns,
                "effects": sorted(row.effects),
                "tools": sorted(feature.exposed_name for feature in row.members.all()),
                "everyone": any(grant.everyone for grant in grants),
                "teams": sorted(grant.team.name for grant in grants if grant.team),
            }
            yield (row.gateway.slug, row.name), row, values

    def add(self, change: Change, world: World, by: User) -> Any:
        gateway, values = world.row("gateways", change.key[0]), change.values
        members = _members(gateway, values["tools"])
        rule = {name: values[name] for name in ("name", "patterns", "effects")}
        row = ToolSet.objects.add(gateway=gateway, **rule, members=members, by=by)
        _give(row, values, world, by)
        return row

    def edit(self, change: Change, world: World, by: User) -> None:
        row, values = change.row, change.values
        if change.gives("name", "patterns", "effects", "tools"):
            rule = {name: values[name] for name in ("name", "patterns", "effects")}
            row.edit(**rule, members=_members(row.gateway, values["tools"]), by=by)
        if change.gives("everyone", "teams"):
            _give(row, values, world, by)

    def remove(self, change: Change, world: World, by: User) -> None:
        for grant in _grants(change.row):
            if grant.user is None:
                grant.end(by=by)
        change.row.archive(by=by)

    def cuts(self, change: Change, world: World, viewer: User) -> str:
        if not viewer.has_perm(Capability.PEOPLE_READ):
            return ""
        # Only a removal ends grants with an end date.
        grants = [one for one in _grants(change.row) if one.ends_at is None or change.act is Act.REMOVE]
        wanted = change.values.get("teams") or ()
        if not change.values.get("everyone") and any(grant.everyone for grant in grants):
            return "The tools of this set are no longer given to everybody."
        lost = [grant.team for grant in grants if grant.team and grant.team.name not in wanted]
        people = User.objects.filter(teams__in=lost).distinct().count()
        teams, them = number_of(len(lost), "team"), number_of(people, "person", "people")
        return f"Ends the grants to {teams} with {them}." if lost else ""


def _grants(row: ToolSet) -> list[ToolGrant]:
    return list(ToolGrant.objects.live().filter(tool_set=row).select_related("team", "user", "tool_set", "gateway"))


def _members(gateway: Gateway, wanted: list[str]) -> list[Feature]:
    """Return the features with these names. If a server has not listed a tool yet, create a row for the tool.

    Raises GatewayError.
    """
    features = Feature.objects.placed().filter(assignment__gateway=gateway)
    known = {*features.filter(exposed_name__in=wanted).values_list("exposed_name", flat=True)}
    places = {assignment.prefix: assignment for assignment in Assignment.objects.placed().filter(gateway=gateway)}
    for name in sorted({*wanted} - known):
        alias, separator, tool = name.partition(SEPARATOR)
        place = places.get(f"{alias}{separator}") or places.get("")
        if place is None:
            raise GatewayError(f"This gateway has no {name}. Begin the name with the alias of a server.")
        Feature.objects.expect(place, [tool if place.alias else name])
    return list(features.filter(exposed_name__in=wanted))


def _give(row: ToolSet, values: dict[str, Any], world: World, by: User) -> None:
    """Give the set to the teams in `values`, and to everybody if `values` says so. These grants have no end date.

    End all other grants to teams and to everybody, except grants with an end date. Grants to people remain.
    """
    teams: list[Team] = [world.row("teams", name) for name in values["teams"]]
    wanted = {*teams} | ({None} if values["everyone"] else set())
    present = {grant.team: grant for grant in _grants(row) if grant.user is None and grant.ends_at is None}
    for team in present.keys() - wanted:
        present[team].end(by=by)
    for team in sorted(wanted - present.keys(), key=str):
        ToolGrant.objects.give(row, team=team, by=by)
