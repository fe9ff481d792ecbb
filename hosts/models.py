"""Hosts: the apps and agents that connect. A host is enabled, disabled or pending approval."""

from typing import Any
from uuid import uuid4

from django.db import IntegrityError, models, transaction
from django.db.models import Q
from django.db.models.functions import Lower
from django.utils import timezone

from accounts.models import User
from auditlog.actions import Action
from auditlog.models import Event, Switchable
from auditlog.versions import Seen, Versioned
from capabilities import Capability, CapabilityRequired
from ui.forms import holds

PLAYGROUND = "playground"  # dedupe_key of the app that runs tools from the pages; no registered app can have this key.


class HostError(Exception):
    """The change of a host is refused; the message says why."""


class NotPending(HostError):
    """This app is not waiting for approval."""


class AgentNameTaken(HostError):
    """An agent with this name already exists."""


class HostKind(models.TextChoices):
    HEADED = "headed", "App (OAuth)"
    TOKEN = "token", "Agent (token)"


class HostQuerySet(models.QuerySet["Host"]):
    def live(self) -> "HostQuerySet":
        return self.filter(archived_at=None)

    def matching(self, words: str) -> "HostQuerySet":
        """Return the hosts with `words` in their name; all hosts if `words` is empty."""
        return self.filter(holds("name", words)) if words else self

    def add_agent(self, *, name: str, description: str = "", allow_enrolment: bool = False, by: User) -> "Host":
        """Create a token-based host for an agent; all its connections share this host.

        With `allow_enrolment`, every person may create their own token for this host. Raises AgentNameTaken, or
        CapabilityRequired if the person `by` may not allow enrolment.
        """
        if allow_enrolment and not by.has_perm(Capability.API_TOKENS_MANAGE):
            raise CapabilityRequired(Capability.API_TOKENS_MANAGE)
        try:
            with transaction.atomic():
                host = self.create(
                    kind=HostKind.TOKEN,
                    name=name.strip(),
                    description=description.strip(),
                    allow_enrolment=allow_enrolment,
                    created_by=by,
                )
                changes: dict[str, Any] = {"name": [None, host.name]}
                if allow_enrolment:
                    changes["allow_enrolment"] = [False, True]
                Event.objects.record(Action.HOST_CREATED, host, by=by, changes=changes)
        except IntegrityError:
            raise AgentNameTaken(AgentNameTaken.__doc__) from None
        return host

    def appear(self, *, name: str, dedupe_key: str, needs_approval: bool, by: User) -> "Host":
        """Return the host of an OAuth app, even if it is archived; create the host if it does not exist.

        `dedupe_key` identifies the app: there is one host for each key.
        """
        with transaction.atomic():
            now = timezone.now()
            defaults = {"kind": HostKind.HEADED, "name": name, "needs_approval": needs_approval, "first_seen_at": now}
            host, created = self.get_or_create(dedupe_key=dedupe_key, defaults=defaults)
            if created:
                Event.objects.record(Action.HOST_APPEARED, host, by=by, changes={"name": [None, name]})
        return host

    def playground(self, *, needs_approval: bool, by: User) -> "Host":
        """Return the playground: the app for running tools on the web pages. Create it if it does not exist yet."""
        return self.appear(name="Playground", dedupe_key=PLAYGROUND, needs_approval=needs_approval, by=by)


class Host(Versioned, Switchable):
    """An app or agent that connects. A host is approved, enabled and disabled for all people at once."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    kind = models.CharField(max_length=10, choices=HostKind, editable=False)
    name = models.CharField(max_length=120)
    description = models.CharField(max_length=500, blank=True)
    approved_at = models.DateTimeField(null=True, blank=True)
    approved_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")
    needs_approval = models.BooleanField(default=False)
    allow_enrolment = models.BooleanField(default=False)
    dedupe_key = models.CharField(max_length=64, null=True, blank=True, unique=True)
    first_seen_at = models.DateTimeField(null=True, blank=True)
    last_seen_at = models.DateTimeField(null=True, blank=True)
    archived_at = models.DateTimeField(null=True, blank=True)
    created_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects = HostQuerySet.as_manager()

    class Meta:
        ordering = ("name",)
        permissions = (("toggle_host", "Disable and enable hosts"),)
        constraints = (
            models.UniqueConstraint(
                Lower("name"), condition=Q(kind=HostKind.TOKEN, archived_at=None), name="live_agent_name_is_unique"
            ),
            models.CheckConstraint(
                condition=~Q(kind=HostKind.TOKEN) | Q(created_by__isnull=False, dedupe_key=None),
                name="agent_has_a_creator_and_no_dedupe_key",
            ),
            models.CheckConstraint(
                condition=Q(kind=HostKind.TOKEN) | Q(allow_enrolment=False), name="only_agents_allow_enrolment"
            ),
        )

    def __str__(self) -> str:
        return self.name

    @property
    def is_agent(self) -> bool:
        """True if the host authenticates with API access tokens instead of OAuth."""
        return self.kind == HostKind.TOKEN

    @property
    def stop_label(self) -> str:
        """The label of the button that disables the host and revokes its connections.

        Empty if the button would change nothing. Needs the annotations of `hosts.views.counted`.
        """
        return self.stop_label_for(self.connection_count)  # type: ignore[attr-defined]

    def stop_label_for(self, revoking: int) -> str:
        """Return the label of the button that disables the host and revokes this number of connections.

        Empty if the button would change nothing.
        """
        if not self.enabled:
            return f"Revoke {revoking:,}" if revoking else ""
        return f"Disable and revoke {revoking:,}" if revoking else "Disable"

    @property
    def is_playground(self) -> bool:
        """True for the playground: the built-in app with which people run tools on the web pages."""
        return self.dedupe_key == PLAYGROUND

    @property
    def names_itself(self) -> bool:
        """True for every app except the playground.

        Apps usually choose their own names. Nobody verifies these names, so an app may imitate another app.
        """
        return not self.is_agent and not self.is_playground

    @property
    def is_pending(self) -> bool:
        """True if the host still waits for an administrator's approval."""
        return self.needs_approval and self.approved_at is None

    @property
    def is_on(self) -> bool:
        """True if the host is enabled and does not wait for approval."""
        return self.enabled and not self.is_pending

    @property
    def may_be_archived(self) -> bool:
        return not self.is_on and not self.is_playground

    @property
    def status(self) -> str:
        """`pending`, `enabled` or `disabled`."""
        if self.is_pending:
            return "pending"
        return "enabled" if self.enabled else "disabled"

    def approve(self, *, by: User) -> None:
        """Approve a pending app. Raises NotPending if the app is not pending any more."""
        with transaction.atomic():
            row = self.lock()
            if row.archived_at or not row.is_pending:
                raise NotPending(NotPending.__doc__)
            self.approved_at, self.approved_by = timezone.now(), by
            self.save(update_fields=["approved_at", "approved_by", "updated_at"])
            Event.objects.record(Action.HOST_APPROVED, self, by=by)

    def editable(self) -> dict[str, Any]:
        names = ("name", "description", "allow_enrolment", "enabled")
        return {name: getattr(self, name) for name in names}

    def set_enrolment(self, allow: bool, *, by: User, seen: Seen | None = None) -> None:
        """Set whether people without `api-tokens:create` may create their own token for this agent (enrolment)."""
        with transaction.atomic():
            row = self.lock()
            row.must_be(seen, {"allow_enrolment"})
            if row.allow_enrolment != allow:
                Host.objects.filter(pk=self.pk).update(allow_enrolment=allow)
                Event.objects.record(Action.HOST_UPDATED, self, by=by, changes={"allow_enrolment": [not allow, allow]})
        self.allow_enrolment = allow

    def rename(self, *, name: str, description: str, by: User, seen: Seen | None = None) -> None:
        """Change name and description. Raises AgentNameTaken or ChangedMeanwhile."""
        before = {"name": self.name, "description": self.description}
        self.name, self.description = name.strip(), description.strip()
        try:
            with transaction.atomic():
                row = self.lock()
                changes = {
                    f: [getattr(row, f), getattr(self, f)] for f in before if getattr(row, f) != getattr(self, f)
                }
                row.must_be(seen, changes)
                self.save(update_fields=["name", "description", "updated_at"])
                if changes:
                    Event.objects.record(Action.HOST_UPDATED, self, by=by, changes=changes)
        except IntegrityError:
            self.name, self.description = before["name"], before["description"]
            raise AgentNameTaken(AgentNameTaken.__doc__) from None
