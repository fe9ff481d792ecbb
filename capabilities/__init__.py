"""Capability checks in Django: a view decorator and a template object.

The check for REST is `capabilities.rest.HasCapability`.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse

from capabilities.catalogue import Capability

__all__ = [
    "NOBODY",
    "Can",
    "Capability",
    "CapabilityRequired",
    "Held",
    "Holder",
    "can",
    "capability_or_404",
    "meets",
    "own_resource",
    "requires",
]

type View = Callable[..., HttpResponse]
# One capability, a tuple of alternatives, or a frozenset of which all are required; None requires nothing.
type Held = Capability | tuple[Capability, ...] | frozenset[Capability] | None

NOBODY: Held = ()


class Holder(Protocol):
    """A user with capabilities."""

    def has_perm(self, perm: str) -> bool: ...


class CapabilityRequired(PermissionDenied):
    """The user lacks a required capability. If `capabilities` has several, any one of them would be enough."""

    def __init__(self, *capabilities: Capability) -> None:
        super().__init__(f"Capability {' or '.join(repr(c.slug) for c in capabilities)} is required.")
        self.capabilities = capabilities

    @property
    def capability(self) -> Capability:
        """The capability that the user should ask for: the first of `capabilities`."""
        return self.capabilities[0]


def meets(holder: Holder, needs: Held) -> bool:
    """Return whether the holder has the capabilities that `needs` requires."""
    if needs is None or isinstance(needs, Capability):
        return needs is None or holder.has_perm(needs)
    return (all if isinstance(needs, frozenset) else any)(map(holder.has_perm, needs))


def capability_or_404(slug: str) -> Capability:
    """Return the capability of this slug. Raises Http404."""
    for capability in Capability.named([slug]):
        return capability
    raise Http404


def requires(*capabilities: Capability, to_change: bool = False) -> Callable[[View], View]:
    """Require any one of `capabilities` for a view; raise CapabilityRequired for users who have none of them.

    If a view has this decorator twice, the user needs one capability of each decorator. With `to_change`, GET and HEAD
    need no capability, so that the view can show its page read-only.
    """
    name = "change_rule" if to_change else "rule"

    def guard(view: View) -> View:
        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            is_asked = not to_change or request.method not in ("GET", "HEAD")
            if is_asked and not any(request.user.has_perm(capability) for capability in capabilities):
                raise CapabilityRequired(*capabilities)
            return view(request, *args, **kwargs)

        # A test checks these rules on all routes.
        setattr(guarded, name, (frozenset(capabilities), *getattr(view, name, ())))
        return guarded

    return guard


def own_resource(why: str, *, others: Held = None) -> Callable[[View], View]:
    """Mark a view that every active user may open without a capability.

    `why` says why no capability is needed, for example because the view shows only the user's own objects. If the URL
    names an object, the view itself must check that the user owns the object. `others` are the capabilities that the
    view requires for other people's objects.
    """

    def mark(view: View) -> View:
        # A test checks `others` on all routes.
        view.rule, view.others = why, others  # type: ignore[attr-defined]
        return view

    return mark


class Can:
    """The viewer's capabilities for templates: `{% if can.hosts_toggle %}`.

    An unknown name raises LookupError, so that a typo fails the page instead of hiding a button.
    """

    def __init__(self, holder: Holder) -> None:
        self._holder = holder

    def __getattr__(self, name: str) -> bool:
        try:
            capability = Capability[name.upper()]
        except KeyError:
            raise LookupError(f"No capability is called {name.upper()}.") from None
        return self._holder.has_perm(capability)

    def __getitem__(self, name: str) -> bool:
        return bool(getattr(self, name))


def can(request: HttpRequest) -> dict[str, Can]:
    """Context processor: adds `can`, the viewer's capabilities, to the context of every template."""
    return {"can": Can(request.user)}
