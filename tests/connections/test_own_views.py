"""My identities and my connections."""

from datetime import timedelta

import pytest
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from accounts.models import User
from connections.models import Connection
from gateways.models import IdentityScheme
from servers.models import Identity
from tests import make
from tests.conftest import SignIn, wire_size
from tests.connections.rows import HTMX, text
from ui.sealing import cipher

pytestmark = [pytest.mark.django_db, pytest.mark.full]

PATH = "/settings/identities"
OPEN = HTMX | {"HX-Current-URL": f"http://testserver{PATH}"}
SECRET = "ghp_0123456789abcdef9f3a"


@pytest.fixture
def link(ann: User) -> Connection:
    """A member's connection with their own identity."""
    github = make.server(name="GitHub", auth_type="bearer")
    gateway = make.gateway(name="Work")
    make.assignment(gateway, github, identity_scheme=IdentityScheme.PER_USER)
    mine = make.identity(github, ann, label="work account", secret=SECRET)
    return make.connection(make.agent(by=ann, name="CI bot"), gateway, ann, [mine])


def mine(link: Connection) -> Identity:
    return link.identities.get().identity


def row(response: object, thing: Identity | Connection) -> str:
    end = "</tr>" if isinstance(thing, Identity) else "</section>"
    return text(response).split(f'"{type(thing).__name__.lower()}-{thing.pk}"')[1].split(end)[0]


def test_a_row_says_what_it_is_for_and_never_the_secret(
    ann: User, ana: User, link: Connection, sign_in: SignIn
) -> None:
    Identity.objects.update(last_used_at=timezone.now() - timedelta(minutes=5))
    make.identity(mine(link).server, ana, label="hers")
    make.identity(mine(link).server, label="service")

    page = sign_in(ann).get(PATH)

    for words in ("work account", "GitHub", "...9f3a", "CI bot on Work", "5m ago", ">active<"):
        assert words in row(page, mine(link))
    for words in (SECRET, "hers", "service"):
        assert words not in text(page)
    assert "work account" not in text(sign_in(ana).get(PATH))


def test_a_member_switches_and_ends_their_own_without_any_capability(
    ann: User, ben: User, link: Connection, sign_in: SignIn
) -> None:
    identity, client = mine(link), sign_in(ann)
    base = f"/identities/{identity.pk}"
    for verb in ("disable", "enable", "revoke", "replace"):
        assert sign_in(ben).post(f"{base}/{verb}/", {"secret": "x" * 20}).status_code == 403, verb
    assert mine(link).status == "active"

    asked = text(client.get(f"{base}/disable/", headers=OPEN))
    off = client.post(f"{base}/disable/", headers=OPEN)
    on = client.post(f"{base}/enable/", headers=OPEN)
    warned = text(client.get(f"{base}/revoke/", headers=OPEN))
    ended = client.post(f"{base}/revoke/", headers=OPEN)

    stops = "Calls to GitHub that use “work account” fail on the next request"
    assert f"Disable this credential? {stops}. Nothing is deleted." in asked
    assert f"Revoke this credential? {stops}, and its secret is wiped." in warned
    for question in (asked, warned):
        assert "1 connection uses it." in question
        assert "Cuts off 1 app or agent, 1 person." in question
    assert 'data-state="disabled"' in row(off, identity)
    assert 'data-state="active"' in row(on, identity)
    assert "CI bot on Work" in row(on, identity)
    assert "Revoked <time" in row(ended, identity)
    assert "<button" not in row(ended, identity)
    identity.refresh_from_db()
    assert identity.secret_ciphertext is None


def test_everything_acting_as_me_is_listed_with_a_button_to_end_it(
    ann: User, ben: User, link: Connection, sign_in: SignIn
) -> None:
    other = make.connection(link.host, link.gateway, ben)
    client = sign_in(ann)

    page = client.get(PATH)
    answer = client.post(f"/connections/{link.pk}/revoke/", headers=OPEN)

    assert "CI bot" in row(page, link)
    assert f'action="/connections/{link.pk}/revoke/"' in row(page, link)
    assert str(other.pk) not in text(page)
    assert 'data-state="revoked"' in row(answer, link)
    link.refresh_from_db()
    assert not link.is_live
    assert "You have not connected an app or agent yet" in text(client.get(PATH))


def test_a_full_page_is_light_and_takes_few_statements(
    ann: User, link: Connection, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(50):
        make.identity(mine(link).server, ann)
        make.token(make.connection(make.agent(by=ann), link.gateway, ann))
    client = sign_in(ann)

    # session, user, permissions, count, keys, rows, tokens, identities (count and uses), required and bound identities
    with django_assert_num_queries(12):
        page = client.get(PATH)

    assert (len(page.context["identity_rows"]), len(page.context["rows"])) == (50, 50)
    assert wire_size(page) <= 30 * 1024


def test_a_replaced_secret_is_stored_and_leads_back_here(ann: User, link: Connection, sign_in: SignIn) -> None:
    new = "ghp_another_secret_of_hers"

    done = sign_in(ann).post(f"/identities/{mine(link).pk}/replace/", {"secret": new}, follow=True)

    assert done.redirect_chain == [(PATH, 302)]  # Members cannot see the server's page.
    assert cipher().open(bytes(mine(link).secret_ciphertext or b"")) == new
    assert new not in text(done)
