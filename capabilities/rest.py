"""The REST face of the capabilities."""

from typing import Any

from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from capabilities import Capability, CapabilityRequired

type Rule = Capability | tuple[Capability, ...] | None


class HasCapability(BasePermission):
    """Allows an action to holders of the capability its view declares.

    The view lists `capabilities = {"list": Capability.HOSTS_READ, ...}`, several of which any one will do
    as a tuple; an action without an entry is refused, and `None` opens an action to every signed-in user.
    A credential made for the proxy (`request.auth.is_data_plane`) opens only what the view lists in
    `bearer_actions`.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        if not request.user.is_authenticated:
            return False
        if getattr(request.auth, "is_data_plane", False) and view.action not in getattr(view, "bearer_actions", ()):
            raise PermissionDenied("API access tokens are not accepted here.", code="token_not_accepted")
        if view.action in (None, "metadata"):
            return True  # No action of this view has this method: 405 follows.
        if view.action not in view.capabilities:
            return False
        return allow(request.user, view.capabilities[view.action])


def allow(user: Any, rule: Rule) -> bool:
    """True when `user` satisfies `rule`. Raises CapabilityRequired."""
    needed = (rule,) if isinstance(rule, Capability) else rule or ()
    if needed and not any(user.has_perm(capability) for capability in needed):
        raise CapabilityRequired(*needed)
    return True
