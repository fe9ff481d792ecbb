"""Capability checks for REST operations."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from capabilities import NOBODY, Capability, CapabilityRequired, Held
from ui.operations import operation_of

type Rule = Held | Own


@dataclass(frozen=True, slots=True)
class Own:
    """Permission rule that lets every signed-in user act on their own objects."""

    others: Held  # Needed for other people's objects; may be NOBODY.
    by_key: Held = None  # Needed by an API key, even for its owner's objects. None: the key needs `others`.

    @property
    def for_keys(self) -> Held:
        """The capabilities that an API key needs, even for objects of the key's owner."""
        return self.by_key or self.others

    def check(self, user: Any, owner: UUID | None) -> None:
        """Raise an exception unless `user` is the owner or may act on other people's objects.

        Raises PermissionDenied with the code `not_yours` if only the owner may act. Raises CapabilityRequired if other
        people may act, but `user` lacks the capability.
        """
        if owner != user.pk:
            if self.others == NOBODY:
                raise PermissionDenied("Only the owner may do this.", code="not_yours")
            must_hold(user, self.others)


class HasCapability(BasePermission):
    """Checks the permission rule of a REST operation.

    A method declares its rule with `@operation(needs=...)`. A method without `@operation` is refused. The rule is a
    capability such as `Capability.HOSTS_READ`, a tuple of capabilities of which the user needs one, a frozenset of
    capabilities of which the user needs all, or `Own`. The rule None lets every signed-in user pass.

    API access tokens are refused unless the method has `@operation(access_tokens=True)`. API keys are accepted unless
    the method has `@operation(api_keys=False)`.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        if not request.user.is_authenticated:
            return False
        declared = operation_of(view, view.action)
        if getattr(request.auth, "is_data_plane", False) and not (declared and declared.access_tokens):
            raise PermissionDenied(
                "API access tokens are for gateways and not accepted here. Use an API key (Settings, API keys).",
                code="token_not_accepted",
            )
        if view.action in (None, "metadata"):
            return True  # The view does not support this method, and answers 405.
        if declared is None:
            return False
        rule = declared.needs
        if getattr(request.auth, "is_api_key", False):
            if not declared.api_keys:
                raise PermissionDenied("API keys are not accepted here. Sign in.", code="key_not_accepted")
            # A key may do only what it has capabilities for, even with its owner's objects.
            rule = rule.for_keys if isinstance(rule, Own) else rule
        if not isinstance(rule, Own):
            must_hold(request.user, rule)
        return True


def must_hold(user: Any, needed: Held) -> None:
    """Raise CapabilityRequired unless `user` has the capabilities that `needed` requires."""
    match needed:
        case None:
            return
        case frozenset():
            missing = tuple(sorted(capability for capability in needed if not user.has_perm(capability)))[:1]
        case _:
            alternatives = (needed,) if isinstance(needed, Capability) else needed
            missing = () if any(user.has_perm(capability) for capability in alternatives) else alternatives
    if missing:
        raise CapabilityRequired(*missing)


def capabilities_in(rule: Rule) -> frozenset[Capability]:
    """Return every capability in `rule`."""
    if isinstance(rule, Own):
        return capabilities_in(rule.others) | capabilities_in(rule.by_key)
    if rule is None:
        return frozenset()
    return frozenset({rule}) if isinstance(rule, Capability) else frozenset(rule)
