"""OAuth client registrations at issuers, unfinished sign-ins, and the OAuth grants of identities."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import chain, count
from typing import ClassVar
from uuid import uuid4

from django.db import models, transaction
from django.db.models import Q
from django.utils import timezone

from accounts.models import User
from auditlog.actions import Action
from auditlog.models import Event
from servers.models import (
    AnotherPlace,
    AuthType,
    Identity,
    IdentityAlreadyRevoked,
    IdentityKind,
    Server,
    ServerError,
    SignInNeeded,
)
from servers.oauth_client.discovery import send_soon
from ui.sealing import cipher
from wire.cipher import Undecryptable
from wire.oauth_client import AUTH_METHODS, RegisteredClient, TokenRequest, Tokens, replaces, revocations


class NoSignIn(ServerError):
    """A sign-in cannot begin, or its result cannot be stored; the message says why and what to do."""


class RegistrationMethod(models.TextChoices):
    """The method by which this installation became a client of an issuer."""

    MANUAL = "manual", "Entered by an administrator"
    DOCUMENT = "document", "Described by a document of this gateway"
    DYNAMIC = "dynamic", "Registered by itself"


class ClientRegistration(models.Model):
    """The registration of this installation as a client of one issuer."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    issuer = models.CharField(max_length=500)
    # A client entered by an administrator is for this server, and for the endpoints that the issuer had at that time.
    # All other registrations (NULL) are for every server of the issuer.
    server = models.ForeignKey(Server, models.PROTECT, null=True, blank=True, related_name="client_registrations")
    kind = models.CharField(max_length=10, choices=RegistrationMethod)
    # Endpoints entered by an administrator, for an issuer without metadata; `issuer` is then the authorization
    # endpoint. Empty if the issuer has metadata.
    token_endpoint = models.CharField(max_length=500, blank=True, default="", db_default="", editable=False)
    revocation_endpoint = models.CharField(max_length=500, blank=True, default="", db_default="", editable=False)
    redirect_uri = models.CharField(max_length=500)
    client_id = models.CharField(max_length=1000)
    secret_ciphertext = models.BinaryField(null=True, editable=False)
    key_id = models.CharField(max_length=8, blank=True, editable=False)
    # The scopes named at registration, to which the client is limited; empty if there is no limit.
    scope = models.TextField(blank=True, default="")
    auth_method = models.CharField(max_length=30, choices=[(name, name) for name in AUTH_METHODS])
    # Another method that the issuer accepts, tried once if `auth_method` is refused; empty if there is none or it was
    # tried.
    other_auth_method = models.CharField(max_length=30, blank=True, default="", db_default="", editable=False)
    secret_expires_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-created_at",)
        constraints = (
            models.UniqueConstraint(
                fields=("issuer", "server", "redirect_uri"),
                condition=Q(ended_at=None),
                nulls_distinct=False,
                name="one_live_registration_per_issuer_and_server",
            ),
        )

    def __str__(self) -> str:
        return f"{self.client_id} at {self.issuer}"

    @property
    def client(self) -> RegisteredClient:
        """The client credentials. Raises wire.cipher.Undecryptable."""
        sealed = self.secret_ciphertext
        return RegisteredClient(self.client_id, cipher().open(bytes(sealed)) if sealed else "", self.auth_method)

    def use_other_auth_method(self) -> None:
        """Store `other_auth_method` as the method to use from now on.

        Call this method after the issuer refused `auth_method` and accepted `other_auth_method`.
        """
        before, self.auth_method, self.other_auth_method = self.auth_method, self.other_auth_method, ""
        rows = type(self).objects.filter(pk=self.pk, auth_method=before)
        rows.update(auth_method=self.auth_method, other_auth_method="")

    def seal(self, secret: str) -> None:
        """Encrypt and set the client's secret; an empty `secret` means that the client has none."""
        self.secret_ciphertext = cipher().seal(secret) if secret else None
        self.key_id = cipher().key_id if secret else ""

    def end(self, *, by: User | None = None) -> None:
        """End the registration: new sign-ins do not use its client.

        Access tokens of existing OAuth grants are still refreshed with this client.
        """
        with transaction.atomic():
            if type(self).objects.filter(pk=self.pk, ended_at=None).update(ended_at=timezone.now()):
                changes = {"client": [self.client_id, None], "issuer": [self.issuer, None]}
                Event.objects.record(Action.SERVER_CLIENT_CHANGED, self.server or self, by=by, changes=changes)


class SignIn(models.Model):
    """A started sign-in at an issuer: for one person in one browser, usable once, for a few minutes."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    state_digest = models.BinaryField(max_length=32, unique=True)
    browser_digest = models.BinaryField(max_length=32)
    user = models.ForeignKey(User, models.CASCADE, related_name="+")
    server = models.ForeignKey(Server, models.CASCADE, related_name="+")
    identity = models.ForeignKey(Identity, models.CASCADE, null=True, related_name="+")
    shared = models.BooleanField(default=False)
    label = models.CharField(max_length=80, blank=True)
    connection_id = models.UUIDField(null=True)
    return_to = models.CharField(max_length=500, default="/")
    registration = models.ForeignKey(ClientRegistration, models.CASCADE, related_name="+")
    verifier_ciphertext = models.BinaryField(editable=False)
    url = models.CharField(max_length=500)
    resource = models.CharField(max_length=500, blank=True)
    scope = models.TextField(blank=True)
    endpoints = models.JSONField(default=dict)
    expires_at = models.DateTimeField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return f"{self.user} at {self.server}"

    @property
    def private(self) -> bool:
        """True if the gateway is allowed to call the issuer at a private address."""
        return bool(self.endpoints.get("private"))

    def must_be_as_set(self) -> None:
        """Raise NoSignIn if the sign-in settings of the server were changed since this sign-in began."""
        now = self.server.sign_in_settings
        if self.endpoints.get("settings", now) != now:
            raise NoSignIn(f"The sign-in settings of {self.server} were changed while you signed in. Start again.")

    def lock(self) -> User:
        """Lock the person, server and identity until the transaction ends, and re-read them. Return the person."""
        # Deactivating a person locks the rows in this order, so there are no deadlocks. With `no_key`, connections that
        # start to use the identity do not wait.
        user = User.objects.select_for_update(of=("self",), no_key=True).get(pk=self.user_id)
        self.server = Server.objects.select_for_update(of=("self",), no_key=True).get(pk=self.server_id)
        if self.identity_id:
            rows = Identity.objects.select_for_update(of=("self",), no_key=True)
            self.identity = rows.get(pk=self.identity_id)
        return user


def live_registration_of(server: Server, issuer: str = "") -> ClientRegistration | None:
    """Return one of `live_registrations`, preferably the client entered for this server; None if there is none."""
    return live_registrations(server, issuer).order_by("server", "-created_at").first()


def live_registrations(server: Server, issuer: str = "") -> models.QuerySet[ClientRegistration]:
    """Return the live registrations for this server: clients entered for this server, and some shared clients.

    A shared client is included if its issuer is `issuer`, or if it is used by an OAuth grant or sign-in of the server.
    """
    granted = Grant.objects.filter(identity__server=server).values("registration")
    asked = SignIn.objects.filter(server=server).values("registration")
    known = Q(pk__in=granted) | Q(pk__in=asked) | (Q(issuer=issuer) if issuer else Q(pk=None))
    return ClientRegistration.objects.filter(Q(server=server) | Q(server=None) & known, ended_at=None)


MANY_UNFINISHED = 3  # After so many unfinished sign-ins in a row, pages say that the issuer may have forgotten us.


def unfinished_sign_ins(server: Server) -> int:
    """Return how many sign-ins at this server seem abandoned.

    This is the number of sign-ins that were begun since the issuer last sent a person back, or since the last
    `registration.reset`. One is subtracted for each person with an unexpired sign-in, because this person may still
    come back. If fewer than MANY_UNFINISHED sign-ins were begun, return 0.
    """
    begun = Server.objects.values_list("sign_ins_begun", flat=True).get(pk=server.pk)
    if begun < MANY_UNFINISHED:
        return 0
    # These people may still come back.
    under_way = SignIn.objects.filter(server=server, expires_at__gt=timezone.now()).values("user").distinct()
    return max(begun - under_way.count(), 0)


def must_take_sign_ins(server: Server, identity: Identity | None, user: User) -> None:
    """Raise NoSignIn or IdentityAlreadyRevoked if the server or `identity` cannot take a sign-in.

    If `identity` is None, only the server is checked.
    """
    if server.archived_at:
        raise NoSignIn(f"{server} has been archived.")
    if server.auth_type != AuthType.OAUTH:
        raise NoSignIn(f"{server} no longer uses sign-in: an administrator changed its authentication.")
    if identity is None:
        return
    if identity.revoked_at:
        raise IdentityAlreadyRevoked("This credential has been revoked. Add a new one.")
    if not identity.enabled:
        by_oneself = identity.may_be_enabled_by(user)
        what_to_do = "Enable it first, then sign in." if by_oneself else "Ask an administrator to enable it first."
        raise NoSignIn(f"This credential is disabled. {what_to_do}")


class GrantManager(models.Manager["Grant"]):
    def store(self, sign_in: SignIn, tokens: Tokens, *, account: str, subject: str) -> Identity:
        """Store the tokens of a sign-in in the identity for which the sign-in was started, or in a new one.

        The identity's former tokens are revoked at the issuer after the transaction. Raises NoSignIn or
        IdentityAlreadyRevoked if the person is deactivated, or if the server or the identity cannot take a sign-in.
        Raises AnotherPlace if the server's URL was changed since the sign-in began.
        """
        with transaction.atomic():
            user = sign_in.lock()
            server = sign_in.server
            if not user.is_active:
                raise NoSignIn("You have been deactivated.")
            must_take_sign_ins(server, sign_in.identity, user)
            if server.url != sign_in.url:
                raise AnotherPlace(f"{server} was moved while you signed in. Sign in again.")
            identity = _identity_for(sign_in, account)
            created = sign_in.identity is None
            before = {"account": identity.account, "issuer": identity.issuer}
            outdated = [] if created else self._outdated(identity, tokens)
            identity.issuer, identity.account = sign_in.registration.issuer, account
            identity.seal(tokens.access)
            identity.secret_hint = ""  # A hint would change with each refresh and mean nothing to people.
            identity.expires_at, identity.renew_at = _moment(tokens.expires_in), _moment(tokens.renew_in)
            identity.save(force_insert=created)
            self._store_grant(identity, sign_in, tokens, subject)
            action = Action.IDENTITY_CREATED if created else Action.IDENTITY_SIGNED_IN
            changes = {name: [value or None, getattr(identity, name)] for name, value in before.items()}
            if refused := sign_in.endpoints.get("refused_scope"):
                changes["refused_scope"] = [None, refused]
            Event.objects.record(action, identity, by=sign_in.user, changes=changes)
            if outdated:
                transaction.on_commit(lambda: send_soon(outdated))
        return identity

    def _outdated(self, identity: Identity, tokens: Tokens) -> list[TokenRequest]:
        """Return the requests that revoke the identity's former tokens. `tokens` are the new tokens."""
        grant = self.select_related("registration").filter(identity=identity).first()
        # No request is made that would end the new tokens too.
        return grant.revocations(identity, instead=tokens) if grant else []

    def _store_grant(self, identity: Identity, sign_in: SignIn, tokens: Tokens, subject: str) -> None:
        sealed = cipher().seal(tokens.refresh) if tokens.refresh else None
        values = {
            "registration": sign_in.registration,
            "subject": subject[:300],
            "resource": sign_in.resource,
            "scope": tokens.scope or sign_in.scope,
            "wanted_scope": "",
            "token_endpoint": sign_in.endpoints["token_endpoint"],
            "revocation_endpoint": sign_in.endpoints.get("revocation_endpoint", ""),
            "private": sign_in.private,
            "refresh_ciphertext": sealed,
            "key_id": cipher().key_id if sealed else "",
            "lease": None,
            "leased_until": None,
            "failures": 0,
            "retry_at": None,
            "granted_at": timezone.now(),
        }
        self.update_or_create(identity=identity, defaults=values)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else timezone.now() + timedelta(seconds=seconds)


def _identity_for(sign_in: SignIn, account: str) -> Identity:
    """Return the identity that gets the tokens of a sign-in, without saving the identity.

    This is `sign_in.identity` with its state reset. If the sign-in has no identity, this is a new identity.
    """
    if sign_in.identity is None:
        owner = None if sign_in.shared else sign_in.user
        identity = Identity(server=sign_in.server, owner=owner, kind=IdentityKind.OAUTH)
        identity.label = _free_label(identity, sign_in.label or account or sign_in.server.name)
        return identity
    identity = sign_in.identity
    identity.kind = IdentityKind.OAUTH
    identity.generation += 1
    identity.unconfirmed_since = identity.sign_in_needed_since = None
    identity.sign_in_reason, identity.last_error = SignInNeeded.NONE, ""
    return identity


def _free_label(identity: Identity, wish: str) -> str:
    """Return the label `wish`. If the owner has another identity with this label at this server, add a number."""
    others = Identity.objects.live().filter(server=identity.server, owner=identity.owner)
    taken = set(others.values_list("label", flat=True))
    names = chain([wish[:80]], (f"{wish[:74]} {number}" for number in count(2)))
    return next(name for name in names if name not in taken)


class Grant(models.Model):
    """The OAuth grant of one identity, used to refresh its access token."""

    identity = models.OneToOneField(Identity, models.CASCADE, primary_key=True, related_name="grant")
    registration = models.ForeignKey(ClientRegistration, models.PROTECT, related_name="grants")
    subject = models.CharField(max_length=300, blank=True)
    resource = models.CharField(max_length=500, blank=True)
    scope = models.TextField(blank=True)
    wanted_scope = models.TextField(blank=True, default="")
    token_endpoint = models.CharField(max_length=500)
    revocation_endpoint = models.CharField(max_length=500, blank=True)
    # Whether the endpoints may be at private addresses; endpoints named by a public server may not.
    private = models.BooleanField(default=False, db_default=False, editable=False)
    refresh_ciphertext = models.BinaryField(null=True, editable=False)
    key_id = models.CharField(max_length=8, blank=True, editable=False)
    # Only the process with the lease refreshes the token. The lease expires if the process dies.
    lease = models.UUIDField(null=True, editable=False)
    leased_until = models.DateTimeField(null=True, editable=False)
    failures = models.PositiveSmallIntegerField(default=0, editable=False)  # Since the last token; for the delay.
    # Consecutive refusals without a final error code. An issuer that gives no answer ends the sequence.
    refusals = models.PositiveSmallIntegerField(default=0, db_default=0, editable=False)
    retry_at = models.DateTimeField(null=True, editable=False)
    refreshed_at = models.DateTimeField(null=True, editable=False)
    granted_at = models.DateTimeField(default=timezone.now)

    objects: ClassVar[GrantManager] = GrantManager()

    class Meta:
        ordering = ("-granted_at",)

    def __str__(self) -> str:
        return str(self.identity)

    def end(self, identity: Identity) -> None:
        """Wipe the refresh token, and revoke it at the issuer after the transaction."""
        requests = self.revocations(identity)
        ended = {"refresh_ciphertext": None, "lease": None, "leased_until": None, "retry_at": None}
        type(self).objects.filter(pk=self.pk).update(**ended)
        if requests:
            transaction.on_commit(lambda: send_soon(requests))

    def revocations(self, identity: Identity, *, instead: Tokens | None = None) -> list[TokenRequest]:
        """Return the revocation requests (RFC 7009) for the tokens of this OAuth grant.

        If new tokens replace these tokens, pass the new tokens as `instead`. Return an empty list if the requests could
        also revoke the new tokens.
        """
        try:
            refresh, access = (
                cipher().open(bytes(sealed)) if sealed else ""
                for sealed in (self.refresh_ciphertext, identity.secret_ciphertext)
            )
            if instead is not None and not replaces(instead.refresh, instead.access, refresh, access):
                return []
            client, told = self.registration.client, {"refresh": refresh, "access": access}
            entered = identity.server.entered
            return revocations(self.revocation_endpoint, client, **told, private=self.private, entered=entered)
        except Undecryptable:
            return []
