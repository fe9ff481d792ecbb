"""The API over real HTTP, served by two real worker processes."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import httpx
import pytest

from tests.eventually import eventually
from tests.exported import rows_of
from tests.make import unique
from tests.workspace import Serve

pytestmark = pytest.mark.full

ROWS = """
INSERT INTO auditlog_call (uid, created_at, correlation_id, method, feature_type, feature_name, outcome, deny_reason,
  http_status, host_name, gateway_name, server_name, user_email, identity_label, token_name, token_prefix, duration_ms,
  request_bytes, response_bytes, user_agent, client_name, client_version, protocol_version, payload_truncated)
SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '7' || substr(md5(number::text), 1, 3)
    || 'a' || substr(md5(random()::text), 1, 15))::uuid, now(), gen_random_uuid(), 'tools/call', 'tool', %s, 'ok', '',
  200, '', '', '', '', '', '', '', number, 0, 0, '', '', '', '', false FROM generate_series(1, %s) number
"""


def test_every_answer_has_a_request_id(live: Serve, owner: httpx.Client) -> None:
    answers = [owner.get("/api/me"), owner.get("/api/nowhere"), httpx.get(f"{live.url}/api/tokens")]

    assert [answer.status_code for answer in answers] == [200, 404, 401]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 3
    assert all(answer.headers["content-type"] == "application/json" for answer in answers)


def test_a_person_changes_things_with_session_and_csrf(owner: httpx.Client) -> None:
    name = unique("bot")

    made = owner.post("/api/hosts", json={"name": name})
    bare = owner.post("/api/hosts", json={"name": unique("bot")}, headers={"X-CSRFToken": ""})

    assert (made.status_code, made.json()["name"]) == (201, name)
    assert (bare.status_code, bare.json()["code"]) == (403, "csrf_failed")


def test_bad_bodies_are_told_apart(owner: httpx.Client) -> None:
    def told(body: bytes, kind: str = "application/json") -> tuple[int, str]:
        answer = owner.post("/api/hosts", content=body, headers={"Content-Type": kind})
        return answer.status_code, answer.json()["code"]

    for body in (b"{", b"[" * 100_000, b'{"name": NaN}', b'{"name": "\xff"}'):
        assert told(body) == (400, "parse_error"), body[:20]
    assert told(b'{"name": "\\ud800"}') == (400, "invalid")
    assert told(b'"' + b"x" * 1024 * 1024 + b'"') == (413, "too_large")
    assert told(b"name=x", "text/plain") == (415, "unsupported_media_type")


def test_two_workers_agree_on_who_was_first(owner: httpx.Client) -> None:
    """Of six concurrent revocations, one succeeds. Six concurrent disable requests succeed, but record one event."""
    host = owner.post("/api/hosts", json={"name": unique("bot")}).json()["id"]
    gateway = owner.get("/api/gateways/quickstart").json()["id"]
    body = {"host_id": host, "gateway_id": gateway, "name": "ci"}
    token = owner.post("/api/tokens", json=body).json()["id"]

    with ThreadPoolExecutor(6) as pool:
        ends = list(pool.map(lambda _: owner.post(f"/api/tokens/{token}/revoke"), range(6)))
        switches = list(pool.map(lambda _: owner.post(f"/api/hosts/{host}/disable"), range(6)))

    assert sorted(answer.status_code for answer in ends) == [204] + [409] * 5
    assert [answer.status_code for answer in switches] == [200] * 6
    events = owner.get("/api/admin-events", params={"target_id": host, "action": "host.disabled"}).json()
    assert len(events["results"]) == 1


RUNNING = "SELECT pid FROM pg_stat_activity WHERE application_name = 'gateway export' AND datname = current_database()"


def test_an_export_streams_more_rows_than_any_page_and_says_that_it_is_whole(live: Serve, owner: httpx.Client) -> None:
    tool = unique("tool")
    live.rows(ROWS, tool, 15_000)

    for kind in ("jsonl", "csv"):
        with owner.stream("GET", "/api/logs/export", params={"format": kind, "tool": tool}) as answer:
            assert answer.headers["transfer-encoding"] == "chunked"
            told = rows_of(answer.read().decode())
        assert len(told) == 15_000
        if kind == "jsonl":
            assert {row["duration_ms"] for row in told} == set(range(1, 15_001))
    eventually(lambda: not live.rows(RUNNING))


def test_an_export_ends_with_its_reader(live: Serve, owner: httpx.Client) -> None:
    live.rows(ROWS, unique("tool"), 60_000)
    logged = len(live.log())

    with owner.stream("GET", "/api/logs/export", params={"format": "jsonl"}) as answer:
        pieces = answer.iter_raw()  # Referenced, because otherwise the answer is closed.
        next(pieces)
        eventually(lambda: not live.rows(RUNNING))  # While the client reads nothing, the export runs no query.

    eventually(lambda: not live.rows(RUNNING))
    assert "Traceback" not in live.log()[logged:]


def test_an_export_that_loses_the_database_ends_with_a_line_and_an_error(live: Serve, owner: httpx.Client) -> None:
    live.rows(ROWS, unique("tool"), 60_000)
    got: list[bytes] = []

    with owner.stream("GET", "/api/logs/export", params={"format": "jsonl"}) as answer:
        pieces, over = answer.iter_raw(), Event()
        got.append(next(pieces))

        def cut() -> None:
            while not over.is_set():
                live.rows(RUNNING.replace("pid", "pg_terminate_backend(pid)", 1))

        with ThreadPoolExecutor(1) as beside:
            beside.submit(cut)
            try:
                with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
                    drain(pieces, got)
            finally:
                over.set()

    assert json.loads(b"".join(got).splitlines()[-1])["export"]["complete"] is False


def drain(pieces: Iterator[bytes], got: list[bytes]) -> None:
    for piece in pieces:
        got.append(piece)  # noqa: PERF402  (what came before an error counts)
