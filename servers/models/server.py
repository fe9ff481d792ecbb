"""Upstream MCP servers."""

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from django.core.validators import RegexValidator, URLValidator
from django.db import IntegrityError, models, transaction
from django.db.models import Q
from django.db.models.functions import Lower
from django.utils import timezone

from accounts.models import User
from auditlog.actions import Action
from auditlog.models import Event, Switchable
from auditlog.versions import Seen, Versioned
from wire import versions
from wire.jsonrpc import storable
from wire.oauth_client import WITHOUT_RESOURCE, covers, issuer_host, place_in_words, place_of, printable

if TYPE_CHECKING:
    from servers.models.identity import IdentityQuerySet

CREDENTIAL_TARGET = ("url", "auth_type", "header_name")  # Where and how stored credentials are sent.
ENDPOINTS = ("authorization_endpoint", "token_endpoint", "revocation_endpoint")  # For an issuer without metadata.
SIGN_IN_SETTINGS = ("expected_issuer", "resource_sent", "fixed_resource", "fixed_scopes", *ENDPOINTS, "assume_pkce")
# The servers that are part of this process.
BUILT_IN_URL = "builtin:quickstart"
ADMIN_URL = "builtin:gateway-admin"
BUILT_IN_URLS = (BUILT_IN_URL, ADMIN_URL)
HIDDEN = "***"

slug_validator = RegexValidator(
    r"\A[a-z0-9](?:-?[a-z0-9])*\Z", "Use lower-case letters, digits and single hyphens, for example “my-server”."
)

page_validator = URLValidator(["https", "http"])


class ServerError(Exception):
    """The change of a server or identity is not allowed; the message says why."""


class IdentityAlreadyRevoked(ServerError):
    """This identity is already revoked."""


class HeldDisabled(ServerError):
    """An administrator has disabled this identity; only an administrator can enable it again."""


class LabelTaken(ServerError):
    """An identity with this label already exists for this server."""


class AnotherPlace(ServerError):
    """The credentials were entered for one address and would be sent to another."""


class WouldEndSignIns(ServerError):
    """These changes would end sign-ins, and nobody has confirmed that."""

    def __init__(self, count: int) -> None:
        these = "1 sign-in ends" if count == 1 else f"{count:,} sign-ins end"
        super().__init__(
            f"With this change {these}. Calls that use an ended sign-in are refused until a person signs in again."
        )
        self.count = count


class ResourceSent(models.TextChoices):
    """Value of the `resource` parameter in requests to the issuer (RFC 8707).

    The parameter names the server for which tokens are requested.
    """

    SERVER = "server", "The address of the server"
    OMIT = "omit", "Nothing"
    FIXED = "fixed", "A fixed value"


class AuthType(models.TextChoices):
    """Kind of credential a server requires. docs/explanation/architecture.md has the steps for adding a kind."""

    NONE = "none", "No credential"
    BEARER = "bearer", "Bearer token"
    HEADER = "header", "Own header"
    OAUTH = "oauth", "Sign in (OAuth)"


class IdentityKind(models.TextChoices):
    """Kind of a stored credential.

    The kind is the AuthType that the server had when the credential was last stored or confirmed. A token that somebody
    pasted for an OAuth server is an exception: its kind is BEARER.
    """

    BEARER = "bearer", "Bearer token"
    HEADER = "header", "Header"
    OAUTH = "oauth", "Signed in"


class Health(models.TextChoices):
    UNKNOWN = "unknown", "unknown"
    OK = "ok", "ok"
    DOWN = "down", "down"


class Era(models.TextChoices):
    """The eras of MCP that a server speaks: `initialize` with sessions, MCP 2026-07-28 without them, or both."""

    UNKNOWN = "", "unknown"
    SESSION = "session", "session"
    MODERN = "modern", versions.MODERN
    BOTH = "both", f"session and {versions.MODERN}"


class SignInNeeded(models.TextChoices):
    """The reason why a person has to sign in again. If the reason is `scope`, the identity still works."""

    NONE = "", ""
    REFUSED = "refused", "The issuer ended the sign-in."
    EXPIRED = "expired", "The sign-in has expired, and the issuer issued no refresh token."
    CLIENT = "client", "The issuer no longer knows this gateway."
    MOVED = "moved", "The address or the issuer of the server was changed."
    TOKEN = "token", "The server no longer accepts the sign-in."
    SETTINGS = "settings", "The sign-in settings of the server were changed."
    SCOPE = "scope", "The server needs more scopes than were granted."


class ServerQuerySet(models.QuerySet["Server"]):
    def live(self) -> "ServerQuerySet":
        return self.filter(archived_at=None)

    def matching(self, words: str) -> "ServerQuerySet":
        """Return servers with `words` in their name or URL; all servers if `words` is empty."""
        return self.filter(Q(name__icontains=words) | Q(url__icontains=words)) if words else self

    def add(self, *, by: User | None, **fields: Any) -> "Server":
        """Register an upstream server. Nobody can use it until it is assigned to a gateway."""
        with transaction.atomic():
            server = self.create(created_by=by, **fields)
            Event.objects.record(Action.SERVER_CREATED, server, by=by, changes={"url": [None, server.url]})
        return server


class Server(Versioned, Switchable):
    """An upstream MCP server that gateways can forward to."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    name = models.CharField(max_length=80)
    # True if the name was derived from the URL. Then the name in the server's first answer replaces it.
    name_is_made = models.BooleanField(default=False, db_default=False, editable=False)
    slug = models.CharField(max_length=16, unique=True, validators=[slug_validator])
    url = models.CharField("URL", max_length=500)
    auth_type = models.CharField("authentication", max_length=10, choices=AuthType, default=AuthType.NONE)
    header_name = models.CharField(max_length=80, blank=True)
    timeout_seconds = models.PositiveSmallIntegerField(default=30)
    total_seconds = models.PositiveSmallIntegerField(default=600, db_default=600)
    max_concurrent = models.PositiveSmallIntegerField(default=64)
    # True if the server's lists differ by session. Then the gateway requests a list from the server whenever a client
    # asks for it. Clients see only those listed features that are also stored in the database.
    lists_live = models.BooleanField(default=False, db_default=False)
    # Shown to people who have to add a credential.
    key_help = models.CharField("where to get a key", max_length=300, blank=True, default="", db_default="")
    key_url = models.CharField(
        "page for keys", max_length=500, blank=True, default="", db_default="", validators=[page_validator]
    )
    # Sign-in settings that differ from what the server and the issuer publish.
    expected_issuer = models.CharField(max_length=500, blank=True, default="", db_default="")
    resource_sent = models.CharField(
        "resource", max_length=10, choices=ResourceSent, default=ResourceSent.SERVER, db_default="server"
    )
    fixed_resource = models.CharField(max_length=500, blank=True, default="", db_default="")
    fixed_scopes = models.CharField(max_length=1000, blank=True, default="", db_default="")
    # Endpoints of an issuer without metadata. If they are set, the issuer's metadata are not fetched.
    authorization_endpoint = models.CharField(max_length=500, blank=True, default="", db_default="")
    token_endpoint = models.CharField(max_length=500, blank=True, default="", db_default="")
    revocation_endpoint = models.CharField(max_length=500, blank=True, default="", db_default="")
    # Use PKCE although the issuer's metadata do not list it.
    assume_pkce = models.BooleanField("assume PKCE", default=False, db_default=False)
    # Sign-ins started since the issuer last redirected a person back, or since the client was reset.
    sign_ins_begun = models.PositiveIntegerField(default=0, db_default=0, editable=False)
    # Whether the host resolved to a private address when the server was registered, or a person has declared it
    # private; NULL if unknown.
    private = models.BooleanField("at a private address", null=True, blank=True)
    health = models.CharField(max_length=10, choices=Health, default=Health.UNKNOWN)
    health_checked_at = models.DateTimeField(null=True, blank=True)
    health_error = models.CharField(max_length=300, blank=True)
    protocol_era = models.CharField(max_length=10, choices=Era, default=Era.UNKNOWN, blank=True)
    protocol_probed_at = models.DateTimeField(null=True, blank=True)
    # The server's answers from which its eras were determined.
    protocol_evidence = models.CharField(max_length=300, blank=True, default="", db_default="")
    # The time when a worker started to determine the eras. Meanwhile no other worker starts to determine them.
    protocol_claimed_at = models.DateTimeField(null=True, blank=True, editable=False)
    archived_at = models.DateTimeField(null=True, blank=True)
    created_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects = ServerQuerySet.as_manager()

    class Meta:
        ordering = ("name",)
        permissions = (("manage_server", "Basic server management"), ("toggle_server", "Disable and enable servers"))
        constraints = (
            models.UniqueConstraint(Lower("name"), condition=Q(archived_at=None), name="live_server_name_is_unique"),
            models.CheckConstraint(
                condition=Q(url__startswith="https://") | Q(url__startswith="http://") | Q(url__in=BUILT_IN_URLS),
                name="server_url_is_http",
            ),
            models.CheckConstraint(
                condition=Q(timeout_seconds__range=(1, 120)), name="server_timeout_is_two_minutes_at_most"
            ),
            models.CheckConstraint(
                condition=Q(total_seconds__range=(1, 3600)), name="server_total_time_is_an_hour_at_most"
            ),
            models.CheckConstraint(condition=Q(max_concurrent__range=(1, 1000)), name="server_concurrency_is_bounded"),
            models.CheckConstraint(
                condition=~Q(auth_type=AuthType.HEADER) | ~Q(header_name=""), name="header_credential_names_its_header"
            ),
            models.CheckConstraint(
                condition=~Q(resource_sent=ResourceSent.FIXED) | ~Q(fixed_resource=""), name="fixed_resource_is_named"
            ),
            models.CheckConstraint(
                condition=Q(authorization_endpoint="", token_endpoint="", revocation_endpoint="")
                | ~Q(authorization_endpoint="") & ~Q(token_endpoint=""),
                name="entered_endpoints_are_complete",
            ),
        )

    def __str__(self) -> str:
        return self.name

    @property
    def is_built_in(self) -> bool:
        """True if the gateway's own process provides this server. An example is Quickstart."""
        return self.url in BUILT_IN_URLS

    @property
    def needs_credential(self) -> bool:
        return self.auth_type != AuthType.NONE

    @property
    def takes_secret(self) -> bool:
        """True if people enter a secret for this server. False for OAuth, because people sign in at the issuer."""
        return self.auth_type in (AuthType.BEARER, AuthType.HEADER)

    @property
    def identity_kind(self) -> str:
        """The kind of a credential that is entered for this server."""
        return IdentityKind.HEADER if self.auth_type == AuthType.HEADER else IdentityKind.BEARER

    def editable(self) -> dict[str, Any]:
        limits = ("timeout_seconds", "total_seconds", "max_concurrent", "lists_live", "enabled")
        names = ("name", *CREDENTIAL_TARGET, *limits, *SIGN_IN_SETTINGS, "private", "key_help", "key_url")
        return {name: getattr(self, name) for name in names}

    def would_redirect(self, fields: Mapping[str, Any]) -> bool:
        """True if these changes would send stored credentials to another URL or in another header."""
        changes_target = any(name in fields and fields[name] != getattr(self, name) for name in CREDENTIAL_TARGET)
        return changes_target and self.identities.filter(revoked_at=None).exists()

    def moves_issuer(self, fields: Mapping[str, Any]) -> bool:
        """True if these changes replace an endpoint of the issuer.

        Codes, tokens and the client's secret would then be sent to other endpoints.
        """
        return any(name in fields and fields[name] != getattr(self, name) for name in ENDPOINTS)

    def needs_password_for(self, fields: Mapping[str, Any]) -> bool:
        """True if the person must enter the password again for these changes.

        The password is needed if stored credentials would be sent to another target, or if the issuer's endpoints
        change while an OAuth client or a sign-in is stored.
        """
        if self.would_redirect(fields):
            return True
        stored = self.client_registrations.filter(ended_at=None), self.identities.live().exclude(issuer="")
        return self.moves_issuer(fields) and any(rows.exists() for rows in stored)

    @property
    def sign_in_settings(self) -> list[str | bool]:
        return [getattr(self, name) for name in SIGN_IN_SETTINGS]

    @property
    def sets_sign_in(self) -> bool:
        """True if a sign-in setting differs from its default."""
        return any(each not in ("", False, ResourceSent.SERVER) for each in self.sign_in_settings)

    @property
    def endpoints(self) -> tuple[str, str, str]:
        """The entered authorization, token and revocation endpoints of the issuer, empty where not set."""
        return self.authorization_endpoint, self.token_endpoint, self.revocation_endpoint

    @property
    def entered(self) -> tuple[str, ...]:
        """URLs entered by an administrator for the server and its issuer. URLs at other hosts get stricter checks."""
        return self.url, *self.endpoints

    def sign_ins_ended_by(self, fields: Mapping[str, Any]) -> "IdentityQuerySet":
        """Return the identities whose sign-in would end if the sign-in settings in `fields` were saved.

        A sign-in ends if it does not fit the new issuer, endpoints, resource or fixed scopes.
        """
        then = {name: fields.get(name, getattr(self, name)) for name in SIGN_IN_SETTINGS}
        if list(then.values()) == self.sign_in_settings:
            return self.identities.none()
        signed_in = self.identities.live().exclude(issuer="").filter(sign_in_needed_since=None)
        granted = signed_in.values_list("pk", "issuer", "grant__resource", "grant__scope")
        ended = [pk for pk, *facts in granted if not self._fits(then, *(each or "" for each in facts))]
        return signed_in.filter(pk__in=ended)

    def _fits(self, then: Mapping[str, Any], issuer: str, resource: str, scope: str) -> bool:
        """True if a sign-in for this issuer, resource and scope stays valid if `then` replaces the sign-in settings."""
        if (self.expected_issuer or issuer) != (then["expected_issuer"] or issuer):
            return False
        if self.moves_issuer(then):
            return False
        if (self.resource_sent, self.fixed_resource) != (then["resource_sent"], then["fixed_resource"]):
            named = covers(resource, self.url) if resource else issuer_host(issuer) in WITHOUT_RESOURCE
            means = {ResourceSent.OMIT: resource == "", ResourceSent.FIXED: resource == then["fixed_resource"]}
            if not means.get(then["resource_sent"], named):
                return False
        fixed, granted = then["fixed_scopes"].split(), scope.split()
        return self.fixed_scopes == then["fixed_scopes"] or not fixed or bool(granted and {*granted} <= {*fixed})

    def edit(self, *, by: User | None, seen: Seen | None = None, end_sign_ins: bool = False, **fields: Any) -> None:
        """Change name, URL, authentication, sign-in settings or limits, and record what changed.

        A change of path, header or auth type ends the sign-ins at the server, and suspends the server's other
        identities until they are confirmed. A change of the issuer's endpoints ends the OAuth client entered for the
        old endpoints. Raises:

        - AnotherPlace if credentials would be sent to another server.
        - WouldEndSignIns if new settings would end sign-ins and `end_sign_ins` is False.
        - ChangedMeanwhile if the row differs from `seen`.
        """
        with transaction.atomic():
            row = self.lock()
            changes = {
                name: [getattr(row, name), value] for name, value in fields.items() if getattr(row, name) != value
            }
            row.must_be(seen, changes)
            redirects = row.would_redirect(fields)
            outdated = row.sign_ins_ended_by(fields)
            if (count := outdated.count()) and not (redirects or end_sign_ins):
                raise WouldEndSignIns(count)
            if "url" in changes:
                row.must_not_take_credentials_to(fields["url"])
                # Another address may speak another version of MCP.
                fields |= {"protocol_era": Era.UNKNOWN, "protocol_probed_at": None, "protocol_evidence": ""}
                fields |= {"protocol_claimed_at": None}
                fields |= {"health": Health.UNKNOWN, "health_error": ""}
            fields |= {"name_is_made": row.name_is_made and "name" not in changes}
            if not redirects and (ended := outdated.need_sign_in(SignInNeeded.SETTINGS)):
                changes["sign_ins_ended"] = [0, ended]
            for name, value in fields.items():
                setattr(self, name, value)
            self.save(update_fields=[*fields, "updated_at"])
            if redirects:
                # Wait for confirmations that are not committed yet: they are for the former address.
                list(self.identities.live().select_for_update(of=("self",)).order_by("pk"))
                marked = self.identities.live().filter(unconfirmed_since=None)
                signed_in = self.identities.live().exclude(issuer="")
                if ended := signed_in.need_sign_in(SignInNeeded.MOVED):
                    changes["sign_ins_ended"] = [0, ended]
                asked = marked.filter(issuer="").update(unconfirmed_since=timezone.now())
                changes["identities_to_confirm"] = [0, asked]
            row.end_client_of_other_endpoints(fields, by=by)
            if changes:
                Event.objects.record(Action.SERVER_UPDATED, self, by=by, changes=changes)

    def take_name(self, name: str) -> None:
        """If the server's name was derived from its URL, replace it with `name`, which the server sent.

        Only the first call can replace the derived name. If another server has the new name, keep the derived name.
        """
        if not self.name_is_made:
            return
        with transaction.atomic():
            row = self.lock()
            if row.name_is_made:
                type(self).objects.filter(pk=self.pk).update(name_is_made=False)
                if name := printable(name).strip()[:80]:
                    with suppress(IntegrityError), transaction.atomic():
                        row.edit(name=name, by=None)  # The slug stays: it is in tool names and URLs.
        self.refresh_from_db(fields=["name", "name_is_made"])

    def end_client_of_other_endpoints(self, fields: Mapping[str, Any], *, by: User | None) -> None:
        """End the OAuth client entered for this server if `fields` changes an endpoint of the issuer.

        Call this method in the transaction that saves `fields`. `self` must still have the endpoints from before the
        change.
        """
        # The client's secret belongs to the former endpoints.
        if self.moves_issuer(fields):
            for registration in self.client_registrations.filter(ended_at=None):
                registration.end(by=by)

    def must_not_take_credentials_to(self, url: str) -> None:
        """Raise AnotherPlace if `url` changes the server's scheme, host or port, and the server has live identities."""
        if place_of(url) == place_of(self.url) or not (count := self.identities.filter(revoked_at=None).count()):
            return
        were, them = ("1 credential was", "it") if count == 1 else (f"{count} credentials were", "them")
        raise AnotherPlace(
            f"{were} given for {place_in_words(self.url)}. "
            f"Revoke {them} first, or add the new address as another server."
        )

    def note_health(self, health: Health, error: str = "", era: Era | None = None, evidence: str = "") -> None:
        """Store the outcome of the last contact. If `era` is given, store `era` and its `evidence`, too."""
        self.health, self.health_error, self.health_checked_at = health, error[:300], timezone.now()
        fields = ["health", "health_error", "health_checked_at"]
        if era:
            self.protocol_era, self.protocol_probed_at = era, self.health_checked_at
            self.protocol_evidence = storable(evidence)[:300]
            fields += ["protocol_era", "protocol_probed_at", "protocol_evidence"]
        self.save(update_fields=fields)
