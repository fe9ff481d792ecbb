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
from sso import oidc
from sso.errors import (
    BadDomain,
    BadPasted,
    BadProviderUrl,
    BadRules,
    BadSamlMetadata,
    BadScopes,
    ChangedThere,
    Incomplete,
    NeedsExtra,
    NoBreakGlass,
    SamlHasNoSecret,
)
from sso.models import GroupRule, Mode, Provider
from sso.provider_test import ProviderTestResult, test_provider
from sso.saml.keys import Certificate
from sso.saml.settings import LONGEST_ATTRIBUTE, NameIdFormat, Protocol, consumer_url, entity_id
from ui.operations import RequestBody, operation
from ui.rest import Problem, Reference, Resource
from wire.oauth_client import MOST_BYTES

SETS_UP = frozenset({Capability.WORKSPACE_MANAGE, Capability.PEOPLE_MANAGE})


def _role(pk: UUID | None) -> Role | None:
    role = Role.objects.filter(pk=pk).first() if pk else None
    if pk and role is None:
        raise ValidationError("There is no such role.")
    return role


class GroupRuleSerializer(serializers.Serializer[GroupRule]):
    """A rule for a group at the organisation: it gives a role, a team, or both."""

    group = serializers.CharField(help_text="Group at the organisation, as the provider names it.")
    role = Reference(allow_null=True, help_text="Role it gives; null if none.")
    team = Reference(allow_null=True, help_text="Team it adds people to; null if none.")


class GroupRuleBody(RequestBody):
    """A rule for a group at the organisation."""

    group = serializers.CharField(max_length=200, help_text="Group at the organisation, as the provider names it.")
    role_id = serializers.UUIDField(allow_null=True, default=None, help_text="Role it gives; null if none.")
    team_id = serializers.UUIDField(allow_null=True, default=None, help_text="Team it adds people to; null if none.")

    def validate_role_id(self, pk: UUID | None) -> Role | None:
        return _role(pk)

    def validate_team_id(self, pk: UUID | None) -> Team | None:
        team = Team.objects.filter(pk=pk).first() if pk else None
        if pk and team is None:
            raise ValidationError("There is no such team.")
        return team


class CertificateSerializer(serializers.Serializer[Certificate]):
    """A signing certificate of the provider."""

    fingerprint = serializers.CharField(help_text="SHA-256 fingerprint, as browsers and openssl print it.")
    subject = serializers.CharField(help_text="Subject of the certificate.")
    until = serializers.DateTimeField(help_text="When it expires; it is accepted as long as the metadata contain it.")


class OrganisationSerializer(serializers.Serializer[Provider]):
    """The identity provider of the organisation and the rules of its sign-in."""

    mode = serializers.ChoiceField(Mode.choices, help_text="Whether sign-in there is off, offered or enforced.")
    name = serializers.CharField(help_text="Name on the sign-in button.")
    issuer = serializers.CharField(help_text="Issuer of the provider; with SAML its entity ID, from its metadata.")
    client_id = serializers.CharField(help_text="Client ID of this workspace at the provider.")
    has_secret = serializers.BooleanField(help_text="Whether a client secret is saved.")
    scopes = serializers.CharField(help_text="Scopes to request from the provider.")
    groups_claim = serializers.CharField(help_text="Claim or attribute with the groups; dots lead into a claim.")
    default_role = Reference(allow_null=True, help_text="Role of people without a matching rule; null refuses them.")
    links_by_email = serializers.BooleanField(help_text="Whether a verified address links to an existing person.")
    signs_out_there = serializers.BooleanField(help_text="Whether signing out here also signs out of the provider.")
    domains = serializers.ListField(
        child=serializers.CharField(),
        help_text="E-mail domains of the organisation. New people need no verified address in them; while `mode` is "
        "`enforced`, these people have no password here.",
    )
    rules = GroupRuleSerializer(many=True, help_text="The first match sets the role, each match adds its team.")
    redirect_uri = serializers.SerializerMethodField(help_text="Entered at the provider.")
    post_logout_redirect_uri = serializers.SerializerMethodField(help_text="Entered at the provider.")
    protocol = serializers.ChoiceField(Protocol.choices, help_text="Protocol of the provider.")
    metadata_url = serializers.CharField(help_text="Address of the provider's metadata (SAML).")
    metadata_read_at = serializers.DateTimeField(allow_null=True, help_text="When the metadata were last read.")
    sso_url = serializers.CharField(help_text="Sign-in address from the metadata (SAML).")
    certificates = CertificateSerializer(many=True, source="signing", help_text="Signing certificates (SAML).")
    name_id_format = serializers.ChoiceField(NameIdFormat.choices, help_text="Format of people's ids (SAML).")
    email_attribute = serializers.CharField(help_text="Attribute with the e-mail address (SAML).")
    name_attribute = serializers.CharField(help_text="Attribute with the display name (SAML).")
    takes_unsolicited = serializers.BooleanField(help_text="Whether people may start at the provider (SAML).")
    signs_requests = serializers.BooleanField(help_text="Whether requests are signed (SAML).")
    takes_encrypted = serializers.BooleanField(help_text="Whether assertions may be encrypted (SAML).")
    entity_id = serializers.SerializerMethodField(help_text="Entity ID and metadata address of this workspace (SAML).")
    acs_url = serializers.SerializerMethodField(help_text="Address that receives the provider's answers (SAML).")

    def get_entity_id(self, provider: Provider) -> str:
        return entity_id()

    def get_acs_url(self, provider: Provider) -> str:
        return consumer_url()

    def get_redirect_uri(self, provider: Provider) -> str:
        return oidc.callback_url()

    def get_post_logout_redirect_uri(self, provider: Provider) -> str:
        return oidc.signed_out_url()


class OrganisationChanges(RequestBody):
    """What may change of it."""

    mode = serializers.ChoiceField(Mode.choices)
    name = serializers.CharField(max_length=60, allow_blank=True)
    issuer = serializers.CharField(max_length=500, allow_blank=True)
    client_id = serializers.CharField(max_length=255, allow_blank=True)
    secret = serializers.CharField(
        max_length=500, write_only=True, allow_blank=True, help_text="Secret of the client; it is never shown."
    )
    scopes = serializers.CharField(max_length=300)
    groups_claim = serializers.CharField(max_length=100)
    default_role_id = serializers.UUIDField(allow_null=True, help_text="Role of people without a matching rule.")
    links_by_email = serializers.BooleanField()
    signs_out_there = serializers.BooleanField()
    domains = serializers.ListField(child=serializers.CharField(max_length=253), max_length=50)
    rules = GroupRuleBody(many=True)
    protocol = serializers.ChoiceField(Protocol.choices)
    metadata_url = serializers.CharField(max_length=500, allow_blank=True)
    metadata_xml = serializers.CharField(
        max_length=MOST_BYTES,
        write_only=True,
        allow_blank=True,
        help_text="Metadata of a provider that has no address for them; only their values are stored.",
    )
    name_id_format = serializers.ChoiceField(NameIdFormat.choices)
    email_attribute = serializers.CharField(max_length=LONGEST_ATTRIBUTE)
    name_attribute = serializers.CharField(max_length=LONGEST_ATTRIBUTE)
    takes_unsolicited = serializers.BooleanField()
    signs_requests = serializers.BooleanField()
    takes_encrypted = serializers.BooleanField()
    new_decryption_key = serializers.BooleanField(
        write_only=True, help_text="Whether to create a new key for encrypted assertions (SAML)."
    )

    def validate_default_role_id(self, pk: UUID | None) -> Role | None:
        return _role(pk)

    def validate_rules(self, rules: list[dict[str, Any]]) -> list[GroupRule]:
        return [GroupRule(rule["group"], rule.get("role_id"), rule.get("team_id")) for rule in rules]


class ProviderTestSerializer(serializers.Serializer[ProviderTestResult]):
    """The result of a test of the provider."""

    works = serializers.BooleanField(help_text="Whether people could sign in there.")
    detail = serializers.CharField(help_text="Result in words.")


class OrganisationResource(Resource):
    """Sign-in by the organisation: its identity provider, and rules for its groups."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        BadProviderUrl: Problem(HTTPStatus.BAD_REQUEST, "invalid", "issuer"),
        BadDomain: Problem(HTTPStatus.BAD_REQUEST, "invalid", "domains"),
        BadRules: Problem(HTTPStatus.BAD_REQUEST, "invalid", "rules"),
        BadScopes: Problem(HTTPStatus.BAD_REQUEST, "invalid", "scopes"),
        Incomplete: Problem(HTTPStatus.BAD_REQUEST, "invalid", "mode"),
        NoBreakGlass: Problem(HTTPStatus.CONFLICT, "no_break_glass_owner"),
        BadPasted: Problem(HTTPStatus.BAD_REQUEST, "invalid", "metadata_xml"),
        BadSamlMetadata: Problem(HTTPStatus.BAD_REQUEST, "invalid", "metadata_url"),
        SamlHasNoSecret: Problem(HTTPStatus.BAD_REQUEST, "invalid", "secret"),
        NeedsExtra: Problem(HTTPStatus.CONFLICT, "needs_extra"),
        ChangedThere: Problem(HTTPStatus.CONFLICT, "provider_changed"),
        BeyondYours: Problem(HTTPStatus.FORBIDDEN, "beyond_yours"),
    }
    serializer_class = OrganisationSerializer
    versioned = True

    @operation(needs=SETS_UP)
    def retrieve(self, request: Request) -> Response:
        """Get the sign-in by the organisation."""
        return self.answer(Provider.load())

    @operation(needs=SETS_UP, body=OrganisationChanges, reauth=True, api_keys=False, if_match=True)
    def partial_update(self, request: Request) -> Response:
        """Change the sign-in by the organisation."""
        changes = self.body()
        if "default_role_id" in changes:
            changes["default_role"] = changes.pop("default_role_id")
        return self.answer(Provider.edit(by=self.me, seen=self.seen, **changes))

    @operation(needs=SETS_UP, answer=ProviderTestSerializer, if_match=True)
    def test(self, request: Request) -> Response:
        """Test the identity provider.

        If something is wrong with it, the result says so with status 200.
        """
        provider = Provider.load()
        with self.unchanged(provider):
            pass  # Checks the version; the provider is asked without a lock.
        return Response(ProviderTestSerializer(test_provider(provider, by=self.me)).data)
