"""Create Token on a fresh installation: a person who may add agents names a new agent, and gets its token."""

from typing import Any

import pytest
from django.test import Client

from accounts.models import User
from auditlog.actions import Action
from auditlog.models import Event
from capabilities import Capability
from capabilities.catalogue import including
from gateways.models import Gateway
from hosts.models import Host, HostKind
from tests import make
from tests.conftest import SignIn
from tokens.models import Token

pytestmark = pytest.mark.django_db

PAGE = "/settings/api-tokens/create"
MAKING = f"{PAGE}/agent"
CHOSEN = {"gateway": "work", "client": "python"}
HTMX = {"HX-Request": "true"}


@pytest.fixture
def work() -> Gateway:
    return make.gateway(slug="work")


@pytest.fixture
def maker(sign_in: SignIn) -> Client:
    """The browser of a person who may add agents, but sees none."""
    return sign_in(make.user(Capability.API_TOKENS_MANAGE))


def text(response: Any) -> str:
    return str(response.content.decode())


@pytest.mark.full
def test_from_connecting_a_client_to_a_token_of_a_new_agent_without_script(work: Gateway, maker: Client) -> None:
    shown = text(maker.get("/connect/client/", {"gateway": "work", "client": "python", "how": "token"}))
    assert f'href="{PAGE}?gateway=work&amp;client=python"' in shown

    asked = text(maker.get(PAGE, CHOSEN))
    assert all(words in asked for words in ("Create Token", "Name your agent", "Create and continue"))
    assert f'action="{MAKING}"' in asked
    assert all(f'<input type="hidden" name="{name}" value="{value}">' in asked for name, value in CHOSEN.items())

    begun = maker.post(MAKING, {"name": " CI bot "} | CHOSEN, follow=True)
    host = Host.objects.get()
    assert begun.redirect_chain[0] == (f"/connect/?host={host.pk}&gateway=work&client=python", 302)
    assert (host.name, host.kind, host.allow_enrolment) == ("CI bot", HostKind.TOKEN, False)
    assert Event.objects.filter(action=Action.HOST_CREATED).count() == 1
    last = begun.redirect_chain[1][0]  # The gateway was chosen earlier, so the flow skips that page.

    assert "Token for CI bot on" in text(begun)
    made = text(maker.post(last, {"name": "ci", "scope": "all", "expires_in_days": "90"}))
    assert Token.objects.get().connection.gateway == work
    assert '<details name="client" open><summary>Python' in made


def test_htmx_gets_the_form_in_its_dialog_and_is_sent_on(work: Gateway, maker: Client) -> None:
    asked = text(maker.get(PAGE, CHOSEN, headers=HTMX))
    answer = maker.post(MAKING, {"name": "CI bot"} | CHOSEN, headers=HTMX)

    assert "<html" not in asked
    assert f'hx-post="{MAKING}"' in asked
    assert answer["HX-Redirect"] == f"/connect/?host={Host.objects.get().pk}&gateway=work&client=python"


@pytest.mark.full
def test_a_taken_or_bad_name_is_told_and_nothing_is_lost(work: Gateway, maker: Client, ana: User) -> None:
    make.agent(by=ana, name="CI bot").disable(by=ana)

    for headers in ({}, HTMX):
        answer = maker.post(MAKING, {"name": "ci BOT"} | CHOSEN, headers=headers)

        assert answer.status_code == 422
        assert "An agent with this name already exists." in text(answer)
        kept = {"name": "ci BOT"} | CHOSEN
        assert all(f'name="{name}" value="{value}"' in text(answer) for name, value in kept.items())
    for name in ("", "   ", "x" * 121, "a\x00b"):
        assert maker.post(MAKING, {"name": name}).status_code == 422
    assert Host.objects.count() == 1


def test_more_than_a_name_is_not_taken_from_the_form(maker: Client) -> None:
    maker.post(MAKING, {"name": "CI bot", "allow_enrolment": "on", "description": "x"})

    host = Host.objects.get()
    assert (host.allow_enrolment, host.description) == (False, "")


@pytest.mark.full
def test_people_who_may_not_add_agents_learn_who_can(work: Gateway, sign_in: SignIn) -> None:
    client = sign_in(make.user(*set(Capability) - including([Capability.API_TOKENS_CREATE])))

    shown = text(client.get(PAGE, CHOSEN))

    assert "You need the capability <i>Connect own agents</i>, or an agent with <i>Allow enrolment</i> ticked" in shown
    assert "Ask for it" in shown
    assert "Name your agent" not in shown
    assert client.post(MAKING, {"name": "CI bot"} | CHOSEN).status_code == 403
    assert not Host.objects.exists()


def test_where_there_are_agents_one_is_chosen_and_the_rest_goes_along(work: Gateway, maker: Client, ana: User) -> None:
    make.agent(by=ana, name="CI bot")

    shown = text(maker.get(PAGE, CHOSEN))

    assert "Name your agent" not in shown
    assert f'href="{MAKING}?gateway=work&amp;client=python">New agent</a>' in shown
    assert shown.count('<input type="hidden" name="client" value="python">') == 2  # In both forms: search and continue.


@pytest.mark.full
def test_an_unknown_client_is_dropped_from_the_flow(work: Gateway, maker: Client, ana: User) -> None:
    host = make.agent(by=ana)
    begun = maker.get("/connect/", {"host": str(host.pk), "gateway": "work", "client": '"><script>'})
    again = maker.get("/connect/", {"host": str(host.pk), "gateway": "work", "client": "python"})

    told = [maker.get(one["Location"]).context["flow"].start_url for one in (begun, again)]

    assert told == [f"/connect/?host={host.pk}&gateway=work", f"/connect/?host={host.pk}&gateway=work&client=python"]
