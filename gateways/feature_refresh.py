"""Ask the servers of a gateway for their tools, prompts and resources, and store the answers.

Servers are asked when a person chooses *Refresh tools*, and when a server is newly assigned to a gateway.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from accounts.models import User
from gateways.models import Assignment, AssignmentQuerySet, Feature, FeatureKind, Gateway, IdentityScheme
from servers.discovery import (
    DISCOVERY_SECONDS,
    Discovered,
    DiscoveryFailed,
    discover_features,
    identity_for,
    record_contact,
)
from servers.models import Identity
from servers.oauth_client.registration import keep_fresh

CONCURRENT_REFRESHES = 8


@dataclass(frozen=True, slots=True)
class Refreshed:
    """The outcome for one assigned server."""

    assignment: Assignment
    outcome: Discovered | DiscoveryFailed
    # True if the outcome is stored for the Tools tab. A failure is not stored if a personal identity was missing.
    is_noted: bool

    @property
    def failure(self) -> str:
        """The failure and its consequence as sentences; empty if there was no failure."""
        return f"{self.cause} Its last known tools are listed." if self.cause else ""

    @property
    def cause(self) -> str:
        """The failure as a sentence, without its consequence; empty if there was no failure."""
        return f"{self.assignment.server.name} {self.outcome}." if isinstance(self.outcome, DiscoveryFailed) else ""


def refresh(gateway: Gateway, *, by: User) -> list[Refreshed]:
    """List and store the features of all enabled servers of `gateway` in parallel.

    If a server fails, its stored features do not change.
    """
    return _refreshed(_targets(gateway.assignments.live().filter(server__enabled=True), by))


def first_list(*assignments: Assignment, by: User) -> list[Refreshed]:
    """List and store features for new assignments in parallel. Disabled assignments and servers are skipped."""
    rows = Assignment.objects.live().filter(enabled=True, server__enabled=True)
    targets = _targets(rows.filter(pk__in=[one.pk for one in assignments]), by)
    # Until a server answers, the page shows that the server is being asked.
    for target, identity in targets:
        if _is_asked_as_somebody(target, identity):
            for kind in FeatureKind:
                Feature.objects.note_asking(target, kind, identity)
    return _refreshed(targets)


type Target = tuple[Assignment, Identity | None]


def _targets(rows: AssignmentQuerySet, by: User) -> list[Target]:
    rows = rows.select_related("server", "shared_identity")
    return [(assignment, _identity(assignment, by)) for assignment in rows]


def _is_asked_as_somebody(assignment: Assignment, identity: Identity | None) -> bool:
    """Return False if the server needs the person's own identity and the person has none. Return True otherwise.

    If False, the server is asked without an identity, and neither this request nor its failure is stored for the Tools
    tab.
    """
    return identity is not None or assignment.identity_scheme != IdentityScheme.PER_USER


def _refreshed(targets: Sequence[Target]) -> list[Refreshed]:
    ends = time.monotonic() + DISCOVERY_SECONDS
    for _, identity in targets:
        if identity is not None and time.monotonic() < ends:  # An issuer that is down must not make each server wait.
            keep_fresh(identity)
    # No SQL in these threads: each would open a database connection of its own.
    with ThreadPoolExecutor(CONCURRENT_REFRESHES) as pool:
        outcomes = list(pool.map(_ask, targets))
    return _learn(targets, outcomes)


def _identity(assignment: Assignment, user: User) -> Identity | None:
    match assignment.identity_scheme:
        case IdentityScheme.SHARED:
            shared = assignment.shared_identity
            return shared if shared and shared.is_usable else None
        case IdentityScheme.PER_USER:
            return identity_for(assignment.server, user)
    return None


def _ask(target: Target) -> Discovered | DiscoveryFailed:
    assignment, identity = target
    try:
        return discover_features(assignment.server, identity, tuple(FeatureKind))
    except DiscoveryFailed as failure:
        return failure


def _learn(targets: Sequence[Target], outcomes: Sequence[Discovered | DiscoveryFailed]) -> list[Refreshed]:
    refreshed = []
    for (assignment, identity), outcome in zip(targets, outcomes, strict=True):
        record_contact(assignment.server, identity, outcome)
        if isinstance(outcome, Discovered):
            for kind, definitions in outcome.features.items():
                Feature.objects.learn(assignment, definitions, kind, identity)
        elif _is_asked_as_somebody(assignment, identity):
            for kind in FeatureKind:
                Feature.objects.note_fault(assignment, outcome.reason, kind, identity)
        noted = isinstance(outcome, Discovered) or _is_asked_as_somebody(assignment, identity)
        refreshed.append(Refreshed(assignment, outcome, noted))
    return refreshed
