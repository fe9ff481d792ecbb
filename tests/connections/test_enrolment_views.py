"""The people for whom an agent acts, with the state of their tokens and identities."""

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from accounts.models import User
from capabilities import Capability
from capabilities.catalogue import including
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

    page = sign_in(ana).get(path(bot), headers=HTMX)

    assert 'class="count">3</span>' in text(page)
    assert "1 active" in row(page, ann)
    assert 'GitHub <span class="badge" data-state="disabled">disabled</span>' in row(page, ann)
    assert 'GitHub <span class="badge" data-kind="warn">missing</span>' in row(page, ben)
    assert 'GitHub <span class="badge" data-state="active">active</span>' in row(page, max)
    assert '<span class="badge" data-state="disabled">disabled</span>' in row(page, max)


def test_a_person_whose_connection_was_revoked_is_not_listed_as_enrolled(
    ana: User, ann: User, bot: Host, work: Gateway, sign_in: SignIn
) -> None:
    enrol(ann, bot, work).revoke(by=ana)

    assert "No people yet." in text(sign_in(ana).get(path(bot)))


def test_others_are_seen_with_the_capability_only(
    ann: User, ben: User, bot: Host, work: Gateway, sign_in: SignIn
) -> None:
    enrol(ann, bot, work)
    enrol(ben, bot, work)

    page = text(sign_in(ann).get(path(bot)))

    assert ann.email in page
    assert ben.email not in page


def test_the_page_takes_what_the_host_page_takes(bot: Host, sign_in: SignIn) -> None:
    without = make.user(*set(Capability) - including([Capability.HOSTS_READ]))

    assert Client().get(path(bot))["Location"].startswith("/accounts/login/")
    assert sign_in(without).get(path(bot)).status_code == 403


def test_the_overview_loads_it_and_it_is_a_page_of_its_own(ana: User, bot: Host, sign_in: SignIn) -> None:
    client = sign_in(ana)

    assert f'hx-get="{path(bot)}" hx-trigger="load"' in text(client.get(f"/hosts/{bot.pk}/"))
    assert "<html" in text(client.get(path(bot)))
    assert text(client.get(path(bot), headers=HTMX)).lstrip().startswith("<section")


def test_it_costs_the_same_for_one_person_and_for_many(
    ana: User, bot: Host, work: Gateway, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(6):
        enrol(make.user(), bot, work)
    client = sign_in(ana)

    # session, user, permissions, host, count, keys, rows, tokens, servers that require an identity, identities
    with django_assert_num_queries(11):
        client.get(path(bot))
