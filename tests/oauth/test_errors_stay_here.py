"""Errors of an unapproved app are shown on the gateway's own page, without a redirect (RFC 9700 section 4.11.2)."""

from typing import Any

import pytest
from django.test import Client

from accounts.models import User, WorkspaceSettings
from auditlog.models import Event
from capabilities import Capability
from gateways.models import Gateway
from hosts.models import Host
from oauth.models import Registration
from oauth.registration import by_hand
from tests import make
from tests.oauth.apps import App, browser, connect, decide, register

pytestmark = pytest.mark.django_db

EVIL = "https://evil.example/cb"
WRONG = [
    {"code_challenge": None, "code_challenge_method": None},
    {"code_challenge_method": "plain"},
    {"code_challenge": "short"},
    {"resource": "https://elsewhere.example/mcp/x"},
    {"response_type": "token"},
    {"response_type": "nonsense"},
    {"response_type": None},
    {"prompt": "none"},
]


def app_at(*uris: str, name: str = "Claude Desktop") -> App:
    return App(register(redirect_uris=list(uris), client_name=name).json()["client_id"], redirect_uri=uris[0])


def stays_here(response: Any) -> bool:
    """Return True if the response is a page that explains the error, without a redirect."""
    assert response.status_code == 400
    assert b"This app cannot be connected" in response.content
    return not {"Location", "Refresh"} & set(response.headers)


@pytest.mark.parametrize("change", WRONG)
@pytest.mark.parametrize("uri", [EVIL, "http://127.0.0.1:33418/callback", "cursor://anysphere/callback"])
def test_a_link_of_a_strangers_app_leads_nowhere(
    change: dict[str, Any], uri: str, member: User, gateway: Gateway
) -> None:
    app = app_at(uri)

    for somebody in (Client(), browser(member)):
        response = somebody.get(app.question(gateway, **change))

        assert stays_here(response)
        assert b"This app is not approved here" in response.content
        assert uri.partition("://")[2].partition("/")[0].encode() in response.content.replace(b"<b>", b"").replace(
            b"</b>", b""
        )


@pytest.mark.full
def test_an_app_somebody_connected_is_told(member: User, gateway: Gateway) -> None:
    app = app_at(EVIL)
    connect(app, member, gateway)

    told = Client().get(app.question(gateway, code_challenge_method="plain"))

    assert told["Location"].startswith(f"{EVIL}?error=invalid_request")


def test_an_app_registered_by_hand_is_told(gateway: Gateway) -> None:
    registration, _ = by_hand(name="Intranet", redirect_uris=[EVIL], confidential=False)
    app = App(registration.application.client_id, redirect_uri=EVIL)

    assert Client().get(app.question(gateway, prompt="none"))["Location"].startswith(f"{EVIL}?error=interaction")


@pytest.mark.full
def test_another_registration_under_a_known_name_is_a_stranger(member: User, gateway: Gateway) -> None:
    """The new redirect URI may be a page of the same site that redirects further."""
    connect(app_at("https://app.example.com/cb"), member, gateway)
    borrowed = app_at("https://app.example.com/leave?to=evil")

    assert stays_here(Client().get(borrowed.question(gateway, prompt="none")))


@pytest.mark.full
@pytest.mark.parametrize("held_back", ["pending", "disabled"])
def test_an_app_that_is_held_back_is_told_nothing(held_back: str, member: User, gateway: Gateway) -> None:
    app = app_at(EVIL)
    connect(app, member, gateway)
    Host.objects.update(**{"pending": {"needs_approval": True}, "disabled": {"enabled": False}}[held_back])

    assert stays_here(browser(member).get(app.question(gateway, prompt="none")))


@pytest.mark.full
def test_a_person_who_says_no_is_brought_back_to_any_app(member: User, gateway: Gateway) -> None:
    """The person pressed Deny on a page that showed the redirect URI, so redirecting is safe."""
    answer = decide(browser(member), app_at(EVIL).question(gateway), "deny")

    assert (answer["to"], answer["error"]) == (EVIL, "access_denied")


# --- Following a link changes nothing --------------------------------------------------------------------------------


@pytest.mark.full
def test_following_a_link_adds_no_pending_app(app: App, member: User, gateway: Gateway) -> None:
    WorkspaceSettings.edit(by=None, new_app_policy="approve")
    before = Event.objects.count()
    client = browser(member)

    page = client.get(client.get(app.question(gateway))["Location"])

    assert b"Ask for approval" in page.content
    assert (Host.objects.count(), Event.objects.count()) == (0, before)
    assert Registration.objects.get().host is None


@pytest.mark.full
def test_people_who_may_not_connect_apps_cannot_request_approval(app: App, gateway: Gateway) -> None:
    WorkspaceSettings.edit(by=None, new_app_policy="approve")
    client = browser(make.user(Capability.HOSTS_READ))
    begun = client.get(app.question(gateway))["Location"]

    assert client.post(begun, {"ask": "yes"}).status_code == 403
    assert not Host.objects.exists()


def test_asking_twice_shows_one_app(app: App, member: User, gateway: Gateway) -> None:
    WorkspaceSettings.edit(by=None, new_app_policy="approve")
    client = browser(member)
    pages = [client.get(app.question(gateway))["Location"] for _ in range(2)]

    for page in pages:
        assert client.post(page, {"ask": "yes"}, follow=True).status_code == 403

    assert [one.is_pending for one in Host.objects.all()] == [True]
    assert Event.objects.filter(action="host.appeared").count() == 1


@pytest.mark.full
def test_an_app_that_has_to_be_approved_meanwhile_is_asked_for_too(app: App, member: User, gateway: Gateway) -> None:
    client = browser(member)
    begun = client.get(app.question(gateway))["Location"]
    consent = client.post(begun, {"gateway": gateway.slug})["Location"]
    WorkspaceSettings.edit(by=None, new_app_policy="approve")

    answer = client.post(consent, {"decision": "allow"})

    assert b"Ask for approval" in answer.content
    assert "Refresh" not in answer
    assert not Host.objects.exists()
