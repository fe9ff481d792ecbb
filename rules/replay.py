"""Replay a rule: find the recorded calls that the rule would have affected. A replay changes nothing.

The log does not record the teams and the role of the call's person, nor the tool's effect. A replay uses the current
ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.utils import timezone

from accounts.models import Team, User, WorkspaceSettings
from auditlog.models import Call
from capabilities import Capability
from gateways.models import Feature, Gateway
from hosts.models import Host
from proxy.access.rule_checker import ruled_call
from proxy.access.rules import (
    DecidingRule,
    RuledCall,
    Rules,
    ToolClaims,
    failure_mark,
    is_marked,
    is_target,
    matching,
    reads_arguments,
)
from proxy.reasons import REASONS, Step
from rules.models import Rule
from rules.targets import claims_of, deciding
from ui.pages import number_of, sentences
from wire.definitions import SEPARATOR
from wire.rewriting import own_uri

DAYS = 30
SECONDS = 5.0
LATELY_S = 2.0  # Longest time that a confirmation waits for the replay of seven days.
NO_LONGER_REFUSES = "From the next call on, this rule no longer refuses or holds calls."
BATCH = 500
EXAMPLES = 10
# Calls refused by an earlier check were never shown to the rules.
EARLIER = [name for name, reason in REASONS.items() if reason.step < Step.RULES]
_READ = (
    *("id", "uid", "created_at", "feature_name", "host_id", "host_name", "gateway_id", "gateway_name", "server_id"),
    *("server_name", "user_id", "user_email", "client_name", "client_ip", "request_payload", "payload_truncated"),
    "labels",
)


@dataclass
class Replay:
    """The result of a replay: the recorded calls that a rule would have affected."""

    is_complete: bool = False  # False if time ran out before the oldest call.
    since: datetime | None = None
    looked: int = 0  # Calls that were read from the log, back to `since`.
    count: int = 0  # Calls that match.
    failed: int = 0  # Calls that match only because the condition has no result for them.
    judged: int = 0  # Calls of the rule's tools that the condition was applied to.
    unknown: int = 0  # Calls of the rule's tools without complete recorded arguments, and without the rule's label.
    agents: dict[UUID | None, str] = field(default_factory=dict)
    examples: list[Call] = field(default_factory=list)

    @property
    def is_blind(self) -> bool:
        """True if the rule's tools were called, but no call tells whether the rule matches."""
        return bool(self.unknown) and not self.judged and not self.count

    def add(self, call: Call, *, failed: bool) -> None:
        self.count += 1
        self.failed += failed
        self.agents.setdefault(call.host_id, call.host_name)
        if len(self.examples) < EXAMPLES:
            self.examples.append(call)


def replay(
    rule: DecidingRule,
    gateway: Gateway | None,
    *,
    labels_from: datetime | None = None,
    days: int = DAYS,
    seconds: float = SECONDS,
) -> Replay:
    """Return a Replay of the calls of the last `days` days that match the rule. Stop after about `seconds` seconds.

    A condition on arguments cannot be applied to a call whose arguments are not recorded completely. Such a call counts
    as a match if it has the rule's label and was made at or after `labels_from`, otherwise as unknown. Pass None if the
    rule is new or changed, because the labels in the log are not from this version of the rule.
    """
    ends, found, facts = time.monotonic() + seconds, Replay(), CallFacts()
    reads = reads_arguments(rule.when)
    for batch in _batches(_calls(gateway, days, with_arguments=reads)):
        for call in batch:
            _judge(rule, call, facts, found, reads=reads, labels_from=labels_from)
        found.looked += len(batch)
        found.since = batch[-1].created_at
        if time.monotonic() > ends:
            return found
    found.is_complete = True
    return found


def may_replay(when: str, viewer: User) -> bool:
    """True if `viewer` may read calls, and may also see arguments if the condition depends on arguments."""
    # The matching calls reveal the values that the condition reads.
    may_read = not reads_arguments(when) or viewer.has_perm(Capability.LOGS_PAYLOADS)
    return may_read and viewer.has_perm(Capability.LOGS_READ)


def cuts(rule: Rule, viewer: User, servers: Iterable[Any] | None = None, *, labels_from: datetime | None = None) -> str:
    """Return a sentence about the calls of the last seven days that the rule would have affected.

    Return "" if the viewer may not replay the rule. `servers` are the rule's servers if the rule is not saved.
    See `replay` for `labels_from`.
    """
    if not may_replay(rule.when, viewer):
        return ""
    found = replay(deciding(rule, servers), rule.gateway, labels_from=labels_from, days=7, seconds=LATELY_S)
    calls, agents = number_of(found.count, "call"), number_of(len(found.agents), "agent")
    so_far = "" if found.is_complete else " (not all calls could be checked in time)"
    unknown = f"{number_of(found.unknown, 'call')} without complete recorded arguments cannot be judged."
    touched = f"The rule would have affected {calls} of {agents} in the last 7 days{so_far}."
    if found.is_blind:
        return f"Which calls of the last 7 days the rule would have affected is not known{so_far}: {unknown}"
    return sentences(touched, unknown if found.unknown else "")


def _calls(gateway: Gateway | None, days: int, *, with_arguments: bool) -> QuerySet[Call]:
    calls = Call.objects.filter(
        method="tools/call",
        feature_type="tool",
        server_id__isnull=False,
        created_at__gte=timezone.now() - timedelta(days=days),
    ).exclude(deny_reason__in=EARLIER)
    calls = calls.filter(gateway_id=gateway.pk) if gateway else calls
    return calls.only(*(name for name in _READ if with_arguments or name != "request_payload"))


def _batches(calls: QuerySet[Call]) -> Iterator[list[Call]]:
    """Yield the calls in batches, the newest first. Each batch is read by a short query of its own."""
    place: tuple[datetime, int] | None = None
    while True:
        rows = calls
        if place is not None:
            rows = rows.filter(created_at__lte=place[0]).exclude(created_at=place[0], id__gte=place[1])
        batch = list(rows.order_by("-created_at", "-id")[:BATCH])
        if not batch:
            return
        yield batch
        place = batch[-1].created_at, batch[-1].pk


def _judge(
    rule: DecidingRule, call: Call, facts: CallFacts, found: Replay, *, reads: bool, labels_from: datetime | None
) -> None:
    ruled = facts.ruled(call, arguments_of(call) if reads else None)
    if not is_target(rule, ruled):
        return
    if reads and ruled.arguments is None:
        is_current = labels_from is not None and call.created_at >= labels_from
        if is_current and is_marked(rule, call.labels):
            found.add(call, failed=failure_mark(rule.name) in call.labels)
        else:
            found.unknown += 1
        return
    found.judged += 1
    for match in matching([rule], ruled):
        if not match.error or rule.effect != "label":
            found.add(call, failed=bool(match.error))


def arguments_of(call: Call) -> dict[str, Any] | None:
    """Return the recorded arguments of a call as the server got them; None if they were not completely recorded."""
    payload = call.request_payload
    if call.payload_truncated or not isinstance(payload, dict) or not isinstance(payload.get("params"), dict):
        return None
    arguments = payload["params"].get("arguments")
    alias, is_exposed, _ = call.feature_name.partition(SEPARATOR)
    given = own_uri(arguments, alias) if is_exposed else arguments
    return given if isinstance(given, dict) else {}


class CallFacts:
    """Looks up, for logged calls, the data that conditions use. Each object is read only once."""

    def __init__(self) -> None:
        self._zone = WorkspaceSettings.load().zone
        self._claims: dict[tuple[UUID | None, str], ToolClaims | None] = {}
        self._people: dict[UUID | None, tuple[list[str], str]] = {}
        self._kinds: dict[UUID | None, str] = {}
        self._slugs: dict[UUID | None, str] = {}

    def ruled(self, call: Call, arguments: dict[str, Any] | None) -> RuledCall:
        """Return the logged call as a RuledCall, to which rules can be applied."""
        rules = Rules(
            (), *self._person(call.user_id), self._zone, self._kind(call.host_id), self._slug(call.gateway_id)
        )
        called = call, self._claims_of(call), call.feature_name, arguments
        client = call.client_name, call.client_ip or ""
        return ruled_call(call, rules, *called, client=client, at=call.created_at.timestamp())

    def _claims_of(self, call: Call) -> ToolClaims | None:
        key = (call.gateway_id, call.feature_name)
        if key not in self._claims:
            rows = Feature.objects.tools().filter(
                assignment__gateway=call.gateway_id, assignment__removed_at=None, exposed_name=call.feature_name
            )
            row = rows.only("said_title", "title", "said_effect", "annotations").first()
            self._claims[key] = claims_of(row) if row else None
        return self._claims[key]

    def _person(self, pk: UUID | None) -> tuple[list[str], str]:
        if pk not in self._people:
            teams = list(Team.objects.filter(users=pk).order_by("name").values_list("name", flat=True)) if pk else []
            role = User.objects.filter(pk=pk).values_list("role__name", flat=True).first() if pk else None
            self._people[pk] = (teams, role or "")
        return self._people[pk]

    def _kind(self, pk: UUID | None) -> str:
        if pk not in self._kinds:
            kind = Host.objects.filter(pk=pk).values_list("kind", flat=True).first() if pk else None
            self._kinds[pk] = kind or ""
        return self._kinds[pk]

    def _slug(self, pk: UUID | None) -> str:
        if pk not in self._slugs:
            self._slugs[pk] = Gateway.objects.filter(pk=pk).values_list("slug", flat=True).first() or "" if pk else ""
        return self._slugs[pk]
