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
    """Open to every signed-in user for what is theirs; others' things take `others`, which may be NOBODY.

    An API key needs `by_key` even for what is its owner's: the same as for others' unless given.
    """

    others: Held
    by_key: Held = None

    @property
    def for_keys(self) -> Held:
        """What an API key must hold."""
        return self.by_key or self.others

    def check(self, user: Any, owner: UUID | None) -> None:
        """Raise CapabilityRequired, or 403 `not_yours`, when `user` may not act on other people's resources."""
        if owner != user.pk:
            if self.others == NOBODY:
                raise PermissionDenied("Only its owner may do this.", code="not_yours")
            must_hold(user, self.others)


class HasCapability(BasePermission):
    """Allows an operation to whom its rule allows it.

    Its method declares it with `@operation(needs=Capability.HOSTS_READ)`: one capability, a tuple of which any one
    will do, a frozenset of which all are needed, None for every signed-in user, or `Own`. A method that declares
    nothing is refused. A credential made for the proxy (`request.auth.is_data_plane`) opens only what is declared with
    `access_tokens=True`. A person's API key (`request.auth.is_api_key`) opens nothing with `api_keys=False`, and for
    `Own` it needs the capability even for what is its owner's: a key does what it was made with and no more.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        if not request.user.is_authenticated:
            return False
        declared = operation_of(view, view.action)
        if getattr(request.auth, "is_data_plane", False) and not (declared and declared.access_tokens):
            raise PermissionDenied(
                "API access tokens are for gateways and not accepted here. Use an API key: Settings, API keys.",
                code="token_not_accepted",
            )
        if view.action in (None, "metadata"):
            return True  # No action of this view has this method: 405 follows.
        if declared is None:
            return False
        rule = declared.needs
        if getattr(request.auth, "is_api_key", False):
            if not declared.api_keys:
                raise PermissionDenied("API keys are not accepted here. Sign in.", code="key_not_accepted")
            rule = rule.for_keys if isinstance(rule, Own) else rule
        if not isinstance(rule, Own):
            must_hold(request.user, rule)
        return True


def must_hold(user: Any, needed: Held) -> None:
    """Raise CapabilityRequired unless `user` holds what is needed."""
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
    """Every capability that `rule` speaks of."""
    if isinstance(rule, Own):
        return capabilities_in(rule.others) | capabilities_in(rule.by_key)
    if rule is None:
        return frozenset()
    return frozenset({rule}) if isinstance(rule, Capability) else frozenset(rule)
