"""People and teams as SCIM resources: serialising them, and applying changes that directories send.

This module imports the optional SCIM package, so it is imported only where /scim/v2/ is served.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any
from uuid import UUID

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db.models import CharField, DateTimeField, Max, Min, OuterRef, QuerySet, Subquery
from django.db.models.functions import Cast, Lower
from scim2_models import InvalidValueException, NotFoundException, Resource, UniquenessException

from accounts import second_factor
from accounts.models import Team, User
from accounts.rules import one_at_a_time
from attention.models import ChannelKind
from auditlog.actions import Action
from auditlog.models import Event
from connections.models import Connection
from gateways.models import GatewayGrant, RequestState, ToolGrant
from scim.models import Directory, DirectoryPerson, DirectoryTeam
from scim.schemas import GROUP, USER
from servers.models import Identity
from sso.models import Account

LONGEST = {"displayName": 120, "externalId": 200, "userName": 254}
LONGEST_TEAM_NAME = 80
LONGEST_NAME = 200  # Characters of each part of a name.
LONGEST_IN_EMAILS = {"value": 254, "type": 40}
LONGEST_OTHER = 300
MOST_EMAILS = 20
NOBODY = UUID(int=0)  # An id that no row has.


def people() -> QuerySet[User]:
    """Return all people except people that a directory has deleted."""
    return User.objects.filter(directory_person__removed_at__isnull=True).order_by("date_joined", "pk")


def teams() -> QuerySet[Team]:
    """Return all teams. Filter on the alias `lower_name` to find a team by name with the unique index."""
    return Team.objects.alias(lower_name=Lower("name")).order_by("name", "pk")


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        return NOBODY


def _moments(kind: str) -> dict[str, Any]:
    """Return annotations for the times when each row was created and last changed."""
    # Every change records an event, so these are the times of the first and the last event.
    events = Event.objects.filter(target_type=kind, target_id=Cast(OuterRef("pk"), CharField())).order_by()
    return {
        name: Subquery(
            events.values("target_id").annotate(at=which("created_at")).values("at"), output_field=DateTimeField()
        )
        for name, which in {"first_event_at": Min, "last_event_at": Max}.items()
    }


def _resource(model: Any, kind: str, row: Any, content: dict[str, Any], versioned: Any) -> Resource[Any]:
    text = json.dumps(versioned, sort_keys=True, default=str)
    created = getattr(row, "date_joined", None) or row.first_event_at
    content["meta"] = {
        "resourceType": kind,
        "created": created,
        "lastModified": row.last_event_at or created,
        "version": f'W/"{hashlib.sha256(text.encode()).hexdigest()[:32]}"',
    }
    resource: Resource[Any] = model.model_validate({**content, "id": str(row.pk)})
    return resource


def _text(content: dict[str, Any], name: str) -> str:
    """Return an attribute as stripped text. Raises InvalidValueException if it is too long."""
    text = str(content.get(name) or "").strip()
    if len(text) > LONGEST[name]:
        raise InvalidValueException(detail=f"{name} has at most {LONGEST[name]} characters.")
    return text


def _must_be_short(path: str, value: Any, longest: int) -> None:
    if isinstance(value, str) and len(value) > longest:
        raise InvalidValueException(detail=f"{path} has at most {longest} characters.")


class People:
    """The resource type User: people."""

    def rows(self) -> QuerySet[User]:
        return people()

    def row(self, pk: str, *, locked: bool) -> User:
        if locked:
            one_at_a_time()
        rows = people().select_for_update(of=("self",)) if locked else people()
        person = rows.filter(pk=_uuid(pk)).first()
        if person is None:
            raise NotFoundException(detail=f"There is no user {pk}.")
        return person

    def resources(self, people: list[User], model: Any, *, with_members: bool) -> list[Resource[Any]]:
        pks = [person.pk for person in people]
        rows = User.objects.select_related("directory_person").annotate(**_moments("user")).in_bulk(pks)
        in_teams: dict[UUID, list[tuple[UUID, str]]] = {}
        for pk, team, name in User.objects.filter(pk__in=pks, teams__isnull=False).values_list(
            "pk", "teams", "teams__name"
        ):
            in_teams.setdefault(pk, []).append((team, name))
        return [
            self._resource(model, rows[pk], sorted(in_teams.get(pk, ()), key=lambda one: one[1]))
            for pk in pks
            if pk in rows
        ]

    def _resource(self, model: Any, person: User, groups: list[tuple[UUID, str]]) -> Resource[Any]:
        said = getattr(person, "directory_person", None) or DirectoryPerson(user=person)
        address = said.email or person.email
        content = {
            "schemas": [USER],
            "externalId": said.external_id or None,
            "userName": said.user_name or address,
            "displayName": person.display_name or None,
            "name": said.name or None,
            "active": person.is_active,
            "emails": said.emails or [{"value": address, "type": "work", "primary": True}],
        }
        versioned = [{**content}, [str(pk) for pk, _ in groups]]
        content["groups"] = [
            {"value": str(pk), "$ref": f"Groups/{pk}", "display": name, "type": "direct"} for pk, name in groups
        ] or None
        return _resource(model, "User", person, content, versioned)

    def create(self, by: Directory, content: dict[str, Any]) -> UUID:
        said = self._said(content)
        one_at_a_time()
        role = by.key.role
        assert role is not None  # A live key always has a role.
        self._must_be_free(said["email"])
        # A deleted person is restored, but without their earlier password, teams, connections and credentials.
        user = self._forgotten(said)
        if user is not None:
            if user.role != role:
                user.give_role(role, by=by)
            self._apply(by, user, content, said)
            return user.pk
        user = User.objects.provision(
            email=said.pop("email"),
            display_name=_text(content, "displayName"),
            role=role,
            by=by,
            is_active=content["active"],
        )
        epoch = None if user.is_active else user.session_epoch
        DirectoryPerson(user=user, email=user.email, deactivated_epoch=epoch).describe(by=by, **said)
        return user.pk

    def _forgotten(self, said: dict[str, Any]) -> User | None:
        """Return the deleted person whom the directory now sends again, found by the e-mail address in `said`.

        Return None if no person with this address was deleted by a directory. Raises UniquenessException if the
        deleted person has another externalId than `said`.
        """
        rows = User.objects.select_related("role", "directory_person")
        user = rows.filter(email=said["email"], directory_person__removed_at__isnull=False).first()
        if user is not None and said["external_id"]:
            known = user.directory_person.external_id
            if known and known != said["external_id"]:
                raise UniquenessException(
                    detail=f"The directory deleted another person with the address {said['email']} and the externalId "
                    f"{known}. An administrator must first change that person's e-mail address, on the person's page."
                )
        return user

    def _must_be_free(self, email: str) -> None:
        """Raise UniquenessException if a directory knows another person by this address."""
        other = DirectoryPerson.objects.select_related("user").filter(email=email, removed_at=None).first()
        if other is not None:
            raise UniquenessException(
                detail=f"A directory has sent the address {email} for another person, whose e-mail address here is "
                f"{other.user.email}."
            )

    def update(self, by: Directory, user: User, content: dict[str, Any]) -> None:
        self._apply(by, user, content, self._said(content))

    def _apply(self, by: Directory, user: User, content: dict[str, Any], said: dict[str, Any]) -> None:
        email, display_name = said["email"], _text(content, "displayName")
        entry = DirectoryPerson.objects.filter(user=user).first() or DirectoryPerson(user=user, email=user.email)
        entry.user = user
        if email == entry.email:
            email = user.email  # The directory's address has not changed: keep an administrator's correction.
        else:
            self._must_be_free(email)
        with user.changed_by(by):
            if (email, display_name) != (user.email, user.display_name):
                if email != user.email:
                    entry.email = email  # `edit` records the change.
                user.edit(email=email, display_name=display_name, by=by)
            entry.set_active(content["active"], by=by)
            entry.describe(by=by, **said)

    def _said(self, content: dict[str, Any]) -> dict[str, Any]:
        """Return the attributes a directory sent for a person.

        Raises InvalidValueException if there is no e-mail address, or if a value is too long.
        """
        user_name = _text(content, "userName").lower()
        emails = [one for one in content.get("emails") or () if one.get("value")]
        if len(emails) > MOST_EMAILS:
            raise InvalidValueException(detail=f"A user has at most {MOST_EMAILS} emails.")
        for one in emails:
            for part, value in one.items():
                _must_be_short(f"emails.{part}", value, LONGEST_IN_EMAILS.get(part, LONGEST_OTHER))
        for part, value in (content.get("name") or {}).items():
            _must_be_short(f"name.{part}", value, LONGEST_NAME)
        primary = next((one for one in emails if one.get("primary")), emails[0] if emails else {})
        email = user_name if _is_address(user_name) else str(primary.get("value", "")).strip().lower()
        if not _is_address(email):
            raise InvalidValueException(detail="userName or one of emails must be an e-mail address.")
        default = [{"value": email, "type": "work", "primary": True}]
        return {
            "email": email,
            "user_name": "" if user_name == email else user_name,
            "external_id": _text(content, "externalId"),
            "name": content.get("name") or {},
            "emails": [] if emails == default else emails,
        }

    def delete(self, by: Directory, user: User) -> None:
        entry = DirectoryPerson.objects.filter(user=user).first() or DirectoryPerson(user=user)
        entry.user = user
        entry.remove(by=by)
        Connection.objects.cut_off(user, by=by)
        self._end_grants(user, by)
        for identity in Identity.objects.own(user).live().order_by("pk"):
            identity.revoke(by=by)
        second_factor.remove(user, by=by)
        for account in Account.objects.filter(user=user):
            account.delete()
            Event.objects.record(Action.USER_UNLINKED, user, by=by, changes={"issuer": [account.issuer, None]})

    def _end_grants(self, user: User, by: Directory) -> None:
        """End the person's access requests, grants, approver roles, and notification channels other than mail."""
        for request in user.access_requests.filter(state=RequestState.OPEN).order_by("pk"):
            request.withdraw(by=by)
        for grants in (GatewayGrant.objects, ToolGrant.objects):
            for grant in grants.live().filter(user=user).order_by("pk"):
                grant.end(by=by)
        for gateway in user.approves.order_by("pk"):
            gateway.edit(approvers=gateway.approvers.exclude(pk=user.pk), by=by)
        for channel in user.channels.exclude(kind=ChannelKind.MAIL):
            channel.remove(by=by)


def _is_address(text: str) -> bool:
    try:
        validate_email(text)
    except ValidationError:
        return False
    return len(text) <= LONGEST["userName"]


class Teams:
    """The resource type Group: teams."""

    def rows(self) -> QuerySet[Team]:
        return teams()

    def row(self, pk: str, *, locked: bool) -> Team:
        rows = teams().select_for_update(of=("self",)) if locked else teams()
        team = rows.filter(pk=_uuid(pk)).first()
        if team is None:
            raise NotFoundException(detail=f"There is no group {pk}.")
        return team

    def resources(self, teams: list[Team], model: Any, *, with_members: bool) -> list[Resource[Any]]:
        pks = [team.pk for team in teams]
        rows = Team.objects.select_related("directory_team").annotate(**_moments("team")).in_bulk(pks)
        members: dict[UUID, list[str]] = {}
        known = people().order_by("pk").filter(teams__in=pks)
        for team, person in known.values_list("teams", "pk"):
            members.setdefault(team, []).append(str(person))
        return [
            self._resource(model, rows[pk], members.get(pk, []), with_members=with_members) for pk in pks if pk in rows
        ]

    def _resource(self, model: Any, team: Team, members: list[str], *, with_members: bool) -> Resource[Any]:
        said = getattr(team, "directory_team", None)
        content: dict[str, Any] = {
            "schemas": [GROUP],
            "externalId": (said and said.external_id) or None,
            "displayName": team.name,
        }
        versioned = [{**content}, members]
        if with_members:
            content["members"] = [{"value": pk, "$ref": f"Users/{pk}", "type": "User"} for pk in members] or None
        return _resource(model, "Group", team, content, versioned)

    def create(self, by: Directory, content: dict[str, Any]) -> UUID:
        one_at_a_time()  # Lock before looking up members, so that no member is deleted meanwhile.
        team = Team.objects.add(name=self._name(content), users=self._members(content), by=by)
        self._describe(by, team, content)
        return team.pk

    def update(self, by: Directory, team: Team, content: dict[str, Any]) -> None:
        one_at_a_time()  # Lock before looking up members, as in `create`.
        # Keep people whom an administrator added to the team after the directory had deleted them: the directory cannot
        # list them.
        forgotten = team.users.filter(directory_person__removed_at__isnull=False)
        team.edit(name=self._name(content), users=[*self._members(content), *forgotten], by=by)
        self._describe(by, team, content)

    def _describe(self, by: Directory, team: Team, content: dict[str, Any]) -> None:
        entry = DirectoryTeam.objects.filter(team=team).first() or DirectoryTeam(team=team)
        entry.team = team
        entry.describe(by=by, external_id=_text(content, "externalId"))

    def _name(self, content: dict[str, Any]) -> str:
        name = str(content.get("displayName") or "").strip()
        if not 1 <= len(name) <= LONGEST_TEAM_NAME:
            raise InvalidValueException(detail=f"displayName has 1 to {LONGEST_TEAM_NAME} characters.")
        return name

    def _members(self, content: dict[str, Any]) -> list[User]:
        named = {str(one.get("value") or "") for one in content.get("members") or ()}
        pks = {_uuid(one) for one in named}
        members = list(people().filter(pk__in=pks))
        if len(members) != len(named):
            raise InvalidValueException(detail="members has a value that is not the id of a user.")
        return members

    def delete(self, by: Directory, team: Team) -> None:
        team.remove(by=by)


KINDS: dict[str, Any] = {"User": People(), "Group": Teams()}
