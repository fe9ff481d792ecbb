"""Template tags for the organisation's provider."""

from __future__ import annotations

from django import template

from sso.models import Account, Provider

register = template.Library()


@register.simple_tag
def organisation() -> Provider | None:
    """Return the provider if people may sign in at the organisation, otherwise None."""
    return Provider.offered()


@register.simple_tag(takes_context=True)
def is_linked(context: template.Context, provider: Provider) -> bool:
    """Return whether the user's account is linked to the provider."""
    return Account.objects.filter(user=context["request"].user, issuer=provider.known_as).exists()


@register.simple_tag(takes_context=True)
def may_unlink(context: template.Context) -> bool:
    """Return whether the user's account at the provider can be unlinked."""
    return Provider.why_linked(context["request"].user) is None
