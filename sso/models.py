"""Sign-in by the organisation: its identity provider, its group rules, and the accounts of people.

The rules are in docs/decisions/0034-sign-in-by-the-organisation.md.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Sequence
from datetime import timedelta
from functools import reduce
from operator import or_
from typing import Any, ClassVar, NamedTuple, Self

import orjson
from django.core.cache import cache
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import models, transaction
from django.db.models import Q
from django.utils import timezone

from accounts.models import Role, Team, User
from accounts.rules import Grantor, LastManager, LastOwner, has_break_glass_owner, must_hold, must_match, one_at_a_time
from auditlog.actions import Action
from auditlog.models import Event
from auditlog.versions import Seen, Versioned
from capabilities import Capability
from sso.browser_sessions import end_password_sessions
from sso.errors import (
    AlreadyLinked,
    BadDomain,
    BadRules,
    BadSamlMetadata,
    BadScopes,
    ChangedThere,
    Incomplete,
    NeedsPassword,
    NoBreakGlass,
    NoEntry,
    ProviderError,
)
from sso.saml.keys import DecryptionKey
from sso.saml.received import ReceivedAssertion
from sso.saml.settings import (
    SAML_TERMS,
    Protocol,
    SamlSettings,
    changes_metadata,
    fetch_metadata,
    with_dependent_settings,
)
from ui.sealing import cipher

__all__ = [
    "SETS_UP",
    "TERMS",
    "Account",
    "Claims",
    "DecryptionKey",
    "GroupRule",
    "Mode",
    "Provider",
    "ReceivedAssertion",
    "RuleRow",
]

logger = logging.getLogger(__name__)

MOST_RULES, MOST_DOMAINS, LONGEST_GROUP = 200, 50, 200
# Settings that people enter, in the order of the page, apart from the role, the rules and the secrets.
OIDC_SETTINGS = ("issuer", "client_id", "scopes", "signs_out_there")
SAML_SETTINGS = (
    *("metadata_url", "name_id_format", "email_attribute", "name_attribute"),
    *("signs_requests", "takes_encrypted", "takes_unsolicited"),
)
SETTINGS = ("name", "protocol", *OIDC_SETTINGS, *SAML_SETTINGS, "mode", "domains", "links_by_email", "groups_claim")
SETS_UP = frozenset({Capability.WORKSPACE_MANAGE, Capability.PEOPLE_MANAGE})
# Settings that decide who people of the organisation become, and who has to sign in there. Through these, the owner of
# the provider, or of a group, could become anybody, so changing them needs every capability.
TERMS = frozenset({"mode", "issuer", "client_id", "groups_claim", "domains", "default_role", "links_by_email", "rules"})
TERMS |= {*SAML_TERMS, "certificates"}
METADATA_AGE = timedelta(hours=1)  # Older metadata are read again when people sign in.
METADATA_ASKED_AGAIN_S = 30
_domain = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{2,63}").fullmatch
_scope = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+").fullmatch  # RFC 6749 section 3.3.


class Mode(models.TextChoices):
    """The people who may, or have to, sign in at the organisation."""

    OFF = "off", "Off"
    OFFERED = "offered", "Offered beside the password"
    ENFORCED = "enforced", "Enforced for the e-mail domains below"


class Claims(NamedTuple):
    """Claims about a person who has just signed in.

    `email_verified` is None if the provider does not say. `groups` is None if there are too many for a token.
    `says_groups` is False if the provider sent no groups, which differs from an empty list. `authenticated_at` is None
    if it does not say when the person authenticated.
    """

    issuer: str
    subject: str
    email: str = ""
    email_verified: bool | None = None
    name: str = ""
    groups: frozenset[str] | None = frozenset()
    says_groups: bool = True
    session: str = ""
    authenticated_at: float | None = None


class GroupRule(NamedTuple):
    """Gives people in this group of the organisation a role, a team, or both."""

    group: str
    role: Role | None = None
    team: Team | None = None


class Provider(SamlSettings, Versioned, models.Model):
    """The identity provider of this workspace, and the settings of the sign-in."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    mode = models.CharField("sign-in there", max_length=10, choices=Mode, default=Mode.OFF)
    name = models.CharField(max_length=60, blank=True, help_text="Name on the sign-in button.")
    issuer = models.CharField(
        max_length=500,
        blank=True,
        help_text="As the provider calls itself. Inside GATEWAY_PRIVATE_UPSTREAMS it may be http://.",
    )
    # Whether its host resolved to a private address when it was set up; the guard allows private addresses only then.
    private = models.BooleanField(default=False, editable=False)
    client_id = models.CharField(
        "client ID", max_length=255, blank=True, help_text="Client ID of this workspace at the provider."
    )
    secret_ciphertext = models.BinaryField(null=True)
    key_id = models.CharField(max_length=8, blank=True)
    scopes = models.CharField(
        max_length=300,
        default="openid profile email",
        help_text="Scopes to request. Some providers send groups only for a scope of their own.",
    )
    groups_claim = models.CharField(
        "groups claim or attribute",
        max_length=100,
        default="groups",
        help_text="Claim or attribute with a person's groups; dots lead into a claim.",
    )
    domains = models.JSONField(
        "e-mail domains",
        default=list,
        blank=True,
        help_text="Domains of your organisation. New people need an address in these, or a verified one. While sign-in "
        "there is enforced, these people have no password here; saving that ends their sessions that began with one, "
        "yours too unless you are a break-glass owner.",
    )
    default_role = models.ForeignKey(
        Role,
        models.PROTECT,
        verbose_name="role of everybody else",
        null=True,
        blank=True,
        related_name="+",
        help_text="Role of people without a matching rule; none refuses them.",
    )
    links_by_email = models.BooleanField(
        "link people by a verified e-mail",
        default=False,
        help_text="A verified address at the provider links to the person who has it here. Otherwise people link their "
        "account on their profile.",
    )
    signs_out_there = models.BooleanField(
        "sign out there too",
        default=False,
        db_default=False,
        help_text="Signing out here also signs out of the provider, for people who signed in there.",
    )

    class Meta:
        default_permissions = ()
        verbose_name = "sign-in by the organisation"
        verbose_name_plural = "sign-in by the organisation"
        constraints = (
            models.CheckConstraint(condition=Q(id=1), name="one_provider"),
            models.CheckConstraint(
                condition=Q(mode="off") | ~(Q(issuer="") | Q(client_id="") | Q(name="")), name="offered_means_complete"
            ),
        )

    def __str__(self) -> str:
        return self.name or "Sign-in by the organisation"

    @classmethod
    def load(cls) -> Self:
        """Return the current settings."""
        return cls.objects.select_related("default_role").get_or_create(pk=1)[0]

    @classmethod
    def offered(cls) -> Self | None:
        """Return the provider if people may sign in there, otherwise None."""
        return cls.objects.exclude(mode=Mode.OFF).filter(pk=1).first()

    @property
    def has_secret(self) -> bool:
        return self.secret_ciphertext is not None

    @property
    def secret(self) -> str:
        """The client secret, or the key that signs requests; empty if none. Raises wire.cipher.Undecryptable."""
        return cipher().open(bytes(self.secret_ciphertext)) if self.secret_ciphertext else ""

    @property
    def rules(self) -> list[GroupRule]:
        """The group rules, in order."""
        return [GroupRule(row.group, row.role, row.team) for row in self.rows.select_related("role", "team")]

    def editable(self) -> dict[str, Any]:
        return self._entered() | {"decryption_key": self.decryption_key}

    def _entered(self) -> dict[str, Any]:
        names = ("mode", "name", "issuer", "client_id", "scopes", "groups_claim", "domains", "links_by_email")
        return {name: getattr(self, name) for name in (*names, "signs_out_there", *SAML_TERMS)} | {
            "default_role": self.default_role.name if self.default_role else None,
            "rules": _told(self.rules),
            "certificates": [each.fingerprint for each in self.signing],
        }

    @property
    def known_as(self) -> str:
        """The issuer under which accounts are stored.

        It includes the protocol, because some providers use one name for both, with different subjects.
        """
        return f"saml:{self.issuer}" if self.speaks_saml else self.issuer

    @property
    def terms_digest(self) -> str:
        """A digest of all TERMS: it changes when one of them changes."""
        terms = {name: value for name, value in self._entered().items() if name in TERMS}
        return hashlib.sha256(orjson.dumps(terms, option=orjson.OPT_SORT_KEYS)).hexdigest()

    @property
    def is_enforced(self) -> bool:
        """True if some people have to sign in at the organisation."""
        return self.mode == Mode.ENFORCED

    def enforces(self, email: str) -> bool:
        """True if people with this address have to sign in at the organisation."""
        return self.is_enforced and email.strip().lower().rpartition("@")[2] in self.domains

    @property
    def sessions_enforced(self) -> Q:
        """Match the browser sessions of people whose address it `enforces`, except break-glass owners."""
        domains = self.domains if self.is_enforced else ()
        addresses = (Q(user__email__iendswith=f"@{domain}") for domain in domains)
        return reduce(or_, addresses, Q(pk__in=())) & Q(user__break_glass=False)

    # --- Setting it up ------------------------------------------------------------------------------------------------

    @classmethod
    def edit(cls, *, by: Grantor | None, seen: Seen | None = None, secret: str = "", **fields: Any) -> Self:
        """Change the settings, from the next sign-in on, and record what changed.

        `rules` is a list of GroupRule. `secret` replaces the current one; another issuer ends it. Raises ProviderError,
        ChangedMeanwhile, BeyondYours, or Outranked if somebody without every capability changes TERMS. When sign-in
        becomes enforced, affected sessions that began with a password end.
        """
        must_hold(by, SETS_UP)
        # Resolve names and read metadata before taking the lock.
        known = cls.load()
        if changes_metadata(known, fields):
            must_match(by, Capability)  # Otherwise people without the right to change it could have any URL fetched.
        known_key = known.decryption_key
        fields, secret, pair = with_dependent_settings(known, fields, secret)
        with transaction.atomic():
            one_at_a_time()
            present: Self = cls.load().lock()
            present.must_still_be(known)
            rules = _checked(fields.pop("rules")) if "rules" in fields else present.rules
            must_hold(by, SETS_UP)
            row = cls.load()
            row.take(fields, secret)
            before, after = present.editable(), row.editable() | {"rules": _told(rules)}
            changes: dict[str, Any] = {
                name: [before[name], after[name]] for name in before if before[name] != after[name]
            }
            present.must_be(seen, {*changes, "decryption_key"} if pair else changes)
            # Replacing the key twice would break sign-in for everybody, so it needs the same rights.
            if TERMS & changes.keys() or (pair and before["decryption_key"]):
                must_match(by, Capability)
            if not secret and row.has_secret and row.ends_secret(changes.keys()):
                row.secret_ciphertext, row.key_id = None, ""
                changes["secret_removed"] = True
            row.must_be_sound()
            if "rules" in changes:
                row._replace(rules)
            row.save()
            changes |= row.go_by_keys(pair, known_key)
            if secret:
                changes["secret_replaced"] = True
            if row.is_enforced and {"mode", "domains"} & changes.keys():
                ended = end_password_sessions(row.sessions_enforced, by=by)
                changes |= {"sessions_ended": ended} if ended else {}
            if changes:
                Event.objects.record(Action.ORGANISATION_UPDATED, row, by=by, changes=changes)
        return row

    def go_by_keys(self, pair: tuple[str, str] | None, replaced: str) -> dict[str, Any]:
        """Use a new key for encrypted assertions instead of `replaced`, or delete all keys if they are not allowed.

        Returns what changed, for the event.
        """
        if not (self.speaks_saml and self.takes_encrypted):
            return {"decryption_keys_removed": True} if DecryptionKey.objects.all().delete()[0] else {}
        present = self.decryption_key
        if (present != replaced) if pair else not present:  # Another request changed or ended it meanwhile.
            raise ChangedThere(ChangedThere.__doc__)
        if pair:
            DecryptionKey.add(*pair)
        return {"decryption_key_made": True} if pair else {}

    def must_still_be(self, known: Self) -> None:
        """Raise ChangedThere if the metadata were read for another provider."""
        if (self.protocol, self.issuer) != (known.protocol, known.issuer):
            raise ChangedThere(ChangedThere.__doc__)

    def ends_secret(self, changed: Collection[str]) -> bool:
        """True if this change ends the current secret.

        A client secret belongs to the old provider, and must not be sent to the new one. A signing key is ours, and is
        used while requests are signed.
        """
        if self.speaks_saml:
            return "protocol" in changed or not self.signs_requests
        return not {"protocol", "issuer"}.isdisjoint(changed)

    def take(self, fields: dict[str, Any], secret: str) -> None:
        """Set these values, normalised, and encrypt the secret."""
        for name, value in fields.items():
            setattr(self, name, value.strip() if isinstance(value, str) else value)
        self.domains = sorted({str(each).strip().lower().lstrip("@") for each in self.domains if str(each).strip()})
        self.scopes = " ".join(self.scopes.split())
        self.email_attribute = self.email_attribute or "email"
        self.name_attribute = self.name_attribute or "displayName"
        if secret:
            self.secret_ciphertext, self.key_id = cipher().seal(secret), cipher().key_id

    def must_be_sound(self) -> None:
        """Raise ProviderError if people could not sign in with these settings."""
        if "openid" not in self.scopes.split() or not all(map(_scope, self.scopes.split())):
            raise BadScopes(BadScopes.__doc__)
        if len(self.domains) > MOST_DOMAINS or not all(map(_domain, self.domains)):
            raise BadDomain(BadDomain.__doc__)
        if self.mode != Mode.OFF and not (self.name and self.issuer and self.client_id):
            saml = "Name the provider and give its metadata before sign-in is offered."
            raise Incomplete(saml if self.speaks_saml else Incomplete.__doc__)
        if self.speaks_saml and self.signs_requests and not (self.has_secret and self.own_certificate):
            raise Incomplete("There is no key that requests could be signed with.")
        if self.mode == Mode.ENFORCED:
            if not self.domains:
                raise BadDomain(BadDomain.__doc__)
            if not has_break_glass_owner():
                raise NoBreakGlass(NoBreakGlass.__doc__)

    def read_metadata_again(self, *, by: Grantor | None) -> None:
        """Apply the provider's current SAML metadata (certificates, sign-in URL), and record what changed.

        Raises BadSamlMetadata, and changes nothing, also if they are of another provider; only `edit` can change that.
        """
        said = fetch_metadata(self.metadata_url, private=self.private)
        with transaction.atomic():
            row: Self = self.lock()
            if (row.protocol, row.metadata_url) != (Protocol.SAML, self.metadata_url):
                return
            if row.issuer != said["issuer"]:
                raise BadSamlMetadata(f"{row.metadata_url} describes another provider by now. Enter its metadata anew.")
            before = row.editable()
            row.take(said, "")
            after = row.editable()
            row.save(update_fields=[*said])
            changes = {name: [before[name], after[name]] for name in before if before[name] != after[name]}
            if changes:
                Event.objects.record(Action.ORGANISATION_UPDATED, row, by=by, changes=changes)

    def with_metadata_of(self, age: timedelta) -> Self:
        """Return the provider with metadata at most this old, if they have a URL that can be read.

        If it cannot be read the known metadata are used, so that people can still sign in.
        """
        read_at = self.metadata_read_at
        if not self.metadata_url or (read_at and timezone.now() - read_at < age):
            return self
        if not cache.add("organisation-metadata-asked", "asked", METADATA_ASKED_AGAIN_S):
            return self
        try:
            self.read_metadata_again(by=None)
        except ProviderError as fault:
            logger.warning("the metadata of the identity provider cannot be read", extra={"error": str(fault)})
            return self
        return self.offered() or self

    def _replace(self, rules: Sequence[GroupRule]) -> None:
        self.rows.all().delete()
        RuleRow.objects.bulk_create(
            RuleRow(provider=self, position=position, group=rule.group, role=rule.role, team=rule.team)
            for position, rule in enumerate(rules)
        )

    # --- Letting people in --------------------------------------------------------------------------------------------

    def admit(self, who: Claims, *, invited: User | None = None) -> User:
        """Return the person with these claims, created at the first sign-in, with role and teams from their groups.

        `invited` is the person whose invitation was opened in this browser. Records what changed. Raises NoEntry.
        """
        with transaction.atomic():
            rules = self.rules
            teams = Team.objects.filter(pk__in={rule.team.pk for rule in rules if rule.team})
            locked = [team.lock() for team in teams.order_by("pk")]
            one_at_a_time()
            account = (
                Account.objects.select_related("user__role").filter(issuer=who.issuer, subject=who.subject).first()
            )
            person = account.user if account else self._new_here(who, invited, rules)
            if person is not None and not person.is_active:
                raise NoEntry("deactivated", person)
            if who.groups is None:
                raise NoEntry("too_many_groups", person)
            role = self._role(who, who.groups, person, rules)
            if role is None and not (person and person.break_glass):
                raise NoEntry("no_role", person)
            if person is None:
                person = self._made(who, role)
            if account is None:
                self._bind(person, who, by=None)
            if not who.says_groups:
                self._note_silence(person, rules)
            self._give(person, role)
            for team in locked:
                _put(person, team, is_member=any(rule.team == team and rule.group in who.groups for rule in rules))
        return person

    def _note_silence(self, person: User, rules: Sequence[GroupRule]) -> None:
        """Record that the provider sent no groups, if the person may lose a role or team of a rule by that."""
        teams = person.teams.filter(pk__in=[rule.team.pk for rule in rules if rule.team])
        if person.role in [rule.role for rule in rules] or teams.exists():
            Event.objects.record(Action.USER_GROUPS_UNSAID, person, by=None, changes={"claim": self.groups_claim})

    def link(self, person: User, who: Claims) -> None:
        """Link the signed-in person to their account at the organisation. Raises AlreadyLinked."""
        with transaction.atomic():
            one_at_a_time()
            account = Account.objects.filter(Q(user=person) | Q(subject=who.subject), issuer=who.issuer).first()
            if account and (account.user_id, account.subject) != (person.pk, who.subject):
                raise AlreadyLinked(AlreadyLinked.__doc__)
            if account is None:
                self._bind(person, who, by=person)

    def unlink(self, person: User) -> None:
        """Unlink the person at their own request; they sign in with their password then. Raises NeedsPassword."""
        with transaction.atomic(), person.changed_by(person) as present:
            if not present.has_usable_password():
                raise NeedsPassword(NeedsPassword.__doc__)
            removed, _ = Account.objects.filter(user=person).delete()
            if removed:
                User.objects.filter(pk=person.pk).update(by_organisation=False)
                Event.objects.record(Action.USER_UNLINKED, person, by=person, changes={"issuer": [self.issuer, None]})

    def _new_here(self, who: Claims, invited: User | None, rules: Sequence[GroupRule]) -> User | None:
        """Call `_named`, but do not reveal to people who get no role whether an address has an account."""
        try:
            return self._named(who, invited)
        except NoEntry as refused:
            has_role = who.groups is None or self._role(who, who.groups, None, rules)
            if refused.reason in ("email_taken", "email_not_verified") and not has_role:
                raise NoEntry("no_role", refused.person) from None
            raise

    def _named(self, who: Claims, invited: User | None) -> User | None:
        """Return the person with this e-mail, if the provider may vouch for them; None if there is nobody yet.

        An e-mail address alone proves nothing. Taking over an existing person needs the workspace's consent and a
        verified address, or, if they have not joined yet, the invitation mailed to it.
        """
        email = who.email.strip().lower()
        try:
            validate_email(email)
        except ValidationError:
            raise NoEntry("no_email") from None
        if who.email_verified is False:
            raise NoEntry("email_not_verified")
        person = User.objects.select_related("role").filter(email=email).first()
        if person is None:
            # Otherwise people who can set their own address at the provider could claim that of a future colleague.
            if not who.email_verified and email.rpartition("@")[2] not in self.domains:
                raise NoEntry("email_not_verified")
            return None
        is_linked = Account.objects.filter(user=person, issuer=who.issuer).exists()
        if (
            is_linked
            or person.break_glass
            or not ((self.links_by_email and who.email_verified) or _joins(person, invited))
        ):
            raise NoEntry("email_taken", person)
        return person

    def _role(
        self, who: Claims, groups: frozenset[str], person: User | None, rules: Sequence[GroupRule]
    ) -> Role | None:
        """Return the role of the first matching rule, or the default role.

        If no rule gives roles, people have the role they were given here. Withholding groups never gives a higher role.
        """
        if person is not None and (person.break_glass or not any(rule.role for rule in rules)):
            return person.role
        fitting = (rule.role for rule in rules if rule.role and rule.group in groups)
        role = next(fitting, self.default_role)
        if person is not None and person.role is not None and role is not None and not who.says_groups:
            return role if role.capabilities <= person.role.capabilities else person.role
        return role

    def _made(self, who: Claims, role: Role | None) -> User:
        name = " ".join(who.name.split())[:120]
        person = User.objects.create_user(who.email, None, display_name=name, role=role, by_organisation=True)
        changes = {"role": [None, role.name if role else None], "through": self.name}
        Event.objects.record(Action.USER_CREATED, person, by=None, changes=changes)
        return person

    def _bind(self, person: User, who: Claims, *, by: User | None) -> None:
        Account.objects.create(user=person, issuer=who.issuer, subject=who.subject)
        if not person.by_organisation:
            User.objects.filter(pk=person.pk).update(by_organisation=True)
            person.by_organisation = True
            Event.objects.record(Action.USER_LINKED, person, by=by, changes={"issuer": [None, who.issuer]})

    def _give(self, person: User, role: Role | None) -> None:
        """Give the role, unless the workspace would lose its last owner or last manager of people."""
        if role is None or role == person.role:
            return
        try:
            person.give_role(role, by=None)
        except (LastOwner, LastManager):
            person.refresh_from_db()


def _joins(person: User, invited: User | None) -> bool:
    """True if `person` is the one invited, and the invitation still works."""
    return invited == person and (person.status, person.session_epoch) == ("invited", invited.session_epoch)


class RuleRow(models.Model):
    """A stored GroupRule."""

    provider = models.ForeignKey(Provider, models.CASCADE, related_name="rows")
    position = models.PositiveSmallIntegerField()
    group = models.CharField(max_length=LONGEST_GROUP)
    # Such a role cannot be deleted: its people would silently get another one.
    role = models.ForeignKey(Role, models.PROTECT, null=True, related_name="+")
    team = models.ForeignKey(Team, models.SET_NULL, null=True, related_name="+")

    class Meta:
        default_permissions = ()
        ordering = ("position",)

    def __str__(self) -> str:
        return self.group


class Account(models.Model):
    """The person's account at the organisation, identified by issuer and subject, never by e-mail."""

    user = models.ForeignKey(User, models.PROTECT, related_name="organisation_accounts")
    issuer = models.CharField(max_length=500)
    subject = models.CharField(max_length=255)
    created_at = models.DateTimeField(auto_now_add=True)

    objects: ClassVar[models.Manager[Account]] = models.Manager()

    class Meta:
        default_permissions = ()
        constraints = (
            models.UniqueConstraint(fields=("issuer", "subject"), name="one_person_for_a_subject"),
            models.UniqueConstraint(fields=("user", "issuer"), name="one_account_at_an_issuer"),
        )

    def __str__(self) -> str:
        return f"{self.user} at {self.issuer}"


def _told(rules: Sequence[GroupRule]) -> list[list[str | None]]:
    """Return rules as events store them."""
    return [
        [rule.group, rule.role.name if rule.role else None, rule.team.name if rule.team else None] for rule in rules
    ]


def _checked(rules: Sequence[GroupRule]) -> list[GroupRule]:
    """Strip the groups of the rules and validate them. Raises BadRules."""
    tidy = [GroupRule(rule.group.strip(), rule.role, rule.team) for rule in rules]
    for rule in tidy:
        if not rule.group or len(rule.group) > LONGEST_GROUP or not (rule.role or rule.team):
            raise BadRules(BadRules.__doc__)
    if len(tidy) > MOST_RULES:
        raise BadRules(f"{MOST_RULES} group rules at most.")
    return tidy


def _put(person: User, team: Team, *, is_member: bool) -> None:
    """Add the person to the team, or remove them, and record a change."""
    if team.users.filter(pk=person.pk).exists() != is_member:
        users = set(team.users.all())
        team.edit(name=team.name, users=users | {person} if is_member else users - {person}, by=None)
