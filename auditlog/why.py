"""Explain why a logged call ended as it did, and decide whether the call would be allowed now.

The decision is made without sending the call to a server.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from typing import Any, NamedTuple

import psycopg
from django.db import connection as database
from django.db.models import F
from django.utils import timezone
from oauth2_provider.models import RefreshToken

from accounts.models import User, WorkspaceSettings
from auditlog.models import Call, Outcome
from auditlog.outcomes import Reason, Step, reason_of
from connections.models import Connection
from gateways.models import Feature, Gateway
from hosts.models import Host
from oauth.models import Binding
from proxy.access.decision import (
    STATEMENT,
    STATEMENT_OF_TRIPLE,
    AccessQuery,
    AccessRow,
    TokenDigests,
    parameters,
    read_grants,
)
from proxy.access.features import Named
from proxy.dry_run import CallTrial, Obstacle, Verdict, verdict, wanted_for
from proxy.store.call_log import COMMIT_SECONDS
from tokens.models import Token, TokenKind
from ui.sealing import cipher
from wire.mcp import METHODS, PROMPT, RESOURCE, TOOL

# The names of the checks on the page.
NAMES = {step: step.name.capitalize() for step in Step} | {
    Step.GATEWAY: "Gateway and connection",
    Step.REACH: "Reach and limits",
}
NOT_REACHED = "Not reached"
# Methods that the gateway answers itself.
GATEWAY_METHODS = {name for name, method in METHODS.items() if not (method.lists or method.named_by)} | {
    "notifications/initialized"
}
CURL_CLIENT = {"capabilities": {}, "clientInfo": {"name": "curl", "version": "8"}}


class TimingPart(NamedTuple):
    """A segment of a timing bar.

    `start` and `width` are percentages. In a waterfall, they are numbers from 0 to waterfall.WIDTH instead.
    """

    name: str
    label: str
    ms: float
    start: float
    width: float


class DecisionLine(NamedTuple):
    """One line of the decision; `result` is pass, stop or skip."""

    name: str
    result: str
    text: str


@dataclass(frozen=True)
class Detail:
    """One call, with the reason for its outcome, its timing and its checks."""

    call: Call

    @property
    def reason(self) -> Reason | None:
        """Return the reason why the call was refused or failed, or None if it succeeded."""
        entry = reason_of(self.call.outcome, self.call.deny_reason)
        if entry and not self.call.deny_reason and self.call.outcome == Outcome.RPC_ERROR and not self.call.upstream_ms:
            return Reason(Step.REQUEST, entry.sentence)
        return entry

    @property
    def kind(self) -> str:
        """Return the style of the notice about the outcome: good, warn or bad."""
        if self.call.outcome == Outcome.OK:
            return "good"
        mild = (Outcome.TOOL_ERROR, Outcome.RPC_ERROR, Outcome.CANCELLED, Outcome.NOT_OFFERED)
        return "warn" if self.call.outcome in mild else "bad"

    @property
    def timing(self) -> list[TimingPart]:
        call, record = self.call, self.record_ms
        measured_ms = (call.authorise_ms or 0) + (call.upstream_ms or 0)
        stretches = (
            ("auth", "authorise", call.authorise_ms),
            ("rules", "rules", max(call.duration_ms - measured_ms, 0)),
            ("upstream", "upstream", call.upstream_ms),
            ("record", "record", record),
        )
        whole = max(call.duration_ms, measured_ms) + (record or 0)
        return list(_laid_out([(n, label, ms) for n, label, ms in stretches if ms], whole))

    @property
    def record_ms(self) -> float | None:
        """Return the milliseconds from the end of the call until its row was written to the log.

        Return None if the time of writing is unknown, or if the clocks differ too much.
        """
        if self.call.recorded_at is None:
            return None
        waited = (self.call.recorded_at - self.call.created_at).total_seconds() * 1000 - self.call.duration_ms
        return waited if 0 <= waited <= COMMIT_SECONDS * 1000 else None

    @property
    def checks(self) -> list[DecisionLine]:
        stop = self.reason.step if self.reason else None
        lines = []
        for step, text in self._steps():
            name = NAMES[step]
            if stop is None or step < stop:
                lines.append(DecisionLine(name, "pass" if text else "skip", text or "Not needed"))
            elif step == stop and self.reason:
                lines.append(DecisionLine(name, "stop", self._stopped(self.reason)))
            else:
                lines.append(DecisionLine(name, "skip", NOT_REACHED))
        return [*lines, DecisionLine("Recorded", "pass", "The row was committed before the answer was sent")]

    @property
    def reached(self) -> list[DecisionLine]:
        return [check for check in self.checks if check.text != NOT_REACHED]

    @property
    def not_reached(self) -> list[str]:
        return [check.name for check in self.checks if check.text == NOT_REACHED]

    def _steps(self) -> Iterator[tuple[Step, str]]:
        """Yield each check, with the text that is shown if the call passed it.

        The text is empty if the call did not need the check.
        """
        call = self.call
        yield Step.TOKEN, f"{call.token_prefix or 'The token'} is known, not revoked, not expired"
        yield Step.USER, f"{call.user_email} is active"
        yield Step.ADDRESS, f"{call.client_ip or 'The caller'} may use the token, which is for {call.gateway_name}"
        yield Step.HOST, f"{call.host_name} is enabled"
        yield Step.GATEWAY, f"{call.gateway_name} and this connection are enabled"
        yield Step.REACH, f"{call.user_email} and {call.host_name} may use {call.gateway_name}, within all limits"
        yield Step.REQUEST, f"One message: {call.method}" if call.method else ""
        yield Step.SERVER, self._server()
        yield Step.TOOL, f"{call.feature_name} may be used" if call.feature_name and call.server_id else ""
        yield Step.IDENTITY, f"“{call.identity_label}” is the credential for the server" if call.identity_label else ""
        yield Step.RULES, self._rules()
        yield Step.UPSTREAM, self._upstream()

    def _stopped(self, reason: Reason) -> str:
        """Return a text that says why a check stopped the call.

        If rules stopped the call, the text includes the call's labels. One of the labels names the rule.
        """
        named = reason.step == Step.RULES and self.call.labels
        return f"{reason.sentence} Labels: {self.call.labels}." if named else reason.sentence

    def _server(self) -> str:
        if self.call.server_name:
            return f"{self.call.server_name} is assigned, enabled and within the token's scope"
        return "All servers the caller may use were asked" if self.call.method.endswith("/list") else ""

    def _rules(self) -> str:
        if self.call.method != "tools/call":
            return ""
        return f"Rules added labels: {self.call.labels}" if self.call.labels else "No rule refused it"

    def _upstream(self) -> str:
        if self.call.method in GATEWAY_METHODS:
            return ""
        return f"{self.call.server_name or 'The servers'} answered"


def _laid_out(stretches: list[tuple[str, str, float]], whole: float) -> Iterator[TimingPart]:
    start = 0.0
    for name, label, ms in stretches:
        width = round(100 * ms / whole, 1) if whole else 0.0
        yield TimingPart(name, label, ms, round(start, 1), width)
        start += width


def curl(call: Call, *, payload: bool) -> str:
    """Return a curl command that repeats the call, or "" if the gateway was removed or the call has no method.

    With `payload`, the command sends the recorded params of the call, if the log has all of them. Otherwise the command
    sends minimal params. For example, a tool is called without arguments.
    """
    gateway = Gateway.objects.live().filter(pk=call.gateway_id).first() if call.gateway_id else None
    if gateway is None or not call.method:
        return ""
    body = {"jsonrpc": "2.0", "id": 1, "method": call.method, "params": _params(call, payload)}
    lines = [
        f"curl -sS -X POST {shlex.quote(gateway.url)}",
        '-H "Authorization: Bearer $GATEWAY_TOKEN"',
        "-H 'Content-Type: application/json'",
        "-H 'Accept: application/json, text/event-stream'",
        f"-d {shlex.quote(json.dumps(body, ensure_ascii=False))}",
    ]
    return " \\\n  ".join(lines)


def payloads(call: Call) -> list[tuple[str, str]]:
    recorded = (("Request", call.request_payload), ("Response", call.response_payload))
    return [(name, _pretty(value)) for name, value in recorded if value is not None]


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def _params(call: Call, payload: bool) -> Any:
    recorded = call.request_payload if payload and not call.payload_truncated else None
    if isinstance(recorded, dict) and isinstance(recorded.get("params"), dict):
        return recorded["params"]
    if call.method == "tools/call":
        return {"name": call.feature_name, "arguments": {}}
    if call.method == "initialize":
        return {"protocolVersion": call.protocol_version or "2025-11-25", **CURL_CLIENT}
    return {}


# The gateway's current decision for a host, person, gateway and tool.

MOST_TOKENS = 50  # Limit on the API access tokens to test per connection, and on the OAuth tokens.
MOST_NAMED = 3
MOST_COMPARED = 2000  # Number of tool names among which similar names are searched.
CUT_NAME = 300  # A name of this length may be truncated.
NO_TOKEN = TokenDigests((None,), (None,))


class Credential(NamedTuple):
    """A token to test. `digests` are the digests of its secret.

    `token` is the token's row in the database, or None for an OAuth access token.
    """

    token: Token | None
    digests: TokenDigests


@dataclass(frozen=True)
class Question:
    """The question whether `user` may use `feature` with `host` at `gateway`.

    If the question is about a logged call, `token` is the token of that call.
    """

    host: Host
    user: User
    gateway: Gateway
    feature: Named | None = None
    address: str | None = None
    token: Token | None = None
    arguments: dict[str, Any] | None = None


@dataclass(frozen=True)
class CurrentDecision:
    """The current decision for the token that passes the most checks.

    `token` is None if the decision is for an OAuth access token, or if no token was tested.
    """

    question: Question
    verdict: Verdict
    token: Token | None
    connection: Connection | None

    @property
    def works(self) -> bool | None:
        """True if the call would reach its server, otherwise False.

        None if the tool is not listed: then only the server knows whether the tool exists.
        """
        if self.verdict.obstacles:
            return False
        return None if self.verdict.unlisted else True

    @property
    def obstacles(self) -> list[tuple[Obstacle, Reason]]:
        return [(each, reason_text(each.reason)) for each in self.verdict.obstacles]

    @property
    def is_unknown(self) -> bool:
        """True if the feature is in no list of the gateway."""
        return self.verdict.unlisted or any(each.reason == "unknown_tool" for each in self.verdict.obstacles)

    @property
    def stops_at(self) -> Step | None:
        """Return the check that would stop the call, or None if no check would."""
        return reason_text(self.verdict.reason).step if self.verdict.obstacles else None


# Obstacles that apply if there is no token to test.
UNCONNECTED = {
    "not_connected": Reason(Step.TOKEN, "This person has not connected this app or agent to the gateway."),
    "no_token": Reason(Step.TOKEN, "The connection has no token that could be used."),
}


def reason_text(reason: str) -> Reason:
    words = UNCONNECTED.get(reason) or reason_of("denied", reason)
    assert words is not None  # Every reason of the proxy has a text.
    return words


def current_decision(question: Question) -> CurrentDecision:
    """Return the current decision on the question.

    The decision is made by the SQL statement and the checks that also decide requests to /mcp. If there is no token to
    test, a variant of the statement looks the access up by host, gateway and person.
    """
    live = Connection.objects.live().filter(host=question.host, gateway=question.gateway, user=question.user).first()
    if live is not None and question.host.is_playground:
        return _without_token(question, live)  # Each run of the playground gets a temporary token.
    answers = list(_with_tokens(question, live))
    if live is not None and _renews(live) and all(each.verdict.reason in ("expired", "") for each in answers):
        # The app fetches a new access token by itself before the next call.
        answers = [each for each in answers if each.works] or [_without_token(question, live)]
    if not answers:
        missing = Obstacle("no_token" if live else "not_connected")
        return _without_token(question, live, missing)
    return max(answers, key=lambda answer: _reach(answer, question.token))


def _reach(answer: CurrentDecision, preferred: Token | None) -> tuple[bool, int, bool]:
    """Return a sort key. The best answer has the largest key.

    An answer that allows the call is better than a refusal. Of two refusals, the one that passes more checks is better.
    Of two answers that are equal so far, the one for the token `preferred` is better.
    """
    is_preferred = preferred is not None and answer.token is not None and answer.token.pk == preferred.pk
    return not answer.verdict.obstacles, answer.stops_at or 0, is_preferred


def _with_tokens(question: Question, live: Connection | None) -> Iterator[CurrentDecision]:
    credentials = list(_credentials(question, live))
    for credential, found in zip(credentials, verdicts(question, [each.digests for each in credentials]), strict=True):
        if found is not None:
            yield CurrentDecision(question, found, credential.token, live)


def verdicts(question: Question, tokens: Sequence[TokenDigests]) -> list[Verdict | None]:
    """Return the verdict for each token; None for a token that is not in the database."""
    if not tokens:
        return []
    wanted = wanted_for(question.feature)
    queries = [AccessQuery(digests, question.gateway.slug, wanted) for digests in tokens]
    grants = _run(STATEMENT, parameters(queries), ())
    found = (grants.get(number) for number in range(len(tokens)))
    return [None if grant is None else _judge(grant, question) for grant in found]


def _credentials(question: Question, live: Connection | None) -> Iterator[Credential]:
    if question.token is not None and question.token.digest is not None:
        yield Credential(question.token, digests_of(question.token))
    if live is None:
        return
    for token in (
        Token.objects.live()
        .filter(connection=live, kind=TokenKind.ACCESS)
        .exclude(digest=None)
        .order_by(F("last_used_at").desc(nulls_last=True), "-created_at")[:MOST_TOKENS]
    ):
        if token != question.token:
            yield Credential(token, digests_of(token))
    bound = Binding.objects.filter(connection=live, access_token__isnull=False).order_by("-created_at")
    for checksum in bound.values_list("access_token__token_checksum", flat=True)[:MOST_TOKENS]:
        yield Credential(None, TokenDigests((None,), (checksum,)))


def digests_of(token: Token) -> TokenDigests:
    """Return the digests by which `query.sql` finds an API access token."""
    return TokenDigests((bytes(token.digest or b""),), (None,))


def _renews(live: Connection) -> bool:
    """True if the app of this connection has a valid refresh token."""
    idle = timedelta(days=WorkspaceSettings.load().oauth_refresh_idle_days)
    fresh = RefreshToken.objects.filter(revoked=None, created__gt=timezone.now() - idle)
    return bool(fresh.filter(binding__connection=live, binding__superseded_at=None).exists())


def _without_token(question: Question, live: Connection | None, *missing: Obstacle) -> CurrentDecision:
    triple = [str(each.pk) for each in (question.host, question.gateway, question.user)]
    query = AccessQuery(NO_TOKEN, question.gateway.slug, wanted_for(question.feature))
    grant = _run(STATEMENT_OF_TRIPLE, parameters([query]), triple)[0]
    found = _judge(grant, question)
    return CurrentDecision(question, found._replace(obstacles=(*missing, *found.obstacles)), None, live)


def _judge(grant: AccessRow, question: Question) -> Verdict:
    return verdict(grant, question.feature, question.address, cipher(), CallTrial(question.arguments))


def _run(statement: bytes, queried: Sequence[bytes], further: Sequence[str]) -> dict[int, Any]:
    """Run the SQL `statement` over the page's database connection, and return the result of `read_grants`."""
    with database.cursor() as cursor, psycopg.RawCursor(cursor.connection) as raw:
        raw.execute(statement, [*(each.decode() for each in queried), *further])
        assert raw.pgresult is not None
        return read_grants(raw.pgresult)


def question_of(call: Call) -> Question | None:
    """Return the question whether this call would be allowed now; None if its host, person or gateway is missing."""
    if call.host_id is None or call.user_id is None or call.gateway_id is None:
        return None
    host = Host.objects.filter(pk=call.host_id).first()
    user = User.objects.filter(pk=call.user_id).first()
    gateway = Gateway.objects.filter(pk=call.gateway_id).first()
    if host is None or user is None or gateway is None:
        return None
    token = Token.objects.filter(pk=call.token_id).first() if call.token_id else None
    return Question(host, user, gateway, feature_of(call), call.client_ip, token)


def feature_of(call: Call) -> Named | None:
    """Return the feature of a call; None if the call has none, or if the feature's name may be truncated."""
    if call.feature_type not in (TOOL, PROMPT, RESOURCE) or not 0 < len(call.feature_name) < CUT_NAME:
        return None
    return Named(call.feature_type, call.feature_name)


def near_tools(reader: User, gateway: Gateway, name: str) -> list[str]:
    """Return tools of the gateway with a name similar to `name`; none if `reader` may not see the gateway's tools."""
    shown = Feature.objects.tools_seen_by(reader).filter(assignment__gateway=gateway)
    names = shown.order_by("exposed_name").values_list("exposed_name", flat=True)[:MOST_COMPARED]
    known = {each.lower(): each for each in names}
    word = name.lower()
    bare = word.rpartition("__")[2]
    near = get_close_matches(word, known, MOST_NAMED)
    near += [each for each in known if bare and bare in each]
    near += [each for each in known if each.rpartition("__")[2] in get_close_matches(bare, [each.rpartition("__")[2]])]
    return [known[each] for each in dict.fromkeys(near)][:MOST_NAMED]
