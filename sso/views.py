"""Pages to sign in with the organisation's identity provider, to change its settings, and to link an account."""

from __future__ import annotations

import hashlib
import logging
import time
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from allauth.account.utils import perform_login
from allauth.account.views import LogoutView
from django.conf import settings
from django.contrib.auth import logout
from django.contrib.auth.decorators import login_not_required
from django.core.cache import cache
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts import joining
from accounts.held_forms import send_again
from accounts.models import User
from accounts.rules import PeopleError, missing_capabilities
from accounts.sign_in import SIGNED_IN_AT, ask_again, confirms_there
from accounts.sign_in_limits import Tries, is_first_this_minute, posts_from_one_address, sender_of, take_back
from auditlog.actions import Action
from auditlog.models import Event
from auditlog.versions import ChangedMeanwhile
from capabilities import Capability, own_resource, requires
from sso import oidc, provider_test
from sso.enforcement import end_sessions, is_signed_in_there, remember
from sso.errors import (
    CONFIRM_HERE,
    FAILED,
    LINK_AGAIN,
    NOT_ASKED,
    NOT_OFFERED,
    OTHER_ACCOUNT,
    RESPONSE_ADVICE,
    UNAVAILABLE,
    Advice,
    NeedsExtra,
    NoEntry,
    ProviderError,
    SignInFailed,
)
from sso.flow import CONFIRM, LINK, LOGIN, PendingSignIn
from sso.forms import ProviderForm
from sso.models import SETS_UP, Account, Claims, Provider
from sso.saml import flow as saml_flow
from sso.saml.settings import consumer_url, entity_id, is_installed
from sso.signed_tokens import CLOCKS_DIFFER_S, LOGOUT_LIVES_S, TokenInvalid, header_of, logout_token
from ui.pages import AppRequest, clash_context, leave, own_path, posted, refuse, seen_version, show

logger = logging.getLogger(__name__)

BEGUN_THERE = "organisation, from one address"
ANSWERED = "organisation answer, from one address"
OWN_ACCOUNT = "one's own account at the organisation"


# --- Signing in -------------------------------------------------------------------------------------------------------


@never_cache
@require_POST
@login_not_required
@posts_from_one_address(BEGUN_THERE)
def begin(request: HttpRequest) -> HttpResponse:
    """Redirect a person from the gateway's sign-in page to the organisation's identity provider."""
    return _begin(request, LOGIN, own_path(request.POST.get("next", ""), reverse("overview")))


def _begin(request: HttpRequest, act: str, onward: str) -> HttpResponse:
    provider = Provider.offered()
    if provider is None and act != LOGIN:
        return leave(request, reverse("accounts:profile"), NOT_OFFERED.text)
    if provider is None:
        return sign_in_refused(request, HTTPStatus.NOT_FOUND, NOT_OFFERED)
    try:
        leads_there = saml_flow.begin_saml if provider.speaks_saml else oidc.begin_oidc
        return leads_there(request, provider, act=act, onward=onward)
    except ProviderError as fault:
        return _unavailable(request, fault)


@never_cache
@require_GET
@login_not_required
def callback(request: HttpRequest) -> HttpResponse:
    """Complete a sign-in with OpenID Connect, after the provider has redirected the browser to this URL."""
    provider = Provider.offered()
    if provider is None or provider.speaks_saml:
        return sign_in_refused(request, HTTPStatus.NOT_FOUND, NOT_OFFERED)
    try:
        return _go_on(request, provider, *oidc.finish_oidc(request, provider))
    except SignInFailed as fault:
        return _failed(request, provider, fault)
    except ProviderError as fault:
        return _unavailable(request, fault)


@csrf_exempt
@never_cache
@require_POST
@login_not_required
@posts_from_one_address(ANSWERED)
def saml_consumer(request: HttpRequest) -> HttpResponse:
    """Receive a SAML provider's answer (a cross-site POST), and redirect the browser to `saml_answered`."""
    provider = Provider.offered()
    if provider is None or not provider.speaks_saml:
        return HttpResponse(status=HTTPStatus.NOT_FOUND)
    given = request.POST
    try:
        ticket = saml_flow.receive(provider, given.get("SAMLResponse", ""), given.get("RelayState", ""))
    except SignInFailed as fault:
        _note(request, provider, fault)
        query = {"refused": fault.reason}
    else:
        take_back(request, ANSWERED)
        query = {"ticket": ticket}
    # Set no cookie: the browser sent no session cookie, so a new one would replace its session.
    response = HttpResponseRedirect(f"{reverse('sso:saml_answered')}?{urlencode(query)}")
    response.status_code = HTTPStatus.SEE_OTHER
    response["Referrer-Policy"] = "no-referrer"
    return response


@never_cache
@require_http_methods(["GET", "POST"])
@login_not_required
def saml_answered(request: HttpRequest) -> HttpResponse:
    """Complete the sign-in to which the request's ticket belongs, or show why the provider's answer was refused."""
    provider, reason = Provider.offered(), request.GET.get("refused", "")
    if provider is None or not provider.speaks_saml:
        return sign_in_refused(request, HTTPStatus.NOT_FOUND, NOT_OFFERED)
    if reason in RESPONSE_ADVICE:
        return sign_in_refused(request, HTTPStatus.BAD_REQUEST, RESPONSE_ADVICE[reason], reason)
    ticket = request.POST.get("ticket") or request.GET.get("ticket", "")
    # If the sign-in started at the provider, ask first: without this page, a link could replace the browser's session.
    if request.method == "GET" and (who := saml_flow.unasked(provider, ticket)):
        context = {"provider": provider, "name": who.email or who.name or who.subject, "ticket": ticket}
        return _without_referrer(request, "sso/sign_in_as.html", context)
    tries = Tries()
    tries.count(ANSWERED, sender_of(request))
    try:
        begun, who = saml_flow.finish_saml(request, provider, ticket)
        tries.take_back()
        return _go_on(request, provider, begun, who)
    except SignInFailed as fault:
        if fault.reason:
            _note(request, provider, fault)
        return _failed(request, provider, fault)


@never_cache
@require_GET
@login_not_required
def saml_metadata(request: HttpRequest) -> HttpResponse:
    """Serve our metadata to anybody, if SAML is selected."""
    provider = Provider.load()
    if not provider.speaks_saml:
        raise Http404
    return HttpResponse(saml_flow.own_metadata(provider), content_type="application/samlmetadata+xml")


def _note(request: HttpRequest, provider: Provider, fault: SignInFailed) -> None:
    """Record a refused answer, at most once a minute per reason and sender, because anybody may post answers here."""
    if is_first_this_minute(request, f"saml refused {fault.reason}"):
        logger.warning("an answer of the identity provider was refused", extra={"error": str(fault)})
        changes = {"reason": fault.reason, "detail": str(fault)}
        Event.objects.record(Action.SIGN_IN_REFUSED, provider, by=None, changes=changes)


def _failed(request: HttpRequest, provider: Provider, fault: SignInFailed) -> HttpResponse:
    if not (provider.speaks_saml and fault.reason):
        logger.warning("a sign-in at the organisation failed", extra={"error": str(fault)})
    return sign_in_refused(request, HTTPStatus.BAD_REQUEST, fault.advice or FAILED, fault.reason)


def _unavailable(request: HttpRequest, fault: ProviderError) -> HttpResponse:
    logger.warning("the identity provider cannot be asked", extra={"error": str(fault)})
    return sign_in_refused(request, HTTPStatus.BAD_GATEWAY, UNAVAILABLE)


def _go_on(request: HttpRequest, provider: Provider, begun: PendingSignIn, who: Claims) -> HttpResponse:
    """Complete a sign-in as its purpose requires: sign in, link the account, or confirm. Raises SignInFailed."""
    act = {LOGIN: _let_in, LINK: _linked, CONFIRM: _confirmed}[begun.act]
    return act(request, provider, begun, who)


def _let_in(request: HttpRequest, provider: Provider, begun: PendingSignIn, who: Claims) -> HttpResponse:
    # An unsolicited answer may be about anybody, so an invitation opened in this browser is not used for it.
    invited = None if begun.is_unasked else joining.invited(request)
    try:
        person = provider.admit(who, invited=invited)
    except NoEntry as refusal:
        changes = {"reason": refusal.reason, "email": who.email, "groups": sorted(who.groups or ())[:20]}
        Event.objects.record(Action.SIGN_IN_REFUSED, refusal.person or provider, by=None, changes=changes)
        return sign_in_refused(request, HTTPStatus.FORBIDDEN, refusal.advice or FAILED, refusal.reason)
    if request.user.is_authenticated:
        logout(request)  # Even if the person is signed in already: a sign-in starts a new session.
    request.session.pop(joining.SESSION_KEY, None)
    remember(request, who)
    # People with a second factor are asked for it, as after a password.
    response: HttpResponse = perform_login(request, person, redirect_url=begun.onward)
    take_back(request, BEGUN_THERE)
    if request.user.is_authenticated:  # Not the present time: the person's session at the provider may be old.
        request.session[SIGNED_IN_AT] = who.authenticated_at or 0
    return response


def _linked(request: HttpRequest, provider: Provider, begun: PendingSignIn, who: Claims) -> HttpResponse:
    """Link the account at the provider to the person who is signed in here.

    Raises SignInFailed if nobody is signed in any more.
    """
    if not isinstance(request.user, User):
        raise SignInFailed("The person who wanted to link their account is no longer signed in.", LINK_AGAIN)
    try:
        provider.link(request.user, who)
    except ProviderError as error:
        return leave(request, reverse("accounts:profile"), str(error))
    return leave(request, reverse("accounts:profile"), f"Linked to {provider.name}")


def _confirmed(request: HttpRequest, provider: Provider, begun: PendingSignIn, who: Claims) -> HttpResponse:
    """Continue the action that waited for confirmation, if the signed-in person has authenticated again."""
    account = Account.objects.filter(issuer=who.issuer, subject=who.subject).first()
    if not isinstance(request.user, User) or account is None or account.user_id != request.user.pk:
        raise SignInFailed(
            "The provider confirmed an account that is not linked to the person signed in here.", OTHER_ACCOUNT
        )
    if not confirms_there(request.user):
        raise SignInFailed(
            "People who have a password or a second factor here must confirm with one of them.", CONFIRM_HERE
        )
    if not provider.proves_presence:
        raise SignInFailed(
            "The gateway's requests to the provider are not signed, so a person can change a request in the browser. "
            "Therefore, an answer does not prove that the provider asked the person for a credential again.",
            NOT_ASKED,
        )
    # Check the time: in the browser, people can remove the requirement of a credential from the URL.
    if who.authenticated_at is None:
        raise SignInFailed("The provider does not say when it asked for a credential (auth_time).", NOT_ASKED)
    if who.authenticated_at < begun.at - CLOCKS_DIFFER_S:
        raise SignInFailed("The provider did not ask for a credential again.", NOT_ASKED)
    request.session[SIGNED_IN_AT] = time.time()
    return send_again(request, begun.onward) or redirect(begun.onward)


def sign_in_refused(
    request: HttpRequest,
    status: HTTPStatus,
    advice: Advice,
    reason: str = "",
) -> HttpResponse:
    """Show the page “Not signed in” with advice.

    The page is also shown if the purpose of the failed sign-in was to confirm a change or to link an account.
    """
    context = {"advice": advice, "reason": reason}
    return _without_referrer(request, "sso/refused.html", context, status)


def _without_referrer(
    request: HttpRequest, template: str, context: dict[str, Any], status: HTTPStatus = HTTPStatus.OK
) -> HttpResponse:
    """Render a page from which browsers send no Referer, because its URL may contain values from the provider."""
    response = render(request, template, context, status=status)
    response["Referrer-Policy"] = "no-referrer"
    return response


@never_cache
@require_http_methods(["GET", "POST"])
@own_resource(OWN_ACCOUNT)
def confirm(request: AppRequest) -> HttpResponse:
    """Let a person confirm a sensitive change by signing in at the organisation.

    Only people with neither a password nor a second factor here can use this page.
    """
    onward = own_path(request.POST.get("next") or request.GET.get("next", ""), reverse("overview"))
    if not confirms_there(request.user):
        return redirect(f"{reverse('account_reauthenticate')}?{urlencode({'next': onward})}")
    provider = Provider.offered()
    if request.method == "POST" and (provider is None or provider.proves_presence):
        return _begin(request, CONFIRM, onward)
    return show(request, "sso/confirm.html", {"provider": provider, "onward": onward})


# --- Signing out ------------------------------------------------------------------------------------------------------


class SignOut(LogoutView):  # type: ignore[misc]
    """End the session. If configured, forward people who signed in at the organisation to the provider's logout."""

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        provider = Provider.offered()
        leads = provider if provider and provider.signs_out_there and is_signed_in_there(request, provider) else None
        response: HttpResponse = super().post(request, *args, **kwargs)
        if leads is None or request.POST.get("next"):  # `next`: the person continues with another account.
            return response
        try:
            return oidc.sign_out_there(request, leads) or response
        except ProviderError as fault:
            logger.warning("the identity provider cannot be asked", extra={"error": str(fault)})
            return response


# --- Logout by the provider -------------------------------------------------------------------------------------------


@csrf_exempt
@never_cache
@require_POST
@login_not_required
@posts_from_one_address("organisation logout, from one address")
def backchannel_logout(request: HttpRequest) -> HttpResponse:
    """Handle a logout token of the provider (OpenID Connect Back-Channel Logout 1.0)."""
    provider = Provider.offered()
    if provider is None or provider.speaks_saml:
        return _not_a_logout("This workspace has no sign-in with OpenID Connect.")
    token = request.POST.get("logout_token", "")
    try:
        header_of(token)  # Check the format first, so that garbage does not make us fetch keys.
        claims = oidc.verified(provider, logout_token, token)
    except TokenInvalid as fault:
        return _not_a_logout(str(fault))
    except ProviderError as fault:
        logger.warning("the identity provider cannot be asked", extra={"error": str(fault)})
        return JsonResponse({"error": "temporarily_unavailable"}, status=HTTPStatus.SERVICE_UNAVAILABLE)
    used = hashlib.sha256(claims["jti"].encode()).hexdigest()  # The id itself may be too long for the cache.
    if not cache.add(f"organisation-logout:{used}", "used", timeout=2 * LOGOUT_LIVES_S):
        return _not_a_logout("The logout token was used before.")
    end_sessions(provider.issuer, claims)
    return HttpResponse(status=HTTPStatus.OK)


def _not_a_logout(reason: str) -> HttpResponse:
    return JsonResponse({"error": "invalid_request", "error_description": reason}, status=HTTPStatus.BAD_REQUEST)


# --- Setting it up ----------------------------------------------------------------------------------------------------


@require_http_methods(["GET", "POST"])
@requires(Capability.WORKSPACE_READ)
@requires(Capability.PEOPLE_READ)
@requires(Capability.WORKSPACE_MANAGE, to_change=True)
@requires(Capability.PEOPLE_MANAGE, to_change=True)
@ask_again
def settings_page(request: AppRequest) -> HttpResponse:
    provider = Provider.load()
    form = ProviderForm(posted(request), provider=provider)
    context = _context(request, provider, form)
    if request.method == "GET":
        return show(request, "sso/settings.html", context)
    if form.is_valid():
        try:
            Provider.edit(by=request.user, seen=seen_version(request), **form.values())
        except ChangedMeanwhile as clash:
            context |= clash_context(clash)
        except ProviderError as error:
            form.refuse(error)
        except PeopleError as error:
            form.add_error(None, str(error))
        else:
            return leave(request, reverse("sso:settings"), "Sign-in by your organisation saved")
    return refuse(request, "sso/settings.html", context)


@require_POST
@requires(Capability.WORKSPACE_MANAGE)
@requires(Capability.PEOPLE_MANAGE)
def test_provider(request: AppRequest) -> HttpResponse:
    """Test the provider, and show the result."""
    provider = Provider.load()
    outcome = provider_test.test_provider(provider, by=request.user)
    context = _context(request, provider, ProviderForm(None, provider=provider)) | {"outcome": outcome}
    return show(request, "sso/settings.html", context)


def _context(request: AppRequest, provider: Provider, form: ProviderForm) -> dict[str, Any]:
    return {
        "form": form,
        "parts": form.parts(),
        "may_change": all(map(request.user.has_perm, SETS_UP)),
        "lacking": ", ".join(missing_capabilities(request.user, Capability)),
        "provider": provider,
        "version": provider.version,
        "callback_url": oidc.callback_url(),
        "signed_out_url": oidc.signed_out_url(),
        "logout_url": f"{settings.PUBLIC_URL}{reverse('sso:backchannel_logout')}",
        "entity_id": entity_id(),
        "consumer_url": consumer_url(),
        "saml_needs": "" if is_installed() else NeedsExtra.__doc__,
    }


# --- Linking an account -----------------------------------------------------------------------------------------------


@require_POST
@own_resource(OWN_ACCOUNT)
@ask_again
def link(request: AppRequest) -> HttpResponse:
    """Start a sign-in at the organisation's identity provider.

    If the sign-in succeeds, the account at the provider is linked to the account that is signed in here.
    """
    return _begin(request, LINK, reverse("accounts:profile"))


@require_POST
@own_resource(OWN_ACCOUNT)
@ask_again
def unlink(request: AppRequest) -> HttpResponse:
    try:
        Provider.load().unlink(request.user)
    except (ProviderError, PeopleError) as error:
        return leave(request, reverse("accounts:profile"), str(error))
    return leave(request, reverse("accounts:profile"), "You now sign in with your password only")
