"""The pages of the open section in the navigation rail."""

from __future__ import annotations

from django import template
from django.http import HttpRequest
from django.template.context import RequestContext
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

register = template.Library()


@register.simple_tag(takes_context=True)
def rail_page(context: RequestContext, url_name: str, text: str) -> SafeString:
    """An entry below a section; it is current on its own page and on all pages below it."""
    request: HttpRequest = context["request"]
    url = reverse(url_name)
    is_below = request.path.startswith(f"{url.rstrip('/')}/")
    current = SafeString(' aria-current="page"') if request.path == url else SafeString(' aria-current="true"')
    return format_html('<li><a href="{}"{}>{}</a></li>', url, current if request.path == url or is_below else "", text)
