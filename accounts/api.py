"""/api/users, /api/me and /api/capabilities: people, and the capabilities of the caller."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from uuid import UUID

from django.db import transaction
from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from accounts import password_links
from accounts.models import Role, Team, User
from accounts.people_forms import STATUSES, matching_words, of_status
from accounts.rules import (
    AlreadyJoined,
    BeyondYours,
    EmailTaken,
    LastBreakGlass,
    LastManager,
    LastOwner,
    NameTaken,
    NotBreakGlass,
    RoleInUse,
    RoleLocked,
    one_at_a_time,
)
from capabilities import Capability
from connections.subjects import by_role, by_team
from ui.idempotency import Afterwards
from ui.operations import Body, ListQuery, operation
from ui.rest import Moment, Problem, Reference, Resource, secret_answer

PROBLEMS: Mapping[type[Exception], Problem] = {
    AlreadyJoined: Problem(HTTPStatus.CONFLICT, "already_joined"),
    EmailTaken: Problem(HTTPStatus.CONFLICT, "already_exists"),
    NameTaken: Problem(HTTPStatus.CONFLICT, "already_exists"),
    NotBreakGlass: Problem(HTTPStatus.CONFLICT, "not_break_glass"),
    LastBreakGlass: Problem(HTTPStatus.CONFLICT, "last_break_glass_owner"),
    LastManager: Problem(HTTPStatus.CONFLICT, "last_admin"),
    LastOwner: Problem(HTTPStatus.CONFLICT, "last_owner"),
    RoleInUse: Problem(HTTPStatus.CONFLICT, "role_in_use"),
    RoleLocked: Problem(HTTPStatus.CONFLICT, "role_locked"),
    BeyondYours: Problem(HTTPStatus.FORBIDDEN, "beyond_yours"),
}


class UserSerializer(serializers.Serializer[User]):
    """A person."""

    id = serializers.UUIDField()
    email = serializers.EmailField()
    display_name = serializers.CharField()
    role = Reference(allow_null=True)
    teams = Reference(many=True)
    is_active = serializers.BooleanField()
    status = serializers.CharField()
    is_staff = serializers.BooleanField()
    by_organisation = serializers.BooleanField()
    break_glass = serializers.BooleanField()
    date_joined = Moment()
    last_login = Moment(allow_null=True)


class InvitationSerializer(serializers.Serializer[Any]):
    """The link with which an invited person chooses a password, told once, and whether it could be mailed to them."""

    link = serializers.CharField()
    mailed = serializers.BooleanField()
    expires_at = Moment()


class InvitedSerializer(UserSerializer):
    """A person who was invited just now."""

    invitation = InvitationSerializer()


class UserQuery(ListQuery):
    """How a list of people is narrowed."""

    q = serializers.CharField(required=False)
    active = serializers.BooleanField(required=False)
    status = serializers.ChoiceField(STATUSES, required=False)
    role = by_role()
    team = by_team()


def existing_role(pk: UUID) -> Role:
    """The role of this id. Raises ValidationError."""
    role = Role.objects.filter(pk=pk).first()
    if role is None:
        raise ValidationError("There is no such role.")
    return role


class UserChanges(Body):
    """What may change of a person."""

    email = serializers.EmailField(max_length=254)
    display_name = serializers.CharField(max_length=120, allow_blank=True)
    role_id = serializers.UUIDField()
    is_staff = serializers.BooleanField()
    break_glass = serializers.BooleanField()

    def validate_role_id(self, pk: UUID) -> Role:
        return existing_role(pk)


class NewUser(UserChanges):
    """A person to invite."""

    is_staff = None  # type: ignore[assignment]  # Given to who is there already.
    break_glass = None  # type: ignore[assignment]  # As that is.
    display_name = serializers.CharField(max_length=120, allow_blank=True, default="")
    team_ids = serializers.ListField(child=serializers.UUIDField(), default=list)

    def validate_team_ids(self, pks: list[UUID]) -> list[Team]:
        teams = list(Team.objects.filter(pk__in=pks))
        if len(teams) != len(set(pks)):
            raise ValidationError("There is no such team.")
        return teams


class UserResource(Resource):
    """People. They are never deleted, only deactivated.

    An API key invites people to roles that hold no more than the key does. It changes nobody's role or address, and
    lets nobody in again.
    """

    problems = PROBLEMS
    serializer_class = UserSerializer
    versioned = True
    queryset = User.objects.select_related("role").prefetch_related("teams").order_by("email")

    @operation(
        needs=Capability.PEOPLE_MANAGE,
        query=UserQuery,
        orderings=("email", "display_name", "date_joined", "last_login"),
    )
    def list(self, request: Request) -> Response:
        people = User.objects.order_by("email")
        if "active" in self.query_data:
            people = people.filter(is_active=self.query_data["active"])
        if status := self.query_data.get("status"):
            people = people.filter(of_status(status))
        if role := self.query_data.get("role"):
            people = people.filter(role__in=role)
        if team := self.query_data.get("team"):
            people = people.filter(teams__in=team).distinct()
        if words := self.query_data.get("q"):
            people = people.filter(matching_words(words))
        return self.page(people, lambda people: people.select_related("role").prefetch_related("teams"))

    @operation(needs=Capability.PEOPLE_MANAGE)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        return self.answer(self._find(pk))

    @operation(needs=Capability.PEOPLE_MANAGE, body=NewUser, answer=InvitedSerializer, reauth=True, makes=True)
    def create(self, request: Request) -> Response:
        body = self.body()
        person = User.objects.invite(teams=body.pop("team_ids"), **_with_role(body), by=self.me)
        return self._invitation(person, HTTPStatus.CREATED)

    @action(detail=True, methods=["post"])
    @operation(
        needs=Capability.PEOPLE_MANAGE, answer=InvitedSerializer, reauth=True, api_keys=False, if_match=True, makes=True
    )
    def invite(self, request: Request, pk: UUID) -> Response:
        """Make a new link; the one before stops working."""
        person = self._find(pk)
        with self.unchanged(person):
            person.renew_invitation(by=self.me)
        return self._invitation(person, HTTPStatus.OK)

    @action(detail=True, methods=["post"], url_path="revoke-invitation")
    @operation(needs=Capability.PEOPLE_MANAGE, api_keys=False, if_match=True)
    def revoke_invitation(self, request: Request, pk: UUID) -> Response:
        """Take the invitation back; its link stops working."""
        person = self._find(pk)
        with self.unchanged(person):
            person.revoke_invitation(by=self.me)
        return self.answer(person)

    def _invitation(self, person: User, status: HTTPStatus) -> Response:
        link = password_links.invitation_link(person)

        def told(*, mailed: bool) -> Response:
            values = {"link": link, "mailed": mailed, "expires_at": person.invitation_expires_at}
            invitation = InvitationSerializer(values).data
            return secret_answer({**self.serialize(person), "invitation": invitation}, status)

        def mailed() -> Response:
            return told(mailed=password_links.mail_invitation(person, link, by=self.me))

        return Afterwards(lambda: told(mailed=False), mailed)

    @operation(needs=Capability.PEOPLE_MANAGE, body=UserChanges, reauth=True, api_keys=False, if_match=True)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        person = self._find(pk)
        changes = _with_role(self.body())
        role, staff = changes.pop("role", None), changes.pop("is_staff", None)
        break_glass = changes.pop("break_glass", None)
        with transaction.atomic():
            one_at_a_time()  # Before the row is locked, as the verbs below do.
            person.lock().must_be(self.seen)
            if changes:
                person.edit(**{"email": person.email, "display_name": person.display_name} | changes, by=self.me)
            if role:
                person.give_role(role, by=self.me)
            if staff is not None:
                person.set_staff(staff, by=self.me)
            if break_glass is not None:
                person.set_break_glass(break_glass, by=self.me)
        return self.answer(person)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.PEOPLE_MANAGE, if_match=True)
    def deactivate(self, request: Request, pk: UUID) -> Response:
        person = self._find(pk)
        with self.unchanged(person):
            person.deactivate(by=self.me)
        return self.answer(person)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.PEOPLE_MANAGE, api_keys=False, if_match=True)
    def reactivate(self, request: Request, pk: UUID) -> Response:
        person = self._find(pk)
        with self.unchanged(person):
            person.reactivate(by=self.me)
        return self.answer(person)

    @action(detail=True, methods=["post"], url_path="sign-out")
    @operation(needs=Capability.PEOPLE_MANAGE, if_match=True)
    def sign_out(self, request: Request, pk: UUID) -> Response:
        person = self._find(pk)
        with self.unchanged(person):
            person.end_sessions(by=self.me)
        return self.answer(person)

    def _find(self, pk: UUID) -> User:
        person: User = get_object_or_404(self.get_queryset(), pk=pk)
        return person


def _with_role(body: dict[str, Any]) -> dict[str, Any]:
    """The same with the role, found, under its own name."""
    return {name.removesuffix("_id"): value for name, value in body.items()}


class CapabilitySerializer(serializers.Serializer[Capability]):
    """One thing a role may allow."""

    constant = serializers.CharField(source="name")
    slug = serializers.CharField()
    label = serializers.CharField(read_only=True)  # type: ignore[assignment]  # DRF takes it out of the class
    allows = serializers.CharField()


class CapabilityResource(Resource):
    """The catalogue of capabilities, for everybody."""

    serializer_class = CapabilitySerializer

    @operation(needs=None, query=ListQuery)
    def list(self, request: Request) -> Response:
        return self.get_paginated_response(self.serialize(self.paginate_queryset(list(Capability)), many=True))


class MeSerializer(UserSerializer):
    """Oneself, and what one may do."""

    capabilities = serializers.SerializerMethodField()

    def get_capabilities(self, person: User) -> list[str]:
        return [capability.slug for capability in Capability if person.has_perm(capability)]


class Asking(Body):
    """A capability that one asks for, by its slug."""

    capability = serializers.ChoiceField([capability.slug for capability in Capability])


class Me(Resource):
    """Who is asking."""

    serializer_class = MeSerializer
    versioned = True

    @operation(needs=None)
    def retrieve(self, request: Request) -> Response:
        return self.answer(self.me)

    @operation(needs=None, body=Asking, answer=HTTPStatus.NO_CONTENT, api_keys=False)
    def ask_for(self, request: Request) -> Response:
        """Ask those who manage people, once a day at most; nothing happens if one holds it already."""
        [capability] = Capability.named([self.body()["capability"]])
        self.me.ask_for(capability)
        return Response(status=HTTPStatus.NO_CONTENT)
