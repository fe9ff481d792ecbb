"""The API Tokens page, and what can be done to one token."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.db.models.functions import Lower
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import User
from auditlog.versions import ChangedMeanwhile, FormSeen
from capabilities import CapabilityRequired, signed_in
from capabilities.doors import SEES_GATEWAYS
from connections.models import Connection
from gateways.views import find as find_gateway
from tokens.forms import EditForm
from tokens.models import AlreadyRevoked, BadLifetime, Expired, Issued, NameTaken, Superseded, Token
from tokens.notices import notices
from tokens.places import back, beside, changed, hidden, of_gateway, target
from tokens.reach import BOTH, EDITING, ENDING, hosts_for, known_to, with_scope
from tokens.rows import CARES, Row, TokenFilter, listed, numbers
from tokens.snippets import once
from ui.pages import AppRequest, confirm, leave, page_of, posted, refuse, seen, show, told_of, wants_fragment

ROWS = 30
HOSTS = 8

REVOKE_TEXT = "Revoke this API access token? Requests using it will fail with 401 immediately. This cannot be undone."
REGENERATE_TEXT = "Regenerate the API key for this connection? The old key will be deactivated immediately."
OFF = "The host, the gateway or the connection is disabled. Enable it first."


@require_GET
@signed_in("one's own tokens; everybody's need API_TOKENS_MANAGE")
def listing(request: AppRequest) -> HttpResponse:
    asked = TokenFilter(request.GET)
    tokens = listed(request.user, request.GET)
    counts = numbers(tokens)
    page = page_of(request, asked.narrow(tokens), ROWS, with_scope, count=asked.count(counts))
    context = {
        "page": page,
        "rows": [Row(token, request.user) for token in page],
        "chosen": asked.chosen,
        "counts": counts,
        "cares": [(name, care, counts[name]) for name, care in CARES.items() if counts[name]],
        "care": CARES.get(asked.chosen.get("care", "")),
        "may_create": hosts_for(request.user).exists(),
        "notices": partial(notices, request.user),
    }
    return show(request, "tokens/list.html#results", context)


@require_POST
@signed_in("one's own notices")
def dismiss(request: AppRequest) -> HttpResponse:
    """Tell no more of what was shown; what happened since then is."""
    shown = parse_datetime(request.POST.get("until", ""))
    if shown is not None and timezone.is_aware(shown):
        request.user.dismiss_notices(shown)
    return leave(request, reverse("overview"))


@require_GET
@signed_in("offers the agents one may make a token for")
def create(request: AppRequest) -> HttpResponse:
    """Choose the agent; the authorize flow does the rest. `?gateway=` goes along."""
    words = request.GET.get("q", "")
    hosts = hosts_for(request.user).matching(words).order_by(Lower("name"))
    context = {
        "hosts": hosts[:HOSTS],
        "more": max(hosts.count() - HOSTS, 0),
        "q": words,
        "gateway": request.GET.get("gateway", ""),
    }
    part = "#hosts" if request.htmx.target == "hosts" else ""
    return show(request, f"tokens/create.html{part}", context)


@require_GET
@signed_in("one's own tokens on a gateway within reach", others=SEES_GATEWAYS)
def for_gateway(request: AppRequest, slug: str) -> HttpResponse:
    context = of_gateway(request.user, find_gateway(request.user, slug))
    return show(request, "tokens/for_gateway.html", context)


@require_http_methods(["GET", "POST"])
@signed_in("one's own tokens", others=EDITING)
def edit(request: AppRequest, pk: UUID) -> HttpResponse:
    token = _find(request, pk)
    if token.connection.user_id != request.user.pk and not request.user.has_perm(EDITING):
        raise CapabilityRequired(EDITING)
    if token.status != "active":
        return changed(request, token, _ended(token))
    form = EditForm(posted(request), token=token)
    context = {
        "form": form,
        "row": Row(token, request.user),
        "heading": f"Edit {token.name}",
        "back": back(request, token),
        "target": target(request, token),
        "hidden": hidden(request),
        "version": token.version,
    }
    if request.method == "GET":
        return show(request, "tokens/edit.html", context)
    try:
        if form.is_valid() and _edited(form, request.user, seen(request)):
            return changed(request, token, "Token saved")
    except ChangedMeanwhile as clash:
        context |= told_of(clash)
    return refuse(request, "tokens/edit.html", context)


def _edited(form: EditForm, by: User, known: FormSeen | None) -> bool:
    """Whether it was saved; if not, the form says why: somebody else was faster."""
    try:
        form.token.edit(**form.changes(), by=by, seen=known)
    except NameTaken as error:
        form.add_error("name", str(error))
    except CapabilityRequired as error:
        form.add_error("calls_per_minute", f"Only who holds “{error.capability.label}” raises or lifts a limit.")
    except BadLifetime as error:
        form.add_error("expires_in_days", str(error))
    except (AlreadyRevoked, Expired) as error:
        form.add_error(None, str(error))
    return not form.errors


def _ended(token: Token) -> str:
    try:
        token.must_be_active()
    except (AlreadyRevoked, Expired) as error:
        return str(error)
    return ""


@never_cache
@require_http_methods(["GET", "POST"])
@signed_in("one's own tokens", others=BOTH)
def regenerate(request: AppRequest, pk: UUID) -> HttpResponse:
    return regenerated(request, _find(request, pk))


def regenerated(request: AppRequest, token: Token) -> HttpResponse:
    """Ask, then give `token` another secret and show it in this answer, once (decisions 7.15)."""
    must_hold_both(request.user, token.connection)
    if token.status != "active":
        return changed(request, token, _ended(token))
    if not token.connection.is_on:
        raise PermissionDenied(OFF)
    if request.method == "GET":
        return _ask(request, token)
    if request.POST.get("generation", str(token.generation)) != str(token.generation):
        return _shown(request, token)
    try:
        return _shown(request, token, token.rotate(by=request.user))
    except (Superseded, AlreadyRevoked, Expired):
        return _shown(request, _find(request, token.pk))


def must_hold_both(viewer: User, connection: Connection) -> None:
    """Raise CapabilityRequired unless the new secret may be shown to `viewer` (R3.14)."""
    missing = sorted(one for one in BOTH if not viewer.has_perm(one))
    if connection.user_id != viewer.pk and missing:
        raise CapabilityRequired(missing[0])


def _ask(request: AppRequest, token: Token) -> HttpResponse:
    link = token.connection
    return confirm(
        request,
        title="Regenerate API key",
        text=REGENERATE_TEXT,
        more=f"{token.name} {token.prefix}, {link.host.name} on {link.gateway.name}. "
        "Name, servers, expiration and IP allowlist stay. The new key is shown once.",
        icon="key",
        kind="primary",
        target="#dialog",
        back=back(request, token),
        # A reload repeats the POST; the generation tells it from a new wish.
        hidden={"generation": token.generation, **hidden(request)},
    )


def _shown(request: AppRequest, token: Token, new: Issued | None = None) -> HttpResponse:
    """The new secret; without one, that it is no longer shown."""
    if new is None and wants_fragment(request):
        return changed(request, token, "This token was regenerated already. Its secret is no longer shown.")
    context: dict[str, Any] = {"token": token, "row": Row(token, request.user), "back": back(request, token)}
    response = show(request, "tokens/issued.html#once", context | (once(new) if new else {}))
    response["Referrer-Policy"] = "no-referrer"
    if wants_fragment(request):
        response["HX-Reswap"] = "innerHTML"
        response.write(beside(request, token))
    return response


@require_http_methods(["GET", "POST"])
@signed_in("one's own tokens", others=ENDING)
def revoke(request: AppRequest, pk: UUID) -> HttpResponse:
    token = _find(request, pk)
    connection = token.connection
    if connection.user_id != request.user.pk and not any(map(request.user.has_perm, ENDING)):
        raise CapabilityRequired(*ENDING)
    if request.method == "GET":
        offered = token.is_last and Row(token, request.user).connection.may_revoke
        return confirm(
            request,
            title="Revoke token",
            text=REVOKE_TEXT,
            more=f"{token.name} {token.prefix}, {connection.host.name} on {connection.gateway.name}.",
            icon="revoke",
            target=target(request, token),
            back=back(request, token),
            choice=("connection", "Also revoke the connection; this is its last active token") if offered else None,
            hidden=hidden(request),
        )
    act = token.revoke_with_connection if "connection" in request.POST else token.revoke
    with suppress(AlreadyRevoked):  # Then it has ended, which is what was asked for.
        act(by=request.user)
    return changed(request, token, "Token revoked")


def _find(request: AppRequest, pk: UUID) -> Token:
    """The token, or 404 when the viewer may not know of it."""
    return get_object_or_404(with_scope(known_to(request.user)), pk=pk)
