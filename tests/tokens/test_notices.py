"""People see notices of other people's actions on their tokens and connections until they dismiss the notices."""

import re
from html import unescape

import pytest
from django.test import Client

from accounts.models import User
from connections.models import Connection
from tests import make
from tests.conftest import SignIn
from tokens.models import Token

pytestmark = pytest.mark.django_db

SHOWN = re.compile(r'action="/settings/notices/dismiss".*?</form>', re.DOTALL)


def told(browser: Client, path: str = "/") -> str:
    """Return the notices on a page; empty if there are none."""
    found = SHOWN.search(browser.get(path).content.decode())
    return unescape(found[0]) if found else ""


@pytest.fixture
def link(ann: User) -> Connection:
    return make.connection(make.agent(by=ann, name="CI bot"), make.gateway(name="Work"), ann)


def test_the_owner_is_told_who_did_what(ana: User, ann: User, ben: User, link: Connection, sign_in: SignIn) -> None:
    first, second = make.token(link, name="ci").token, make.token(link, name="nightly").token
    app = make.app_connection(ann, make.gateway(name="Play"), name="Claude Desktop")
    browser = sign_in(ann)
    assert told(browser) == ""

    first.rotate(by=ann, overlap_hours=24)
    first.end_previous(by=ana)
    second.revoke(by=ana)
    Token.objects.renew_key(app, by=ana)
    link.revoke(by=ana)

    for page in (told(browser), told(browser, "/settings/api-tokens")):
        for words in (
            f"{ana.email} ended the old token that your token ci ({first.prefix}) replaced. The old token is refused.",
            f"{ana.email} revoked your token nightly ({second.prefix}).",
            f"{ana.email} regenerated the key of your connection {app}.",
            f"{ana.email} revoked your connection {link}.",
        ):
            assert words in page
    assert told(sign_in(ben)) == told(sign_in(ana)) == ""


@pytest.mark.full
def test_ones_own_acts_and_a_tokens_own_are_no_news(ann: User, link: Connection, sign_in: SignIn) -> None:
    token, secret = make.token(link)
    token.rotate(by=None, presented=secret)
    token.rotate(by=ann)
    link.revoke(by=ann)

    assert told(sign_in(ann)) == ""


@pytest.mark.full
def test_dismissed_it_stays_away_and_what_comes_later_is_told(
    ana: User, ann: User, link: Connection, sign_in: SignIn
) -> None:
    browser = sign_in(ann)
    rotated = make.token(link, name="rotated").token
    rotated.rotate(by=ann, overlap_hours=24)
    make.token(link, name="ci").token.revoke(by=ana)
    (until,) = re.findall(r'name="until" value="([^"]+)"', told(browser))
    assert browser.post("/settings/notices/dismiss", {"until": until}).status_code == 302
    assert told(browser) == ""
    rotated.end_previous(by=ana)
    assert "ended the old token" in told(browser)
    link.revoke(by=ana)
    assert "revoked your connection" in told(browser)
    assert "revoked your token" not in told(browser)

    for wrong in ("", "nonsense", "2999-01-01", "2999-01-01T00:00:00+00:00"):
        browser.post("/settings/notices/dismiss", {"until": wrong})
    assert told(browser) == ""
    ann.refresh_from_db()
    assert ann.notices_read_at is not None
    assert ann.notices_read_at.year < 2999


@pytest.mark.full
def test_the_end_of_an_old_token_is_told_while_a_new_one_waits(
    ana: User, ann: User, link: Connection, sign_in: SignIn
) -> None:
    token = make.token(link, name="ci").token
    token.ask_for_new(by=ana, overlap_hours=24)

    token.end_previous(by=ana)

    assert f"{ana.email} ended the old token" in told(sign_in(ann))
