"""/api/roles, /api/teams and /api/workspace: roles, teams and workspace settings."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from django.conf import settings
from django.db.models import Count, Prefetch, QuerySet
from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.api import PROBLEMS
from accounts.mail import MailTestResult, NoMailServer, TooManyTestMails, send_test_mail
from accounts.models import NewAppPolicy, Role, Team, User, WorkspaceSettings
from accounts.models.workspace import LEAST_PAYLOAD, MOST_PAYLOAD, check_zone
from accounts.rules import NoOrganisation, RequiredSignIn
from capabilities import Capability
from sinks.archive import archive_place
from ui.forms import Limit
from ui.operations import ListQuery, RequestBody, operation
from ui.rest import Id, Problem, Resource

SLUGS = {capability.slug: capability for capability in Capability}
USES_GATEWAYS = (
    "Whether people with this role can use gateways. If false, these people can look at pages, but their calls are "
    "refused."
)
REQUIRED_SIGN_IN = "How people must sign in with a browser: `second_factor`, `organisation`, or `none` (in any way)."


class RoleSerializer(serializers.Serializer[Role]):
    """A role, with the slugs of its capabilities."""

    id = Id()
    name = serializers.CharField(help_text="Name that pages show.")
    locked = serializers.BooleanField(help_text="If true, only `required_sign_in` of this role can be changed.")
    capabilities = serializers.SerializerMethodField(help_text="Slugs of its capabilities.")
    users_count = serializers.IntegerField(help_text="Number of people with this role.")

    uses_gateways = serializers.BooleanField(help_text=USES_GATEWAYS)
    required_sign_in = serializers.CharField(help_text=REQUIRED_SIGN_IN)

    def get_capabilities(self, role: Role) -> list[str]:
        granted = {
            f"{permission.content_type.app_label}.{permission.codename}" for permission in role.permissions.all()
        }
        return [capability.slug for capability in Capability if capability in granted]


class NamedCapabilities(RequestBody):
    """A name and capabilities. The person who sends this body must hold each of the capabilities."""

    name = serializers.CharField(max_length=80)
    capabilities = serializers.ListField(
        child=serializers.ChoiceField([(slug, slug) for slug in SLUGS]),
        help_text="Slugs of the capabilities; you must hold each of them.",
    )

    def validate_capabilities(self, slugs: list[str]) -> set[Capability]:
        return {SLUGS[slug] for slug in slugs}


class RoleBody(NamedCapabilities):
    """A role to create or change."""

    uses_gateways = serializers.BooleanField(required=False, help_text=USES_GATEWAYS)
    required_sign_in = serializers.ChoiceField(RequiredSignIn.choices, required=False, help_text=REQUIRED_SIGN_IN)


class NameQuery(ListQuery):
    """A filter by name."""

    q = serializers.CharField(required=False, help_text="Text contained in the name.")


def _counted(roles: QuerySet[Role]) -> QuerySet[Role]:
    return roles.annotate(users_count=Count("users")).prefetch_related("permissions__content_type")


class RoleResource(Resource):
    """Named sets of capabilities. You can grant only capabilities you have; an API key cannot grant any."""

    problems = PROBLEMS
    serializer_class = RoleSerializer
    versioned = True
    queryset = _counted(Role.objects.all())

    @operation(needs=Capability.PEOPLE_READ, query=NameQuery, orderings=("name",))
    def list(self, request: Request) -> Response:
        """List roles."""
        roles = Role.objects.filter(name__icontains=self.query_data.get("q", ""))
        return self.page(roles, _counted)

    @operation(needs=Capability.PEOPLE_READ)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get a role."""
        return self.answer(self._find(pk))

    @operation(needs=Capability.PEOPLE_MANAGE, body=RoleBody, reauth=True, api_keys=False, makes=True)
    def create(self, request: Request) -> Response:
        """Create a role."""
        role = Role.objects.add(**self.body(), by=self.me)
        return self.current(role, HTTPStatus.CREATED)

    @operation(needs=Capability.PEOPLE_MANAGE, body=RoleBody, reauth=True, api_keys=False, if_match=True)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Change a role."""
        role = get_object_or_404(Role, pk=pk)
        role.edit(**self.body(), by=self.me, seen=self.seen)
        return self.answer(self._find(pk))

    @operation(needs=Capability.PEOPLE_MANAGE, answer=HTTPStatus.NO_CONTENT, reauth=True, if_match=True)
    def destroy(self, request: Request, pk: UUID) -> Response:
        """Delete a role."""
        role = get_object_or_404(Role, pk=pk)
        return self.removed(role, role.remove)

    def current(self, row: Any, status: int = HTTPStatus.OK) -> Response:
        return self.answer(self._find(row.pk), status)

    def _find(self, pk: UUID) -> Role:
        role: Role = get_object_or_404(self.get_queryset(), pk=pk)
        return role


MEMBERS = Prefetch("users", User.objects.only("email"))  # Answers have only id and e-mail of a member.


class Member(serializers.Serializer[User]):
    """A member of a team."""

    id = Id()
    email = serializers.EmailField(help_text="E-mail address of the person.")

    def to_representation(self, instance: User) -> dict[str, str]:
        # Faster than the serializer's fields, which would take most of the time for a team of thousands.
        return {"id": str(instance.pk), "email": instance.email}


class TeamSerializer(serializers.Serializer[Team]):
    """A team and its members."""

    id = Id()
    name = serializers.CharField(help_text="Name that pages show.")
    users = Member(many=True, help_text="Members of the team.")


class TeamBody(RequestBody):
    """A team to create or change."""

    name = serializers.CharField(max_length=80)
    user_ids = serializers.ListField(child=serializers.UUIDField(), default=list, help_text="Ids of all members.")

    def validate_user_ids(self, pks: list[UUID]) -> list[User]:
        people = list(User.objects.filter(pk__in=pks))
        if missing := set(pks) - {person.pk for person in people}:
            raise ValidationError([f"There is no person {pk}." for pk in sorted(missing)])
        return people


class TeamResource(Resource):
    """Named sets of people. A gateway may be limited to some teams."""

    problems = PROBLEMS
    serializer_class = TeamSerializer
    versioned = True
    queryset = Team.objects.prefetch_related(MEMBERS)

    @operation(needs=Capability.PEOPLE_READ, query=NameQuery, orderings=("name",))
    def list(self, request: Request) -> Response:
        """List teams."""
        teams = Team.objects.filter(name__icontains=self.query_data.get("q", ""))
        return self.page(teams, lambda teams: teams.prefetch_related(MEMBERS))

    @operation(needs=Capability.PEOPLE_READ)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get a team."""
        return self.answer(self._find(pk))

    @operation(needs=Capability.PEOPLE_MANAGE, body=TeamBody, makes=True)
    def create(self, request: Request) -> Response:
        """Create a team."""
        body = self.body()
        team = Team.objects.add(name=body["name"], users=body["user_ids"], by=self.me)
        return self.current(team, HTTPStatus.CREATED)

    @operation(needs=Capability.PEOPLE_MANAGE, body=TeamBody, if_match=True)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Change a team."""
        team = get_object_or_404(Team, pk=pk)
        changes = self.body()
        team.edit(name=changes.get("name"), users=changes.get("user_ids"), by=self.me, seen=self.seen)
        return self.answer(self._find(pk))

    @operation(needs=Capability.PEOPLE_MANAGE, answer=HTTPStatus.NO_CONTENT, if_match=True)
    def destroy(self, request: Request, pk: UUID) -> Response:
        """Delete a team."""
        team = get_object_or_404(Team, pk=pk)
        return self.removed(team, team.remove)

    def current(self, row: Any, status: int = HTTPStatus.OK) -> Response:
        return self.answer(self._find(row.pk), status)

    def _find(self, pk: UUID) -> Team:
        team: Team = get_object_or_404(self.get_queryset(), pk=pk)
        return team


class WorkspaceChanges(RequestBody):
    """The settings that this API can change."""

    name = serializers.CharField(max_length=80, help_text="Name of the installation.")
    allow_non_expiring_tokens = serializers.BooleanField(help_text="Whether tokens without an expiry may be created.")
    new_app_policy = serializers.ChoiceField(NewAppPolicy.choices, help_text="Whether a new app needs approval.")
    log_retention_days = serializers.IntegerField(
        min_value=1, max_value=3650, help_text="Days that calls are kept. A smaller number takes effect after one day."
    )
    record_payloads = serializers.BooleanField(help_text="Whether arguments and results of calls are recorded.")
    payload_limit_bytes = serializers.IntegerField(
        min_value=LEAST_PAYLOAD,
        max_value=MOST_PAYLOAD,
        help_text="Maximum recorded bytes of a call's arguments, and of its result.",
    )
    oauth_access_token_seconds = serializers.IntegerField(
        min_value=60, max_value=3600, help_text="Lifetime of an app's access token, in seconds."
    )
    oauth_refresh_idle_days = serializers.IntegerField(
        min_value=1, max_value=365, help_text="Days without use after which an app must sign in again."
    )
    calls_per_minute = Limit()
    token_calls_per_minute = Limit(help_text="Maximum calls per minute of each token; null means no limit.")
    setup_steps = serializers.BooleanField(help_text="Whether the dashboard shows the remaining setup steps.")
    required_sign_in = serializers.ChoiceField(RequiredSignIn.choices, help_text=REQUIRED_SIGN_IN)
    zone = serializers.CharField(
        max_length=64, validators=[check_zone], help_text="Time zone of rules on tool calls, such as `Europe/Berlin`."
    )


class WorkspaceSerializer(WorkspaceChanges):
    """All settings. Environment variables set `public_url`, `private_upstreams` and `archive`."""

    shorter_retention_days = serializers.IntegerField(
        allow_null=True, help_text="Requested shorter retention, in days; null if none is pending."
    )
    shorter_retention_at = serializers.DateTimeField(
        allow_null=True, help_text="When the requested shorter retention takes effect; null if none is pending."
    )
    shorter_retention_drops = serializers.SerializerMethodField(
        help_text="Estimated number of calls that the requested shorter retention will delete; null if none is pending."
    )
    public_url = serializers.SerializerMethodField(help_text="Address of this installation.")
    private_upstreams = serializers.SerializerMethodField(help_text="Private networks in which servers may be.")
    archive = serializers.SerializerMethodField(
        help_text="Folder or bucket in which this process archives calls older than the retention; null if none is set."
    )

    def get_shorter_retention_drops(self, workspace: WorkspaceSettings) -> int | None:
        dropping = workspace.dropping
        return dropping.calls if dropping else None

    def get_public_url(self, workspace: Any) -> str:
        return str(settings.PUBLIC_URL)

    def get_private_upstreams(self, workspace: Any) -> list[str]:
        return [str(network) for network in settings.PRIVATE_UPSTREAMS]

    def get_archive(self, workspace: Any) -> str | None:
        return archive_place()


class MailOutcomeSerializer(serializers.Serializer[MailTestResult]):
    """The result of a test mail."""

    sent = serializers.BooleanField(help_text="Whether a mail server accepted the mail.")
    to = serializers.EmailField(help_text="Recipient of the mail.")
    detail = serializers.CharField(
        help_text="The result in words, with the mail server's reply if it refused the mail."
    )


class Workspace(Resource):
    """Settings of the workspace."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        NoMailServer: Problem(HTTPStatus.CONFLICT, "no_mail_server"),
        TooManyTestMails: Problem(HTTPStatus.TOO_MANY_REQUESTS, "throttled"),
        NoOrganisation: Problem(HTTPStatus.CONFLICT, "no_organisation"),
    }
    serializer_class = WorkspaceSerializer
    versioned = True

    @operation(needs=Capability.WORKSPACE_READ)
    def retrieve(self, request: Request) -> Response:
        """Get the settings of the workspace."""
        return self.answer(WorkspaceSettings.load())

    @operation(needs=Capability.WORKSPACE_MANAGE, body=WorkspaceChanges, reauth=True, if_match=True)
    def partial_update(self, request: Request) -> Response:
        """Change the settings of the workspace."""
        return self.answer(WorkspaceSettings.edit(by=self.me, seen=self.seen, **self.body()))

    @operation(needs=Capability.WORKSPACE_MANAGE, if_match=True)
    def keep_logs(self, request: Request) -> Response:
        """Cancel a shorter log retention before it takes effect."""
        WorkspaceSettings.keep_logs(by=self.me, seen=self.seen)
        return self.answer(WorkspaceSettings.load())

    @operation(needs=Capability.WORKSPACE_MANAGE, answer=MailOutcomeSerializer, if_match=True)
    def test_mail(self, request: Request) -> Response:
        """Send a test mail to yourself.

        If the mail server refuses the mail, the status is still 200, and the answer describes the refusal.
        """
        with self.unchanged(WorkspaceSettings.load()):
            pass  # No lock while the mail server is contacted.
        return Response(MailOutcomeSerializer(send_test_mail(by=self.me)).data)
