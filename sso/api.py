"""/api/organisation: sign-in by the organisation."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.models import Role, Team
from accounts.rules import BeyondYours
from capabilities import Capability
from sso import discovery, flow
from sso.discovery import Outcome
from sso.errors import (
    BadDomain,
    BadIssuer,
    BadMetadata,
    BadPasted,
    BadRules,
    BadScopes,
    BadSecret,
    ChangedThere,
    Incomplete,
    NeedsExtra,
    NoBreakGlass,
)
from sso.models import GroupRule, Mode, Provider
from sso.saml.requests import consumer_url, entity_id
from sso.saml.terms import LONGEST_ATTRIBUTE, Certificate, NameIdFormat, Protocol
from ui.operations import Body, operation
from ui.rest import Problem, Reference, Resource
from wire.oauth_client import MOST_BYTES

SETS_UP = frozenset({Capability.WORKSPACE_MANAGE, Capability.PEOPLE_MANAGE})


def _role(pk: UUID | None) -> Role | None:
    role = Role.objects.filter(pk=pk).first() if pk else None
    if pk and role is None:
        raise ValidationError("There is no such role.")
    return role


class GroupRuleSerializer(serializers.Serializer[GroupRule]):
    """What a group at the organisation gives: a role, a team, or both."""

    group = serializers.CharField()
    role = Reference(allow_null=True)
    team = Reference(allow_null=True)


class GroupRuleBody(Body):
    """What a group at the organisation is to give."""

    group = serializers.CharField(max_length=200)
    role_id = serializers.UUIDField(allow_null=True, default=None)
    team_id = serializers.UUIDField(allow_null=True, default=None)

    def validate_role_id(self, pk: UUID | None) -> Role | None:
        return _role(pk)

    def validate_team_id(self, pk: UUID | None) -> Team | None:
        team = Team.objects.filter(pk=pk).first() if pk else None
        if pk and team is None:
            raise ValidationError("There is no such team.")
        return team


class CertificateSerializer(serializers.Serializer[Certificate]):
    """A certificate that the provider signs with."""

    fingerprint = serializers.CharField()
    subject = serializers.CharField()
    until = serializers.DateTimeField()


class OrganisationSerializer(serializers.Serializer[Provider]):
    """Where people of the organisation sign in, and on which terms."""

    mode = serializers.ChoiceField(Mode.choices)
    name = serializers.CharField()
    issuer = serializers.CharField()
    client_id = serializers.CharField()
    has_secret = serializers.BooleanField()
    scopes = serializers.CharField()
    groups_claim = serializers.CharField()
    default_role = Reference(allow_null=True)
    links_by_email = serializers.BooleanField()
    signs_out_there = serializers.BooleanField()
    domains = serializers.ListField(child=serializers.CharField())
    rules = GroupRuleSerializer(many=True)
    redirect_uri = serializers.SerializerMethodField()
    post_logout_redirect_uri = serializers.SerializerMethodField()
    protocol = serializers.ChoiceField(Protocol.choices)
    metadata_url = serializers.CharField()
    metadata_read_at = serializers.DateTimeField(allow_null=True)
    sso_url = serializers.CharField()
    certificates = CertificateSerializer(many=True, source="signing")
    name_id_format = serializers.ChoiceField(NameIdFormat.choices)
    email_attribute = serializers.CharField()
    name_attribute = serializers.CharField()
    takes_unsolicited = serializers.BooleanField()
    signs_requests = serializers.BooleanField()
    takes_encrypted = serializers.BooleanField()
    entity_id = serializers.SerializerMethodField()
    acs_url = serializers.SerializerMethodField()

    def get_entity_id(self, provider: Provider) -> str:
        return entity_id()

    def get_acs_url(self, provider: Provider) -> str:
        return consumer_url()

    def get_redirect_uri(self, provider: Provider) -> str:
        return flow.callback_url()

    def get_post_logout_redirect_uri(self, provider: Provider) -> str:
        return flow.signed_out_url()


class OrganisationChanges(Body):
    """What may change of it."""

    mode = serializers.ChoiceField(Mode.choices)
    name = serializers.CharField(max_length=60, allow_blank=True)
    issuer = serializers.CharField(max_length=500, allow_blank=True)
    client_id = serializers.CharField(max_length=255, allow_blank=True)
    secret = serializers.CharField(max_length=500, write_only=True, allow_blank=True)
    scopes = serializers.CharField(max_length=300)
    groups_claim = serializers.CharField(max_length=100)
    default_role_id = serializers.UUIDField(allow_null=True)
    links_by_email = serializers.BooleanField()
    signs_out_there = serializers.BooleanField()
    domains = serializers.ListField(child=serializers.CharField(max_length=253), max_length=50)
    rules = GroupRuleBody(many=True)
    protocol = serializers.ChoiceField(Protocol.choices)
    metadata_url = serializers.CharField(max_length=500, allow_blank=True)
    metadata_xml = serializers.CharField(max_length=MOST_BYTES, write_only=True, allow_blank=True)
    name_id_format = serializers.ChoiceField(NameIdFormat.choices)
    email_attribute = serializers.CharField(max_length=LONGEST_ATTRIBUTE)
    name_attribute = serializers.CharField(max_length=LONGEST_ATTRIBUTE)
    takes_unsolicited = serializers.BooleanField()
    signs_requests = serializers.BooleanField()
    takes_encrypted = serializers.BooleanField()
    new_decryption_key = serializers.BooleanField(write_only=True)

    def validate_default_role_id(self, pk: UUID | None) -> Role | None:
        return _role(pk)

    def validate_rules(self, rules: list[dict[str, Any]]) -> list[GroupRule]:
        return [GroupRule(rule["group"], rule.get("role_id"), rule.get("team_id")) for rule in rules]


class ProviderTestSerializer(serializers.Serializer[Outcome]):
    """Whether the provider could be signed in at, and what was found, in words."""

    works = serializers.BooleanField()
    detail = serializers.CharField()


class OrganisationResource(Resource):
    """Sign-in by the organisation: its identity provider, and what its groups mean here."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        BadIssuer: Problem(HTTPStatus.BAD_REQUEST, "invalid", "issuer"),
        BadDomain: Problem(HTTPStatus.BAD_REQUEST, "invalid", "domains"),
        BadRules: Problem(HTTPStatus.BAD_REQUEST, "invalid", "rules"),
        BadScopes: Problem(HTTPStatus.BAD_REQUEST, "invalid", "scopes"),
        Incomplete: Problem(HTTPStatus.BAD_REQUEST, "invalid", "mode"),
        NoBreakGlass: Problem(HTTPStatus.CONFLICT, "no_break_glass_owner"),
        BadPasted: Problem(HTTPStatus.BAD_REQUEST, "invalid", "metadata_xml"),
        BadMetadata: Problem(HTTPStatus.BAD_REQUEST, "invalid", "metadata_url"),
        BadSecret: Problem(HTTPStatus.BAD_REQUEST, "invalid", "secret"),
        NeedsExtra: Problem(HTTPStatus.CONFLICT, "needs_extra"),
        ChangedThere: Problem(HTTPStatus.CONFLICT, "provider_changed"),
        BeyondYours: Problem(HTTPStatus.FORBIDDEN, "beyond_yours"),
    }
    serializer_class = OrganisationSerializer
    versioned = True

    @operation(needs=SETS_UP)
    def retrieve(self, request: Request) -> Response:
        return self.answer(Provider.load())

    @operation(needs=SETS_UP, body=OrganisationChanges, reauth=True, api_keys=False, if_match=True)
    def partial_update(self, request: Request) -> Response:
        changes = self.body()
        if "default_role_id" in changes:
            changes["default_role"] = changes.pop("default_role_id")
        return self.answer(Provider.edit(by=self.me, seen=self.seen, **changes))

    @operation(needs=SETS_UP, answer=ProviderTestSerializer, if_match=True)
    def test(self, request: Request) -> Response:
        """*Test*: ask the provider what it is. That something is wrong with it is an answer, and no error of ours."""
        provider = Provider.load()
        with self.unchanged(provider):
            pass  # Another machine is asked without a lock.
        return Response(ProviderTestSerializer(discovery.test(provider, by=self.me)).data)
