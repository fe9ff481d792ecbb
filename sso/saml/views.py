"""SAML pages: where the provider's answers arrive, and our metadata."""

from __future__ import annotations

import logging
from http import HTTPStatus
from urllib.parse import urlencode

from django.contrib.auth.decorators import login_not_required
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.sign_in_limits import Tries, is_first_this_minute, posts_from_one_address, sender_of, take_back
from auditlog.actions import Action
from auditlog.models import Event
from sso import views
from sso.flow import SignInFailed
from sso.models import Claims, Provider
from sso.saml import flow
from sso.saml.refusals import ADVICE, ResponseRefused
from sso.saml.requests import own_metadata

logger = logging.getLogger(__name__)

ANSWERED = "organisation answer, from one address"


def _offered() -> Provider | None:
    provider = Provider.offered()
    return provider if provider and provider.speaks_saml else None


@csrf_exempt
@never_cache
@require_POST
@login_not_required
@posts_from_one_address(ANSWERED)
def consumer(request: HttpRequest) -> HttpResponse:
    """Receive the provider's answer, a cross-site POST.

    Neither session nor cookie is read or set; the page that follows does that.
    """
    provider = _offered()
    if provider is None:
        return HttpResponse(status=HTTPStatus.NOT_FOUND)
    try:
        given = request.POST
        ticket = flow.receive(provider, given.get("SAMLResponse", ""), given.get("RelayState", ""))
    except ResponseRefused as fault:
        _note(request, provider, fault)
        return _lead_on(refused=fault.reason)
    take_back(request, ANSWERED)
    return _lead_on(ticket=ticket)


def _lead_on(**query: str) -> HttpResponse:
    response = HttpResponseRedirect(f"{reverse('sso:saml_answered')}?{urlencode(query)}")
    response.status_code = HTTPStatus.SEE_OTHER
    response["Referrer-Policy"] = "no-referrer"
    return response


@never_cache
@require_http_methods(["GET", "POST"])
@login_not_required
def answered(request: HttpRequest) -> HttpResponse:
    """Complete the sign-in with a ticket, in the browser's session, or show why the answer was refused.

    People who did not start here are asked first, so that a link cannot replace their session.
    """
    provider = _offered()
    if provider is None:
        return views.sign_in_refused(request, HTTPStatus.NOT_FOUND)
    if request.GET.get("refused") in ADVICE:
        return _advised(request, provider, request.GET["refused"])
    ticket = request.POST.get("ticket") or request.GET.get("ticket", "")
    if request.method == "GET" and (whoever := flow.unasked(provider, ticket)):
        return _asked(request, provider, whoever, ticket)
    tries = Tries()
    tries.count(ANSWERED, sender_of(request))
    try:
        begun, who = flow.finish_saml(request, provider, ticket)
        tries.take_back()
        return views.go_on(request, provider, begun, who)
    except ResponseRefused as fault:
        _note(request, provider, fault)
        return _advised(request, provider, fault.reason)
    except SignInFailed as fault:
        logger.warning("a sign-in at the organisation failed", extra={"error": str(fault)})
        return views.sign_in_refused(request, HTTPStatus.BAD_REQUEST, provider, fault.advice)


def _asked(request: HttpRequest, provider: Provider, who: Claims, ticket: str) -> HttpResponse:
    context = {"provider": provider, "name": who.email or who.name or who.subject, "ticket": ticket}
    return views.without_referrer(request, "sso/sign_in_as.html", context)


def _advised(request: HttpRequest, provider: Provider, reason: str) -> HttpResponse:
    context = {"provider": provider, "advice": ADVICE[reason], "reason": reason}
    return views.without_referrer(request, "sso/not_accepted.html", context, HTTPStatus.BAD_REQUEST)


def _note(request: HttpRequest, provider: Provider, fault: ResponseRefused) -> None:
    """Record the refusal, once a minute for each reason and sender, because anybody may post answers here."""
    if is_first_this_minute(request, f"saml refused {fault.reason}"):
        logger.warning("an answer of the identity provider was refused", extra={"error": str(fault)})
        changes = {"reason": fault.reason, "detail": str(fault)}
        Event.objects.record(Action.SIGN_IN_REFUSED, provider, by=None, changes=changes)


@never_cache
@require_GET
@login_not_required
def metadata(request: HttpRequest) -> HttpResponse:
    """Serve our metadata to anybody, if SAML is selected."""
    provider = Provider.load()
    if not provider.speaks_saml:
        raise Http404
    return HttpResponse(own_metadata(provider), content_type="application/samlmetadata+xml")
