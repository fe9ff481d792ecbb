"""The fragments to replace after an action on a token, depending on the page that sent it."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django_htmx.http import reswap, retarget

from accounts.models import User
from capabilities import Capability
from connections import views as connection_views
from gateways.models import Gateway
from tokens.models import Token
from tokens.rows import TokenFilter, TokenRow, listed, owner_of_listed, token_counts
from tokens.visibility import may_create, tokens_visible_to, with_scope
from ui.pages import AppRequest, Fragment, answer, leave, open_page, open_query, wants_fragment

IN_DIALOG = {"in": "gateway"}


def hidden(request: AppRequest) -> dict[str, str]:
    """Return the hidden fields with which a form tells where its answer is shown."""
    return IN_DIALOG if _in_dialog(request) else {}


def target(request: AppRequest, token: Token) -> str:
    """Return the selector of the element that shows `token`."""
    if _in_dialog(request):
        return "#dialog"
    return f"#token-{token.pk}" if _on_list(request) else f"#connection-{token.connection_id}"


def token_fragment(request: AppRequest, token: Token) -> Fragment:
    """Return the fragment that shows `token`: the gateway's dialog, a row of API Tokens, or its connection's row."""
    if _in_dialog(request):
        return Fragment(
            "tokens/for_gateway.html", of_gateway(request.user, token.connection.gateway) | {"fragment": True}
        )
    if _on_list(request):
        row = TokenRow(get_object_or_404(with_scope(tokens_visible_to(request.user)), pk=token.pk), request.user)
        viewer, query = request.user, open_query(request)
        # Counts are not shown with a search.
        counts = (
            {}
            if "q" in TokenFilter(query).values
            else token_counts(listed(viewer, query), owner_of_listed(viewer, query))
        )
        return Fragment("tokens/list.html#row", {"row": row, "counts": counts})
    return connection_views.row_fragment(request, token.connection)


def of_gateway(viewer: User, gateway: Gateway) -> dict[str, Any]:
    """Return the context of a gateway's API Tokens dialog: the viewer's own unrevoked tokens."""
    own_tokens = (
        with_scope(tokens_visible_to(viewer)).live().filter(connection__user=viewer, connection__gateway=gateway)
    )
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
    """Return the token's fragment as an out-of-band addition to the dialog that shows a secret."""
    if _in_dialog(request) or open_page(request) == reverse("overview"):
        return ""
    return connection_views.extra_fragment(request, token_fragment(request, token))


def without_notice(request: AppRequest, token: Token) -> str:
    """Return the out-of-band element that removes the notice that `token` waits to be collected."""
    is_complete = not _in_dialog(request) and (_on_list(request) or open_page(request) == reverse("overview"))
    return f'<div id="waiting-{token.pk}" hx-swap-oob="delete"></div>' if is_complete else ""


def back_url(request: AppRequest, token: Token) -> str:
    """Return the URL to redirect to without script."""
    if _in_dialog(request):
        return reverse("tokens:for_gateway", args=[token.connection.gateway.slug])
    if token.connection.user_id == request.user.pk:
        return reverse("tokens:list")
    if request.user.has_perm(Capability.API_TOKENS_MANAGE):
        return f"{reverse('tokens:list')}?owner=all"
    return connection_views.back_url(request, token.connection)


def _in_dialog(request: AppRequest) -> bool:
    return "gateway" in (request.POST.get("in"), request.GET.get("in"))


def _on_list(request: AppRequest) -> bool:
    return open_page(request) == reverse("tokens:list")
