"""The pages below /help/, and the index for assistants at /llms.txt."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import redirect_to_login
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.urls import reverse
from django.views.decorators.http import require_GET

from gatewayadmin.help import documents
from gatewayadmin.help.documents import IMAGES, INDEX, document, groups, search
from ui.pages import show, text_of

LONGEST = 100
TEXT = "text/plain; charset=utf-8"  # Browsers save text/markdown as a file.


def readable(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """Open a view to everyone signed in, or to everyone if GATEWAY_HELP_PUBLIC is set."""

    @require_GET
    @login_not_required
    @wraps(view)
    def opened(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if settings.HELP_IS_PUBLIC or request.user.is_authenticated:
            return view(request, *args, **kwargs)
        return redirect_to_login(request.get_full_path())

    return opened


@readable
def index(request: HttpRequest) -> HttpResponse:
    """Show the list of pages, or the results of a search."""
    words = " ".join(text_of(request.GET, "q").split())[:LONGEST]
    return show(request, "help/index.html#results", {"words": words, "found": search(words), "groups": groups()})


@readable
def page(request: HttpRequest, path: str) -> HttpResponse:
    found = document(path)
    if found is None or path == INDEX:
        raise Http404
    return show(request, "help/page.html", {"document": found, "groups": groups()})


@readable
def source(request: HttpRequest, path: str) -> HttpResponse:
    """Return the Markdown of a page, for assistants."""
    if (found := documents.documents().get(path)) is None:
        raise Http404
    return HttpResponse(found.source, content_type=TEXT)


@readable
def file(request: HttpRequest, path: str) -> FileResponse:
    """Return an image that the pages contain."""
    found = documents.image(path)
    if found is None:
        raise Http404
    return FileResponse(found.open("rb"), content_type=IMAGES[found.suffix])


@readable
def llms(request: HttpRequest) -> HttpResponse:
    """List the pages for assistants, as https://llmstxt.org describes."""
    lines = ["# Gateway Admin", "", "> A self-hosted MCP gateway: who may call which tool, and a log of every call."]
    for group in groups():
        lines += ["", f"## {group.title}", ""]
        for one in group.documents:
            url = f"{settings.PUBLIC_URL}{reverse('help_source', args=[one.path])}"
            lines.append(f"- [{one.title}]({url})" + (f": {one.summary}" if one.summary else ""))
    return HttpResponse("\n".join([*lines, ""]), content_type=TEXT)
