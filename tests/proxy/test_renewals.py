"""Calls that need a new token while the issuer, the server or a component of the gateway fails."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import httpx
import pytest

from auditlog.models import Call
from capabilities import Capability
from connections.models import Connection, ConnectionIdentity
from proxy.refresh import STATEMENTS
from proxy.store.pg import StatePool
from servers.models import Identity
from tests import make
from tests.asgi_server import Scope, Send, answer
from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.issuers import Issuer
from tests.proxy.conftest import Agent, Proxy, eventually, sql
from tests.proxy.test_failing_parts import UNAVAILABLE, fail_statements, failing
from tests.proxy.test_issuer_failures import signed_in
from tests.proxy.test_sign_in import access_of, error, expire, said, while_renewing

pytestmark = pytest.mark.usefixtures("loopback_is_allowed")


@pytest.fixture
def agent(issuer: Issuer, proxy: Proxy, run: Run) -> Agent:
    """An agent that has called once, for a person who has signed in at the issuer."""
    agent = signed_in(issuer, proxy, run, make.user(email="ann@example.com"))
    assert "Bearer" in said(agent.call("github__whoami"))
    return agent


@pytest.fixture
def identity(agent: Agent) -> Identity:
    return Identity.objects.get()


def nothing_was_called_after_the_renewal(issuer: Issuer) -> bool:
    return "/mcp" not in issuer.asked[len(issuer.asked) - issuer.asked[::-1].index("/token") :]


async def unreadable(*_: Any) -> list[Any]:
    return [UNAVAILABLE]


@pytest.mark.full
@pytest.mark.parametrize(
    "find_again",
    [failing(UNAVAILABLE), unreadable],
    ids=["away", "unreadable"],
)
def test_a_call_that_waited_does_not_go_on_when_nobody_can_tell_whether_it_may(
    issuer: Issuer, agent: Agent, identity: Identity, monkeypatch: pytest.MonkeyPatch, find_again: Any
) -> None:
    expire(identity)
    while_renewing(issuer, lambda: monkeypatch.setattr("proxy.streams.find_again", find_again))

    assert error(agent.call("github__whoami"))["data"]["reason"] == "identity_unavailable"

    assert nothing_was_called_after_the_renewal(issuer)
    monkeypatch.undo()
    assert said(agent.call("github__whoami")) == f"Bearer {access_of(identity)}"


def test_a_call_that_waited_finds_out_what_it_was_not_told(issuer: Issuer, agent: Agent, identity: Identity) -> None:
    boss = make.user(*Capability)

    def disable() -> None:
        sql("ALTER TABLE connections_connection DISABLE TRIGGER tell_cut")
        try:
            Connection.objects.get().disable(by=boss)
        finally:
            sql("ALTER TABLE connections_connection ENABLE TRIGGER tell_cut")

    expire(identity)
    while_renewing(issuer, disable)

    response = agent.call("github__whoami")

    assert (response.status_code, response.json()["error"]["data"]) == (403, {"reason": "connection_disabled"})
    assert Call.objects.order_by("-created_at", "-id")[0].deny_reason == "connection_disabled"
    assert nothing_was_called_after_the_renewal(issuer)


@pytest.mark.full
def test_a_call_does_not_go_on_as_somebody_else_than_it_began_as(
    issuer: Issuer, agent: Agent, identity: Identity
) -> None:
    def exchange() -> None:
        other = Identity.objects.get(pk=identity.pk)
        other.pk, other.label = uuid4(), "another"
        other.save(force_insert=True)
        ConnectionIdentity.objects.update(identity=other)

    expire(identity)
    while_renewing(issuer, exchange)

    assert error(agent.call("github__whoami"))["data"]["reason"] == "identity_unavailable"
    assert nothing_was_called_after_the_renewal(issuer)


@pytest.mark.full
def test_a_server_that_forbids_a_call_without_naming_rights_is_not_asked_again(
    issuer: Issuer, agent: Agent, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forbids(_: str, __: Scope, send: Send) -> bool:
        await answer(send, 403, b"no")
        return False

    monkeypatch.setattr(issuer, "_admits", forbids)

    assert error(agent.call("github__whoami"))["data"]["reason"] == "credential_refused"

    assert (issuer.refreshes, Identity.objects.get(pk=identity.pk).status) == (0, "active")


@pytest.mark.full
def test_a_server_that_takes_a_fresh_token_and_forbids_the_call_ends_no_sign_in(
    issuer: Issuer, agent: Agent, identity: Identity
) -> None:
    del issuer.access[access_of(identity)]
    while_renewing(issuer, lambda: setattr(issuer, "needs_scope", "write"))

    assert error(agent.call("github__whoami"))["data"]["reason"] == "credential_refused"

    assert (issuer.refreshes, Identity.objects.get().status) == (1, "active")


@pytest.mark.full
def test_a_call_that_needs_more_rights_says_so_although_nobody_can_note_it(
    issuer: Issuer, agent: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    issuer.needs_scope = "write"
    fail_statements(monkeypatch, STATEMENTS["more_scope"])

    assert error(agent.call("github__whoami"))["data"]["reason"] == "identity_scope"
    assert "a server's refusal could not be stored" in caplog.text


@pytest.mark.full
def test_a_call_whose_fresh_token_is_refused_says_so_although_nobody_can_note_it(
    issuer: Issuer, agent: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuses(_: str, __: Scope, send: Send) -> bool:
        await answer(send, 401, b"no")
        return False

    monkeypatch.setattr(issuer, "_admits", refuses)
    fail_statements(monkeypatch, STATEMENTS["refused"])

    assert error(agent.call("github__whoami"))["data"]["reason"] == "identity_sign_in"
    assert issuer.refreshes == 1
    assert "a server's refusal could not be stored" in caplog.text


@pytest.mark.full
def test_a_token_that_cannot_be_renewed_for_lack_of_the_database_ends_no_sign_in(
    issuer: Issuer, agent: Agent, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    expire(identity)
    fail_statements(monkeypatch, STATEMENTS["take"])

    assert error(agent.call("github__whoami"))["data"]["reason"] == "identity_unavailable"

    monkeypatch.undo()
    assert (issuer.refreshes, Identity.objects.get().status) == (0, "active")
    assert said(agent.call("github__whoami")) == f"Bearer {access_of(identity)}"


@pytest.mark.full
@pytest.mark.parametrize(("times", "reason"), [(4, ""), (5, "identity_unavailable")])
def test_a_token_that_was_given_once_is_stored_although_the_database_was_away_for_a_moment(
    agent: Agent, identity: Identity, monkeypatch: pytest.MonkeyPatch, times: int, reason: str
) -> None:
    fetch, failed = StatePool.fetch, [0]

    async def fails(state: StatePool, statement: str, params: Any = ()) -> list[tuple[Any, ...]]:
        if statement == STATEMENTS["store"] and failed[0] < times:
            failed[0] += 1
            raise UNAVAILABLE
        return await fetch(state, statement, params)

    monkeypatch.setattr("proxy.refresh.STORE_PAUSE", 0.01)
    expire(identity)
    before = access_of(identity)
    monkeypatch.setattr(StatePool, "fetch", fails)

    response = agent.call("github__whoami")

    assert failed == [times]
    if reason:
        assert error(response)["data"]["reason"] == reason
    else:
        assert said(response) == f"Bearer {access_of(identity)}" != f"Bearer {before}"


@pytest.mark.full
def test_a_worker_that_stops_stores_the_token_that_was_being_renewed(
    issuer: Issuer, agent: Agent, identity: Identity, proxy: Proxy
) -> None:
    expire(identity)
    before = access_of(identity)
    asked, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        asked.set()
        assert go_on.wait(PATIENCE)

    while_renewing(issuer, wait)
    leaving = threading.Thread(target=lambda: ended(lambda: agent.call("github__whoami")))
    leaving.start()
    assert asked.wait(PATIENCE)
    stopping = threading.Thread(target=proxy.stop)
    stopping.start()
    leaving.join(PATIENCE)  # The call is cut off, but its renewal continues.
    go_on.set()
    stopping.join(PATIENCE)

    eventually(lambda: access_of(identity) != before)
    assert issuer.refreshes == 1


def ended(call: Callable[[], object]) -> None:
    """Make this call, and ignore an HTTP error, because the call may be cut off."""
    with suppress(httpx.HTTPError):
        call()
