"""Dry run: decide a request without sending it (checks 4 to 10 and 13 to 16 of the decision order).

A dry run also checks that the credential can be decrypted. A dry run uses the functions and the SQL statement of real
requests. One thing differs: if a name lacks its server's alias, the gateway adds the alias only in a real request.
Nothing is sent, logged or counted against a limit.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from proxy.access.decision import (
    LAYER_CONDITIONS,
    NOTHING,
    TOKEN_CONDITIONS,
    AccessRow,
    AssignedServer,
    ServersNeeded,
    Wanted,
    decide,
)
from proxy.access.features import (
    IdentityUnreadable,
    Named,
    OutOfScope,
    Refusal,
    Resolved,
    UnknownFeature,
    credential_of,
    is_nameable,
    lookup_key,
    resolve_call,
)
from proxy.access.rule_checker import ruled_call
from proxy.access.rules import NO_RULES, REFUSE, DecidingRule, RuleDecision, decide_by_rules, is_target, reads_arguments
from wire.cipher import Cipher
from wire.definitions import exposed_name
from wire.mcp import TOOL


class Obstacle(NamedTuple):
    """A check that would refuse or hold the request.

    `reason` is the reason as recorded in the log. `assigned` and `rule` are the server and the rule concerned, if any.
    """

    reason: str
    assigned: AssignedServer | None = None
    rule: DecidingRule | None = None


class Verdict(NamedTuple):
    """The checks that would refuse or hold a request, in order. In a real request, only the first would take effect.

    After some of them, such as the check for an unknown tool, a dry run makes no further checks.
    """

    obstacles: tuple[Obstacle, ...]
    assigned: AssignedServer | None = None  # The server the request would go to.
    unlisted: bool = False  # No stored list of the server has the tool: only a call can show whether it exists.
    by_arguments: bool = False  # The arguments must fit a changed definition, which awaits approval.
    rules: RuleDecision = NO_RULES
    unread: tuple[DecidingRule, ...] = ()  # Not applied: these rules read arguments, and the arguments are unknown.

    @property
    def reason(self) -> str:
        """The reason why the request would be refused or held; empty if no check would stop it."""
        return self.obstacles[0].reason if self.obstacles else ""


def wanted_for(feature: Named | None) -> Wanted:
    """Return the servers and features to query for a verdict; `feature` is None if the request names no feature."""
    if feature is None or not is_nameable(feature):
        return NOTHING
    return Wanted(ServersNeeded.OF_FEATURE, feature.kind, lookup_key(feature))


class CallTrial(NamedTuple):
    """The assumptions of a dry run about a call.

    `arguments` is None if the arguments are unknown. `at` is the time of the call; None means now.
    """

    arguments: dict[str, Any] | None = None
    at: float | None = None


NO_TRIAL = CallTrial()


def verdict(
    grant: AccessRow, feature: Named | None, address: str | None, cipher: Cipher, trial: CallTrial = NO_TRIAL
) -> Verdict:
    """Return what the gateway would decide about a request.

    With `feature` None, checks of features are left out. With `address` None, the IP allow-list is not checked.
    """
    grant = grant if address is not None else grant._replace(allowed_ips=None)
    obstacles: list[Obstacle] = []
    while denied := decide(grant, address or ""):
        obstacles.append(Obstacle(denied.reason))
        if denied.reason == "wrong_gateway":
            return Verdict(tuple(obstacles))  # The query returns no servers if the token is for another gateway.
        grant = grant._replace(**_PASSED[denied.reason])
    if feature is None:
        return Verdict(tuple(obstacles))
    return _of_feature(grant, feature, obstacles, cipher, address, trial)


def _of_feature(
    grant: AccessRow,
    feature: Named,
    obstacles: list[Obstacle],
    cipher: Cipher,
    address: str | None,
    trial: CallTrial,
) -> Verdict:
    if not is_nameable(feature):
        return Verdict((*obstacles, Obstacle("unknown_tool")))
    while True:
        try:
            resolved = resolve_call(grant, feature)
        except (OutOfScope, Refusal) as refused:
            reason = refused.reason if isinstance(refused, Refusal) else "out_of_scope"
            obstacles.append(Obstacle(reason, refused.assigned))
            passed = _PASSED_AT_SERVER[reason](refused.assigned)
            grant = grant._replace(assignments=[passed if each.id == passed.id else each for each in grant.assignments])
        except UnknownFeature as unknown:
            return Verdict((*obstacles, Obstacle(unknown.reason)))
        else:
            if not isinstance(resolved, Resolved):
                return Verdict(tuple(obstacles), resolved, unlisted=True)
            is_held = feature.kind == TOOL and resolved.row is not None and resolved.row.approved is not None
            found = Verdict(tuple(obstacles), resolved.assigned, by_arguments=is_held)
            return _with_credential(_ruled(found, grant, resolved, feature, address, trial), cipher)


def _with_credential(found: Verdict, cipher: Cipher) -> Verdict:
    """Return the verdict `found`. Add an obstacle to it if the credential for the server cannot be read."""
    assert found.assigned is not None
    try:
        credential_of(found.assigned, cipher)
    except IdentityUnreadable as unreadable:
        return found._replace(obstacles=(*found.obstacles, Obstacle(unreadable.reason, found.assigned)))
    return found


def _ruled(
    found: Verdict,
    grant: AccessRow,
    resolved: Resolved,
    feature: Named,
    address: str | None,
    trial: CallTrial,
) -> Verdict:
    """Return a verdict: `found`, plus the decision of the rules.

    If the arguments of the call are unknown, rules that read arguments are not applied.
    """
    rules = grant.rules
    if rules is None or feature.kind != TOOL:
        return found
    tool = exposed_name(resolved.assigned.alias, resolved.name)  # Whatever spelling was asked about.
    called = resolved.assigned, resolved.claims, tool, trial.arguments
    call = ruled_call(grant, rules, *called, client=("", address or ""), at=trial.at or time.time())
    unread = tuple(
        rule for rule in rules.rules if trial.arguments is None and is_target(rule, call) and reads_arguments(rule.when)
    )
    decision = decide_by_rules([rule for rule in rules.rules if rule not in unread], call)
    if not decision.effect:
        return found._replace(rules=decision, unread=unread)
    reason = "rule_refused" if decision.effect == REFUSE else "held"
    stopped = Obstacle(reason, resolved.assigned, decision.rule)
    return found._replace(obstacles=(*found.obstacles, stopped), rules=decision, unread=unread)


# Changes to the grant that remove each obstacle, so that the later checks can run.
_PASSED: dict[str, dict[str, Any]] = {
    "ip": {"allowed_ips": None},
    **{reason: {field: allowed} for field, allowed, reason in (*TOKEN_CONDITIONS, *LAYER_CONDITIONS)},
}


def _with_features(assigned: AssignedServer, **changes: Any) -> AssignedServer:
    return assigned._replace(features=[row._replace(**changes) for row in assigned.features or ()])


def _allowed(assigned: AssignedServer) -> AssignedServer:
    return _with_features(assigned._replace(policy="selected"), enabled=True)


def _approved(assigned: AssignedServer) -> AssignedServer:
    return _with_features(assigned, state="approved")


_PASSED_AT_SERVER: dict[str, Callable[[AssignedServer], AssignedServer]] = {
    "out_of_scope": lambda assigned: assigned._replace(in_scope=True),
    "server_disabled": lambda assigned: assigned._replace(server_enabled=True),
    "assignment_disabled": lambda assigned: assigned._replace(enabled=True),
    "tool_disabled": _allowed,
    "prompt_disabled": _allowed,
    "resource_disabled": _allowed,
    "tool_not_granted": lambda assigned: _with_features(assigned._replace(restricted=False), granted=True),
    "definition_held": _approved,
    "definition_quarantined": _approved,
    "identity_missing": lambda assigned: assigned._replace(scheme="none"),
    "identity_withdrawn": lambda assigned: assigned._replace(identity_allowed=True),
    "identity_disabled": lambda assigned: assigned._replace(identity_enabled=True),
    "identity_off": lambda assigned: assigned._replace(identity_enabled=True),
    "identity_unconfirmed": lambda assigned: assigned._replace(identity_unconfirmed=False),
    "identity_sign_in": lambda assigned: assigned._replace(scheme="none"),
}
