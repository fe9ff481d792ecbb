"""The page for connecting a client: choosing client, gateway and method, and waiting for the client's first call."""

import base64
import json
import re
from typing import Any
from urllib.parse import unquote

import pytest
from pytest_django import Settings

from accounts.models import User
from capabilities import Capability
from gateways.models import Reach
from tests import make
from tests.conftest import SignIn
from ui.clients import client_block, clients

pytestmark = pytest.mark.django_db

PAGE = "/connect/client/"


def text(response: Any) -> str:
    return str(response.content.decode())


@pytest.mark.full
def test_every_client_is_there_with_the_tested_text_for_the_chosen_gateway(max: User, sign_in: SignIn) -> None:
    make.gateway(name="A first one")
    gateway = make.gateway(slug="work", name="Work")
    client = sign_in(max)
    page = ""

    for one in clients():
        for block in one.blocks:
            page = text(client.get(PAGE, {"gateway": "work", "client": one.slug, "how": block.way}))
            code = client_block(one, block.way, url=gateway.url, name="work")
            assert code
            assert code.code in page
            assert ("cannot connect to this gateway while its address is not https" in page) == block.from_internet
            assert not re.search(r"[*`]", code.where) or code.where not in page, "its marks are for the documents"
            assert len(re.findall(r'aria-current="true"><span class="logo"', page)) == 1
    assert all(f"client={one.slug}" in page for one in clients())


def test_it_waits_for_a_call_on_the_chosen_gateway_of_those_within_reach(ann: User, sign_in: SignIn) -> None:
    make.gateway(name="Closed", slug="closed", reach=Reach.TEAMS)
    make.gateway(name="Off", slug="off", enabled=False)
    make.gateway(name="Open", slug="open")

    page = text(sign_in(ann).get(PAGE, {"gateway": "closed"}))

    assert "Closed" not in page
    assert ">Off<" not in page
    assert "You cannot connect to <code>closed</code> now" in page
    assert "The text below is for Open." in page
    assert "gateway=open" in re.findall(r'id="wait".*?hx-get="([^"]*)"', page, re.DOTALL)[0]


@pytest.mark.full
def test_a_connection_of_ones_own_keeps_the_page_to_its_gateway_and_way(max: User, ann: User, sign_in: SignIn) -> None:
    make.gateway(name="Another", slug="another")
    link = make.connection(make.agent(by=max, name="Night bot"), make.gateway(slug="work", name="Work"), max)

    page = text(sign_in(max).get(PAGE, {"connection": str(link.pk), "client": "curl"}))
    of_another = text(sign_in(ann).get(PAGE, {"connection": str(link.pk)}))

    assert "Night bot acts as you on Work." in page
    assert "Another" not in page
    assert 'value="token" checked' in page
    assert f"connection={link.pk}" in re.findall(r'id="wait".*?hx-get="([^"]*)"', page, re.DOTALL)[0]
    assert "Night bot" not in of_another


@pytest.mark.full
def test_it_says_what_the_role_or_the_connection_lacks(ann: User, sign_in: SignIn) -> None:
    gateway = make.gateway(slug="work")
    asking = make.server(name="Notion", auth_type="bearer")
    make.assignment(gateway, asking, identity_scheme="per_user")
    person = make.user()
    make.token(make.connection(make.agent(by=ann), gateway, person))
    client = sign_in(person)

    browser = text(client.get(PAGE, {"client": "claude-ai"}))
    token = text(client.get(PAGE, {"client": "curl"}))

    assert "Authenticate via OAuth</i>, which your role lacks" in browser
    assert 'name="capability" value="oauth:connect"' in browser
    assert "Authorize in the browser when prompted" not in browser
    assert "To create one, you need the capability" in token
    assert "needs your credential for Notion" in token
    assert "Ask your client" not in token, "curl only lists the tools"
    both_ways = text(sign_in(make.user(Capability.API_TOKENS_MANAGE)).get(PAGE, {"client": "claude-code"}))
    assert 'value="token" checked' in both_ways, "the way that is open to them"
    maker = text(sign_in(make.user(Capability.API_TOKENS_MANAGE)).get(PAGE, {"client": "curl"}))
    assert "/settings/api-tokens/create?gateway=work" in maker


@pytest.mark.full
def test_no_token_is_ever_in_the_page_or_its_addresses(max: User, sign_in: SignIn) -> None:
    link = make.connection(make.agent(by=max), make.gateway(), max)
    issued = make.token(link)

    page = text(sign_in(max).get(PAGE, {"connection": str(link.pk), "token": issued.secret}))

    assert "gwa_" not in re.sub(r"&amp;token=[^\"&]*|token=[^\"&]*", "", page)


@pytest.mark.full
def test_without_a_gateway_it_says_whom_to_ask(ann: User, sign_in: SignIn) -> None:
    assert "No gateway is open to you yet. Request access to one, or ask a workspace administrator." in text(
        sign_in(ann).get(PAGE)
    )


@pytest.mark.full
def test_a_client_that_can_is_added_by_one_click(max: User, sign_in: SignIn, settings: Settings) -> None:
    gateway = make.gateway(slug="work", name="Work")
    client = sign_in(max)

    cursor = text(client.get(PAGE, {"gateway": "work", "client": "cursor", "how": "browser"}))
    code = text(client.get(PAGE, {"gateway": "work", "client": "vs-code", "how": "browser"}))
    plain = text(client.get(PAGE, {"gateway": "work", "client": "claude-desktop", "how": "browser"}))

    config = re.findall(r'href="cursor://anysphere.cursor-deeplink/mcp/install\?name=work&amp;config=([^"]*)"', cursor)
    assert json.loads(base64.b64decode(unquote(config[0]))) == {"url": gateway.url}
    server = re.findall(r'href="vscode:mcp/install\?([^"]*)"', code)
    assert json.loads(unquote(server[0])) == {"name": "work", "type": "http", "url": gateway.url}
    settings.PUBLIC_URL = "https://gateway.example.com"
    desktop = text(client.get(PAGE, {"gateway": "work", "client": "claude-desktop", "how": "browser"}))
    assert desktop.index("Open Connectors") < desktop.index("claude_desktop_config.json")
    assert "claude_desktop_config.json" in plain
    assert "Open Connectors" not in plain, "Connectors refuse an address that is not https"
    assert "cursor://" not in text(client.get(PAGE, {"gateway": "work", "client": "cursor", "how": "token"}))
