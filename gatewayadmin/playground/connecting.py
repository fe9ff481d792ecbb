"""As whom the playground asks: the person's own connection of the app Playground, opened by the verbs of every app."""

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
    """The app Playground; it waits for approval where new apps do."""
    waits = WorkspaceSettings.load().new_app_policy == NewAppPolicy.APPROVE
    return Host.objects.playground(needs_approval=waits, by=by)


def live_connection(user: User, gateway: Gateway) -> Connection | None:
    """The person's connection of the playground to this gateway, if they have one."""
    rows = Connection.objects.own(user).live().filter(host__dedupe_key=PLAYGROUND, gateway=gateway)
    return rows.select_related("host", "gateway", "user").first()


def connect(user: User, gateway: Gateway) -> Connection:
    """The person's connection of the playground to this gateway, opened when there is none.

    It carries, where each person brings an identity of their own, the newest of theirs that can be used. What stops a
    connection that lives is not asked here but by its calls. Raises ConnectionRefused for whom no app could connect.
    """
    if (live := live_connection(user, gateway)) is not None:
        return live
    if not user.has_perm(Capability.OAUTH_CONNECT):
        raise ConnectionRefused(f"Your role lacks {Capability.OAUTH_CONNECT.label}.")
    app = host(by=user)  # Apart from the rest: where it waits for approval, there has to be something to approve.
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
