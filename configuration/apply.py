"""Apply a document: make all its changes or none, by the methods that pages and REST use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from django.core.exceptions import PermissionDenied, ValidationError
from django.db import IntegrityError, OperationalError, connection, transaction
from django.http import Http404

from accounts.rules import PeopleError
from auditlog.models import current_context, use_context
from configuration.document import ConfigDocument, ConfigurationError, Mistake
from configuration.kinds import KINDS, Act, Change, World
from configuration.models import ManagedObject
from configuration.plan import Plan, absent, may_claim, plan
from configuration.words import lacking_lines, unanswered
from gateways.feature_refresh import first_list
from gateways.models import GatewayError
from hosts.models import HostError
from rules.models import RuleError
from servers.models import ServerError
from sinks.models import SinkError
from sso.errors import ProviderError

if TYPE_CHECKING:
    from accounts.models import User

ASSIGNMENTS = "gateways.servers"  # The kind of the servers of a gateway.
DEADLOCK = "40P01"  # SQLSTATE.
APPLY_LOCK = 0x636F_6E66  # An arbitrary key for pg_advisory_xact_lock.
REFUSALS = (
    GatewayError,
    HostError,
    PeopleError,
    ProviderError,
    RuleError,
    ServerError,
    SinkError,
    IntegrityError,
    ValidationError,
    PermissionDenied,
)


class ApplyRefused(Exception):
    """The document was not applied. Nothing was changed."""


class AnotherPlan(ApplyRefused):
    """The workspace or the file has changed since the plan was made. Nothing was applied. Make a new plan."""


# Raised if the same file, applied again, would still change something.
class StillDiffers(ApplyRefused):
    """Nothing was changed. If the file renames objects, use their old names only in “moved”. Otherwise, try again."""


class Lacking(ApplyRefused):
    """The person or API key lacks capabilities that the changes require; the message lists them by object."""


def apply(
    document: ConfigDocument,
    *,
    by: User,
    secrets: Mapping[str, str] | None = None,
    digest: str | None = None,
    commit: str = "",
    prune: bool = False,
) -> Plan:
    """Make all changes of the document's plan, or none, and return the plan.

    If `digest` is given, it is the digest of a reviewed plan, and any other plan is refused. Events record `commit`.
    Raises ConfigurationError, AnotherPlan, Lacking or StillDiffers.
    """
    with _changes_meanwhile_are_refused(), transaction.atomic(), _as_change_of(document, commit):
        _one_at_a_time()
        made = plan(document, by, secrets=secrets, prune=prune, cuts=False)
        if digest is not None and digest != made.digest:
            raise AnotherPlan(AnotherPlan.__doc__)
        must_be_allowed(made)
        _lock_agents(made)
        for change in made.changes:
            _make(change, made, by)
        for kind in {change.kind for change in made.changes}:
            kind.finish(made.world, by)
        if document.source:
            _claim(made, by, commit)
        if made.changes:
            must_be_done(plan(document, by, secrets=secrets, prune=prune, cuts=False))
    return made


def apply_and_list(document: ConfigDocument, *, by: User, **terms: Any) -> Plan:
    """Apply the document, then list the tools of the servers that it put on gateways, and return the plan.

    The plan's `unanswered` names servers that did not list their tools within 10 s. Raises the exceptions of `apply`.
    """
    made = apply(document, by=by, **terms)
    added = [change for change in made.changes if change.act is Act.ADD and change.kind.id == ASSIGNMENTS]
    rows = [made.world.row(ASSIGNMENTS, *change.key) for change in added]
    with use_context(replace(current_context(), check=None)):  # All changes are made, so no confirmation is left.
        made.unanswered = unanswered(first_list(*rows, by=by))
    return made


def must_be_allowed(made: Plan) -> None:
    """Raise Lacking if the person, or the API key, lacks a capability that the changes require."""
    if made.missing or made.not_by_key:
        raise Lacking(
            "\n".join(["You lack permissions. Nothing was changed.", *(f"- {line}" for line in lacking_lines(made))])
        )


def must_be_done(after: Plan) -> None:
    """Raise StillDiffers if `after`, a plan made after the changes, is not empty."""
    if after.changes:
        titles = ", ".join(change.title for change in after.changes[:5])
        raise StillDiffers(f"A second apply of the same file would still change: {titles}. {StillDiffers.__doc__}")


def _claim(made: Plan, by: User, commit: str) -> None:
    """Record that the document's source governs the objects in the document.

    Also record which objects of this source are no longer in the document's lists. Nothing is recorded about objects
    that `by` may not manage.
    """
    document, world = made.document, made.world
    entries = [entry for entry in world.entries.values() if may_claim(entry.kind, by)]
    rows = [row for entry in entries if (row := world.row_of(entry)) is not None]
    ManagedObject.objects.claim(rows, source=document.source, file=document.name, commit=commit)
    gone = {(kind.id, key) for kind, key, _ in absent(document, world) if may_claim(kind, by)}
    # Each with the objects under it, such as the servers of a gateway.
    under = ((kind, key, found) for kind in KINDS for key, found in world.of(kind.id).items())
    freed = [found.row for kind, key, found in under if {(kind.id, key), (kind.parent, key[:-1])} & gone]
    ManagedObject.objects.release(freed, source=document.source)


def _one_at_a_time() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [APPLY_LOCK])


def _lock_agents(made: Plan) -> None:
    """Lock the agents that change, before any gateway is locked.

    The code that opens a connection also locks the agent first, and then the gateway. The same order prevents
    deadlocks.
    """
    names = {(change.was or change.key)[0] for change in made.changes if change.kind.id.partition(".")[0] == "agents"}
    rows = [row for name in names if (row := made.world.row("agents", name))]
    for row in sorted(rows, key=lambda row: str(row.pk)):
        row.lock()


@contextmanager
def _changes_meanwhile_are_refused() -> Iterator[None]:
    """Raise AnotherPlan if the block ends with a database deadlock, or if an object of the plan was removed."""
    try:
        yield
    except Http404 as error:
        raise AnotherPlan(f"Somebody removed one of the objects at the same moment. {AnotherPlan.__doc__}") from error
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", "") != DEADLOCK:
            raise
        raise AnotherPlan(f"Somebody changed the same objects at the same moment. {AnotherPlan.__doc__}") from error


@contextmanager
def _as_change_of(document: ConfigDocument, commit: str) -> Iterator[None]:
    """Record the files and the commit in all events of the block.

    If the document has a `source`, changes of objects that files govern need no confirmation.
    """
    name, context = f"{document.name}, commit {commit}" if commit else document.name, current_context()
    # No confirmation (see `configuration.by_hand`): `plan` has already refused objects of other sources.
    with use_context(replace(context, file=name[:300], check=None if document.source else context.check)):
        yield


def _make(change: Change, made: Plan, by: User) -> None:
    kind, world = change.kind, made.world
    try:
        match change.act:
            case Act.ADD:
                world.put(kind.id, change.key, kind.add(change, world, by))
            case Act.CHANGE:
                if change.after():
                    kind.edit(change, world, by)
                world.put(kind.id, change.key, change.row)
            case Act.REMOVE:
                kind.remove(change, world, by)
        _switch(change, world, by)
    except REFUSALS as refusal:
        message = f"{change.title}: {_words(refusal)}"
        raise ConfigurationError([Mistake(made.document.at(change.path), message)]) from refusal


def _switch(change: Change, world: World, by: User) -> None:
    """Enable or disable the object if this is part of the change. New objects are enabled already."""
    if change.disables:
        world.row(change.kind.id, *change.key).disable(by=by)
    elif change.act is Act.CHANGE and "enabled" in change.fields:
        change.row.enable(by=by)


def _words(refusal: Exception) -> str:
    if isinstance(refusal, IntegrityError):
        return "Another object has this name. Write a different name, or first rename the other object separately."
    return " ".join(refusal.messages) if isinstance(refusal, ValidationError) else str(refusal)
