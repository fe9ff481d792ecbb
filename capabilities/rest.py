"""The REST face of the capabilities."""

from typing import Any

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from capabilities import Capability, CapabilityRequired


class HasCapability(BasePermission):
    """Allows an action to holders of the capability its view declares.

    The view lists `capabilities = {"list": Capability.HOSTS_READ, ...}`; an action without an entry
    is refused, and `None` opens an action to every signed-in user.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        if not request.user.is_authenticated:
            return False
        declared: dict[str, Capability | None] = view.capabilities
        if view.action not in declared:
            return False
        capability = declared[view.action]
        if capability is None or request.user.has_perm(capability):
            return True
        raise CapabilityRequired(capability)
