"""Middleware for compression, a larger Python stack, htmx redirects, and the errors 404 (static files), 405 and 429."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qsl, urlencode, urlsplit

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseNotFound
from django.http.response import HttpResponseBase
from django.middleware.gzip import GZipMiddleware
from django.shortcuts import resolve_url
from django_htmx.http import HttpResponseClientRedirect
from django_htmx.middleware import HtmxDetails

from ui import errors
from ui.errors import TryLater

SMALLEST = 1024
DEEP = 17_000  # Slots of 8 bytes: a frame of 133 KiB, in a chunk of 256 KiB.


class Compression(GZipMiddleware):
    """Compress answers of at least SMALLEST bytes with gzip. Django adds padding against BREACH."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        # Streams are not compressed, so that each part arrives when it is written. Answers with an ETag are not
        # compressed: they would need a weak ETag, which If-Match does not accept.
        if not isinstance(response, HttpResponse) or len(response.content) < SMALLEST or response.has_header("ETag"):
            return response
        return super().process_response(request, response)


def deep_calls(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Give the rest of the request a new, large chunk of Python's stack, which makes function calls faster."""

    def middleware(request: HttpRequest) -> HttpResponse:
        return get_response(request)

    # In Python 3.12, and in versions 3.13 and 3.14 released before April 2026, each call that begins at the end of a
    # chunk maps the next chunk and unmaps it again, which takes 9 microseconds (python/cpython#142183). Normal chunks
    # are small: if the end of a chunk falls in a template's loop, thousands of calls begin there.
    # Python gives this frame a chunk of the next power of two; the calls below use the rest of the chunk.
    middleware.__code__ = middleware.__code__.replace(co_stacksize=DEEP)
    return middleware


def htmx_redirects(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Answer htmx requests with HX-Redirect instead of a redirect.

    Otherwise, htmx would follow the redirect and insert the new page into the old one. This middleware must
    come after HtmxMiddleware and before SignInFirst.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        if not getattr(request, "htmx", None) or response.status_code not in (301, 302, 303, 307, 308):
            return response
        client = HttpResponseClientRedirect(_destination(request, response["Location"]))
        client.cookies = response.cookies
        return client

    return middleware


def _destination(request: HttpRequest, location: str) -> str:
    """Return `location`. If it is the sign-in page, set its `next` to the page that is open in the browser."""
    to = urlsplit(location)
    htmx: HtmxDetails = request.htmx  # type: ignore[attr-defined]
    if to.path != resolve_url(settings.LOGIN_URL) or not htmx.current_url_abs_path:
        return location
    return to._replace(query=urlencode(dict(parse_qsl(to.query)) | {"next": htmx.current_url_abs_path})).geturl()


def static_files_only(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Answer 404 for static files that do not exist.

    This middleware must come after the one that serves static files, and before all middleware that uses the database.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        if request.path.startswith(settings.STATIC_URL):  # Files that exist have been served already.
            return HttpResponseNotFound("There is no such file.\n", content_type="text/plain")
        return get_response(request)

    return middleware


def forms_only(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Show an error page if a browser opens a URL that accepts only POST.

    Browsers do this with a copied link, for example, or with the back button. This middleware must come last, so that
    the page has messages and headers like any other page.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        is_opened = request.method == "GET" and "text/html" in request.headers.get("Accept", "")
        if not is_opened or not isinstance(response, HttpResponseNotAllowed):
            return response
        view = request.resolver_match and request.resolver_match.func
        # CSRF-exempt views are for programs.
        return response if getattr(view, "csrf_exempt", False) else errors.forms_only(request, response)

    return middleware


def try_later(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Answer 429 if the view of a page raises TryLater. This middleware must come after HtmxMiddleware."""

    def middleware(request: HttpRequest) -> HttpResponse:
        return get_response(request)

    def process_exception(request: HttpRequest, exception: Exception) -> HttpResponse | None:
        return errors.too_many(request, exception) if isinstance(exception, TryLater) else None

    middleware.process_exception = process_exception  # type: ignore[attr-defined]
    return middleware
