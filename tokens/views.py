"""The API Tokens page, and the actions on one token."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.db.models.functions import Lower
from django.http import HttpResponse, QueryDict
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from django_htmx.http import reswap, retarget

from accounts.models import User
from auditlog.over_time import would_refuse
from capabilities import NOBODY, Capability, CapabilityRequired, own_resource, requires
from connections import views as connection_views
from connections.models import Connection
from connections.rows import visible
from gateways.models import Gateway
from gateways.usage import TokenUse
from gateways.views import gateway_or_404
from hosts.forms import NameAgentForm
from hosts.models import AgentNameTaken, Host
from tokens.forms import EditForm, TokenOverlapForm
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
    TokenKind,
    TokenNameTaken,
)
from tokens.notices import notices
from tokens.rows import (
    CARES,
    EDITING,
    ENDING,
    SEES,
    TOKENS,
    TokenFilter,
    TokenRow,
    foremost_waiting,
    hosts_for,
    listed,
    may_create,
    owner_of_listed,
    servers_of,
    token_counts,
    tokens_visible_to,
    with_scope,
)
from tokens.snippets import new_secret_context
from ui.pages import (
    AppRequest,
    Fragment,
    answer,
    confirm,
    leave,
    moment_of,
    number_of,
    open_page,
    open_query,
    posted,
    refuse,
    seen_version,
    sentences,
    show,
    text_of,
    wants_fragment,
)
from ui.viewset import Picked, confirmed, end_picked, form_page, list_page

HOSTS = 8

REVOKE_TEXT = "Revoke this API access token? Requests using it will fail with 401 immediately. This cannot be undone."
REGENERATE_TEXT = "Regenerate this API access token? The old token stops working immediately."
REGENERATE_WITH_OVERLAP_TEXT = (
    "Regenerate this API access token? The old token keeps working for the time chosen below."
)
OFF = (
    "Enable the gateway, the connection, and the app or agent first. The app or agent must also be approved, and "
    "allowed at the gateway."
)


@require_GET
@own_resource("one's own tokens; everybody's need API_TOKENS_READ")
def listing(request: AppRequest) -> HttpResponse:
    filters = TokenFilter(request.GET)
    tokens = listed(request.user, request.GET)
    owner = owner_of_listed(request.user, request.GET)
    counts, found = filters.counted(tokens, owner) if owner else ({}, None)
    return list_page(
        request,
        "tokens/list.html",
        tokens,
        table=TOKENS,
        filters=filters,
        detail=with_scope,
        count=found,
        wrap=lambda token: TokenRow(token, request.user),
        **_numbers(filters, counts),
        counts_follow=not owner and "q" not in filters.values,
        may_create=may_create(request.user),
        notices=partial(notices, request.user),
        waiting=partial(foremost_waiting, request.user),
    )


@require_GET
@requires(Capability.API_TOKENS_READ)
def numbers(request: AppRequest) -> HttpResponse:
    """Return the parts of the page that show numbers of tokens.

    This is a separate request, because counting everyone's tokens takes longer than listing one page of them.
    """
    filters = TokenFilter(request.GET)
    counts = token_counts(listed(request.user, request.GET), owner_of_listed(request.user, request.GET))
    context = {"fragment": True, "filters": filters.values, **_numbers(filters, counts)}
    return render(request, "tokens/list.html#all_numbers", context)


def _numbers(filters: TokenFilter, counts: dict[str, int]) -> dict[str, Any]:
    # Among everyone's tokens, a card with 0 is the evidence that there is none.
    empty_too = "owner" in filters.values
    cares = [(name, care, counts[name]) for name, care in CARES.items() if counts and (empty_too or counts[name])]
    return {"counts": counts, "cares": cares, "care": CARES.get(filters.values.get("care", ""))}


@require_POST
@own_resource("one's own notices")
def dismiss(request: AppRequest) -> HttpResponse:
    """Dismiss the notices that were shown; notices that came later remain."""
    if shown := moment_of(request.POST, "until"):
        request.user.dismiss_notices(shown)
    return leave(request, reverse("overview"))


@require_GET
@own_resource("offers the agents one may make a token for")
def create(request: AppRequest) -> HttpResponse:
    """Show the agents to choose from for a new token.

    If there are no agents, viewers who may add agents get a form to name the first agent.
    """
    words = text_of(request.GET, "q")
    hosts = hosts_for(request.user).matching(words).order_by(Lower("name"))
    count = hosts.count()
    only_part = request.htmx.target == "hosts"
    if not (count or words or only_part) and request.user.has_perm(Capability.API_TOKENS_CREATE):
        return _name_agent(request, NameAgentForm())
    context = {
        "hosts": hosts[:HOSTS],
        "more": max(count - HOSTS, 0),
        "q": words,
        "chosen": _chosen(request.GET),  # For the authorize flow, which follows.
    }
    return show(request, f"tokens/create.html{'#hosts' if only_part else ''}", context)


@require_http_methods(["GET", "POST"])
@requires(Capability.API_TOKENS_MANAGE, Capability.API_TOKENS_CREATE)
def create_agent(request: AppRequest) -> HttpResponse:
    """Create an agent with the entered name. Then redirect to the page that creates its token.

    The redirect keeps the gateway and the client that were chosen before.
    """
    return _name_agent(request, NameAgentForm(posted(request)))


def _name_agent(request: AppRequest, form: NameAgentForm) -> HttpResponse:
    context: dict[str, Any] = {"heading": "Create Token", "submit": "Create and continue"}
    context |= {"action": reverse("tokens:create_agent"), "back": reverse("tokens:list")}
    context["chosen"] = _chosen(request.POST or request.GET)

    def save() -> HttpResponse:
        host = Host.objects.add_agent(**form.cleaned_data, by=request.user)
        query = urlencode({"host": host.pk, **_chosen(request.POST)})
        return leave(request, f"{reverse('oauth:connect')}?{query}", f"{host.name} created")

    return form_page(request, "tokens/name_agent.html", form, save, {AgentNameTaken: "name"}, **context)


def _chosen(fields: QueryDict) -> dict[str, str]:
    return {name: value for name in ("gateway", "client") if (value := text_of(fields, name))}


@require_GET
@own_resource("one's own tokens on a gateway within reach", others=Capability.GATEWAYS_READ)
def for_gateway(request: AppRequest, slug: str) -> HttpResponse:
    context = of_gateway(request.user, gateway_or_404(request.user, slug))
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

    def save() -> HttpResponse:
        try:
            token.edit(**form.changes(), by=request.user, seen=seen_version(request))
        except CapabilityRequired as error:
            form.add_error("calls_per_minute", f"Raising or removing a limit needs “{error.capability.label}”.")
            return refuse(request, "tokens/edit.html", context | {"form": form})
        return changed(request, token, "Token saved")

    context = {
        "row": TokenRow(token, request.user),
        "heading": f"Edit {token.name}",
        "back": back_url(request, token),
        "target": target(request, token),
        "hidden": hidden(request),
        "version": token.version,
        "use": _use(token, request.user),
        "sees_tokens": any(map(request.user.has_perm, SEES)),
    }
    errors = {TokenNameTaken: "name", BadLifetime: "expires_in_days", TokenAlreadyRevoked: None, Expired: None}
    return form_page(request, "tokens/edit.html", form, save, errors, **context)


def _use(token: Token, viewer: User) -> TokenUse | None:
    """Return the TokenUse of `token` if `viewer` is its owner or may read the log, otherwise None."""
    if token.connection.user_id != viewer.pk and not viewer.has_perm(Capability.LOGS_READ):
        return None
    servers = [server.pk for server in servers_of(token)]
    return TokenUse.of(token.pk, token.connection_id, servers, token.connection.gateway_id)


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
    """Ask for confirmation, replace the secret of `token`, and show the new secret once, in this response."""
    if problem := _ended_reason(token):
        return changed(request, token, problem)
    if not token.connection.is_on:
        raise PermissionDenied(OFF)
    form = TokenOverlapForm(posted(request), token=token)
    if request.method == "GET":
        return _ask(request, token, form)
    return _regenerate(request, token, form)


def _regenerate(request: AppRequest, token: Token, form: TokenOverlapForm) -> HttpResponse:
    if request.POST.get("generation", str(token.generation)) != str(token.generation):
        return _shown(request, token)
    if not form.is_valid():
        return _ask(request, token, form)
    try:
        return _shown(request, token, token.rotate(by=request.user, **form.terms()))
    except (AskedForNew, TokenAlreadyRevoked, Expired) as error:
        return changed(request, token, str(error))
    except Superseded:
        return _shown(request, _find(request, token.pk))


@never_cache
@require_http_methods(["GET", "POST"])
@own_resource("one's own tokens", others=NOBODY)
def collect(request: AppRequest, pk: UUID) -> HttpResponse:
    """Create the requested secret, and show it to the owner once, in this response."""
    token = _own(request, pk)
    if problem := _ended_reason(token):
        return changed(request, token, problem)
    if not token.connection.is_on:
        raise PermissionDenied(OFF)
    if request.method == "GET" and token.status == "waiting":
        return confirm(
            request,
            title="Collect new token",
            text="The new token will be created now and shown to you once.",
            more=f"{_named(token)}. Only the token's secret changes.",
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
    """Show or process the form that asks the owner of `token` to collect a new secret.

    The form sets how long the current secret stays valid.
    """
    if problem := _ended_reason(token):
        return changed(request, token, problem)
    form, owner = TokenOverlapForm(posted(request), token=token), token.connection.user.email
    if request.method == "GET" or not form.is_valid():
        return _ask(
            request,
            token,
            form,
            title="Ask for a new token",
            text=f"The current token stops working now, and {owner} collects a new one after signing in.",
            text_with_overlap=f"The current token keeps working as chosen below, and {owner} collects a new one.",
            more=f"{_named(token)}. You cannot see the new token.",
            kind="danger",
            target=target(request, token),
        )
    try:
        token.ask_for_new(by=request.user, **form.terms())
    except (TokenAlreadyRevoked, Expired) as error:
        return changed(request, token, str(error))
    return changed(request, token, f"{owner} can collect the new token")


@require_http_methods(["GET", "POST"])
@own_resource("one's own tokens", others=ENDING)
def end_previous(request: AppRequest, pk: UUID) -> HttpResponse:
    token = _to_end(request, pk)

    def act() -> None:
        with suppress(NoPreviousToken, TokenAlreadyRevoked, Expired):  # The secret has already ended, as requested.
            token.end_previous(by=request.user)

    return _confirmed(
        request,
        token,
        act,
        "Old token ended",
        title="End old token",
        text="End the old token? Requests using it will fail with 401 immediately.",
        more=lambda: sentences(
            f"{token.previous_prefix} of {_named(token)}. The new token {token.prefix} still works.",
            _refused_lately([token], request.user, token_prefix=[token.previous_prefix]),
        ),
        icon="revoke",
    )


def _confirmed(
    request: AppRequest, token: Token, act: Callable[[], object], done: str, *, faults: Any = (), **question: Any
) -> HttpResponse:
    """Ask for confirmation, run `act`, and show the changed token on the page that sent the request."""

    def acted() -> HttpResponse:
        act()
        return changed(request, token, done)

    return confirmed(
        request,
        acted,
        faults=faults,
        refused=lambda why: changed(request, token, why),
        target=target(request, token),
        back=back_url(request, token),
        hidden=list(hidden(request).items()),
        **question,
    )


def _ask(request: AppRequest, token: Token, form: TokenOverlapForm, **question: str) -> HttpResponse:
    context: dict[str, Any] = {
        "title": "Regenerate token",
        "text": REGENERATE_TEXT,
        "text_with_overlap": REGENERATE_WITH_OVERLAP_TEXT,
        "more": f"{_named(token)}. Only the token's secret changes. The new token is shown once.",
        "icon_name": "key",
        "kind": "primary",
        "target": "#dialog",
        "back": back_url(request, token),
        "action": request.path,
        "token": token,
        "form": form,
        # A reload repeats the POST; the generation distinguishes it from a new request.
        "hidden": [("generation", token.generation), *hidden(request).items()],
        **question,
    }
    return (refuse if form.is_bound else show)(request, "tokens/regenerate.html", context)


def _named(token: Token) -> str:
    return f"{token.name} {token.prefix}, {token.connection.host.name} on {token.connection.gateway.name}"


def _shown(request: AppRequest, token: Token, new: Issued | None = None) -> HttpResponse:
    """Show the new secret. If `new` is None, say that the secret is no longer shown."""
    if new is None and wants_fragment(request):
        return changed(request, token, "This token was regenerated already. The new token is no longer shown.")
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

    def act() -> None:
        with suppress(TokenAlreadyRevoked):  # The token has already ended, as requested.
            (token.revoke_with_connection if "connection" in request.POST else token.revoke)(by=request.user)

    offered = request.method == "GET" and token.is_last and TokenRow(token, request.user).connection.may_revoke
    return _confirmed(
        request,
        token,
        act,
        "Token revoked",
        title="Revoke token",
        text=REVOKE_TEXT,
        more=lambda: sentences(f"{_named(token)}.", _refused_lately([token], request.user)),
        icon="revoke",
        choice=("connection", "Also revoke the connection; this is its last active token") if offered else None,
    )


@require_POST
@own_resource("one's own tokens; other people's need one of ENDING")
def revoke_picked(request: AppRequest) -> HttpResponse:
    """Revoke the selected tokens. Tokens that the viewer may not revoke are not changed, and the reason is shown."""

    def refused(token: Token) -> str:
        if token.revoked_at:
            return "revoked already"
        return "" if TokenRow(token, request.user).may_revoke else "you may not revoke it"

    rows = with_scope(tokens_visible_to(request.user))
    picked = Picked(request, rows, ("token", "tokens"), back=reverse("tokens:list"), refused=refused)
    return end_picked(
        picked,
        ("Revoke", "revoked"),
        lambda token: token.revoke(by=request.user),
        TokenAlreadyRevoked,
        lambda tokens: sentences(_ended_with(tokens), _refused_lately(tokens, request.user)),
    )


def _ended_with(tokens: list[Token]) -> str:
    hosts = {token.connection.host_id for token in tokens}
    return f"Requests of {number_of(len(hosts), 'agent')} with these tokens fail with 401 immediately."


def _refused_lately(tokens: list[Token], viewer: User, **where: list[str]) -> str:
    """Return a sentence with the number of calls in the last 7 days that used these tokens.

    Calls that were denied do not count. Return "" if the viewer may not read the calls.
    """
    # Calls are indexed by connection, not by token.
    of = {"connection_id": [token.connection_id for token in tokens], "token_id": [token.pk for token in tokens]}
    is_own = all(token.connection.user_id == viewer.pk for token in tokens)
    return would_refuse({**of, **where}, viewer, is_own=is_own, what=f"used {'them' if tokens[1:] else 'it'}")


def _find(request: AppRequest, pk: UUID) -> Token:
    """Return the token. Raises Http404 if the viewer may not see the token."""
    return get_object_or_404(with_scope(tokens_visible_to(request.user)), pk=pk)


def _own(request: AppRequest, pk: UUID) -> Token:
    """Return the viewer's own token. Raises PermissionDenied for tokens of other people."""
    token = _find(request, pk)
    if token.connection.user_id != request.user.pk:
        raise PermissionDenied(
            "Only the owner may see a token's secret. People who may end tokens can ask the owner to collect a new "
            "secret."
        )
    return token


def _to_end(request: AppRequest, pk: UUID) -> Token:
    """Return a token whose secrets the viewer may end. Raises CapabilityRequired."""
    token = _find(request, pk)
    if token.connection.user_id != request.user.pk and not any(map(request.user.has_perm, ENDING)):
        raise CapabilityRequired(*ENDING)
    return token


# The key button of a connection: a new key for an app, a new secret for an agent.

RENEWED = "API key regenerated. The client picks up a new access token on its own, within 1 hour at most."


@never_cache
@require_http_methods(["GET", "POST"])
@own_resource(
    "one's own agents; apps, even one's own, need MCP_CONNECTIONS_REVOKE", others=Capability.MCP_CONNECTIONS_REVOKE
)
def regenerate_key(request: AppRequest, pk: UUID) -> HttpResponse:
    connection = get_object_or_404(visible(request.user, Capability.MCP_CONNECTIONS_REVOKE), pk=pk)
    return _token(request, connection) if connection.host.is_agent else _key(request, connection)


def _key(request: AppRequest, connection: Connection) -> HttpResponse:
    """Regenerate the key of an app's connection. This ends the app's access tokens.

    The key's secret is never shown. Needs MCP_CONNECTIONS_REVOKE even for one's own connection.
    """
    if not request.user.has_perm(Capability.MCP_CONNECTIONS_REVOKE):
        raise CapabilityRequired(Capability.MCP_CONNECTIONS_REVOKE)
    if not connection.is_live:
        return connection_views.changed(request, connection, TokenAlreadyRevoked.__doc__ or "")
    if not connection.is_on:
        raise PermissionDenied(OFF)

    def act() -> HttpResponse:
        Token.objects.renew_key(connection, by=request.user)
        return connection_views.changed(request, connection, RENEWED, stays=True)

    return confirmed(
        request,
        act,
        faults=TokenAlreadyRevoked,
        refused=lambda why: connection_views.changed(request, connection, why),
        title="Regenerate API key",
        text="Regenerate the API key for this connection? The old key will be deactivated immediately.",
        more="The client picks up a new access token on its own. If a refresh token leaked, revoke the connection "
        "instead.",
        icon="key",
        kind="primary",
        target=f"#connection-{connection.pk}",
        back=connection_views.back_url(request, connection),
    )


def _token(request: AppRequest, connection: Connection) -> HttpResponse:
    """Regenerate the connection's active token; if there are several, show a choice first.

    For another person's token, the owner is asked to collect a new secret instead.
    """
    is_own = connection.user_id == request.user.pk
    if not is_own and not request.user.has_perm(Capability.MCP_CONNECTIONS_REVOKE):
        raise CapabilityRequired(Capability.MCP_CONNECTIONS_REVOKE)
    active = list(with_scope(Token.objects.active()).filter(connection=connection, kind=TokenKind.ACCESS))
    if len(active) == 1:
        return regenerated(request, active[0]) if is_own else asked(request, active[0])
    if not active:
        return connection_views.changed(request, connection, "This connection has no active token.")
    context = {
        "connection": connection,
        "tokens": active,
        "own": is_own,
        "back": connection_views.back_url(request, connection),
    }
    return show(request, "tokens/choose.html", context)


# The fragments to replace after an action on a token; they depend on the page that sent the action.

IN_DIALOG = {"in": "gateway"}


def hidden(request: AppRequest) -> dict[str, str]:
    """Return hidden fields for a form in a gateway's API Tokens dialog; an empty dictionary for other forms.

    The fields make the form's response appear in the same dialog.
    """
    return IN_DIALOG if _in_dialog(request) else {}


def target(request: AppRequest, token: Token) -> str:
    """Return the CSS selector of the element that shows `token` on the page."""
    if _in_dialog(request):
        return "#dialog"
    return f"#token-{token.pk}" if _on_list(request) else f"#connection-{token.connection_id}"


def token_fragment(request: AppRequest, token: Token) -> Fragment:
    """Return the fragment that shows `token` on the page that sent the request.

    In a gateway's API Tokens dialog, the fragment is the whole dialog. On the list of tokens, the fragment is the
    token's row. Elsewhere, it is the row of the token's connection.
    """
    if _in_dialog(request):
        return Fragment(
            "tokens/for_gateway.html", of_gateway(request.user, token.connection.gateway) | {"fragment": True}
        )
    if _on_list(request):
        viewer, query = request.user, open_query(request)
        row, is_search = TokenRow(_find(request, token.pk), viewer), "q" in TokenFilter(query).values
        # Counts are not shown with a search.
        counts = {} if is_search else token_counts(listed(viewer, query), owner_of_listed(viewer, query))
        return Fragment("tokens/list.html#row", {"row": row, "counts": counts})
    return connection_views.row_fragment(request, token.connection)


def of_gateway(viewer: User, gateway: Gateway) -> dict[str, Any]:
    """Return the context of a gateway's API Tokens dialog: the viewer's own unrevoked tokens."""
    live = with_scope(tokens_visible_to(viewer)).live()
    own_tokens = live.filter(connection__user=viewer, connection__gateway=gateway)
    return {
        "gateway": gateway,
        "rows": [TokenRow(token, viewer) for token in own_tokens],
        "may_create": may_create(viewer),
    }


def changed(request: AppRequest, token: Token, toast: str) -> HttpResponse:
    """Return the response to an action: the fragment that shows the token, with a toast."""
    if not wants_fragment(request):
        return leave(request, back_url(request, token), toast)
    template, context = token_fragment(request, token)
    response = answer(request, template, context, to=back_url(request, token), toast=toast)
    return reswap(retarget(response, "#dialog"), "innerHTML") if _in_dialog(request) else response


def extra_token(request: AppRequest, token: Token) -> str:
    """Return HTML that updates the token on the page behind the dialog with the new secret.

    Return "" if that page does not show the token.
    """
    if _in_dialog(request) or open_page(request) == reverse("overview"):
        return ""
    return connection_views.extra_fragment(request, token_fragment(request, token))


def without_notice(request: AppRequest, token: Token) -> str:
    """Return HTML that removes the notice about the new secret of `token` from the page.

    Return "" for pages without this notice.
    """
    is_complete = not _in_dialog(request) and (_on_list(request) or open_page(request) == reverse("overview"))
    return f'<div id="waiting-{token.pk}" hx-swap-oob="delete"></div>' if is_complete else ""


def back_url(request: AppRequest, token: Token) -> str:
    """Return the URL of the page that browsers without scripts show after an action."""
    if _in_dialog(request):
        return reverse("tokens:for_gateway", args=[token.connection.gateway.slug])
    if token.connection.user_id == request.user.pk:
        return reverse("tokens:list")
    if request.user.has_perm(Capability.API_TOKENS_READ):
        return f"{reverse('tokens:list')}?owner=all"
    return connection_views.back_url(request, token.connection)


def _in_dialog(request: AppRequest) -> bool:
    return "gateway" in (request.POST.get("in"), request.GET.get("in"))


def _on_list(request: AppRequest) -> bool:
    return open_page(request) == reverse("tokens:list")
