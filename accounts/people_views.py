"""The People pages: the list, the page of one person, and the actions on one person."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db.models import Count, Q
from django.db.models.functions import Lower
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts import password_links, second_factor
from accounts.models import User
from accounts.people_forms import (
    InviteForm,
    PeopleFilter,
    PersonForm,
    ResendInvitationForm,
    RoleChoice,
    with_last_call,
)
from accounts.person_access import access_of
from accounts.rules import BeyondYours, EmailTaken, InvitationsRefused, PeopleError, missing_capabilities
from accounts.sessions import open_sessions
from accounts.sign_in import ask_again
from accounts.sign_in_limits import Tries
from auditlog.actions import Action
from auditlog.charts import CallPlots
from auditlog.models import Event
from capabilities import Capability, capability_or_404, requires
from connections.impact import cuts
from ui.pages import (
    AppRequest,
    Undo,
    leave,
    posted,
    refuse,
    seen_version,
    sentences,
    show,
)
from ui.tables import Column, Table
from ui.viewset import Picked, confirmed, end_picked, form_page, list_page

AFTERWARDS = (
    "No token, API key or connection is revoked: after reactivation, all of them work again. People who have not "
    "joined need a new invitation."
)
REACTIVATE = "reactivate"  # Value of the field `act` that undoes a deactivation.
PEOPLE = Table(
    "people",
    "People",
    (
        Column("pick", "Pick", 2, kind="pick", needs=Capability.PEOPLE_MANAGE),
        Column("name", "Name", sorts=(Lower("display_name"), "email")),
        Column("email", "E-mail", 14, priority=2, sorts=("email",), on_phone=True),
        Column("role", "Role", 8, priority=3, value="role.name"),
        Column("teams", "Teams", 10, priority=4, value=lambda person: list(person.teams.all())),
        Column("status", "Status", 10, on_phone=True),
        Column("created", "Created", 7, sorts=("date_joined",), most_first=True, is_extra=True, value="date_joined"),
        Column(
            "signed_in",
            "Last sign-in",
            7,
            priority=3,
            sorts=("last_login",),
            most_first=True,
            on_phone=True,
            value="last_login",
        ),
        Column(
            "called",
            "Last call",
            7,
            priority=4,
            sorts=("last_call_at",),
            most_first=True,
            is_extra=True,
            value="last_call_at",
        ),
        Column("second_factor", "Second factor", 7, is_extra=True),
        Column("staff", "Staff", 5, is_extra=True, value="is_staff"),
        Column("break_glass", "Break-glass", 7, is_extra=True),
        Column("acts", "Invitation", 11, kind="acts", said=False),
    ),
    order="email",
)


def person_or_404(pk: UUID) -> Any:
    """Return the person, annotated with the number of their live connections. Raises Http404."""
    people = User.objects.select_related("role").prefetch_related("teams")
    live = Count("connections", filter=Q(connections__revoked_at=None))
    return get_object_or_404(people.annotate(connection_count=live), pk=pk)


def page_url(person: User) -> str:
    return reverse("accounts:person", args=[person.pk])


def _acted(
    request: AppRequest, person: User, act: Callable[[], object], done: str = "", to: str = "", **question: Any
) -> HttpResponse:
    """Ask for confirmation, then call `act`, and redirect to the person's page (or to `to`) with a message."""
    return confirmed(request, act, done, back=page_url(person), to=to, faults=PeopleError, **question)


@require_GET
@requires(Capability.PEOPLE_READ)
def listing(request: AppRequest) -> HttpResponse:
    people = second_factor.with_second_factor(
        with_last_call(User.objects.select_related("role").prefetch_related("teams"))
    )
    filters = PeopleFilter(request.GET)
    return list_page(request, "accounts/people.html", people, table=PEOPLE, filters=filters, tab="users")


@require_POST
@requires(Capability.PEOPLE_MANAGE)
def deactivate_picked(request: AppRequest) -> HttpResponse:
    """Deactivate the selected people after a confirmation. With `act=reactivate`, reactivate them instead."""
    back = request.POST.get("act") == REACTIVATE

    def refused(person: User) -> str:
        return "" if person.is_active is not back else f"already {'active' if back else 'deactivated'}"

    people = Picked(request, User.objects.all(), ("person", "people"), back=reverse("accounts:people"), refused=refused)
    if back:
        return people.each(lambda person: person.reactivate(by=request.user), PeopleError, "reactivated")
    return end_picked(
        people,
        ("Deactivate", "deactivated"),
        lambda person: person.deactivate(by=request.user),
        PeopleError,
        lambda _: (
            "All sessions of these people end, and every connection that acts as one of these people stops at its next "
            f"request. {AFTERWARDS}"
        ),
        icon="pause",
        undo=REACTIVATE,
    )


@require_GET
@requires(Capability.PEOPLE_READ)
def detail(request: AppRequest, pk: UUID) -> HttpResponse:
    person = person_or_404(pk)
    context: dict[str, Any] = {
        "person": person,
        "second_factor": second_factor.has_second_factor(person),
        "sessions": len(open_sessions(person)),
        "lacking": missing_capabilities(request.user, person.granted),
        "gives_staff": request.user.is_staff or request.user.is_owner,
        "mails": bool(settings.MAIL_SERVER),
        "requests": person.open_requests(),
        "access": access_of(person, request.user),
    }
    if request.user.has_perm(Capability.LOGS_READ):
        context["call_plots"] = CallPlots.of(request, {"user_id": [person.pk]}, {"user": str(person.pk)})
    return show(request, "accounts/person.html", context)


@never_cache
@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
@ask_again
def invite(request: AppRequest) -> HttpResponse:
    form = InviteForm(posted(request), grantor=request.user)

    def save() -> HttpResponse:
        data = form.cleaned_data
        try:
            invited = User.objects.invite_all(
                data["emails"], role=data["role"], teams=data.get("teams", ()), by=request.user
            )
        except InvitationsRefused as error:
            form.refuse(error.reasons)
            return refuse(request, "accounts/invite.html", context | {"form": form})
        return _invited(request, *invited)

    context: dict[str, Any] = {"heading": "Invite people", "submit": "Invite", "back": reverse("accounts:people")}
    context["mails"] = bool(settings.MAIL_SERVER)
    return form_page(request, "accounts/invite.html", form, save, {BeyondYours: "role"}, **context)


class Invitation(NamedTuple):
    """A person who was just invited, and the link that gives access as that person."""

    person: User
    link: str
    mailed: bool


def _invited(request: AppRequest, *invited: User) -> HttpResponse:
    """Show the invitation links once: they appear only in this response to a POST."""
    links = [(person, password_links.invitation_link(person)) for person in invited]
    invitations = [
        Invitation(person, link, password_links.mail_invitation(person, link, by=request.user))
        for person, link in links
    ]
    not_mailed = [invitation.person.email for invitation in invitations if not invitation.mailed]
    context = {
        "invitations": invitations,
        "mailed": not not_mailed,
        "not_mailed": not_mailed,
        "has_mail": bool(settings.MAIL_SERVER),
    }
    return show(request, "accounts/invited.html", context)


@never_cache
@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
@ask_again
def invite_again(request: AppRequest, pk: UUID) -> HttpResponse:
    invited = person_or_404(pk)
    form = ResendInvitationForm(posted(request), initial={"epoch": invited.session_epoch})
    context = {
        "form": form,
        "person": invited,
        "heading": "Send a new invitation",
        "submit": "Send",
        "back": page_url(invited),
    }
    if request.method == "GET":
        return show(request, "accounts/invite_again.html", context)
    if not form.is_valid() or form.cleaned_data["epoch"] != invited.session_epoch:
        outdated = "This form was already used, or is out of date. Send a new invitation if you need another link."
        return leave(request, page_url(invited), outdated)
    try:
        invited.renew_invitation(by=request.user)
    except PeopleError as error:
        return leave(request, page_url(invited), str(error))
    return _invited(request, invited)


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
def revoke_invitation(request: AppRequest, pk: UUID) -> HttpResponse:
    invited = person_or_404(pk)
    return _acted(
        request,
        invited,
        lambda: invited.revoke_invitation(by=request.user),
        f"The invitation of {invited.email} is revoked",
        to=reverse("accounts:people"),
        title="Revoke invitation",
        text=f"Revoke the invitation of {invited.email}? The link stops working at once.",
        more="A new invitation can be sent later.",
        icon="revoke",
    )


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
@ask_again
def edit(request: AppRequest, pk: UUID) -> HttpResponse:
    person = person_or_404(pk)
    form = PersonForm(posted(request), initial={"display_name": person.display_name, "email": person.email})

    def save() -> HttpResponse:
        person.edit(**form.cleaned_data, by=request.user, seen=seen_version(request))
        return leave(request, page_url(person), "Saved")

    context = {"heading": "Edit", "back": page_url(person), "version": person.version}
    errors = {EmailTaken: "email", BeyondYours: None}
    return form_page(request, "accounts/person_form.html", form, save, errors, **context)


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
@ask_again
def change_role(request: AppRequest, pk: UUID) -> HttpResponse:
    person = person_or_404(pk)
    requests = person.open_requests()
    asked = [capability for capability, _ in requests]
    form = RoleChoice(posted(request), grantor=request.user, asked=asked, initial={"role": person.role_id})

    def save() -> HttpResponse:
        person.give_role(form.cleaned_data["role"], by=request.user, seen=seen_version(request))
        return leave(request, page_url(person), "Role changed")

    context = {"person": person, "heading": "Change role", "back": page_url(person), "version": person.version}
    context["requests"] = requests
    return form_page(request, "accounts/person_form.html", form, save, {PeopleError: "role"}, **context)


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
def decline_request(request: AppRequest, pk: UUID) -> HttpResponse:
    person, fields = person_or_404(pk), request.GET if request.method == "GET" else request.POST
    capability = capability_or_404(fields.get("capability", ""))

    def act() -> HttpResponse:
        declined = person.decline_request(capability, by=request.user)
        done = "Request declined" if declined else "This request no longer exists"
        return leave(request, page_url(person), done)

    return _acted(
        request,
        person,
        act,
        title="Decline request",
        text=f"Decline the request of {person.email} for “{capability.label}”?",
        more="The person sees that the request was declined. One day after the request, the person can ask again.",
        kind="primary",
        hidden=[("capability", capability.slug)],
    )


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
def deactivate(request: AppRequest, pk: UUID) -> HttpResponse:
    person = person_or_404(pk)

    def act() -> HttpResponse:
        undo = Undo.if_changed(person.deactivate(by=request.user), reverse("accounts:reactivate", args=[pk]))
        return leave(request, page_url(person), f"{person.email} is deactivated", undo)

    return _acted(
        request,
        person,
        act,
        title="Deactivate",
        text=f"Deactivate {person.email}? All sessions end and every connection acting as this user stops on its next "
        "request.",
        more=lambda: sentences(cuts(person, request.user), AFTERWARDS),
        icon="pause",
    )


@require_POST
@requires(Capability.PEOPLE_MANAGE)
def reactivate(request: AppRequest, pk: UUID) -> HttpResponse:
    person = person_or_404(pk)
    return _acted(request, person, lambda: person.reactivate(by=request.user), f"{person.email} can sign in again")


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
@ask_again
def staff(request: AppRequest, pk: UUID, staff: bool) -> HttpResponse:
    """Set or clear the staff flag."""
    person = person_or_404(pk)
    shows = "The Django admin shows the tables behind these pages, limited by the person's role."
    return _acted(
        request,
        person,
        lambda: person.set_staff(staff, by=request.user),
        f"{person.email} is {'staff' if staff else 'no longer staff'}",
        title="Make staff" if staff else "End staff",
        text=(
            f"Let {person.email} use the Django admin?"
            if staff
            else f"Stop {person.email} from using the Django admin?"
        ),
        more=shows if staff else "Their role stays as it is.",
        icon="terminal",
        kind="primary" if staff else "danger",
    )


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
@ask_again
def break_glass(request: AppRequest, pk: UUID, on: bool) -> HttpResponse:
    """Set or clear break-glass, which lets an owner use a password while sign-in by the organisation is enforced."""
    person = person_or_404(pk)
    return _acted(
        request,
        person,
        lambda: person.set_break_glass(on, by=request.user),
        f"{person.email} is {'a' if on else 'no'} break-glass owner",
        title="Make break-glass owner" if on else "End break-glass",
        text=f"Let {person.email} always use their password?" if on else f"End break-glass for {person.email}?",
        more=(
            "They must already have a second factor. While sign-in by the organisation is enforced, each sign-in with "
            "the password is recorded as an admin event."
        )
        if on
        else (
            "If sign-in by the organisation is enforced for this person, their password stops working, and "
            "their password sessions end at once."
        ),
        icon="lock",
        kind="primary" if on else "danger",
    )


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
def send_reset(request: AppRequest, pk: UUID) -> HttpResponse:
    person = person_or_404(pk)
    return _acted(
        request,
        person,
        lambda: leave(request, page_url(person), _reset_sent(request, person)),
        title="Send password reset",
        text=f"Send {person.email} a link to set a new password?",
        more="The link works once, for one hour. When the person sets a new password with the link, all API tokens, "
        "API keys and app connections of the person are revoked.",
        icon="mail",
        kind="primary",
    )


def _reset_sent(request: AppRequest, person: User) -> str:
    """Mail a reset link to the person, and return the result as a sentence. The link is not shown to anybody else."""
    if not settings.MAIL_SERVER:
        return password_links.NO_MAIL
    try:
        person.must_be_resettable(by=request.user)
        if (mail := password_links.reset_mail(person)) is None:
            return f"Nothing was sent: {person.email} signs in at the organisation"
        Tries().count("reset, for one account", person.email)
    except PeopleError as error:
        return str(error)
    if not password_links.sent(mail):
        return "The mail could not be sent. The process log of the gateway says why."
    Event.objects.record(Action.USER_RESET_SENT, person, by=request.user)
    return f"A link was sent to {person.email}"


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
def end_sessions(request: AppRequest, pk: UUID) -> HttpResponse:
    person = person_or_404(pk)
    return _acted(
        request,
        person,
        lambda: person.end_sessions(by=request.user),
        "All sessions ended",
        title="End all sessions",
        text=f"Sign {person.email} out of every browser?",
        more="Agents and apps that act as this person keep working.",
        icon="sign-out",
    )


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
@ask_again
def remove_second_factor(request: AppRequest, pk: UUID) -> HttpResponse:
    person = person_or_404(pk)
    return _acted(
        request,
        person,
        lambda: second_factor.remove(person, by=request.user),
        "Second factor removed",
        title="Remove second factor",
        text=f"Let {person.email} sign in with the password alone?",
        more=(
            "This helps people who have lost both their recovery codes and their phone or security key. Make sure that "
            "the request really comes from them."
        ),
        icon="shield",
    )
