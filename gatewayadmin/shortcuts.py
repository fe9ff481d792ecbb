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
    """Context processor for `letters`: pressing G and then one of these letters opens a page."""
    return {"letters": SimpleLazyObject(lambda: "".join(page.key for page in _with_key(request)))}


@require_GET
@own_resource("lists pages the user may open")
def keys(request: AppRequest) -> HttpResponse:
    """List the keyboard shortcuts, in a dialog or as a page."""
    return show(request, "ui/keys.html", {"pages": _with_key(request)})


@require_GET
@own_resource("redirects to a page that checks its own capability")
def go(request: AppRequest, key: str) -> HttpResponse:
    """Redirect to the page with this shortcut, or to the list of shortcuts if the person may open no such page."""
    return redirect(next((reverse(page.view) for page in _with_key(request) if page.key == key), reverse("keys")))


def _with_key(request: HttpRequest) -> list[Offer]:
    return [page for page in offered(PAGES, request.user) if page.key]
