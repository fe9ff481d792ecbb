"""Errors of an unapproved app are shown on the gateway's own page, without a redirect (RFC 9700 section 4.11.2)."""

from typing import Any

import pytest
from django.test import Client

from accounts.models import User, WorkspaceSettings
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection
from gateways.models import Gateway
from hosts.models import Host
from oauth.registration import by_hand
from tests import make
from tests.oauth.apps import App, browser, connect, decide, register

pytestmark = pytest.mark.django_db

EVIL = "https://evil.example/cb"
WRONG: list[dict[str, Any]] = [
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


@pytest.mark.full
def test_a_link_of_a_strangers_app_leads_nowhere(member: User, gateway: Gateway, subtests: pytest.Subtests) -> None:
    people = (Client(), browser(member))
    local = ("http://127.0.0.1:33418/callback", "cursor://anysphere/callback")
    for uri, changes in ((EVIL, WRONG), *((uri, WRONG[:1]) for uri in local)):
        app = app_at(uri)
        for change in changes:
            with subtests.test(f"{uri} {change}"):
                for somebody in people:
                    response = somebody.get(app.question(gateway, **change))

                    assert stays_here(response)
                    page = response.content.decode().replace("<b>", "").replace("</b>", "")
                    assert "This app is not approved here" in page
                    assert uri.partition("://")[2].partition("/")[0] in page


@pytest.mark.full
def test_an_app_somebody_connected_is_told_unless_it_is_held_back(member: User, gateway: Gateway) -> None:
    """A second registration under the app's name may be a stranger's, so its errors are not redirected."""
    app = app_at(EVIL)
    connect(app, member, gateway)
    borrowed = app_at(f"{EVIL}/leave?to=evil")

    told = Client().get(app.question(gateway, code_challenge_method="plain"))
    assert told["Location"].startswith(f"{EVIL}?error=invalid_request")
    assert stays_here(Client().get(borrowed.question(gateway, prompt="none")))
    for held_back in ({"needs_approval": True}, {"needs_approval": False, "enabled": False}):
        Host.objects.update(**held_back)
        assert stays_here(browser(member).get(app.question(gateway, prompt="none")))


def test_an_app_registered_by_hand_is_told(gateway: Gateway) -> None:
    registration, _ = by_hand(name="Intranet", redirect_uris=[EVIL], confidential=False)
    app = App(registration.application.client_id, redirect_uri=EVIL)

    assert Client().get(app.question(gateway, prompt="none"))["Location"].startswith(f"{EVIL}?error=interaction")


@pytest.mark.full
def test_a_person_who_says_no_is_brought_back_to_any_app(member: User, gateway: Gateway) -> None:
    """The person pressed Deny on a page that showed the redirect URI, so redirecting is safe."""
    answer = decide(browser(member), app_at(EVIL).question(gateway), "deny")

    assert (answer["to"], answer["error"]) == (EVIL, "access_denied")
    assert (answer["state"], answer["iss"]) == ("xyz", "http://localhost:8000")
    assert not Connection.objects.exists()


# --- Following a link changes nothing --------------------------------------------------------------------------------


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
