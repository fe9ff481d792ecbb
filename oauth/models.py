"""Models of OAuth: registrations, bindings, and authorize flows.

An application is the record that Django OAuth Toolkit has of an app. A registration ties an application to its host. A
binding ties an authorization code or a token to its connection. An authorize flow is the steps in which a person
connects an app or agent to a gateway.
"""

from datetime import timedelta
from urllib.parse import urlencode
from uuid import uuid4

from django.conf import settings
from django.db import models, transaction
from django.db.models import Q
from django.utils import timezone
from oauth2_provider.models import AccessToken, set_token_value

from accounts.models import User
from connections.models import Connection
from gateways.models import Gateway
from hosts.models import Host
from tokens.models import NotYourToken, Token, TokenAlreadyRevoked
from wire import token_text


class Registration(models.Model):
    """A registration of an app: details that the application of Django OAuth Toolkit lacks, and the app's host.

    The host is None until a person connects the app with this registration, or requests the app's approval.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    application = models.OneToOneField(
        settings.OAUTH2_PROVIDER_APPLICATION_MODEL, models.CASCADE, related_name="registration"
    )
    host = models.ForeignKey(Host, models.PROTECT, null=True, blank=True, related_name="registrations")
    fingerprint = models.CharField(max_length=64, blank=True, db_index=True)
    client_name = models.CharField(max_length=120, blank=True)
    client_uri = models.CharField(max_length=500, blank=True)
    software_id = models.CharField(max_length=120, blank=True)
    software_version = models.CharField(max_length=60, blank=True)
    registration_ip = models.GenericIPAddressField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("-created_at",)
        verbose_name = "OAuth registration"

    def __str__(self) -> str:
        return self.client_name or "MCP Client"


class BindingQuerySet(models.QuerySet["Binding"]):
    def lend(self, connection: Connection, *, by: User, seconds: int) -> str:
        """Create an access token for an app's `connection`, and return the token's text.

        Only a digest of the text is stored. The token ends when the connection's key is replaced. Raises NotYourToken
        if the connection does not belong to `by`, or TokenAlreadyRevoked if the connection was revoked.
        """
        if by.pk != connection.user_id:
            raise NotYourToken(NotYourToken.__doc__)
        secret = token_text.mint(token_text.OAUTH_ACCESS)
        with transaction.atomic():
            row: Connection = connection.lock()
            key = Token.objects.live_key(row)
            if row.revoked_at or key is None:
                raise TokenAlreadyRevoked("This connection is already revoked.")
            access = AccessToken(user=by, scope="mcp", expires=timezone.now() + timedelta(seconds=seconds))
            access.resource = [row.gateway.url]
            set_token_value(access, secret)
            access.save(force_insert=True)
            self.create(connection=row, access_token=access, generation=key.generation)
        return secret


class Binding(models.Model):
    """A link from an authorization code, access token or refresh token of Django OAuth Toolkit to its connection.

    A binding is written in the transaction that creates the code or token. A code or token without a binding is
    refused.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    connection = models.ForeignKey(Connection, models.PROTECT, related_name="bindings")
    generation = models.PositiveIntegerField(null=True)  # Of the connection's key; only for an access token.
    grant = models.OneToOneField(
        settings.OAUTH2_PROVIDER_GRANT_MODEL, models.CASCADE, null=True, related_name="binding"
    )
    access_token = models.OneToOneField(
        settings.OAUTH2_PROVIDER_ACCESS_TOKEN_MODEL, models.CASCADE, null=True, related_name="binding"
    )
    refresh_token = models.OneToOneField(
        settings.OAUTH2_PROVIDER_REFRESH_TOKEN_MODEL, models.CASCADE, null=True, related_name="binding"
    )
    superseded_at = models.DateTimeField(null=True)  # Only for a refresh token that was used.
    # Only for the first refresh token of a family: the digest of the code it was issued for.
    code_digest = models.BinaryField(max_length=32, null=True, db_index=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = BindingQuerySet.as_manager()

    class Meta:
        constraints = (
            models.CheckConstraint(
                condition=(
                    Q(grant__isnull=False, access_token=None, refresh_token=None, generation=None)
                    | Q(grant=None, access_token__isnull=False, refresh_token=None, generation__isnull=False)
                    | Q(grant=None, access_token=None, refresh_token__isnull=False, generation=None)
                ),
                name="binding_ties_exactly_one_credential",
            ),
        )

    def __str__(self) -> str:
        return str(self.connection)


class Ending(models.TextChoices):
    OAUTH = "oauth", "Redirect to the app"
    TOKEN = "token", "Show a token once"


class AuthorizeRequest(models.Model):
    """An authorize flow in progress: the choices made so far, and the browser it belongs to."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    kind = models.CharField(max_length=10, choices=Ending, editable=False)
    host = models.ForeignKey(Host, models.CASCADE, null=True, blank=True, related_name="+")
    application = models.ForeignKey(
        settings.OAUTH2_PROVIDER_APPLICATION_MODEL, models.CASCADE, null=True, blank=True, related_name="+"
    )
    user = models.ForeignKey(User, models.CASCADE, null=True, blank=True, related_name="+")
    gateway = models.ForeignKey(Gateway, models.CASCADE, null=True, blank=True, related_name="+")
    parameters = models.JSONField(default=dict)
    identities = models.JSONField(default=dict)
    browser_digest = models.BinaryField(max_length=32)
    expires_at = models.DateTimeField()
    completed_at = models.DateTimeField(null=True, blank=True)
    error = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-created_at",)
        permissions = (("connect_app", "Authenticate via OAuth"),)
        constraints = (
            models.CheckConstraint(
                condition=Q(kind=Ending.TOKEN, host__isnull=False, application=None)
                | Q(kind=Ending.OAUTH, application__isnull=False),
                name="authorize_request_names_its_app",
            ),
        )
        indexes = (models.Index(fields=("expires_at",), name="authorize_request_by_expiry"),)

    def __str__(self) -> str:
        return self.get_kind_display()

    @property
    def app_name(self) -> str:
        """The name shown on the page: the host's name, or the name in the registration if there is no host yet."""
        if self.host:
            return self.host.name
        return (self.application.name if self.application else "") or "MCP Client"

    @property
    def is_locked(self) -> bool:
        """True if the app named the gateway: then the person cannot choose another gateway."""
        return bool(self.parameters.get("locked"))

    @property
    def redirect_uri(self) -> str:
        """The app's redirect URI; empty if the flow shows the person a token instead (Ending.TOKEN)."""
        return str(self.parameters.get("redirect_uri", ""))

    @property
    def has_valid_redirect_uri(self) -> bool:
        """True if the app still has the redirect URI of this flow. False if the flow ends with a token."""
        return self.application is not None and self.application.redirect_uri_allowed(self.redirect_uri)

    @property
    def start_url(self) -> str:
        """The URL that starts the same flow again, for another person."""
        if self.kind == Ending.OAUTH:
            parameters = {name: value for name, value in self.parameters.items() if name != "locked" and value}
            resource = {"resource": self.gateway.url} if self.gateway and self.is_locked else {}
            return f"/oauth/authorize?{urlencode(parameters | resource)}"
        gateway = {"gateway": self.gateway.slug} if self.gateway else {}
        client = {name: value for name, value in self.parameters.items() if name == "client"}
        return f"/connect/?{urlencode({'host': self.host_id} | gateway | client)}"

    @property
    def is_over(self) -> bool:
        """True if the flow was completed or refused, or has expired."""
        return self.completed_at is not None or self.expires_at <= timezone.now()
