"""Sign-in by the organisation: its identity provider, and the settings of the sign-in."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Sequence
from datetime import timedelta
from functools import reduce
from operator import or_
from typing import Any, Self

import orjson
from django.core.cache import cache
from django.db import models, transaction
from django.db.models import Q
from django.utils import timezone

from accounts.rules import Grantor, lacks_break_glass, must_hold, must_match, one_at_a_time
from auditlog.actions import Action
from auditlog.models import Event
from auditlog.versions import Seen, Versioned
from capabilities import Capability
from sso.admission import LONGEST_GROUP, Account, Admission, Claims, GroupRule, RuleRow, checked_rules, rules_as_stored
from sso.browser_sessions import end_password_sessions
from sso.errors import (
    BadDomain,
    BadSamlMetadata,
    BadScopes,
    ChangedThere,
    Incomplete,
    NoBreakGlass,
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
    "LONGEST_GROUP",
    "SEES_SETTINGS",
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

MOST_DOMAINS = 50
# Settings that people enter, in the order of the page, apart from the role, the rules and the secrets.
OIDC_SETTINGS = ("issuer", "client_id", "scopes", "signs_out_there")
SAML_SETTINGS = (
    *("metadata_url", "name_id_format", "email_attribute", "name_attribute"),
    *("signs_requests", "takes_encrypted", "takes_unsolicited"),
)
SETTINGS = ("name", "protocol", *OIDC_SETTINGS, *SAML_SETTINGS, "mode", "domains", "links_by_email", "groups_claim")
SETS_UP = frozenset({Capability.WORKSPACE_MANAGE, Capability.PEOPLE_MANAGE})
SEES_SETTINGS = frozenset({Capability.WORKSPACE_READ, Capability.PEOPLE_READ})
# Settings that decide people's accounts, roles and teams, and who has to sign in at the organisation. By changing these
# settings, somebody who controls a provider, or a group at a provider, could sign in as anybody. So a change needs
# every capability.
TERMS = frozenset({"mode", "issuer", "client_id", "groups_claim", "domains", "default_role", "links_by_email", "rules"})
TERMS |= {*SAML_TERMS, "certificates"}
METADATA_AGE = timedelta(hours=1)  # When people sign in, older metadata are read again.
METADATA_ASKED_AGAIN_S = 30  # Least time between two reads of the metadata.
_domain = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{2,63}").fullmatch
_scope = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+").fullmatch  # RFC 6749 section 3.3.


class Mode(models.TextChoices):
    """Sign-in at the organisation: off, offered to everybody, or enforced for people of some e-mail domains."""

    OFF = "off", "Off"
    OFFERED = "offered", "Offered beside the password"
    ENFORCED = "enforced", "Enforced for the e-mail domains below"


class Provider(SamlSettings, Admission, Versioned, models.Model):
    """The identity provider of this workspace, and the settings of the sign-in."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    mode = models.CharField(
        "sign-in there",
        max_length=10,
        choices=Mode,
        default=Mode.OFF,
        help_text="Whether people may, or have to, sign in at the provider.",
    )
    # Whether the provider's host had a private address when it was set up. If not, private addresses are refused.
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
        """Return the provider if people may sign in at the organisation, otherwise None."""
        return cls.objects.exclude(mode=Mode.OFF).filter(pk=1).first()

    @property
    def has_secret(self) -> bool:
        return self.secret_ciphertext is not None

    @property
    def secret(self) -> str:
        """The client secret, or the key that signs SAML requests; empty if none. Raises wire.cipher.Undecryptable."""
        return cipher().open(bytes(self.secret_ciphertext)) if self.secret_ciphertext else ""

    def editable(self) -> dict[str, Any]:
        return self._entered() | {"decryption_key": self.decryption_key}

    def _entered(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*SETTINGS, "sso_url")} | {
            "default_role": self.default_role.name if self.default_role else None,
            "rules": rules_as_stored(self.rules),
            "certificates": [each.fingerprint for each in self.signing],
        }

    @property
    def known_as(self) -> str:
        """The issuer under which accounts are stored.

        With SAML, it has the prefix `saml:`, because some providers have one issuer for both protocols, but give a
        person a different subject in each.
        """
        return f"saml:{self.issuer}" if self.speaks_saml else self.issuer

    @property
    def terms_digest(self) -> str:
        """A digest of all settings in TERMS."""
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
        """A condition that selects the UserSession rows of people who have to sign in at the organisation."""
        domains = self.domains if self.is_enforced else ()
        addresses = (Q(user__email__iendswith=f"@{domain}") for domain in domains)
        return reduce(or_, addresses, Q(pk__in=())) & Q(user__break_glass=False)

    # --- Setting it up ------------------------------------------------------------------------------------------------

    @classmethod
    def edit(cls, *, by: Grantor | None, seen: Seen | None = None, secret: str = "", **fields: Any) -> Self:
        """Change the settings, and record the changes.

        `rules` in `fields` is a list of GroupRule. If `secret` is empty, the current secret is kept, unless
        `ends_secret` says that it has to be deleted. If sign-in is enforced for more people, their password sessions
        end.

        Raises ProviderError or ChangedMeanwhile. Raises BeyondYours if the actor `by` lacks a capability of SETS_UP.

        To change a setting in TERMS or the source of the metadata, or to replace an existing decryption key, `by` must
        have every capability and be allowed to use gateways. Raises Outranked otherwise.
        """
        must_hold(by, SETS_UP)
        # Resolve names and read metadata before taking the lock.
        known = cls.load()
        if changes_metadata(known, fields):
            must_match(by, Capability)  # Only people with every capability may make the gateway fetch a URL.
        known_key = known.decryption_key
        fields, secret, pair = with_dependent_settings(known, fields, secret)
        with transaction.atomic():
            one_at_a_time()
            present: Self = cls.load().lock()
            present.must_still_be(known)
            rules = checked_rules(fields.pop("rules")) if "rules" in fields else present.rules
            must_hold(by, SETS_UP)
            row = cls.load()
            row.take(fields, secret)
            before, after = present.editable(), row.editable() | {"rules": rules_as_stored(rules)}
            changes: dict[str, Any] = {
                name: [before[name], after[name]] for name in before if before[name] != after[name]
            }
            present.must_be(seen, {*changes, "decryption_key"} if pair else changes)
            # Replacing the decryption key needs the same rights as changing TERMS: after two replacements without new
            # metadata at the provider, nobody can sign in.
            if TERMS & changes.keys() or (pair and before["decryption_key"]):
                must_match(by, Capability, uses_gateways=True)
            if not secret and row.has_secret and row.ends_secret(changes.keys()):
                row.secret_ciphertext, row.key_id = None, ""
                changes["secret_removed"] = True
            row.must_be_sound()
            row.must_have_break_glass(present)
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
        """Delete all decryption keys if encrypted assertions are not enabled. Otherwise add the key in `pair`.

        `pair` is a new key and its certificate, or None if no key is to be added. `replaced` is the fingerprint of the
        newest key when this change began. Return the changes to record. Raises ChangedThere if another request has
        changed or deleted the keys since then.
        """
        if not (self.speaks_saml and self.takes_encrypted):
            return {"decryption_keys_removed": True} if DecryptionKey.objects.all().delete()[0] else {}
        present = self.decryption_key
        if (present != replaced) if pair else not present:  # Another request changed or deleted the key.
            raise ChangedThere(ChangedThere.__doc__)
        if pair:
            DecryptionKey.add(*pair)
        return {"decryption_key_made": True} if pair else {}

    def must_still_be(self, known: Self) -> None:
        """Raise ChangedThere if the protocol or the issuer has changed since `known` was loaded."""
        if (self.protocol, self.issuer) != (known.protocol, known.issuer):
            raise ChangedThere(ChangedThere.__doc__)

    def ends_secret(self, changed: Collection[str]) -> bool:
        """True if the current secret has to be deleted after a change of the settings named in `changed`."""
        if self.speaks_saml:  # The key that signs requests is ours.
            return "protocol" in changed or not self.signs_requests
        # A client secret belongs to the old provider, and must not be sent to the new provider.
        return not {"protocol", "issuer"}.isdisjoint(changed)

    def take(self, fields: dict[str, Any], secret: str) -> None:
        """Set these values in normalised form, and encrypt the secret if it is not empty. Raises BadDomain."""
        for name, value in fields.items():
            setattr(self, name, value.strip() if isinstance(value, str) else value)
        if not isinstance(self.domains, list):  # Django's admin takes any JSON.
            raise BadDomain(BadDomain.__doc__)
        self.domains = sorted({str(each).strip().lower().lstrip("@") for each in self.domains if str(each).strip()})
        self.scopes = " ".join(self.scopes.split())
        self.email_attribute = self.email_attribute or "email"
        self.name_attribute = self.name_attribute or "displayName"
        if secret:
            self.secret_ciphertext, self.key_id = cipher().seal(secret), cipher().key_id

    def must_be_sound(self) -> None:
        """Raise ProviderError if these settings are invalid or incomplete."""
        if "openid" not in self.scopes.split() or not all(map(_scope, self.scopes.split())):
            raise BadScopes(BadScopes.__doc__)
        if len(self.domains) > MOST_DOMAINS or not all(map(_domain, self.domains)):
            raise BadDomain(BadDomain.__doc__)
        if self.mode != Mode.OFF and not (self.name and self.issuer and self.client_id):
            saml = "Before you offer sign-in, enter the provider's name and metadata."
            raise Incomplete(saml if self.speaks_saml else Incomplete.__doc__)
        if self.speaks_saml and self.signs_requests and not (self.has_secret and self.own_certificate):
            raise Incomplete(
                "There is no key to sign requests with. Disable and enable “Sign our requests” to make one."
            )
        if self.is_enforced and not self.domains:
            raise BadDomain(BadDomain.__doc__)

    def must_have_break_glass(self, before: Self) -> None:
        """Raise NoBreakGlass if these new settings could lock everybody out; `before` has the stored settings."""
        # While the mode is off, a requirement has no effect, so the last break-glass owner may have been removed. A
        # change from enforced to offered is never refused: `rescue` can end the enforcement without such an owner.
        is_turned_on = before.mode == Mode.OFF and self.mode != Mode.OFF
        if (self.is_enforced or is_turned_on) and lacks_break_glass(self):
            raise NoBreakGlass(NoBreakGlass.__doc__)

    def read_metadata_again(self, *, by: Grantor | None) -> None:
        """Apply the provider's current SAML metadata (certificates, sign-in URL), and record what changed.

        Raises BadSamlMetadata if the metadata cannot be used or are those of another provider.
        """
        said = fetch_metadata(self.metadata_url, private=self.private)
        with transaction.atomic():
            row: Self = self.lock()
            if (row.protocol, row.metadata_url) != (Protocol.SAML, self.metadata_url):
                return
            if row.issuer != said["issuer"]:  # Only `edit` can change the provider.
                raise BadSamlMetadata(
                    f"{row.metadata_url} now has metadata of another provider. To change to that provider, enter its "
                    "metadata."
                )
            before = row.editable()
            row.take(said, "")
            after = row.editable()
            row.save(update_fields=[*said])
            changes = {name: [before[name], after[name]] for name in before if before[name] != after[name]}
            if changes:
                Event.objects.record(Action.ORGANISATION_UPDATED, row, by=by, changes=changes)

    def with_metadata_of(self, age: timedelta) -> Self:
        """Return the current provider. First read its metadata again if they have a URL and are older than `age`.

        If the metadata cannot be read, the known metadata are kept. There are at least 30 seconds between two attempts
        to read them.
        """
        read_at = self.metadata_read_at
        if not self.metadata_url or (read_at and timezone.now() - read_at < age):
            return self
        if not cache.add("organisation-metadata-asked", "asked", METADATA_ASKED_AGAIN_S):
            return self
        try:
            self.read_metadata_again(by=None)
        except ProviderError as fault:  # People can still sign in by the known metadata.
            logger.warning("the metadata of the identity provider cannot be read", extra={"error": str(fault)})
            return self
        return self.offered() or self

    def _replace(self, rules: Sequence[GroupRule]) -> None:
        self.rows.all().delete()
        RuleRow.objects.bulk_create(
            RuleRow(provider=self, position=position, group=rule.group, role=rule.role, team=rule.team)
            for position, rule in enumerate(rules)
        )
