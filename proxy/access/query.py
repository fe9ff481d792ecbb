"""The one statement that says what decides a request.

Requests that arrive while a statement is under way wait for it and then share the next one, so each
is decided by what the database says after its arrival; nothing is cached.
"""

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import orjson
from psycopg.adapt import Transformer
from psycopg.pq.abc import PGresult

from proxy.access.grant import AssignedServer, Grant
from proxy.store.group_commit import GroupCommit, Waiting, fail, resolve
from proxy.store.pg_connection import PgConnection, Unobtainable
from wire import token_text

logger = logging.getLogger(__name__)

STATEMENT = Path(__file__).with_name("query.sql").read_bytes()
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

SLUG = "[a-z0-9-]{1,40}"  # A gateway in a URL, as a pattern.
_is_slug = re.compile(SLUG).fullmatch

# What a request needs to know of the servers behind its gateway.
NOTHING, ALL, ADDRESSED = 0, 1, 2


class TokenDigests(NamedTuple):
    """What the database may know a token as: a row is looked for under each of these digests or checksums."""

    digests: tuple[bytes | None, ...]
    checksums: tuple[str | None, ...]


class AccessQuery(NamedTuple):
    """What requests ask the database; equal ones are put once."""

    key: TokenDigests
    slug: str
    wanted: int
    tool: str


class Access(GroupCommit[AccessQuery, Grant | None]):
    """Asks for the facts of requests, in batches."""

    def __init__(self, conninfo: str, token_keys: Sequence[bytes], room: int = 2000) -> None:
        self._lane = PgConnection(conninfo, SETUP)
        self._keys = token_keys
        super().__init__("access", [self._answer], [self._lane], lost=lambda error: Unobtainable(str(error)), room=room)

    def key(self, token: str) -> TokenDigests:
        """What to look for this text as; its prefix says which table is asked."""
        if token.startswith(token_text.OAUTH_ACCESS):
            return TokenDigests((None,), (hashlib.sha256(token.encode()).hexdigest(),))
        return TokenDigests((*token_text.candidates(token, self._keys),), (None,) * len(self._keys))

    async def facts(self, key: TokenDigests, slug: str, wanted: int = NOTHING, tool: str = "") -> Grant | None:
        """What the database knows of this token now; None when it does not know it. Raises Unobtainable."""
        return await self.put(AccessQuery(key, slug if _is_slug(slug) else "", wanted, tool))

    async def _answer(self, batch: list[Waiting[AccessQuery, Grant | None]]) -> None:
        # Calls of one client at the same time often ask the same: that is put once.
        numbers = {question: number for number, question in enumerate(dict.fromkeys(asked for asked, _ in batch))}
        found = _read(await self._lane.query_again(b"decide", parameters([*numbers])))
        for question, future in batch:
            facts = found.get(numbers[question])
            if isinstance(facts, Unobtainable):
                logger.error("what the database says of a token cannot be read", extra={"error": str(facts)})
                fail([(question, future)], facts)
            else:
                resolve(future, facts)


def _read(result: PGresult) -> dict[int, Grant | Unobtainable]:
    """The facts by the numbers of the questions; those of one that cannot be read are no harm to the others."""
    transformer = Transformer()
    transformer.set_pgresult(result)
    found: dict[int, Grant | Unobtainable] = {}
    for number, *values in transformer.load_rows(0, result.ntuples, list):
        try:
            values[_ASSIGNMENTS] = _assigned(values[_ASSIGNMENTS])
            found[number] = Grant._make(values)
        except (ValueError, RecursionError) as error:
            found[number] = Unobtainable(str(error))
    return found


_ASSIGNMENTS = Grant._fields.index("assignments")


def _assigned(text: str | None) -> tuple[AssignedServer, ...]:
    if text is None:
        return ()
    try:
        rows = orjson.loads(text)
    except ValueError:  # The schema of a tool may hold an integer that orjson has no room for.
        rows = json.loads(text)
    return tuple(map(AssignedServer._make, rows))


def parameters(questions: Sequence[AccessQuery]) -> list[bytes]:
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
