"""The API Tokens page, and the actions on one token."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.db.models.functions import Lower
from django.http import HttpResponse, QueryDict
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import User
from auditlog.versions import ChangedMeanwhile, FormSeen
from capabilities import NOBODY, Capability, CapabilityRequired, own_resource, requires
from capabilities.catalogue import SEES_GATEWAYS
from gateways.use_of_gateway import TokenUse
from gateways.views import gateway_or_404 as find_gateway
from hosts.forms import NameAgentForm
from tokens.forms import EditForm, OverlapForm
from tokens.models import (
    AskedForNew,
    BadLifetime,
    Expired,
    Issued,
    NoPreviousToken,
    NothingToCollect,
    Superseded,
    Token,
    TokenAlreadyRevoked,
    TokenNameTaken,
)
from tokens.notices import notices
from tokens.row_fragments import back_url, changed, extra_token, hidden, of_gateway, target, without_notice
from tokens.rows import CARES, TOKENS, TokenFilter, TokenRow, listed, owner_of_listed
from tokens.snippets import new_secret_context
from tokens.visibility import (
    EDITING,
    ENDING,
    foremost_waiting,
    hosts_for,
    may_create,
    servers_of,
    tokens_visible_to,
    with_scope,
)
from ui import bulk
from ui.bulk import BulkEnding
from ui.pages import (
    AppRequest,
    clash_context,
    confirm,
    leave,
    moment_of,
    page_of,
    posted,
    refuse,
    seen_version,
    show,
    text_of,
    wants_fragment,
)
from ui.tables import show_list

HOSTS = 8

REVOKE_TEXT = "Revoke this API access token? Requests using it will fail with 401 immediately. This cannot be undone."
REGENERATE_TEXT = "Regenerate this API access token? The old token stops working immediately."
REGENERATE_WITH_OVERLAP_TEXT = "Regenerate this API access token? The old token works on for the time chosen below."
OFF = "The host, the gateway or the connection is disabled. Enable it first."


@require_GET
@own_resource("one's own tokens; everybody's need API_TOKENS_MANAGE")
def listing(request: AppRequest) -> HttpResponse:
    filters = TokenFilter(request.GET)
    tokens = listed(request.user, request.GET)
    counts, found = filters.counted(tokens, owner_of_listed(request.user, request.GET))
    page = page_of(request, filters.narrow(tokens), detail=with_scope, count=found)
    context = {
        "page": page,
        "table": TOKENS.seen(request),
        "rows": [TokenRow(token, request.user) for token in page],
        "filters": filters.values,
        "counts": counts,
        "cares": [(name, care, counts[name]) for name, care in CARES.items() if counts.get(name)],
        "care": CARES.get(filters.values.get("care", "")),
        "may_create": may_create(request.user),
        "notices": partial(notices, request.user),
        "waiting": partial(foremost_waiting, request.user),
    }
    return show_list(request, "tokens/list.html#results", context)


@require_POST
@own_resource("one's own notices")
def dismiss(request: AppRequest) -> HttpResponse:
    """Dismiss the notices that were shown; later ones remain."""
    if shown := moment_of(request.POST, "until"):
        request.user.dismiss_notices(shown)
    return leave(request, reverse("overview"))


@require_GET
@own_resource("offers the agents one may make a token for")
def create(request: AppRequest) -> HttpResponse:
    """Choose the agent; the authorize flow follows, with `?gateway=` and `?client=`.

    If there is no agent yet, viewers who may add agents enter the name of the first one instead.
    """
    words = text_of(request.GET, "q")
    hosts = hosts_for(request.user).matching(words).order_by(Lower("name"))
    count = hosts.count()
    only_part = request.htmx.target == "hosts"
    if not (count or words or only_part) and request.user.has_perm(Capability.API_TOKENS_MANAGE):
        return _name_agent(request, NameAgentForm())
    context = {
        "hosts": hosts[:HOSTS],
        "more": max(count - HOSTS, 0),
        "q": words,
        "chosen": _chosen(request.GET),
    }
    return show(request, f"tokens/create.html{'#hosts' if only_part else ''}", context)


@require_http_methods(["GET", "POST"])
@requires(Capability.API_TOKENS_MANAGE)
def create_agent(request: AppRequest) -> HttpResponse:
    """Create an agent by name and continue with its token, for the chosen gateway and client."""
    form = NameAgentForm(posted(request))
    if request.method == "POST" and (host := form.add(by=request.user)):
        query = urlencode({"host": host.pk, **_chosen(request.POST)})
        return leave(request, f"{reverse('oauth:connect')}?{query}", f"{host.name} created")
    return _name_agent(request, form)


def _name_agent(request: AppRequest, form: NameAgentForm) -> HttpResponse:
    context = {
        "form": form,
        "heading": "Create Token",
        "submit": "Create and continue",
        "action": reverse("tokens:create_agent"),
        "back": reverse("tokens:list"),
        "chosen": _chosen(request.POST or request.GET),
    }
    return (refuse if form.is_bound else show)(request, "tokens/name_agent.html", context)


def _chosen(fields: QueryDict) -> dict[str, str]:
    """Return the gateway and the client chosen before, if any."""
    return {name: value for name in ("gateway", "client") if (value := text_of(fields, name))}


@require_GET
@own_resource("one's own tokens on a gateway within reach", others=SEES_GATEWAYS)
def for_gateway(request: AppRequest, slug: str) -> HttpResponse:
    context = of_gateway(request.user, find_gateway(request.user, slug))
    return show(request, "tokens/for_gateway.html", context)


@require_http_methods(["GET", "POST"])
@own_resource("one's own tokens", others=EDITING)
def edit(request: AppRequest, pk: UUID) -> HttpResponse:
    token = _find(request, pk)
    if token.connection.user_id != request.user.pk and not request.user.has_perm(EDITING):
        raise CapabilityRequired(EDITING)
    if problem := _ended_reason(token):
        return changed(request, token, problem)
    form = EditForm(posted(request), token=token)
    context = {
        "form": form,
        "row": TokenRow(token, request.user),
        "heading": f"Edit {token.name}",
        "back": back_url(request, token),
        "target": target(request, token),
        "hidden": hidden(request),
        "version": token.version,
        "use": _use(token, request.user),
    }
    if request.method == "GET":
        return show(request, "tokens/edit.html", context)
    try:
        if form.is_valid() and _edited(form, request.user, seen_version(request)):
            return changed(request, token, "Token saved")
    except ChangedMeanwhile as clash:
        context |= clash_context(clash)
    return refuse(request, "tokens/edit.html", context)


def _use(token: Token, viewer: User) -> TokenUse | None:
    """Return the token's use of tools, for its owner and viewers of the log; otherwise None."""
    if token.connection.user_id != viewer.pk and not viewer.has_perm(Capability.LOGS_READ):
        return None
    servers = [server.pk for server in servers_of(token)]
    return TokenUse.of(token.pk, token.connection_id, servers, token.connection.gateway_id)


def _edited(form: EditForm, by: User, known: FormSeen | None) -> bool:
    """Save the form; return False if that failed, with the reason as a form error."""
    try:
        form.token.edit(**form.changes(), by=by, seen=known)
    except TokenNameTaken as error:
        form.add_error("name", str(error))
    except CapabilityRequired as error:
        form.add_error("calls_per_minute", f"Only who holds “{error.capability.label}” raises or lifts a limit.")
    except BadLifetime as error:
        form.add_error("expires_in_days", str(error))
    except (TokenAlreadyRevoked, Expired) as error:
        form.add_error(None, str(error))
    return not form.errors


def _ended_reason(token: Token) -> str:
    try:
        token.must_be_active()
    except (TokenAlreadyRevoked, Expired) as error:
        return str(error)
    return ""


@never_cache
@require_http_methods(["GET", "POST"])
@own_resource("one's own tokens", others=NOBODY)
def regenerate(request: AppRequest, pk: UUID) -> HttpResponse:
    return regenerated(request, _own(request, pk))


def regenerated(request: AppRequest, token: Token) -> HttpResponse:
    """Confirm, then replace the secret of `token` and show the new one once, in this response."""
    if problem := _ended_reason(token):
        return changed(request, token, problem)
    if not token.connection.is_on:
        raise PermissionDenied(OFF)
    form = OverlapForm(posted(request))
    if request.method == "GET":
        return _ask(request, token, form)
    return _regenerate(request, token, form)


def _regenerate(request: AppRequest, token: Token, form: OverlapForm) -> HttpResponse:
    if request.POST.get("generation", str(token.generation)) != str(token.generation):
        return _shown(request, token)
    if not form.is_valid():
        return _ask(request, token, form)
    try:
        return _shown(request, token, token.rotate(by=request.user, overlap_hours=form.cleaned_data["overlap_hours"]))
    except (AskedForNew, TokenAlreadyRevoked, Expired) as error:
        return changed(request, token, str(error))
    except Superseded:
        return _shown(request, _find(request, token.pk))


@never_cache
@require_http_methods(["GET", "POST"])
@own_resource("one's own tokens", others=NOBODY)
def collect(request: AppRequest, pk: UUID) -> HttpResponse:
    """Create the requested secret and show it to the owner once, in this response."""
    token = _own(request, pk)
    if problem := _ended_reason(token):
        return changed(request, token, problem)
    if not token.connection.is_on:
        raise PermissionDenied(OFF)
    if request.method == "GET" and token.status == "waiting":
        return confirm(
            request,
            title="Collect new token",
            text="The new token is made now and shown to you once.",
            more=f"{_named(token)}. Name, servers, expiration and IP allowlist have stayed.",
            icon="key",
            kind="primary",
            target="#dialog",
            back=back_url(request, token),
            hidden=list(hidden(request).items()),
        )
    try:
        response = _shown(request, token, token.collect(by=request.user))
    except (NothingToCollect, TokenAlreadyRevoked, Expired) as error:
        return changed(request, token, str(error))
    if wants_fragment(request):
        response.write(without_notice(request, token))
    return response


@require_http_methods(["GET", "POST"])
@own_resource("one's own tokens", others=ENDING)
def ask_for_new(request: AppRequest, pk: UUID) -> HttpResponse:
    return asked(request, _to_end(request, pk))


def asked(request: AppRequest, token: Token) -> HttpResponse:
    """Confirm, then end the secrets of `token`; only its owner gets the new one."""
    owner = token.connection.user.email
    if request.method == "GET":
        return confirm(
            request,
            title="Ask for a new token",
            text=f"The present token stops working now, and {owner} collects a new one after signing in.",
            more=f"{_named(token)}. Until then its requests fail with 401. You do not see the new one.",
            icon="key",
            target=target(request, token),
            back=back_url(request, token),
            hidden=list(hidden(request).items()),
        )
    try:
        token.ask_for_new(by=request.user)
    except (TokenAlreadyRevoked, Expired) as error:
        return changed(request, token, str(error))
    return changed(request, token, f"{owner} can collect the new token")


@require_http_methods(["GET", "POST"])
@own_resource("one's own tokens", others=ENDING)
def end_previous(request: AppRequest, pk: UUID) -> HttpResponse:
    token = _to_end(request, pk)
    if request.method == "GET":
        return confirm(
            request,
            title="End old token",
            text="End the old token? Requests using it will fail with 401 immediately.",
            more=f"{token.previous_prefix} of {_named(token)}. The new one {token.prefix} goes on.",
            icon="revoke",
            target=target(request, token),
            back=back_url(request, token),
            hidden=list(hidden(request).items()),
        )
    with suppress(NoPreviousToken, TokenAlreadyRevoked, Expired):  # It has already ended, as requested.
        token.end_previous(by=request.user)
    return changed(request, token, "Old token ended")


def _ask(request: AppRequest, token: Token, form: OverlapForm) -> HttpResponse:
    context = {
        "title": "Regenerate token",
        "text": REGENERATE_TEXT,
        "text_with_overlap": REGENERATE_WITH_OVERLAP_TEXT,
        "more": f"{_named(token)}. Name, servers, expiration and IP allowlist stay. The new token is shown once.",
        "icon_name": "key",
        "kind": "primary",
        "target": "#dialog",
        "back": back_url(request, token),
        "action": request.path,
        "token": token,
        "form": form,
        # A reload repeats the POST; the generation distinguishes it from a new request.
        "hidden": [("generation", token.generation), *hidden(request).items()],
    }
    return (refuse if form.is_bound else show)(request, "tokens/regenerate.html", context)


def _named(token: Token) -> str:
    return f"{token.name} {token.prefix}, {token.connection.host.name} on {token.connection.gateway.name}"


def _shown(request: AppRequest, token: Token, new: Issued | None = None) -> HttpResponse:
    """Show the new secret, or without one, a message that it is no longer shown."""
    if new is None and wants_fragment(request):
        return changed(request, token, "This token was regenerated already. The new one is no longer shown.")
    context: dict[str, Any] = {"token": token, "row": TokenRow(token, request.user), "back": back_url(request, token)}
    response = show(request, "tokens/issued.html#once", context | (new_secret_context(new) if new else {}))
    response["Referrer-Policy"] = "no-referrer"
    if wants_fragment(request):
        response["HX-Reswap"] = "innerHTML"
        response.write(extra_token(request, token))
    return response


@require_http_methods(["GET", "POST"])
@own_resource("one's own tokens", others=ENDING)
def revoke(request: AppRequest, pk: UUID) -> HttpResponse:
    token = _to_end(request, pk)
    if request.method == "GET":
        offered = token.is_last and TokenRow(token, request.user).connection.may_revoke
        return confirm(
            request,
            title="Revoke token",
            text=REVOKE_TEXT,
            more=f"{_named(token)}.",
            icon="revoke",
            target=target(request, token),
            back=back_url(request, token),
            choice=("connection", "Also revoke the connection; this is its last active token") if offered else None,
            hidden=list(hidden(request).items()),
        )
    verb = token.revoke_with_connection if "connection" in request.POST else token.revoke
    with suppress(TokenAlreadyRevoked):  # It has already ended, as requested.
        verb(by=request.user)
    return changed(request, token, "Token revoked")


@require_POST
@own_resource("one's own tokens; each of others takes one of ENDING")
def revoke_picked(request: AppRequest) -> HttpResponse:
    """Revoke the selected tokens; those the viewer may not revoke stay, with the reason shown."""
    way = BulkEnding(
        *("token", "tokens", "Revoke", "revoked"),
        end=lambda token: token.revoke(by=request.user),
        ends=_ended_with,
        refused=partial(_why_not_revoked, request.user),
        faults=(TokenAlreadyRevoked,),
    )
    return bulk.end(request, with_scope(tokens_visible_to(request.user)), way, back=reverse("tokens:list"))


def _ended_with(tokens: list[Token]) -> str:
    hosts = {token.connection.host_id for token in tokens}
    return f"Requests of {len(hosts)} host{'' if len(hosts) == 1 else 's'} with them fail with 401 immediately."


def _why_not_revoked(viewer: User, token: Token) -> str:
    if token.revoked_at:
        return "revoked already"
    return "" if TokenRow(token, viewer).may_revoke else "not yours to revoke"


def _find(request: AppRequest, pk: UUID) -> Token:
    """Return the token, or 404 if the viewer may not see it."""
    return get_object_or_404(with_scope(tokens_visible_to(request.user)), pk=pk)


def _own(request: AppRequest, pk: UUID) -> Token:
    """Return the viewer's own token: no capability gives access to another person's secret, which acts as them."""
    token = _find(request, pk)
    if token.connection.user_id != request.user.pk:
        raise PermissionDenied("Only its owner is shown a token. Ask for a new one instead.")
    return token


def _to_end(request: AppRequest, pk: UUID) -> Token:
    """Return a token whose secrets the viewer may end. Raises CapabilityRequired."""
    token = _find(request, pk)
    if token.connection.user_id != request.user.pk and not any(map(request.user.has_perm, ENDING)):
        raise CapabilityRequired(*ENDING)
    return token
