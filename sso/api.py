"""/api/organisation: sign-in by the organisation."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar

from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.models import Role, Team
from accounts.rules import BeyondYours
from sso import errors
from sso.models import LONGEST_GROUP, MOST_DOMAINS, SEES_SETTINGS, SETS_UP, SETTINGS, GroupRule, Provider
from sso.oidc import callback_url, signed_out_url
from sso.provider_test import ProviderTestResult, test_provider
from sso.saml.keys import Certificate
from sso.saml.settings import consumer_url, entity_id
from ui.operations import RequestBody, operation
from ui.rest import Problem, Reference, Resource
from wire.oauth_client import MOST_BYTES

RULES = (
    "The first matching group rule with a role sets the role. Every matching group rule adds its team, if it has one."
)


def _existing(model: type[Role | Team], source: str) -> serializers.PrimaryKeyRelatedField[Any]:
    """Return a field that accepts the id of an existing role or team, or null."""
    return serializers.PrimaryKeyRelatedField(
        source=source,
        queryset=model._default_manager.all(),
        pk_field=serializers.UUIDField(),
        allow_null=True,
        default=None,
        error_messages={"does_not_exist": f"There is no such {model._meta.verbose_name}."},
        help_text="Null if none.",
    )


class GroupRuleSerializer(serializers.Serializer[GroupRule]):
    """A rule for a group at the organisation: it gives a role, a team, or both."""

    group = serializers.CharField(help_text="Group at the organisation, as the provider names it.")
    role = Reference(allow_null=True, help_text="Role that the rule gives; null if none.")
    team = Reference(allow_null=True, help_text="Team to which the rule adds people; null if none.")


class GroupRuleBody(RequestBody):
    """A rule for a group at the organisation."""

    group = serializers.CharField(
        max_length=LONGEST_GROUP, help_text="Group at the organisation, as the provider names it."
    )
    role_id = _existing(Role, "role")
    team_id = _existing(Team, "team")


class CertificateSerializer(serializers.Serializer[Certificate]):
    """A signing certificate of the provider."""

    fingerprint = serializers.CharField(help_text="SHA-256 fingerprint, as browsers and openssl print it.")
    subject = serializers.CharField(help_text="Subject of the certificate.")
    until = serializers.DateTimeField(
        help_text="When the certificate expires. An expired certificate is accepted while the metadata contain it."
    )


class OrganisationSerializer(serializers.ModelSerializer[Provider]):
    """The settings of sign-in by the organisation: its identity provider, and rules for its groups."""

    has_secret = serializers.BooleanField(
        help_text="Whether a client secret (OpenID Connect) or a key that signs requests (SAML) is saved."
    )
    default_role = Reference(
        allow_null=True,
        help_text="Role of people who get no role from a group rule. If it is null, these people cannot sign in.",
    )
    domains = serializers.ListField(child=serializers.CharField(), help_text="E-mail domains of the organisation.")
    rules = GroupRuleSerializer(many=True, help_text=RULES)
    redirect_uri = serializers.SerializerMethodField(help_text="Redirect URI to enter at the provider.")
    post_logout_redirect_uri = serializers.SerializerMethodField(
        help_text="Post-logout redirect URI to enter at the provider."
    )
    certificates = CertificateSerializer(many=True, source="signing", help_text="Signing certificates (SAML).")
    entity_id = serializers.SerializerMethodField(
        help_text="Entity ID of this workspace (SAML). It is also the URL of the workspace's metadata."
    )
    acs_url = serializers.SerializerMethodField(help_text="Address that receives the provider's answers (SAML).")

    class Meta:
        model = Provider
        fields = (
            *(*SETTINGS, "has_secret", "default_role", "rules", "redirect_uri", "post_logout_redirect_uri"),
            *("metadata_read_at", "sso_url", "certificates", "entity_id", "acs_url"),
        )
        read_only_fields = fields

    def get_entity_id(self, provider: Provider) -> str:
        return entity_id()

    def get_acs_url(self, provider: Provider) -> str:
        return consumer_url()

    def get_redirect_uri(self, provider: Provider) -> str:
        return callback_url()

    def get_post_logout_redirect_uri(self, provider: Provider) -> str:
        return signed_out_url()


class OrganisationChanges(RequestBody, serializers.ModelSerializer[Provider]):
    """The settings that a request can change."""

    secret = serializers.CharField(
        max_length=500, write_only=True, allow_blank=True, help_text="Secret of the client; it is never shown."
    )
    default_role_id = _existing(Role, "default_role")
    domains = serializers.ListField(child=serializers.CharField(max_length=253), max_length=MOST_DOMAINS)
    rules = GroupRuleBody(many=True, help_text=RULES)
    metadata_xml = serializers.CharField(
        max_length=MOST_BYTES,
        write_only=True,
        allow_blank=True,
        help_text="SAML metadata as XML, if the metadata have no URL. The gateway stores only the values that it uses.",
    )
    new_decryption_key = serializers.BooleanField(
        write_only=True, help_text="Whether to create a new key that decrypts assertions (SAML)."
    )

    class Meta:
        model = Provider
        fields = (*SETTINGS, "secret", "default_role_id", "rules", "metadata_xml", "new_decryption_key")

    def validate_rules(self, rules: list[dict[str, Any]]) -> list[GroupRule]:
        return [GroupRule(**rule) for rule in rules]


class ProviderTestSerializer(serializers.Serializer[ProviderTestResult]):
    """The result of a test of the provider."""

    works = serializers.BooleanField(help_text="Whether the test found no error.")
    detail = serializers.CharField(help_text="Result in words.")


class OrganisationResource(Resource):
    """Sign-in by the organisation: its identity provider, and rules for its groups."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        errors.NoBreakGlass: Problem(HTTPStatus.CONFLICT, "no_break_glass_owner"),
        errors.NeedsExtra: Problem(HTTPStatus.CONFLICT, "needs_extra"),
        errors.ChangedThere: Problem(HTTPStatus.CONFLICT, "provider_changed"),
        **{
            error: Problem(HTTPStatus.BAD_REQUEST, "invalid", error.field)
            for error in (
                *(errors.BadProviderUrl, errors.BadDomain, errors.BadRules, errors.BadScopes, errors.Incomplete),
                *(errors.BadPasted, errors.BadSamlMetadata, errors.SamlHasNoSecret),
            )
        },
        BeyondYours: Problem(HTTPStatus.FORBIDDEN, "beyond_yours"),
    }
    serializer_class = OrganisationSerializer
    versioned = True

    @operation(needs=SEES_SETTINGS)
    def retrieve(self, request: Request) -> Response:
        """Get the settings of sign-in by the organisation."""
        return self.answer(Provider.load())

    @operation(needs=SETS_UP, body=OrganisationChanges, reauth=True, api_keys=False, if_match=True)
    def partial_update(self, request: Request) -> Response:
        """Change the sign-in by the organisation."""
        return self.answer(Provider.edit(by=self.me, seen=self.seen, **self.body()))

    @operation(needs=SETS_UP, answer=ProviderTestSerializer, if_match=True)
    def test(self, request: Request) -> Response:
        """Test the identity provider.

        The status is 200 even if the test fails. The result then describes the failure.
        """
        provider = Provider.load()
        with self.unchanged(provider):
            pass  # Checks the version, and releases the lock: it must not be held during the test.
        return Response(ProviderTestSerializer(test_provider(provider, by=self.me)).data)
