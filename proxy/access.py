"""The one statement that decides a request, and the decision itself (requirements 4.4).

Requests that arrive while a statement is under way wait for it and then share the next one, so each
is decided by what the database says after its arrival; nothing is cached.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

import orjson
from psycopg.adapt import Transformer
from psycopg.pq.abc import PGresult

from auditlog.batches import Batches, Waiting, fail, settle
from auditlog.lane import Lane, Unobtainable
from proxy import jsonrpc
from tokens import secret

STATEMENT = Path(__file__).with_name("access.sql").read_bytes()
SETUP = (
    b"SET application_name = 'gateway access'",
    b"SET plan_cache_mode = 'force_generic_plan'",
    b"SET enable_seqscan = off",
    b"SET enable_bitmapscan = off",
    b"SET jit = off",
    b"SET statement_timeout = '4s'",
    b"SET default_transaction_read_only = on",
    b"PREPARE decide (int[], bytea[], text[], text[], int[], text[]) AS " + STATEMENT,
)

SLUG = re.compile(r"[a-z0-9-]{1,40}").fullmatch

# What a request needs to know of the servers behind its gateway.
NOTHING, ALL, ADDRESSED = 0, 1, 2


class Assigned(NamedTuple):
    """A server behind the gateway, and the identity this connection uses there.

    `tools` depends on what was asked. ALL: names under `selected` that may be used, else that may
    not. ADDRESSED: [name, exposed name, enabled, schema with x-mcp-header] of the tools that fit.
    """

    id: str
    alias: str
    enabled: bool
    scheme: str
    policy: str
    in_scope: bool
    server_id: str
    server_name: str
    url: str
    server_enabled: bool
    auth_type: str
    header_name: str
    timeout_s: int
    max_concurrent: int
    era: str
    identity_id: str | None
    identity_label: str | None
    identity_enabled: bool | None
    identity_expired: bool | None
    ciphertext: str | None
    tools: list[list[object]] | list[str] | None


class Facts(NamedTuple):
    """What the statement says about the token of one request, in its columns' order."""

    token_id: str
    token_name: str
    token_prefix: str
    by_oauth: bool
    token_revoked: bool
    token_stale: bool
    token_expired: bool
    allowed_ips: str | None
    connection_id: str
    connection_revoked: bool
    connection_enabled: bool
    gateway_id: str
    gateway_name: str
    gateway_description: str
    gateway_matches: bool
    gateway_enabled: bool
    host_id: str
    host_name: str
    host_enabled: bool
    host_pending: bool
    user_id: str
    user_email: str
    user_active: bool
    reaches: bool
    # The servers behind the gateway that were asked for, in the order of their aliases.
    assignments: Sequence[Assigned]
    token_limit: int | None = None
    gateway_limit: int | None = None
    workspace_limit: int | None = None
    # How many bytes of what a call carries are recorded; None: nothing is.
    recorded: int | None = None

    @property
    def limited(self) -> bool:
        """Whether the calls of this token are counted, and may be too many."""
        return self.token_limit is not None or self.gateway_limit is not None or self.workspace_limit is not None


class Denied(NamedTuple):
    """A refusal of the whole request: why (for the log), and exactly what is answered."""

    reason: str
    status: int
    body: bytes


def _denied(status: int, code: int, message: str, *reasons: str, told: bool = False) -> dict[str, Denied]:
    return {
        reason: Denied(reason, status, jsonrpc.error(None, code, message, {"reason": reason} if told else None))
        for reason in reasons
    }


# The bodies are byte-exact (X39, X43, requirements 6.9).
DENIALS: dict[str, Denied] = {
    **_denied(
        401,
        jsonrpc.UNAUTHORIZED,
        "Unauthorized",
        "unknown",
        "revoked",
        "stale_generation",
        "connection_revoked",
        "expired",
        "user_inactive",
    ),
    **_denied(403, jsonrpc.FORBIDDEN, "Forbidden", "wrong_gateway", "out_of_scope"),
    **_denied(403, jsonrpc.FORBIDDEN, "IP Not Allowed", "ip"),
    **_denied(
        403,
        jsonrpc.FORBIDDEN,
        "Forbidden",
        "origin",
        "host_disabled",
        "host_pending",
        "gateway_disabled",
        "connection_disabled",
        "gateway_not_reachable",
        told=True,
    ),
    **_denied(429, jsonrpc.FORBIDDEN, "Too Many Requests", "rate_limited"),
}


# An app that brings a token made for another gateway shall ask for one of this (decisions 5).
WRONG_AUDIENCE = Denied("wrong_gateway", 401, DENIALS["unknown"].body)


def decide(facts: Facts, client_ip: str) -> Denied | None:
    """Rows 4 to 10 of requirements 4.4, in that order; None when all of them say yes."""
    if facts.token_revoked:
        reason = "revoked"
    elif facts.token_stale:
        reason = "stale_generation"
    elif facts.connection_revoked:
        reason = "connection_revoked"
    elif facts.token_expired:
        reason = "expired"
    elif not facts.user_active:
        reason = "user_inactive"
    elif not facts.gateway_matches:
        return WRONG_AUDIENCE if facts.by_oauth else DENIALS["wrong_gateway"]
    elif facts.allowed_ips is not None and not _is_allowed(client_ip, facts.allowed_ips):
        reason = "ip"
    else:
        return _switched_off(facts)
    return DENIALS[reason]


def _switched_off(facts: Facts) -> Denied | None:
    if not facts.host_enabled:
        reason = "host_disabled"
    elif facts.host_pending:
        reason = "host_pending"
    elif not facts.gateway_enabled:
        reason = "gateway_disabled"
    elif not facts.connection_enabled:
        reason = "connection_disabled"
    elif not facts.reaches:
        reason = "gateway_not_reachable"
    else:
        return None
    return DENIALS[reason]


def _is_allowed(client_ip: str, allowed_ips: str) -> bool:
    try:
        address = ip_address(client_ip)
        ranges = orjson.loads(allowed_ips)
        return ranges is None or any(address in ip_network(text) for text in ranges)
    except (ValueError, TypeError):
        return False


class Key(NamedTuple):
    """What the database may know a token as: a row is looked for under each of these digests or checksums."""

    digests: tuple[bytes | None, ...]
    checksums: tuple[str | None, ...]


class Question(NamedTuple):
    """What one request asks the database."""

    key: Key
    slug: str
    wanted: int
    tool: str


class Access(Batches[Question, Facts | None]):
    """Asks for the facts of requests, in batches."""

    def __init__(self, conninfo: str, token_keys: Sequence[bytes]) -> None:
        self._lane = Lane(conninfo, SETUP)
        self._keys = token_keys
        super().__init__("access", [self._answer], [self._lane], lost=lambda error: Unobtainable(str(error)))

    def key(self, token: str) -> Key:
        """What to look for this text as; its prefix says which table is asked (decisions 7.1)."""
        if token.startswith(secret.OAUTH_ACCESS):
            return Key((None,), (hashlib.sha256(token.encode()).hexdigest(),))
        return Key((*secret.candidates(token, self._keys),), (None,) * len(self._keys))

    async def facts(self, key: Key, slug: str, wanted: int = NOTHING, tool: str = "") -> Facts | None:
        """What the database knows of this token now; None when it does not know it. Raises Unobtainable."""
        return await self.put(Question(key, slug if SLUG(slug) else "", wanted, tool))

    async def _answer(self, batch: list[Waiting[Question, Facts | None]]) -> None:
        # Calls of one client at the same time often ask the same: that is put once.
        numbers = {question: number for number, question in enumerate(dict.fromkeys(asked for asked, _ in batch))}
        found = _read(await self._lane.query_again(b"decide", parameters([*numbers])))
        for question, future in batch:
            facts = found.get(numbers[question])
            if isinstance(facts, Unobtainable):
                fail([(question, future)], facts)
            else:
                settle(future, facts)


def _read(result: PGresult) -> dict[int, Facts | Unobtainable]:
    """The facts by the numbers of the questions; those of one that cannot be read are no harm to the others."""
    transformer = Transformer()
    transformer.set_pgresult(result)
    found: dict[int, Facts | Unobtainable] = {}
    for number, *values in transformer.load_rows(0, result.ntuples, list):
        try:
            values[_ASSIGNMENTS] = _assigned(values[_ASSIGNMENTS])
            found[number] = Facts._make(values)
        except (ValueError, RecursionError) as error:
            found[number] = Unobtainable(str(error))
    return found


_ASSIGNMENTS = Facts._fields.index("assignments")


def _assigned(text: str | None) -> tuple[Assigned, ...]:
    if text is None:
        return ()
    try:
        rows = orjson.loads(text)
    except ValueError:  # The schema of a tool may hold an integer that orjson has no room for.
        rows = json.loads(text)
    return tuple(map(Assigned._make, rows))


def parameters(questions: Sequence[Question]) -> list[bytes]:
    """The parameters of the statement as PostgreSQL array texts, a place for each digest to look for."""
    places = [
        (n, question, digest, checksum)
        for n, question in enumerate(questions)
        for digest, checksum in zip(question.key.digests, question.key.checksums, strict=True)
    ]
    return [
        _array([str(n) for n, _, _, _ in places]),
        _array(["NULL" if digest is None else f'"\\\\x{digest.hex()}"' for _, _, digest, _ in places]),
        _array([checksum or "NULL" for _, _, _, checksum in places]),
        _array([f'"{question.slug}"' for _, question, _, _ in places]),
        _array([str(question.wanted) for _, question, _, _ in places]),
        _array([_quoted(question.tool) for _, question, _, _ in places]),
    ]


def _array(elements: list[str]) -> bytes:
    return ("{" + ",".join(elements) + "}").encode(errors="replace")


def _quoted(text: str) -> str:
    """`text` as an element of an array; PostgreSQL knows no NUL, and no tool has one in its name."""
    if "\\" in text or '"' in text or "\0" in text:
        text = text.replace("\0", "").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
