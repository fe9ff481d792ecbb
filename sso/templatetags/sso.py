"""Template tags for the organisation's provider."""

from __future__ import annotations

from django import template

from accounts.rules import must_sign_in_at_organisation
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
    """Return whether the user has a password and does not have to sign in at the provider."""
    user = context["request"].user
    return user.has_usable_password() and not must_sign_in_at_organisation(user)
