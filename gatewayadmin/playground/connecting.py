"""The user's own connection of the app Playground, opened by the same verbs as for other apps."""

from __future__ import annotations

from django.db import transaction

from accounts.models import NewAppPolicy, User, WorkspaceSettings
from capabilities import Capability
from connections.models import Connection, ConnectionRefused
from gateways.models import Assignment, Gateway
from hosts.models import PLAYGROUND, Host
from servers.models import Identity
from tokens.models import Token


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
