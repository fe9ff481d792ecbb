"""The organisation's provider, for the pages of people who sign in."""

from __future__ import annotations

from django import template

from sso.models import Account, Provider

register = template.Library()


@register.simple_tag
def organisation() -> Provider | None:
    """The provider at which people may sign in, if there is one."""
    return Provider.offered()


@register.simple_tag(takes_context=True)
def is_linked(context: template.Context, provider: Provider) -> bool:
    """Whether the reader signs in there."""
    return Account.objects.filter(user=context["request"].user, issuer=provider.known_as).exists()
