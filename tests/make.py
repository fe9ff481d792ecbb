"""Functions that create rows for tests. A test passes the values that matter to it, so that its reader sees them."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID, uuid4

from django.db import connections
from django.utils import timezone

from accounts.models import Role, User, permissions_of
from approvals.models import Hold
from auditlog.models import Call
from capabilities import Capability
from capabilities.catalogue import BUILT_IN
from connections.models import Connection
from gateways.models import Assignment, Gateway, IdentityScheme
from hosts.models import Host, HostKind
from proxy.models import ServerInfo
from proxy.store.call_log import new_uid
from servers.models import AuthType, Identity, Server
from tokens import api_keys
from tokens.api_keys import IssuedApiKey
from tokens.models import Issued, Token
from ui.sealing import cipher
from wire import canonical_json

PASSWORD = "correct horse battery staple"


def unique(word: str) -> str:
    """Return `word` with an ending no other test uses."""
    return f"{word}-{uuid4().hex[:6]}"


def role(*capabilities: Capability, name: str = "") -> Role:
    made = Role.objects.create(name=name or unique("role"))
    grant(made, capabilities)
    return made


def grant(role: Role, capabilities: Iterable[Capability]) -> None:
    """Add these capabilities to a role that has none, without the slow comparison with the role's current ones."""
    if granted := set(capabilities):
        known = permission_keys(connections["default"].settings_dict["NAME"])
        through = Role.permissions.through
        through.objects.bulk_create(through(role_id=role.pk, permission_id=known[one]) for one in granted)


def built_in_roles() -> None:
    """Create the missing roles of a new workspace, as `Role.objects.make_built_in()` does."""
    present = set(Role.objects.values_list("name", flat=True))
    for one in (one for one in BUILT_IN if one.name not in present):
        role = Role.objects.create(name=one.name, locked=one.locked, uses_gateways=one.uses_gateways)
        grant(role, one.capabilities)


@cache
def permission_keys(database: str) -> dict[Capability, int]:
    """Return the key of each capability's permission; migrations create them, and no test changes them."""
    rows = permissions_of(Capability).values_list("content_type__app_label", "codename", "pk")
    keys = {f"{app_label}.{codename}": pk for app_label, codename, pk in rows}
    return {one: keys[one] for one in Capability}


def user(*capabilities: Capability, email: str = "", **fields: Any) -> User:
    """Return a user whose role has exactly `capabilities`."""
    return User.objects.create_user(
        email or f"{unique('user')}@example.com", PASSWORD, role=role(*capabilities), **fields
    )


def invited() -> User:
    """Return a person who was invited and has not set a password."""
    return User.objects.invite(email=f"{unique('user')}@example.com", role=role(), by=None)


def server(*, by: User | None = None, **fields: Any) -> Server:
    slug = fields.pop("slug", None) or f"s{uuid4().hex[:8]}"
    fields = {"name": slug, "url": f"https://{slug}.example.com/mcp"} | fields
    return Server.objects.add(by=by, slug=slug, **fields)


def introduced(server: Server, **capabilities: Any) -> Server:
    """Return the server, after storing that it declared the capability `tools` and these `capabilities`."""
    ServerInfo.objects.create(
        server_id=server.pk, told_to=server.pk, capabilities={"tools": {}, **capabilities}, changed_at=timezone.now()
    )
    return server


def gateway(*servers: Server, by: User | None = None, **fields: Any) -> Gateway:
    """Return a gateway with `servers`: each has its slug as alias, and no credential."""
    slug = fields.pop("slug", None) or unique("gateway")
    values: dict[str, Any] = {"name": slug} | fields
    made = Gateway.objects.add(by=by, slug=slug, **values)
    for one in servers:
        assignment(made, one)
    return made


def assignment(gateway: Gateway, server: Server, **fields: Any) -> Assignment:
    fields = {"alias": server.slug, "identity_scheme": IdentityScheme.NONE} | fields
    if shared := fields.get("shared_identity"):
        shared.gateways.add(gateway)
    return Assignment.objects.assign(gateway=gateway, server=server, by=None, **fields)


def identity(server: Server, owner: User | None = None, *, secret: str = "", label: str = "") -> Identity:
    """Return a credential for `server`, shared if it has no owner."""
    if server.auth_type == AuthType.NONE:
        raise ValueError("A server without authentication takes no identity.")
    return Identity.objects.bring(
        server=server, owner=owner, label=label or unique("identity"), secret=secret or uuid4().hex, by=owner
    )


def agent(*, by: User, name: str = "") -> Host:
    return Host.objects.add_agent(name=name or unique("agent"), by=by)


def connection(host: Host, gateway: Gateway, user: User, identities: Iterable[Identity] = ()) -> Connection:
    """Return a live connection that uses `identities` for the per-user servers they belong to."""
    by_server = {one.server_id: one for one in identities}
    assigned = gateway.assignments.live().filter(server__in=by_server)
    return Connection.objects.open(
        host=host, gateway=gateway, user=user, identities={a: by_server[a.server_id] for a in assigned}, by=user
    )


def app(name: str = "Claude Desktop", **fields: Any) -> Host:
    """Return the host of a headed app, as created when a person connects it."""
    return Host.objects.create(kind=HostKind.HEADED, name=name, dedupe_key=unique("key"), **fields)


def app_connection(
    user: User, gateway: Gateway, *, name: str = "Claude Desktop", host: Host | None = None
) -> Connection:
    """Return a live connection of an app. Nobody knows the secret of the connection's key."""
    made = connection(host or app(name), gateway, user)
    Token.objects.provide_key(made, by=user)
    return made


def token(connection: Connection, *, name: str = "", **fields: Any) -> Issued:
    return Token.objects.issue(connection, name=name or unique("token"), by=connection.user, **fields)


def api_key(owner: User, *capabilities: Capability, name: str = "", days: int = 30) -> IssuedApiKey:
    """Return a key that acts as `owner` with `capabilities`."""
    return api_keys.issue(name=name or unique("key"), capabilities=capabilities, days=days, by=owner)


def hold(connection: Connection, server: Server, *, tool: str = "docs__search", **fields: Any) -> Hold:
    """Return a held call, as the proxy makes it, on which everybody with APPROVALS_DECIDE may decide."""
    now = timezone.now()
    arguments = fields.pop("arguments", {"amount": 740})
    minutes = timedelta(minutes=15)
    given = {"rule_id": uuid4(), "rule_version": 1, "rule_name": "Ask first", "approvers": "anybody", "seconds": 900}
    given |= {"asked_at": now, "fallback_at": now, "ends_at": now + minutes, "asking_call": uuid4()}
    sealed = {"sealed_arguments": cipher().seal(json.dumps(arguments)), "key_id": cipher().key_id}
    sealed["digest"] = canonical_json.digest(arguments)
    return Hold.objects.create(
        connection=connection, user=connection.user, server=server, tool=tool, **given | sealed | fields
    )


def call(*, at: datetime | None = None, **fields: Any) -> Call:
    """Return a logged call; by default, a successful one made just now."""
    at = at or datetime.now(UTC)
    Call.partitions.make_for(at.date())
    told: dict[str, Any] = {
        "correlation_id": uuid4(),
        "method": "tools/call",
        "outcome": "ok",
        "http_status": 200,
        "duration_ms": 1.5,
    }
    return Call.objects.create(created_at=at, **({"uid": new_uid(at.timestamp())} | told | fields))


def opening_call(*, at: datetime | None = None, **fields: Any) -> Call:
    """Return the logged `initialize` call that opened a session; the session id equals the call's own id."""
    at = at or datetime.now(UTC)
    uid = UUID(new_uid(at.timestamp()))
    return call(at=at, uid=uid, session_id=uid, correlation_id=uid, **{"method": "initialize"} | fields)
