"""Admit people who signed in at the organisation's identity provider, and give them a role and teams by group rules.

See docs/decisions/0034-sign-in-by-the-organisation.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import models, transaction
from django.db.models import Q

from accounts.models import Role, Team, User
from accounts.rules import LastManager, LastOwner, must_sign_in_at_organisation, one_at_a_time
from auditlog.actions import Action
from auditlog.models import Event
from sso.errors import AlreadyLinked, BadRules, MustStayLinked, NeedsPassword, NoEntry, ProviderError

MOST_RULES, LONGEST_GROUP = 200, 200


class Claims(NamedTuple):
    """Claims about a person who has just signed in."""

    issuer: str
    subject: str
    email: str = ""
    email_verified: bool | None = None  # None if the provider does not state it.
    name: str = ""
    groups: frozenset[str] | None = frozenset()  # None if the groups are too many for a token.
    says_groups: bool = True  # False if the provider sent no groups at all, True for an empty list.
    session: str = ""
    authenticated_at: float | None = None  # None if the provider does not state it.


class GroupRule(NamedTuple):
    """A rule that gives the people in one group of the organisation a role, a team, or both."""

    group: str
    role: Role | None = None
    team: Team | None = None


class Admission(models.Model):
    """Base class of Provider: the settings for admitting people, and the methods that admit them."""

    name = models.CharField(max_length=60, blank=True, help_text="Name on the sign-in button.")
    issuer = models.CharField(
        max_length=500,
        blank=True,
        help_text="The provider's issuer URL or entity ID. The URL may start with http:// only if its address is in "
        "GATEWAY_PRIVATE_UPSTREAMS.",
    )
    groups_claim = models.CharField(
        "groups claim or attribute",
        max_length=100,
        default="groups",
        help_text="Claim or attribute with a person's groups. A dot selects a member of a claim: realm_access.roles.",
    )
    domains = models.JSONField(
        "e-mail domains",
        default=list,
        blank=True,
        help_text=(
            "Domains of your organisation. A new person needs an address in one of them, or an address that the "
            "provider has verified. If sign-in is enforced, saving signs out everyone in these domains who used a "
            "password, except break-glass owners."
        ),
    )
    default_role = models.ForeignKey(
        Role,
        models.PROTECT,
        verbose_name="default role",
        null=True,
        blank=True,
        related_name="+",
        help_text="Role of people who get no role from a group rule. Without a default role they are refused.",
    )
    links_by_email = models.BooleanField(
        "link people by a verified e-mail",
        default=False,
        help_text=(
            "An account with a verified address is linked to the person with the same address here. In all other "
            "cases, people link their account in their profile."
        ),
    )

    class Meta:
        abstract = True

    @property
    def rules(self) -> list[GroupRule]:
        """The group rules, in order."""
        return [
            GroupRule(row.group, row.role, row.team)
            for row in RuleRow.objects.select_related("role", "team").filter(provider=self.pk)
        ]

    def admit(self, who: Claims, *, invited: User | None = None) -> User:
        """Return the person whom the claims `who` describe. Create the person if there is none. Raises NoEntry.

        The group rules decide which role and teams the person gets. `invited` is the person whose invitation was
        opened in this browser, if any.
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
            elif account is None:
                self._bind(person, who, by=None)
            if not who.says_groups:
                self._note_silence(person, rules)
            self._give(person, role)
            for team in locked:
                _put(person, team, is_member=any(rule.team == team and rule.group in who.groups for rule in rules))
        return person

    def _note_silence(self, person: User, rules: Sequence[GroupRule]) -> None:
        """Record that the provider sent no groups, if the person may lose a role or team because of that."""
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
        """Remove the person's link to an account at the organisation.

        The person then signs in with a password. Raises MustStayLinked or NeedsPassword.
        """
        with transaction.atomic(), person.changed_by(person) as present:
            if refusal := self.why_linked(present):
                raise refusal
            removed, _ = Account.objects.filter(user=person).delete()
            if removed:
                User.objects.filter(pk=person.pk).update(by_organisation=False)
                Event.objects.record(Action.USER_UNLINKED, person, by=person, changes={"issuer": [self.issuer, None]})

    @staticmethod
    def why_linked(person: User) -> ProviderError | None:
        """Return an error that says why `person` cannot be unlinked, or None if unlinking is allowed.

        A person who must sign in at the organisation cannot be unlinked. Nor can a person without a password.
        """
        if must_sign_in_at_organisation(person):
            return MustStayLinked(MustStayLinked.__doc__)
        return None if person.has_usable_password() else NeedsPassword(NeedsPassword.__doc__)

    def _new_here(self, who: Claims, invited: User | None, rules: Sequence[GroupRule]) -> User | None:
        """Return the existing person to whom to link the account, or None if a new person may be created.

        `who` has the claims of an account that is linked to nobody yet. Raises NoEntry. If the account would get no
        role, the error does not disclose whether its e-mail address is in use here.
        """
        try:
            return self._named(who, invited)
        except NoEntry as refused:
            has_role = who.groups is None or self._role(who, who.groups, None, rules)
            if refused.reason in ("email_taken", "email_not_verified") and not has_role:
                raise NoEntry("no_role", refused.person) from None
            raise

    def _named(self, who: Claims, invited: User | None) -> User | None:
        """Return the existing person with the e-mail address in `who`, or None if a new person may be created.

        Raises NoEntry if the address is missing, is not verified, or may not be used to link the existing person.
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
            # People who can set their address at the provider must not claim the address of a future colleague.
            if not who.email_verified and email.rpartition("@")[2] not in self.domains:
                raise NoEntry("email_not_verified")
            return None
        # An e-mail address alone proves nothing. Either linking by e-mail is allowed and the address is verified, or
        # this browser has opened the invitation mailed to the address.
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
        """Return the role of the first matching group rule that has a role; otherwise the default role, if any.

        An existing person keeps their current role in three cases: the person is a break-glass owner, no rule has a
        role, or the provider sent no groups and the new role would permit something that the current role does not.
        """
        if person is not None and (person.break_glass or not any(rule.role for rule in rules)):
            return person.role
        fitting = (rule.role for rule in rules if rule.role and rule.group in groups)
        role = next(fitting, self.default_role)
        if person is not None and person.role is not None and role is not None and not who.says_groups:
            # Without groups from the provider, the new role must not permit more than the present one.
            is_no_more = role.granted <= person.role.granted and (person.role.uses_gateways or not role.uses_gateways)
            return role if is_no_more else person.role
        return role

    def _made(self, who: Claims, role: Role | None) -> User:
        name = " ".join(who.name.split())[:120]
        person = User.objects.create_user(who.email, None, display_name=name, role=role, by_organisation=True)
        changes = {"role": [None, role.name if role else None], "through": self.name}
        Event.objects.record(Action.USER_CREATED, person, by=None, changes=changes)
        Account.objects.create(user=person, issuer=who.issuer, subject=who.subject)
        return person

    def _bind(self, person: User, who: Claims, *, by: User | None) -> None:
        Account.objects.create(user=person, issuer=who.issuer, subject=who.subject)
        User.objects.filter(pk=person.pk).update(by_organisation=True)
        person.by_organisation = True
        Event.objects.record(Action.USER_LINKED, person, by=by, changes={"issuer": [None, who.issuer]})

    def _give(self, person: User, role: Role | None) -> None:
        """Give the person this role, unless the workspace would lose its last owner or last manager of people."""
        if role is None or role == person.role:
            return
        try:
            person.give_role(role, by=None)
        except (LastOwner, LastManager):
            person.refresh_from_db()


def _joins(person: User, invited: User | None) -> bool:
    """True if `person` is the invited person and the invitation still works."""
    return invited == person and (person.status, person.session_epoch) == ("invited", invited.session_epoch)


class RuleRow(models.Model):
    """A stored GroupRule."""

    provider = models.ForeignKey("sso.Provider", models.CASCADE, related_name="rows")
    position = models.PositiveSmallIntegerField()
    group = models.CharField(max_length=LONGEST_GROUP)
    # A role in a rule cannot be deleted: people who get the role by the rule would silently get another role.
    role = models.ForeignKey(Role, models.PROTECT, null=True, related_name="+")
    team = models.ForeignKey(Team, models.SET_NULL, null=True, related_name="+")

    class Meta:
        default_permissions = ()
        ordering = ("position",)

    def __str__(self) -> str:
        return self.group


class Account(models.Model):
    """A person's account at the organisation, identified by issuer and subject, never by e-mail."""

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


def _put(person: User, team: Team, *, is_member: bool) -> None:
    """Add the person to the team if `is_member`, otherwise remove the person. Record the change, if there is one."""
    if team.users.filter(pk=person.pk).exists() != is_member:
        users = set(team.users.all())
        team.edit(name=team.name, users=users | {person} if is_member else users - {person}, by=None)


def rules_as_stored(rules: Sequence[GroupRule]) -> list[list[str | None]]:
    """Return the group rules in the form that events store."""
    return [
        [rule.group, rule.role.name if rule.role else None, rule.team.name if rule.team else None] for rule in rules
    ]


def checked_rules(rules: Sequence[GroupRule]) -> list[GroupRule]:
    """Validate the group rules, and return them without blanks around the group names. Raises BadRules."""
    tidy = [GroupRule(rule.group.strip(), rule.role, rule.team) for rule in rules]
    for rule in tidy:
        if not rule.group or len(rule.group) > LONGEST_GROUP or not (rule.role or rule.team):
            raise BadRules(BadRules.__doc__)
    if len(tidy) > MOST_RULES:
        raise BadRules(f"There can be at most {MOST_RULES} group rules.")
    return tidy
