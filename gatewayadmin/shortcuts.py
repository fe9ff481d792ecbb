"""Keyboard shortcuts that open pages (G, then a letter), and the list of all keys."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.functional import SimpleLazyObject
from django.views.decorators.http import require_GET

from capabilities import own_resource
from gatewayadmin.palette_pages import PAGES, Offer, offered
from ui.pages import AppRequest, show


def letters(request: HttpRequest) -> dict[str, Any]:
    """Return the template variable `letters`: the letters that open a page when the person presses them after G."""
    return {"letters": SimpleLazyObject(lambda: "".join(page.key for page in _with_key(request)))}


@require_GET
@own_resource("lists pages the user may open")
def keys(request: AppRequest) -> HttpResponse:
    """List the keyboard shortcuts, in a dialog or as a page."""
    return show(request, "ui/keys.html", {"pages": _with_key(request)})


@require_GET
@own_resource("redirects to a page that checks its own capability")
def go(request: AppRequest, key: str) -> HttpResponse:
    """Redirect to the page with this shortcut.

    Redirect to the list of shortcuts if no page has this shortcut, or if the person may not open the page.
    """
    return redirect(next((reverse(page.view) for page in _with_key(request) if page.key == key), reverse("keys")))


def _with_key(request: HttpRequest) -> list[Offer]:
    return [page for page in offered(PAGES, request.user) if page.key]
