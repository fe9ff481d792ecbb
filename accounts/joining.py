"""Accepting an invitation: the person sets a name and a password, or signs in at the identity provider."""

from __future__ import annotations

from http import HTTPStatus
from uuid import UUID

from allauth.account.utils import perform_login
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods

from accounts.models import User
from accounts.password_links import JoinTokens
from accounts.people_forms import JoinForm
from accounts.rules import NotInvited, must_sign_in_at_organisation
from accounts.sign_in_limits import posts_from_one_address
from ui.pages import posted

SESSION_KEY = "invitation"  # The key is stored in the session, so that the URL of the page does not contain it.


@never_cache
@require_GET
@login_not_required
def open_invitation(request: HttpRequest, key: str) -> HttpResponse:
    """Remember the invitation, and redirect to `join`. The link stays valid, because mail programs open links, too."""
    if _invited(key) is None:
        return _no_longer(request)
    request.session[SESSION_KEY] = key
    return redirect("accounts:join")


@never_cache
@require_http_methods(["GET", "POST"])
@login_not_required
@posts_from_one_address("link, from one address")
def join(request: HttpRequest) -> HttpResponse:
    """Set name and password, and sign in.

    People who must sign in at the identity provider get a link to the provider instead of the form.
    """
    person = invited(request)
    if person is None:
        return _no_longer(request, opened=SESSION_KEY in request.session)
    if must_sign_in_at_organisation(person):
        return render(request, "account/join.html", {"person": person, "joins_there": True})
    form = JoinForm(posted(request), user=person, initial={"display_name": person.display_name})
    if request.method == "GET" or not form.is_valid():
        status = HTTPStatus.OK if request.method == "GET" else HTTPStatus.UNPROCESSABLE_ENTITY
        return render(request, "account/join.html", {"form": form, "person": person}, status=status)
    epoch = person.session_epoch
    try:
        person.join(display_name=form.cleaned_data["display_name"], encoded=form.encoded, epoch=epoch)
    except NotInvited:
        return _no_longer(request)
    request.session.flush()
    response: HttpResponse = perform_login(request, person, redirect_url=reverse("overview"))
    return response


def invited(request: HttpRequest) -> User | None:
    """Return the person whose valid invitation was opened in this browser, or None."""
    return _invited(request.session.get(SESSION_KEY, ""))


def _invited(key: str) -> User | None:
    """Return the person whose valid invitation has this key, or None if no valid invitation has it."""
    uid, _, token = key.partition("-")
    try:
        person = User.objects.select_related("role").filter(pk=UUID(uid)).first()
    except ValueError:
        return None
    return person if JoinTokens().check_token(person, token) else None


def _no_longer(request: HttpRequest, *, opened: bool = True) -> HttpResponse:
    """Return the page that says that the invitation is not valid.

    `opened` is False if `join` finds no invitation in the session. The page then asks the person to open the whole
    link, because the invitation itself may be valid.
    """
    context = {"person": None, "opened": opened}
    return render(request, "account/join.html", context, status=HTTPStatus.GONE)
