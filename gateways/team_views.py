"""The Teams pages: members, and the gateways open to a team."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Count, Q, QuerySet
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import Team, User
from accounts.rules import NameTaken, Outranked
from capabilities import Capability, requires
from gateways.models import Gateway, Reach, TeamGateways
from ui.pages import (
    AppRequest,
    Undo,
    first_names,
    leave,
    number_of,
    own_path,
    posted,
    seen_version,
    sentences,
    show,
)
from ui.tables import Column, Table
from ui.viewset import confirmed, form_page, list_page

TEAMS = Table(
    "teams",
    "Teams",
    (
        Column("name", "Name"),
        Column("people", "People", 6, kind="number", on_phone=True, value="user_count"),
        Column("gateways", "Gateways for teams", 10, kind="number", on_phone=True, value="gateway_count"),
    ),
)
MEMBERS = Table(
    "members",
    "People of this team",
    (
        Column("name", "Name"),
        Column("email", "E-mail", 16, priority=2, on_phone=True),
        Column("role", "Role", 8, priority=3, value="role.name"),
        Column("status", "Status", 10, on_phone=True),
        Column("acts", "Actions", 4, kind="acts", said=False),
    ),
)

# Forms of the Teams pages.

MOST = 500


class TeamForm(forms.Form):
    name = forms.CharField(max_length=80)


class PeopleForm(forms.Form):
    """Form to add people to a team by e-mail address."""

    emails = forms.CharField(
        label="E-mails", max_length=MOST * 255, widget=forms.Textarea(attrs={"rows": 6}), help_text="One per line."
    )

    def clean_emails(self) -> list[User]:
        """Return the people with these addresses.

        Raises ValidationError if there is no address, if there are too many, or if an address belongs to nobody.
        """
        emails = list(dict.fromkeys(re.findall(r"[^\s,;]+", str(self.cleaned_data["emails"]).lower())))
        if not emails:
            raise ValidationError("Enter at least one e-mail.")
        if len(emails) > MOST:
            raise ValidationError(f"Add at most {MOST} people at a time.")
        people = {person.email: person for person in User.objects.filter(email__in=emails)}
        if missing := [email for email in emails if email not in people]:
            raise ValidationError(f"There is no person with the e-mail {missing[0][:100]}.")
        return list(people.values())


class TeamGatewaysForm(forms.Form):
    """Form to choose the gateways of `team`, among the gateways that only some teams may use."""

    gateways = forms.ModelMultipleChoiceField(
        Gateway.objects.none(), required=False, widget=forms.CheckboxSelectMultiple, label="Gateways for teams"
    )

    def __init__(self, *args: Any, team: Team, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["gateways"].queryset = Gateway.objects.live().filter(reach=Reach.TEAMS).order_by("name")  # type: ignore[attr-defined]
        self.initial = {"gateways": list(team.gateways.values_list("pk", flat=True))}


def page_url(team: Team) -> str:
    return reverse("gateways:team", args=[team.pk])


def _locked(pk: UUID) -> Team:
    """Return the team, locked until the transaction ends."""
    return get_object_or_404(Team.objects.select_for_update(), pk=pk)


def _live(team: Team) -> Any:
    return Gateway.objects.live().filter(reach=Reach.TEAMS, teams=team).order_by("name")


def _counted(teams: QuerySet[Team]) -> QuerySet[Team]:
    live = Q(gateways__archived_at=None, gateways__reach=Reach.TEAMS)
    return teams.annotate(gateway_count=Count("gateways", filter=live, distinct=True)).order_by("name")


def _form(
    request: AppRequest, form: forms.Form, save: Callable[[], HttpResponse], heading: str, back: str, **context: str
) -> HttpResponse:
    errors = {NameTaken: "name", Outranked: "emails"}
    return form_page(request, "gateways/team_form.html", form, save, errors, heading=heading, back=back, **context)


@require_GET
@requires(Capability.PEOPLE_READ)
def listing(request: AppRequest) -> HttpResponse:
    teams = _counted(Team.objects.annotate(user_count=Count("users", distinct=True)))
    return list_page(request, "gateways/teams.html", teams, table=TEAMS, tab="teams")


@require_GET
@requires(Capability.PEOPLE_READ)
def detail(request: AppRequest, pk: UUID) -> HttpResponse:
    team = get_object_or_404(Team, pk=pk)
    people = User.objects.filter(teams=team).select_related("role").order_by("email")
    return list_page(request, "gateways/team.html", people, table=MEMBERS, team=team, gateways=_live(team))


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
def add(request: AppRequest) -> HttpResponse:
    form = TeamForm(posted(request))

    def save() -> HttpResponse:
        team = Team.objects.add(name=form.cleaned_data["name"], users=(), by=request.user)
        return leave(request, page_url(team), f"{team.name} added")

    return _form(request, form, save, "Add a team", reverse("gateways:teams"), submit="Add a team")


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
def rename(request: AppRequest, pk: UUID) -> HttpResponse:
    team = get_object_or_404(Team, pk=pk)
    form = TeamForm(posted(request), initial={"name": team.name})

    def save() -> HttpResponse:
        with transaction.atomic():
            now = _locked(pk)
            users, seen = list(now.users.all()), seen_version(request)
            now.edit(name=form.cleaned_data["name"], users=users, by=request.user, seen=seen)
        return leave(request, page_url(team), "Team renamed")

    return _form(request, form, save, "Rename", page_url(team), submit="Rename", version=team.version)


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
def add_people(request: AppRequest, pk: UUID) -> HttpResponse:
    team = get_object_or_404(Team, pk=pk)
    form = PeopleForm(posted(request))

    def save() -> HttpResponse:
        with transaction.atomic():
            now = _locked(pk)
            now.edit(name=now.name, users={*now.users.all(), *form.cleaned_data["emails"]}, by=request.user)
        return leave(request, page_url(team), "People added")

    return _form(request, form, save, f"Add people to {team.name}", page_url(team), submit="Add")


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
def put_in(request: AppRequest, pk: UUID) -> HttpResponse:
    """Show a button for each team that a person is not in. The button adds the person to the team."""
    person = get_object_or_404(User, pk=pk)
    back = own_path(request.POST.get("back", ""), reverse("accounts:person", args=[pk]))
    if request.method == "GET":
        teams = _counted(Team.objects.exclude(users=person))
        return show(request, "gateways/put_in_team.html", {"person": person, "teams": teams, "back": back})
    try:
        with transaction.atomic():
            team = Team.objects.select_for_update().get(pk=UUID(request.POST.get("team", "")))
            changed = team.edit(name=team.name, users={*team.users.all(), person}, by=request.user)
    except (ValueError, Team.DoesNotExist):
        return leave(request, back, "There is no such team.")
    except Outranked as error:
        return leave(request, back, str(error))
    undo = Undo.if_changed(changed, reverse("gateways:remove_from_team", args=[team.pk, pk]), [("back", back)])
    return leave(request, back, f"{person.email} was added to {team.name}", undo)


@require_POST
@requires(Capability.PEOPLE_MANAGE)
def remove_person(request: AppRequest, pk: UUID, user_pk: UUID) -> HttpResponse:
    back = own_path(request.POST.get("back", ""), reverse("gateways:team", args=[pk]))
    try:
        with transaction.atomic():
            team = _locked(pk)
            person = get_object_or_404(team.users.all(), pk=user_pk)
            changed = team.edit(name=team.name, users=list(team.users.exclude(pk=person.pk)), by=request.user)
    except Outranked as error:
        return leave(request, back, str(error))
    fields = [("team", str(team.pk)), ("back", back)]
    undo = Undo.if_changed(changed, reverse("gateways:put_in_team", args=[person.pk]), fields)
    return leave(request, back, f"{person.email} was removed from {team.name}", undo)


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
@requires(Capability.GATEWAYS_MANAGE)
def choose_gateways(request: AppRequest, pk: UUID) -> HttpResponse:
    """Choose the gateways open to a team. Requires PEOPLE_MANAGE and GATEWAYS_MANAGE."""
    team = get_object_or_404(Team, pk=pk)
    form = TeamGatewaysForm(posted(request), team=team)

    def save() -> HttpResponse:
        Gateway.objects.open_to(team, form.cleaned_data["gateways"], by=request.user, seen=seen_version(request))
        return leave(request, page_url(team), "Gateways saved")

    heading, version = f"Gateways open to {team.name}", TeamGateways(team).version
    return _form(request, form, save, heading, page_url(team), version=version)


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
def remove(request: AppRequest, pk: UUID) -> HttpResponse:
    team = get_object_or_404(Team, pk=pk)
    return confirmed(
        request,
        lambda: team.remove(by=request.user),
        f"{team.name} deleted",
        back=page_url(team),
        to=reverse("gateways:teams"),
        faults=Outranked,
        title="Delete team",
        text=f'Delete "{team.name}"? This cannot be undone.',
        more=lambda: _ended_access(team),
        icon="revoke",
    )


def _ended_access(team: Team) -> str:
    """Return sentences that say what ends when the team is deleted.

    These are its members' access to gateways, its tool grants, and its address in the client directory.
    """
    names = [gateway.name for gateway in _live(team)]
    closed = "Nobody loses access to a gateway."
    if names:
        closed = f"Its members can no longer use {', '.join(names)}, unless another team, a role or a grant lets them."
    grants = team.tool_grants.live().select_related("tool_set", "gateway").order_by("gateway__name", "tool_set__name")
    given = [f"{grant.tool_set.name} on {grant.gateway.name}" for grant in grants]
    return sentences(
        closed,
        f"{number_of(len(given), 'grant')} of tools would end: {first_names(given)}." if given else "",
        "The team's address in the client directory would stop working." if hasattr(team, "directory_address") else "",
    )
