"""The page My calls shows a person's own calls, and a page waits for the first call of a new client."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
import time_machine

from accounts.models import User
from auditlog.models import Call
from capabilities import Capability
from connections.models import Connection
from gateways.models import ToolPolicy
from tests import make
from tests.conftest import SignIn
from tests.rest import Rest
from ui.pages import PAGE_SIZE

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}
WAIT = "/settings/calls/wait"


def text(response: Any) -> str:
    return str(response.content.decode())


@pytest.fixture
def link(max: User) -> Connection:
    """A connection of max, who has only a member's capabilities."""
    return make.connection(make.agent(by=max, name="Codex"), make.gateway(slug="work", name="Work"), max)


def call_of(link: Connection, **fields: Any) -> Call:
    told: dict[str, Any] = {
        "user_id": link.user_id, "connection_id": link.pk, "gateway_id": link.gateway_id, "host_id": link.host_id,
        "host_name": link.host.name, "gateway_name": link.gateway.name, "feature_name": "echo",
    }  # fmt: skip
    return make.call(**(told | fields))


def since(**ago: int) -> str:
    return quote((datetime.now(UTC) - timedelta(**ago)).isoformat())


@pytest.mark.full
def test_my_calls_are_mine_alone_and_a_refused_one_says_why_in_words(
    link: Connection, max: User, ann: User, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = sign_in(max)
    empty = text(client.get("/settings/calls"))
    call_of(link, feature_name="good")
    call_of(link, feature_name="bad", outcome="denied", deny_reason="host_disabled")
    call_of(link, feature_name="lacking", outcome="denied", deny_reason="identity_missing")
    call_of(link, feature_name="anns", user_id=ann.pk)
    call_of(link, feature_name="", method="GET", outcome="not_offered")

    page, home = text(client.get("/settings/calls")), text(client.get("/"))
    refused, failed = (text(client.get(f"/settings/calls?show={show}")) for show in ("refused", "failed"))
    monkeypatch.setattr("auditlog.own_calls.SEARCH_LIMIT", 1)
    newest = text(client.get("/settings/calls?show=refused"))

    assert "Your apps and agents have made no calls yet." in empty
    assert 'href="/connect/client/"' in empty
    assert [name in page for name in ("good", "bad", "lacking", "anns")] == [True, True, True, False]
    assert "An administrator disabled this app or agent." in page
    assert f'/settings/identities?connection={link.pk}">Add your credential' in page
    assert "/logs/" not in page
    assert "not offered" not in page + home, "probes of clients are not listed"
    assert [f">{name}</a>" in refused for name in ("good", "bad", "lacking", "anns")] == [False, True, True, False]
    assert "No call matches." in failed
    assert [f">{name}</a>" in newest for name in ("bad", "lacking")] == [False, True]


@pytest.mark.full
def test_my_refused_call_says_the_one_reason_that_is_known_and_opens(
    link: Connection, max: User, ann: User, sign_in: SignIn
) -> None:
    assigned = make.assignment(link.gateway, make.server(slug="docs"))
    off = {"outcome": "denied", "deny_reason": "tool_disabled", "server_id": assigned.server_id}
    first = call_of(link, **off)
    switched = text(sign_in(max).get("/settings/calls"))
    assigned.edit(tool_policy=ToolPolicy.BLOCK_ALL, by=ann)
    unknown = text(sign_in(max).get("/settings/calls"))
    later = datetime.now(UTC) + timedelta(seconds=1)
    second = call_of(link, **off, at=later, client_ip="192.0.2.7", user_agent="curl/8")
    opened = sign_in(max).get(f"/settings/calls/{second.uid}/")

    assert "This tool is disabled on this gateway." in switched
    assert "or the policy does not allow it." in unknown, "it may have been the policy before"
    assert f'href="/settings/calls/{first.uid}/"' in switched
    assert "The policy of this gateway blocks this server." in text(opened)
    assert [words in text(opened) for words in ("tool_disabled", "192.0.2.7", "curl/8")] == [True] * 3
    assert "/logs/" not in text(opened)
    assert sign_in(ann).get(f"/settings/calls/{second.uid}/").status_code == 404


@pytest.mark.full
def test_dashboard_shows_the_newest_however_long_ago(link: Connection, max: User, sign_in: SignIn) -> None:
    for days in (*range(1, 8), 40, 50):
        call_of(link, feature_name=f"tool-{days:02}", at=datetime.now(UTC) - timedelta(days=days))
    client = sign_in(max)

    assert [call.what for call in client.get("/").context["own_calls"]] == [
        *(f"tool-{days:02}" for days in range(1, 8)),
        "tool-40",
    ]
    call_of(link, feature_name="tool-00")

    assert [call.what for call in client.get("/").context["own_calls"]] == [f"tool-{days:02}" for days in range(8)]


def wait(client: Any, query: str = "") -> Any:
    return client.get(f"{WAIT}?since={since(minutes=1)}{query}", headers=HTMX)


@pytest.mark.full
def test_the_wait_passes_introductions_and_refusals_and_ends_with_the_call_that_arrived(
    link: Connection, max: User, sign_in: SignIn
) -> None:
    client = sign_in(max)
    before = text(wait(client, "&gateway=work"))
    for method in ("initialize", "GET"):
        call_of(link, method=method, feature_name="", client_name="Codex CLI")
    hello = text(wait(client, "&gateway=work"))
    for _ in range(PAGE_SIZE + 10):
        call_of(link, outcome="denied", deny_reason="identity_missing")
    denied = text(wait(client, "&gateway=work"))
    call_of(link, client_name="Codex CLI")
    received = text(wait(client, "&gateway=work"))

    assert "Waiting for your first call" in before
    assert "Codex CLI has connected" in hello
    for words in ("Refused: echo from Codex", "The connection has no credential", "Add your credential"):
        assert words in denied
    for waiting in (before, hello, denied):
        assert 'hx-trigger="every 2s"' in waiting
    assert "Received: echo from Codex CLI" in received
    assert "Codex on Work: ok" in received
    assert "/settings/calls/" in received
    assert "hx-trigger" not in received


@pytest.mark.full
def test_a_call_that_failed_at_its_server_has_arrived_says_why_and_links_readers_of_the_log_to_it(
    sign_in: SignIn,
) -> None:
    reader = make.user(Capability.LOGS_READ)
    link = make.connection(make.agent(by=reader), make.gateway(), reader)
    call = call_of(link, outcome="upstream_error", deny_reason="unreachable")

    page = text(wait(sign_in(reader)))

    assert 'data-state="failed"' in page
    assert "The server could not be reached" in page
    assert f'href="/logs/{call.uid}/"' in page


@pytest.mark.full
def test_the_wait_is_for_new_calls_of_the_person_on_its_gateway_or_connection(
    link: Connection, ann: User, max: User, sign_in: SignIn
) -> None:
    other = make.connection(link.host, make.gateway(slug="other"), max)
    client = sign_in(max)
    call_of(link, at=datetime.now(UTC) - timedelta(minutes=2))
    assert "Waiting for your first call" in text(wait(client))
    call_of(link)

    for query in ("&gateway=other", f"&connection={other.pk}"):
        assert "Waiting for your first call" in text(wait(client, query)), query
    assert "Waiting for your first call" in text(wait(sign_in(ann), f"&connection={link.pk}"))
    assert "Received" in text(wait(client, f"&connection={link.pk}"))


@pytest.mark.full
def test_nothing_new_is_no_answer_and_the_wait_ends_by_itself(link: Connection, max: User, sign_in: SignIn) -> None:
    client = sign_in(max)
    first = client.get(f"{WAIT}?since={since()}", headers=HTMX)
    again = first.context["wait"].url

    assert client.get(again, headers=HTMX).status_code == 204
    with time_machine.travel(datetime.now(UTC) + timedelta(minutes=6)):
        asleep = client.get(again, headers=HTMX)
        assert "This page has stopped checking." in text(asleep)
        assert "every 2s" not in text(asleep)
        call_of(link, at=datetime.now(UTC) - timedelta(minutes=1))
        woken = text(client.get(asleep.context["wait"].again_url, headers=HTMX))
    assert ">Keep waiting</a>" in text(asleep)
    assert "Received: echo" in woken


def test_over_rest_one_s_own_calls_need_no_capability_and_say_why_in_words(
    link: Connection, max: User, ann: User
) -> None:
    call_of(link, feature_name="older", at=datetime.now(UTC) - timedelta(minutes=2))
    call_of(link, feature_name="refused", outcome="denied", deny_reason="host_disabled")
    call_of(link, feature_name="anns", user_id=ann.pk)
    rest = Rest.of(max)

    rows = rest.get("/me/calls", connection=str(link.pk), page_size=1).json()

    assert [(one["feature_name"], one["reason"]) for one in rows["results"]] == [
        ("refused", "An administrator disabled this app or agent.")
    ]
    assert "request_payload" not in rows["results"][0]
    older = Rest.of(max).get("/me/calls", cursor=rows["next"].partition("cursor=")[2].partition("&")[0]).json()
    assert [(one["feature_name"], one["reason"]) for one in older["results"]] == [("older", None)]


@pytest.mark.full
def test_a_key_reads_them_with_the_capability_for_the_log(link: Connection) -> None:
    reader = make.user(Capability.LOGS_READ, Capability.OAUTH_CONNECT)

    without = Rest.bearing(make.api_key(reader, Capability.OAUTH_CONNECT).secret).get("/me/calls")
    holding = Rest.bearing(make.api_key(reader, Capability.LOGS_READ).secret).get("/me/calls")

    assert (without.status_code, holding.status_code) == (403, 200)


def test_the_search_finds_a_call_of_ones_own_by_its_id(max: User, sign_in: SignIn) -> None:
    own, other = make.call(user_id=max.pk, feature_name="docs__get"), make.call(user_id=make.user().pk)
    client = sign_in(max)

    found, hidden = (client.get("/find/", {"q": str(call.uid)}).content.decode() for call in (own, other))

    assert f'href="/settings/calls/{own.uid}/"' in found
    assert f"/settings/calls/{other.uid}/" not in hidden
    assert "Your call" not in hidden
