"""The REST face of the capabilities."""

from typing import Any

from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from capabilities import Capability, CapabilityRequired


class HasCapability(BasePermission):
    """Allows an action to holders of the capability its view declares.

    The view lists `capabilities = {"list": Capability.HOSTS_READ, ...}`; an action without an entry
    is refused, and `None` opens an action to every signed-in user. A credential made for the proxy
    (`request.auth.is_data_plane`) opens only what the view lists in `bearer_actions`.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        if not request.user.is_authenticated:
            return False
        if getattr(request.auth, "is_data_plane", False) and view.action not in getattr(view, "bearer_actions", ()):
            raise PermissionDenied("API access tokens are not accepted here.", code="token_not_accepted")
        declared: dict[str, Capability | None] = view.capabilities
        if view.action not in declared:
            return False
        capability = declared[view.action]
        if capability is None or request.user.has_perm(capability):
            return True
        raise CapabilityRequired(capability)
