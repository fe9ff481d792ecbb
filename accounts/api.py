"""/api/users, /api/me and /api/capabilities: people, the caller, and all capabilities."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from allauth.account.internal.flows.reauthentication import reauthenticate_by_password
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
    NoOrganisation,
    NotActive,
    NotBreakGlass,
    RoleInUse,
    RoleLocked,
    one_at_a_time,
)
from accounts.second_factor import has_second_factor, with_second_factor
from accounts.sign_in import ConfirmPasswordForm
from accounts.sign_in_limits import try_as
from capabilities import Capability
from connections.subjects import by_role, by_team
from ui.errors import TryLater
from ui.operations import Afterwards, ListQuery, RequestBody, operation
from ui.rest import ApiError, Id, Problem, Reference, Resource, UtcDateTimeField, checked, matching, secret_answer

PROBLEMS: Mapping[type[Exception], Problem] = {
    AlreadyJoined: Problem(HTTPStatus.CONFLICT, "already_joined"),
    EmailTaken: Problem(HTTPStatus.CONFLICT, "already_exists"),
    NameTaken: Problem(HTTPStatus.CONFLICT, "already_exists"),
    NotActive: Problem(HTTPStatus.CONFLICT, "not_active"),
    NotBreakGlass: Problem(HTTPStatus.CONFLICT, "not_break_glass"),
    LastBreakGlass: Problem(HTTPStatus.CONFLICT, "last_break_glass_owner"),
    LastManager: Problem(HTTPStatus.CONFLICT, "last_admin"),
    LastOwner: Problem(HTTPStatus.CONFLICT, "last_owner"),
    RoleInUse: Problem(HTTPStatus.CONFLICT, "role_in_use"),
    RoleLocked: Problem(HTTPStatus.CONFLICT, "role_locked"),
    NoOrganisation: Problem(HTTPStatus.CONFLICT, "no_organisation"),
    BeyondYours: Problem(HTTPStatus.FORBIDDEN, "beyond_yours"),
}


class UserSerializer(serializers.Serializer[User]):
    """A person."""

    id = Id()
    email = serializers.EmailField(help_text="E-mail address used to sign in.")
    display_name = serializers.CharField(help_text="Name that pages show.")
    role = Reference(allow_null=True, help_text="Role of the person; null if none.")
    teams = Reference(many=True, help_text="Teams of the person.")
    is_active = serializers.BooleanField(help_text="If false, the person cannot sign in, and their tokens do not work.")
    status = serializers.CharField(
        help_text="`active` or `deactivated`; for people who have not joined: `invited`, `expired`, `revoked`, "
        "`provisioned` or `deactivated`."
    )
    is_staff = serializers.BooleanField(help_text="Whether the person can open the Django admin.")
    by_organisation = serializers.BooleanField(
        help_text="Whether the person is linked to an account at the organisation's identity provider, or was linked "
        "to one at an earlier identity provider."
    )
    break_glass = serializers.BooleanField(
        help_text="True for an owner who may sign in with a password even when sign-in by the organisation is enforced."
    )
    second_factor = serializers.SerializerMethodField(
        help_text="Whether the person has a second factor here: an authenticator app or a security key."
    )
    date_joined = UtcDateTimeField(help_text="When the person was added, for example by an invitation.")
    last_login = UtcDateTimeField(allow_null=True, help_text="When the person last signed in; null if never.")

    def get_second_factor(self, person: User) -> bool:
        # Lists load it for all their people at once.
        loaded: bool | None = getattr(person, "second_factor", None)
        return has_second_factor(person) if loaded is None else loaded


class InvitationSerializer(serializers.Serializer[Any]):
    """The link with which an invited person chooses a password; it is shown once."""

    link = serializers.CharField(help_text="URL where the person chooses a password; works for 72 hours.")
    mailed = serializers.BooleanField(help_text="Whether a mail server accepted the invitation.")
    expires_at = UtcDateTimeField(help_text="When the link expires.")


class InvitedSerializer(UserSerializer):
    """A person who was just invited."""

    invitation = InvitationSerializer(help_text="Link with which the person joins.")


class UserQuery(ListQuery):
    """Filters of the list of people."""

    q = serializers.CharField(required=False, help_text="Text contained in the name or e-mail address.")
    active = serializers.BooleanField(required=False, help_text="Only active people, or only inactive ones.")
    status = serializers.ChoiceField(STATUSES, required=False, help_text="Only people with this status.")
    role = by_role()
    team = by_team()


def existing_role(pk: UUID) -> Role:
    """Return the role with this id. Raises ValidationError."""
    role = Role.objects.filter(pk=pk).first()
    if role is None:
        raise ValidationError("There is no such role.")
    return role


class UserChanges(RequestBody):
    """The changeable fields of a person."""

    email = serializers.EmailField(max_length=254)
    display_name = serializers.CharField(max_length=120, allow_blank=True)
    role_id = serializers.UUIDField(help_text="New role; you must have each of its capabilities.")
    is_staff = serializers.BooleanField()
    break_glass = serializers.BooleanField()

    def validate_role_id(self, pk: UUID) -> Role:
        return existing_role(pk)


class NewUser(UserChanges):
    """A person to invite."""

    is_staff = None  # type: ignore[assignment]  # Only for existing people.
    break_glass = None  # type: ignore[assignment]  # Only for existing people.
    display_name = serializers.CharField(max_length=120, allow_blank=True, default="")
    team_ids = serializers.ListField(child=serializers.UUIDField(), default=list, help_text="Teams of the person.")

    def validate_team_ids(self, pks: list[UUID]) -> list[Team]:
        teams = list(Team.objects.filter(pk__in=pks))
        if len(teams) != len(set(pks)):
            raise ValidationError("There is no such team.")
        return teams


class Asking(RequestBody):
    """A capability to ask for."""

    capability = serializers.ChoiceField(
        [capability.slug for capability in Capability], help_text="Slug of the capability."
    )


class UserResource(Resource):
    """People. They are never deleted, only deactivated.

    An API key can invite people only to a role whose capabilities the key has. A key can never invite people to a role
    with `people:manage`. A key can deactivate and sign out people only if the key has all capabilities of their role. A
    key cannot change or reactivate people, or change their invitations.
    """

    problems = PROBLEMS
    serializer_class = UserSerializer
    versioned = True
    queryset = User.objects.select_related("role").prefetch_related("teams").order_by("email")

    @operation(
        needs=Capability.PEOPLE_READ,
        query=UserQuery,
        orderings=("email", "display_name", "date_joined", "last_login"),
    )
    def list(self, request: Request) -> Response:
        """List people."""
        people = User.objects.order_by("email")
        people = matching(people, self.query_data, active="is_active", role="role__in")
        if status := self.query_data.get("status"):
            people = people.filter(of_status(status))
        if team := self.query_data.get("team"):
            people = people.filter(teams__in=team).distinct()
        if words := self.query_data.get("q"):
            people = people.filter(matching_words(words))
        return self.page(
            people, lambda people: with_second_factor(people.select_related("role").prefetch_related("teams"))
        )

    @operation(needs=Capability.PEOPLE_READ)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get a person."""
        return self.answer(self._find(pk))

    @operation(needs=Capability.PEOPLE_MANAGE, body=NewUser, answer=InvitedSerializer, reauth=True, makes=True)
    def create(self, request: Request) -> Response:
        """Invite a person."""
        body = self.body()
        person = User.objects.invite(teams=body.pop("team_ids"), **_with_role(body), by=self.me)
        return self._invitation(person, HTTPStatus.CREATED)

    @action(detail=True, methods=["post"])
    @operation(
        needs=Capability.PEOPLE_MANAGE, answer=InvitedSerializer, reauth=True, api_keys=False, if_match=True, makes=True
    )
    def invite(self, request: Request, pk: UUID) -> Response:
        """Invite a person again, with a new link.

        The previous link stops working.
        """
        person = self._find(pk)
        with self.unchanged(person):
            person.renew_invitation(by=self.me)
        return self._invitation(person, HTTPStatus.OK)

    @action(detail=True, methods=["post"], url_path="revoke-invitation")
    @operation(needs=Capability.PEOPLE_MANAGE, api_keys=False, if_match=True)
    def revoke_invitation(self, request: Request, pk: UUID) -> Response:
        """Revoke an invitation.

        Its link stops working.
        """
        person = self._find(pk)
        return self.changed(person, person.revoke_invitation)

    @action(detail=True, methods=["post"], url_path="decline-request")
    @operation(needs=Capability.PEOPLE_MANAGE, body=Asking, answer=HTTPStatus.NO_CONTENT, api_keys=False)
    def decline_request(self, request: Request, pk: UUID) -> Response:
        """Decline a person's request for a capability.

        The person sees that the request was declined. If there is no such request, nothing happens.
        """
        [capability] = Capability.named([self.body()["capability"]])
        self._find(pk).decline_request(capability, by=self.me)
        return Response(status=HTTPStatus.NO_CONTENT)

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
        """Change a person."""
        person = self._find(pk)
        changes = _with_role(self.body())
        role, staff = changes.pop("role", None), changes.pop("is_staff", None)
        break_glass = changes.pop("break_glass", None)
        with transaction.atomic():
            one_at_a_time()  # Take this lock before the row's, as the methods below do, to avoid deadlocks.
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
        """Deactivate a person."""
        person = self._find(pk)
        return self.changed(person, person.deactivate)

    @action(detail=True, methods=["post"])
    @operation(needs=Capability.PEOPLE_MANAGE, api_keys=False, if_match=True)
    def reactivate(self, request: Request, pk: UUID) -> Response:
        """Reactivate a person."""
        person = self._find(pk)
        return self.changed(person, person.reactivate)

    @action(detail=True, methods=["post"], url_path="sign-out")
    @operation(needs=Capability.PEOPLE_MANAGE, if_match=True)
    def sign_out(self, request: Request, pk: UUID) -> Response:
        """Sign a person out everywhere."""
        person = self._find(pk)
        return self.changed(person, person.end_sessions)

    def _find(self, pk: UUID) -> User:
        person: User = get_object_or_404(self.get_queryset(), pk=pk)
        return person


def _with_role(body: dict[str, Any]) -> dict[str, Any]:
    """Return `body` with `role_id` renamed to `role`, because validation has replaced the id by a Role."""
    return {name.removesuffix("_id"): value for name, value in body.items()}


class CapabilitySerializer(serializers.Serializer[Capability]):
    """A capability that a role may have."""

    constant = serializers.CharField(source="name", help_text="Name in the documentation, such as `GATEWAYS_READ`.")
    slug = serializers.CharField(help_text="Name in this API and in API keys, such as `gateways:read`.")
    label = serializers.CharField(read_only=True, help_text="Name that pages show.")  # type: ignore[assignment]  # DRF removes `label` from the class
    allows = serializers.CharField(help_text="What the capability allows, in words.")
    includes = serializers.SerializerMethodField(help_text="Slugs of the capabilities that this one includes.")

    def get_includes(self, capability: Capability) -> list[str]:
        return [included.slug for included in capability.includes]


class CapabilityResource(Resource):
    """All capabilities."""

    serializer_class = CapabilitySerializer

    @operation(needs=None, query=ListQuery)
    def list(self, request: Request) -> Response:
        """List the capabilities."""
        return self.get_paginated_response(self.serialize(self.paginate_queryset(list(Capability)), many=True))


class MeSerializer(UserSerializer):
    """You, and what you may do."""

    capabilities = serializers.SerializerMethodField(
        help_text="Slugs of your capabilities; with an API key, only slugs of capabilities that the key has too."
    )

    def get_capabilities(self, person: User) -> list[str]:
        return [capability.slug for capability in Capability if person.has_perm(capability)]


class Me(Resource):
    """Yourself."""

    serializer_class = MeSerializer
    versioned = True

    @operation(needs=None)
    def retrieve(self, request: Request) -> Response:
        """Get yourself and what you may do."""
        return self.answer(self.me)

    @operation(needs=None, body=Asking, answer=HTTPStatus.NO_CONTENT, api_keys=False)
    def ask_for(self, request: Request) -> Response:
        """Ask for a capability that you lack.

        People with `people:manage` are notified. Nothing happens if you already have the capability, if you asked for
        the capability in the last day, or if you asked for five capabilities in the last day.
        """
        [capability] = Capability.named([self.body()["capability"]])
        self.me.ask_for(capability)
        return Response(status=HTTPStatus.NO_CONTENT)


# POST /api/me/confirm: confirms the password before sensitive operations.


class Confirmation(RequestBody):
    """Your password."""

    password = serializers.CharField(trim_whitespace=False, max_length=4096, help_text="Your password.")


class Confirm(Resource):
    """Confirms the password in this session, for 15 minutes."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        TryLater: Problem(HTTPStatus.TOO_MANY_REQUESTS, "throttled"),
    }

    @operation(needs=None, body=Confirmation, answer=HTTPStatus.NO_CONTENT, conflicts=True)
    def confirm(self, request: Request) -> Response:
        """Confirm your password."""
        try_as(self.me, "password again")  # The page that confirms a password shares this limit.
        typed = self.body()
        if getattr(request.auth, "is_api_key", False) or not self.me.has_usable_password():
            why = "You cannot confirm a password: you have none, or you use an API key."
            raise ApiError(HTTPStatus.CONFLICT, "no_password", why)
        checked(ConfirmPasswordForm(typed, user=self.me))
        reauthenticate_by_password(request)
        return Response(status=HTTPStatus.NO_CONTENT)
