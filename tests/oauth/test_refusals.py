"""Authorize flows: who owns them, when they end, and when they are refused."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.test import Client

from accounts.models import User
from capabilities import Capability
from connections.models import HostAtGateway
from gateways.models import Gateway
from oauth.models import AuthorizeRequest
from tests import make
from tests.conftest import SignIn
from tests.meanwhile import meanwhile
from tests.oauth.steps import begin, minted, options, text
from tests.undone import undone
from tokens.models import Token

pytestmark = pytest.mark.django_db


@pytest.mark.full
def test_without_the_capability_the_flow_refuses_in_words(ann: User, sign_in: SignIn) -> None:
    """The flow's first page answers 403 and says that the capability is missing and enrolment is disabled."""
    host = make.agent(by=ann)
    make.gateway()

    response = sign_in(ann).get("/connect/", {"host": str(host.pk)})

    assert response.status_code == 403
    assert "Your role lacks Create and manage API tokens. Enrolment with this agent is disabled." in text(response)
    assert not AuthorizeRequest.objects.exists()


@pytest.mark.full
def test_an_agent_open_for_enrolment_needs_no_capability_until_enrolment_is_switched_off(
    ann: User, sign_in: SignIn
) -> None:
    host, gateway = make.agent(by=make.user()), make.gateway()
    host.set_enrolment(True, by=ann)
    client = sign_in(ann)
    minted(client.post(options(client, host, gateway), {"name": "mine", "scope": "all"}))
    assert Token.objects.get().connection.user == ann

    page = options(client, host, gateway)
    host.set_enrolment(False, by=ann)

    assert client.post(page, {"name": "other", "scope": "all"}).status_code == 403
    assert Token.objects.count() == 1


@pytest.mark.full
def test_objects_disabled_meanwhile_refuse_at_every_step(sign_in: SignIn, subtests: pytest.Subtests) -> None:
    person = make.user(Capability.API_TOKENS_MANAGE)
    host, gateway = make.agent(by=person), make.gateway()
    connection = make.connection(host, gateway, person)
    client = sign_in(person)
    page = options(client, host, gateway)
    acts: list[tuple[Callable[[], object], str]] = [
        (lambda: host.disable(by=person), "An administrator has disabled this app or agent."),
        (lambda: gateway.disable(by=person), "An administrator has disabled this gateway."),
        (lambda: connection.disable(by=person), "This connection has been disabled by an administrator."),
        (lambda: Gateway.objects.update(reach="teams"), "Your teams do not include this gateway."),
        (
            lambda: HostAtGateway.objects.at(gateway, host).block(by=person),
            "This gateway does not allow this app or agent.",
        ),
    ]
    for act, words in acts:
        with subtests.test(words), undone():
            act()
            for response in (client.get(page), client.post(page, {"name": "x", "scope": "all"})):
                assert response.status_code == 403
                assert words in text(response)
            assert not Token.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_disabling_during_a_token_request_issues_none(ana: User, sign_in: SignIn) -> None:
    host, gateway = make.agent(by=ana), make.gateway()
    link = make.connection(host, gateway, ana)
    client = sign_in(ana)
    page = options(client, host, gateway)

    answer = meanwhile(lambda: client.post(page, {"name": "x", "scope": "all"}), lambda: link.disable(by=ana))

    assert answer.status_code == 403
    assert "This connection has been disabled by an administrator." in text(answer)
    assert not Token.objects.exists()


@pytest.mark.full
def test_a_stranger_signs_in_first_and_comes_back_to_the_flow(ana: User) -> None:
    ana.set_password(make.PASSWORD)
    ana.save()
    host = make.agent(by=ana)
    make.gateway()
    client = Client()

    asked = client.get("/connect/", {"host": str(host.pk)}, follow=True)
    arrived = client.post(
        "/accounts/login/",
        {"login": ana.email, "password": make.PASSWORD, "next": f"/connect/?host={host.pk}"},
        follow=True,
    )

    assert asked.redirect_chain[0][0] == f"/accounts/login/?next=/connect/%3Fhost%3D{host.pk}"
    assert "to a gateway" in text(arrived)


@pytest.mark.full
def test_a_flow_belongs_to_the_person_and_the_browser_that_began_it(ana: User, viv: User, sign_in: SignIn) -> None:
    make.gateway()
    client = sign_in(ana)
    first = begin(client, make.agent(by=ana))

    client.force_login(ana)  # Signing in changes the session key.
    assert client.get(first).status_code == 200
    assert sign_in(ana).get(first).status_code == 404
    client.force_login(viv)
    assert client.get(first).status_code == 404


@pytest.mark.full
def test_after_a_quarter_of_an_hour_the_flow_has_expired(ana: User, sign_in: SignIn) -> None:
    gateway = make.gateway()
    client = sign_in(ana)
    page = options(client, make.agent(by=ana), gateway)

    with time_machine.travel(datetime.now(UTC) + timedelta(minutes=15, seconds=1)):
        response = client.post(page, {"name": "x", "scope": "all"})

    assert response.status_code == 410
    assert "This request has expired. Start again from Apps &amp; Agents." in text(response)
    assert not Token.objects.exists()


def test_switching_the_account_starts_the_flow_again(ana: User, sign_in: SignIn) -> None:
    host, gateway = make.agent(by=ana), make.gateway()
    client = sign_in(ana)

    page = text(client.get(begin(client, host, gateway=gateway.slug)))

    assert "Not you? Switch account" in page
    assert f'name="next" value="/connect/?host={host.pk}&amp;gateway={gateway.slug}"' in page
