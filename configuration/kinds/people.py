"""The workspace settings, teams and roles in configuration files. People are not in files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError

from accounts.models import NewAppPolicy, Role, Team, WorkspaceSettings
from accounts.models.workspace import LEAST_PAYLOAD, MOST_PAYLOAD, check_zone
from accounts.rules import RequiredSignIn
from capabilities import Capability
from configuration.fields import choice, flag, limit, number, several, text
from configuration.kinds.base import Act, Change, Key, Kind, World
from ui.forms import MOST_CALLS
from ui.pages import number_of

if TYPE_CHECKING:
    from accounts.models import User

MOST_SECONDS = 3600
SLUGS = {capability.slug: capability for capability in Capability}


class WorkspaceKind(Kind):
    name, noun, key = "workspace", "workspace", ""
    about = "Settings of the workspace."
    sees = frozenset({Capability.WORKSPACE_READ})
    manages = Capability.WORKSPACE_MANAGE
    fields = (
        text("name", "Name of the installation.", 80, "Gateway Admin"),
        flag("allow_non_expiring_tokens", "Whether tokens without an expiry may be created.", False),
        choice("new_app_policy", "Whether a new app needs approval.", NewAppPolicy, NewAppPolicy.ALLOW),
        number(
            "log_retention_days", "Days that calls are kept. A smaller number takes effect after one day.", 1, 3650, 90
        ),
        flag("record_payloads", "Whether arguments and results of calls are recorded.", False),
        number(
            "payload_limit_bytes",
            "Maximum recorded bytes of a call's arguments, and of its result.",
            LEAST_PAYLOAD,
            MOST_PAYLOAD,
            16384,
        ),
        number(
            "oauth_access_token_seconds",
            "Lifetime of an app's access token, in seconds.",
            60,
            MOST_SECONDS,
            MOST_SECONDS,
        ),
        number("oauth_refresh_idle_days", "Days without use after which an app must sign in again.", 1, 365, 30),
        limit("calls_per_minute", "Maximum calls per minute of the workspace.", MOST_CALLS),
        limit("token_calls_per_minute", "Maximum calls per minute of each token.", MOST_CALLS),
        flag("setup_steps", "Whether the dashboard shows the remaining setup steps.", True),
        choice("required_sign_in", "How people must sign in with a browser.", RequiredSignIn, RequiredSignIn.NONE),
        text("zone", "Time zone of rules on tool calls, such as `Europe/Berlin`.", 64, "UTC"),
    )

    def read(self, world: World) -> Iterator[tuple[Key, Any, dict[str, Any]]]:
        row = WorkspaceSettings.load()
        values = {one.name: getattr(row, one.name) for one in self.fields}
        # While a requested shorter retention is pending, the file has the requested value.
        values["log_retention_days"] = row.shorter_retention_days or row.log_retention_days
        yield (), row, values

    def check(self, change: Change, world: World) -> Iterator[tuple[str, str]]:
        try:
            check_zone(change.values["zone"])
        except ValidationError as refusal:
            yield "zone", refusal.messages[0]

    def edit(self, change: Change, world: World, by: User) -> None:
        settings = WorkspaceSettings.edit(by=by, **change.after())
        if change.after().get("log_retention_days") == settings.log_retention_days:
            WorkspaceSettings.keep_logs(by=by)  # Cancel a pending shorter retention: the file has the present one.

    def cuts(self, change: Change, world: World, viewer: User) -> str:
        before, after = change.fields.get("log_retention_days", (0, 0))
        return f"Calls older than {number_of(after, 'day')} are deleted one day from now." if after < before else ""


class TeamKind(Kind):
    name, noun = "teams", "team"
    about = "Teams. Their members are not in files."
    sees = frozenset({Capability.PEOPLE_READ})
    manages = Capability.PEOPLE_MANAGE
    fields = (text("name", "Name of the team.", 80),)

    def read(self, world: World) -> Iterator[tuple[Key, Any, dict[str, Any]]]:
        for team in world.narrowed(Team.objects.all(), self):
            yield (team.name,), team, {"name": team.name}

    def add(self, change: Change, world: World, by: User) -> Any:
        return Team.objects.add(name=change.values["name"], users=[], by=by)

    def edit(self, change: Change, world: World, by: User) -> None:
        change.row.edit(name=change.values["name"], users=change.row.users.all(), by=by)


class RoleKind(Kind):
    name, noun = "roles", "role"
    about = "Roles. API keys cannot change them."
    sees = frozenset({Capability.PEOPLE_READ})
    manages = Capability.PEOPLE_MANAGE
    refuses_keys = True
    fields = (
        text("name", "Name of the role.", 80),
        several("capabilities", "Slugs of its permissions. Omit them for the role Super admin, which has all.", SLUGS),
        flag("uses_gateways", "Whether people with this role may connect to gateways and make calls.", True),
        choice("required_sign_in", "How people must sign in with a browser.", RequiredSignIn, RequiredSignIn.NONE),
    )

    def read(self, world: World) -> Iterator[tuple[Key, Any, dict[str, Any]]]:
        for role in world.narrowed(Role.objects.with_capabilities(), self):
            values: dict[str, Any] = {"name": role.name, "required_sign_in": role.required_sign_in}
            if not role.locked:
                slugs = sorted(capability.slug for capability in role.capabilities)
                values = {"name": role.name, "capabilities": slugs, "uses_gateways": role.uses_gateways} | values
            yield (role.name,), role, values

    def check(self, change: Change, world: World) -> Iterator[tuple[str, str]]:
        if change.act is Act.CHANGE and change.row.locked:
            for name in change.fields.keys() - {"required_sign_in"}:
                yield name, "This built-in role has all permissions and keeps its name. Remove the field."

    def needs(self, change: Change) -> set[Capability]:
        held = change.row.capabilities if change.row else frozenset()
        wanted = {SLUGS[slug] for slug in change.values.get("capabilities") or ()}
        return {self.manages, *held, *wanted}

    def add(self, change: Change, world: World, by: User) -> Any:
        values = change.values | {"capabilities": {SLUGS[slug] for slug in change.values["capabilities"]}}
        return Role.objects.add(**values, by=by)

    def edit(self, change: Change, world: World, by: User) -> None:
        values = {"name": change.row.name, "capabilities": change.row.capabilities} | change.after()
        if "capabilities" in change.fields:
            values["capabilities"] = {SLUGS[slug] for slug in change.values["capabilities"]}
        change.row.edit(**values, by=by)

    def cuts(self, change: Change, world: World, viewer: User) -> str:
        if change.fields.keys() <= {"name"}:
            return ""
        return f"Applies to {number_of(change.row.users.count(), 'person', 'people')} from their next request on."
