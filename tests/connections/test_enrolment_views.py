"""The page of an agent that lists the people for whom the agent acts, and the state of their tokens and identities."""

import pytest
from pytest_django import DjangoAssertNumQueries

from accounts.models import User
from connections.models import Connection
from gateways.models import Gateway, IdentityScheme
from hosts.models import Host
from tests import make
from tests.conftest import SignIn
from tests.connections.rows import HTMX, text

pytestmark = [pytest.mark.django_db, pytest.mark.full]


@pytest.fixture
def bot(ana: User) -> Host:
    return make.agent(by=ana, name="Feedback bot")


@pytest.fixture
def work() -> Gateway:
    """A gateway that needs each person's own GitHub identity."""
    gateway = make.gateway(make.server(), name="Work")
    make.assignment(gateway, make.server(name="GitHub", auth_type="bearer"), identity_scheme=IdentityScheme.PER_USER)
    return gateway


def enrol(user: User, bot: Host, work: Gateway, *, identity: bool = True) -> Connection:
    github = work.assignments.get(identity_scheme=IdentityScheme.PER_USER).server
    link = make.connection(bot, work, user, [make.identity(github, user)] if identity else [])
    make.token(link)
    return link


def path(bot: Host) -> str:
    return f"/hosts/{bot.pk}/enrolled/"


def row(response: object, user: User) -> str:
    return text(response).split(f"{user.email}</span>")[1].split("</tr>")[0]


def test_each_person_has_a_row_with_their_state(
    ana: User,
    ann: User,
    ben: User,
    max: User,
    bot: Host,
    work: Gateway,
    sign_in: SignIn,
) -> None:
    link = enrol(ann, bot, work)
    link.identities.get().identity.disable(by=ann)
    enrol(ben, bot, work, identity=False)
    enrol(max, bot, work).disable(by=ana)
    left = make.user()
    enrol(left, bot, work).revoke(by=ana)
    client = sign_in(ana)

    page = client.get(path(bot), headers=HTMX)

    assert 'class="count">3</span>' in text(page)
    assert "1 active" in row(page, ann)
    assert 'GitHub <span class="badge" data-state="disabled">disabled</span>' in row(page, ann)
    assert 'GitHub <span class="badge" data-kind="warn">missing</span>' in row(page, ben)
    assert 'GitHub <span class="badge" data-state="active">active</span>' in row(page, max)
    assert '<span class="badge" data-state="disabled">disabled</span>' in row(page, max)
    assert left.email not in text(page)
    own = text(sign_in(ann).get(path(bot)))
    assert (ann.email in own, ben.email in own) == (True, False), "others are seen with the capability only"
    assert f'hx-get="{path(bot)}" hx-trigger="load"' in text(client.get(f"/hosts/{bot.pk}/"))
    assert text(page).lstrip().startswith("<section")
    assert "<html" in text(client.get(path(bot)))


def test_it_costs_the_same_for_one_person_and_for_many(
    ana: User, bot: Host, work: Gateway, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(6):
        enrol(make.user(), bot, work)
    client = sign_in(ana)

    # session, user, permissions, host, count, keys, rows, tokens, required and bound identities, rail, file
    with django_assert_num_queries(12):
        client.get(path(bot))
