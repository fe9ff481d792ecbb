"""What is one's own: the identities one brought, and what acts as one."""

from __future__ import annotations

from django.db.models import F, Prefetch
from django.db.models.functions import Lower

from accounts.models import User
from connections.models import ConnectionIdentity
from servers.models import Identity, IdentityQuerySet


def own_identities(user: User) -> IdentityQuerySet:
    """The identities `user` brought, by server, live ones first, each with the live connections that use it."""
    live = ConnectionIdentity.objects.filter(connection__revoked_at=None).select_related(
        "connection__host", "connection__gateway"
    )
    return (
        Identity.objects.own(user)
        .select_related("server", "owner")
        .prefetch_related(Prefetch("connection_identities", live, to_attr="used_by"))
        .order_by(F("revoked_at").desc(nulls_first=True), Lower("server__name"), Lower("label"))
    )
