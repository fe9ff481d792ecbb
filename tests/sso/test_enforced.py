"""With enforced sign-in by the organisation, only break-glass owners may use passwords."""

from collections.abc import Callable
from io import StringIO
from typing import Any
from urllib.parse import urlsplit

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.utils import encrypt
from django.core import mail
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.test import Client

from accounts import second_factor
from accounts.models import Role, User
from accounts.password_links import invitation_link, password_link
from accounts.rules import LastBreakGlass, NotBreakGlass, NotOwner
from auditlog.models import Event
from capabilities import Capability
from sso.browser_sessions import BROWSER
from sso.errors import ProviderError
from sso.models import Mode, Provider
from tests import make
from tests.accounts.again import confirmed
from tests.accounts.test_second_factor import code_of
from tests.oauth.apps import browser
from tests.rest import Rest
from tests.sso.conftest import Organisation, SignIn, twin
from tests.undone import undone

pytestmark = pytest.mark.django_db

APP_SECRET = "JBSWY3DPEHPK3PXP"
THERE = "People with this address sign in at their organisation."


def owner(email: str = "owner@example.com", *, app: bool = True) -> User:
    make.built_in_roles()
    person = User.objects.create_user(email, make.PASSWORD, role=Role.objects.get(name="Super admin"))
    if app:
        Authenticator.objects.create(user=person, type="totp", data={"secret": encrypt(APP_SECRET)})
    return person


@pytest.fixture
def breaker(provider: Provider) -> User:
    """The break-glass owner of a workspace where example.com signs in at the organisation."""
    person = owner()
    person.set_break_glass(True, by=None)
    Provider.edit(by=None, mode="enforced", domains=["example.com"])
    return person


def typed(email: str, password: str = make.PASSWORD) -> tuple[Client, Any]:
    client = Client()
    return client, client.post("/accounts/login/", {"login": email, "password": password})


def test_no_reset_is_sent_to_somebody_who_signs_in_there(breaker: User) -> None:
    mia = make.user(email="mia@example.com")
    chief = make.user(Capability.PEOPLE_MANAGE, email="chief@partner.example.org")

    said = confirmed(browser(chief)).post(f"/people/{mia.pk}/reset/", follow=True).content.decode()

    assert "Nothing was sent: mia@example.com signs in at the organisation" in said
    assert mail.outbox == []
    assert not Event.objects.filter(action="user.password_reset_sent").exists()


def test_every_refusal_of_the_domain_reads_alike_so_that_nobody_learns_who_breaks_the_glass(breaker: User) -> None:
    make.user(email="mia@example.com")
    outside = make.user(email="guest@partner.example.org")
    assert typed(outside.email)[1]["Location"] == "/"

    refusals = [
        typed("mia@example.com")[1],
        typed("mia@example.com", "wrong")[1],
        typed("nobody@example.com")[1],
        typed(breaker.email, "wrong")[1],
    ]

    assert [THERE in each.content.decode() for each in refusals] == [True] * 4
    assert {each.status_code for each in refusals} == {200}


@pytest.mark.full
def test_a_break_glass_owner_signs_in_with_password_and_code_and_each_use_raises_the_alarm(
    breaker: User, caplog: pytest.LogCaptureFixture
) -> None:
    client, response = typed(breaker.email)
    assert response["Location"] == "/accounts/second-factor/"
    assert not Event.objects.filter(action="user.break_glass_used").exists()

    client.post("/accounts/second-factor/", {"code": code_of(APP_SECRET)})

    assert client.get("/settings/profile").status_code == 200
    used = Event.objects.get(action="user.break_glass_used")
    assert (used.target_id, used.actor_email) == (str(breaker.pk), breaker.email)
    assert "a break-glass owner signed in with a password" in caplog.text


def test_enforced_reset_mails_nothing_and_links_that_were_made_before_work_no_more(breaker: User) -> None:
    mia = make.user(email="mia@example.com")
    before = password_link(mia)
    User.objects.create_user("ann@example.com", None, role=mia.role, by_organisation=True)
    for email in ("mia@example.com", "ann@example.com"):
        Client().post("/accounts/password/reset/", {"email": email})

    assert mail.outbox == []
    assert "no longer works" in opened(before)[1].content.decode()


def opened(link: str) -> tuple[Client, Any]:
    client = Client()
    return client, client.get(urlsplit(link).path, follow=True)


def test_enforced_the_link_of_an_invitation_takes_no_password_and_leads_to_the_organisation(breaker: User) -> None:
    invited = make.invited()
    client, page = opened(invitation_link(invited))
    assert "Sign in with Example" in page.content.decode()
    assert "password1" not in page.content.decode()

    chosen = {"display_name": "", "password1": "correct horse battery", "password2": "correct horse battery"}
    client.post("/accounts/join/", chosen)

    invited.refresh_from_db()
    assert (invited.status, invited.has_usable_password()) == ("invited", False)


@pytest.mark.full
def test_an_invited_person_joins_at_the_organisation_with_the_role_of_the_invitation(
    breaker: User, organisation: Organisation, sign_in: SignIn
) -> None:
    role = make.role(name="Reviewer")
    invited = User.objects.invite(email="mia@example.com", role=role, by=breaker)
    organisation.knows("mia")
    organisation.knows("eve")
    client, _ = opened(invitation_link(invited))

    # Only the existing account may sign in; an equal e-mail address proves nothing.
    assert sign_in("mia").response.status_code == 403
    # A person who opens another's invitation link does not get the invited account.
    eve = sign_in("eve", opened(invitation_link(invited))[0])
    assert eve.person is not None
    assert eve.person.email == "eve@example.com"

    visit = sign_in("mia", client)

    assert visit.person == invited
    invited.refresh_from_db()
    assert (invited.status, invited.role, invited.by_organisation) == ("active", role, True)
    assert sign_in("mia").person == invited


@pytest.mark.full
def test_an_invitation_that_ended_while_they_signed_in_lets_nobody_in(
    breaker: User, organisation: Organisation, sign_in: SignIn
) -> None:
    organisation.knows("mia")
    for end in (User.revoke_invitation, User.renew_invitation):
        with undone():
            invited = User.objects.invite(email="mia@example.com", role=make.role(), by=breaker)
            client, _ = opened(invitation_link(invited))
            end(invited, by=breaker)

            assert sign_in("mia", client).response.status_code == 403

            invited.refresh_from_db()
            assert not invited.has_joined


def test_without_a_break_glass_owner_nothing_is_enforced(provider: Provider) -> None:
    for candidate in (None, owner("one@example.com", app=False)):
        with pytest.raises(ProviderError, match="break-glass"):
            Provider.edit(by=None, mode="enforced", domains=["example.com"])
        if candidate:
            with pytest.raises(NotBreakGlass):
                candidate.set_break_glass(True, by=None)
            with pytest.raises(NotOwner):
                candidate.set_break_glass(True, by=make.user(*Capability))
    assert Provider.load().mode == Mode.OFFERED


def test_the_last_break_glass_owner_stays_one_while_it_is_enforced(breaker: User) -> None:
    other = owner("other@example.com")
    member = Role.objects.get(name="Member")
    with pytest.raises(LastBreakGlass):
        breaker.set_break_glass(False, by=other)
    with pytest.raises(LastBreakGlass):
        breaker.deactivate(by=other)
    with pytest.raises(LastBreakGlass):
        breaker.give_role(member, by=other)
    with pytest.raises(LastBreakGlass):
        second_factor.remove(breaker, by=other)
    breaker.refresh_from_db()
    client = confirmed(browser(breaker))
    kept = client.post("/settings/second-factor/deactivate/", follow=True)
    assert "the last break-glass owner must remain" in kept.content.decode()
    assert kept.content.decode().count('class="toast"') == 1
    assert Authenticator.objects.filter(user=breaker).exists()

    other.set_break_glass(True, by=breaker)
    breaker.set_break_glass(False, by=other)
    assert Event.objects.filter(action="user.break_glass_changed").count() == 3


@pytest.mark.full
def test_a_former_owner_loses_break_glass_and_does_not_regain_it(breaker: User) -> None:
    owners, other = breaker.role, owner("other@example.com")
    other.set_break_glass(True, by=breaker)
    breaker.give_role(make.role(name="Other"), by=other)
    assert owners is not None

    assert not breaker.break_glass
    breaker.give_role(owners, by=other)

    breaker.refresh_from_db()
    assert not breaker.break_glass
    assert THERE in typed(breaker.email)[1].content.decode()
    first = Event.objects.filter(action="user.role_changed", target_id=str(breaker.pk)).earliest("pk")
    assert first.changes["break_glass"] == [True, False]
    other.give_role(owners, by=other)
    other.refresh_from_db()
    assert other.break_glass


@pytest.mark.full
def test_the_organisation_takes_no_role_from_a_break_glass_owner(
    breaker: User, organisation: Organisation, sign_in: SignIn
) -> None:
    Provider.edit(by=None, links_by_email=True)
    organisation.knows("owner")

    assert sign_in("owner").response.status_code == 403  # An equal e-mail is not enough.

    breaker.refresh_from_db()
    assert breaker.is_owner


def test_the_operator_can_end_the_enforcement(breaker: User) -> None:
    mia, out = make.user(email="mia@example.com"), StringIO()
    call_command("rescue", mia.email, stdout=out)
    assert "--end-enforcement changes that" in out.getvalue()
    with pytest.raises(CommandError, match="break-glass"):
        call_command("rescue", breaker.email, "--without-second-factor", stdout=out)

    call_command("rescue", mia.email, "--end-enforcement", stdout=out)

    assert Provider.load().mode == Mode.OFFERED
    assert typed(mia.email)[1]["Location"] == "/"


@pytest.mark.full
def test_enforcing_it_ends_sessions_that_began_with_a_password_and_no_others(
    provider: Provider, organisation: Organisation, sign_in: SignIn
) -> None:
    """Sessions of all break-glass owners continue, not only the session of the owner who enforces the sign-in."""
    breaker, mia, outside = owner(), make.user(email="mia@example.com"), make.user(email="guest@partner.example.org")
    breaker.set_break_glass(True, by=None)
    organisation.knows("bo")
    there = sign_in("bo")
    over = typed(mia.email)[0].session
    over["seen_at"] = 0
    over.save()
    own, hers, theirs = (typed(person.email)[0] for person in (breaker, mia, outside))
    own.post("/accounts/second-factor/", {"code": code_of(APP_SECRET)})

    Provider.edit(by=breaker, mode="enforced", domains=["example.com"])

    assert [client.get("/settings/profile").status_code for client in (own, hers, theirs)] == [200, 302, 200]
    assert there.person is not None
    ended = Event.objects.get(action="user.session_ended")
    assert (ended.target_id, ended.actor_email, ended.changes["reason"]) == (str(mia.pk), breaker.email, "enforced")
    assert Event.objects.get(action="organisation.updated", changes__has_key="sessions_ended").changes["mode"]
    assert (
        "saving signs out everyone in these domains who used a password"
        in own.get("/settings/organisation/").content.decode()
    )


@pytest.mark.full
def test_enforcing_it_without_break_glass_signs_oneself_out_too(provider: Provider) -> None:
    """The session ends even though the same request would also update the session's time of last use."""
    owner().set_break_glass(True, by=None)
    boss = owner("boss@example.com", app=False)
    client = typed(boss.email)[0]
    session = client.session
    session["began_at"] = session["seen_at"] = session["began_at"] - 3600
    session.save()
    form = {"name": "Example", "issuer": provider.issuer, "client_id": "gateway", "scopes": "openid"}

    response = client.post(
        "/settings/organisation/", form | {"groups_claim": "groups", "mode": "enforced", "domains": "example.com"}
    )

    assert response.status_code == 302, response.content.decode()
    assert Provider.load().mode == Mode.ENFORCED
    assert client.get("/settings/profile").status_code == 302


@pytest.mark.full
def test_a_domain_that_is_added_or_an_address_of_it_ends_password_sessions_and_another_change_none(
    breaker: User,
) -> None:
    guest, outside = make.user(email="guest@partner.example.org"), make.user(email="bo@other.example.org")
    client, moved = typed(guest.email)[0], typed(outside.email)[0]

    Provider.edit(by=None, name="Renamed")
    outside.edit(email=outside.email, display_name="Bo", by=None)
    assert (is_in(client), is_in(moved)) == (True, True)
    Provider.edit(by=None, domains=["example.com", "partner.example.org"])
    assert (is_in(client), is_in(moved)) == (False, True)
    outside.edit(email="bo@example.com", display_name="Bo", by=None)

    assert not is_in(moved)


@pytest.mark.full
def test_a_password_that_was_right_before_it_was_enforced_opens_no_session_after_it(provider: Provider) -> None:
    """Enforcement may start between the password and the second factor's code."""
    owner().set_break_glass(True, by=None)
    late = owner("late@example.com")
    client, response = typed(late.email)
    assert response["Location"] == "/accounts/second-factor/"
    Provider.edit(by=None, mode="enforced", domains=["example.com"])

    refused = client.post("/accounts/second-factor/", {"code": code_of(APP_SECRET)}, follow=True)

    assert THERE in refused.content.decode()
    assert client.get("/settings/profile").status_code == 302


@pytest.mark.full
def test_a_sign_in_that_the_organisation_began_before_hides_no_alarm(breaker: User) -> None:
    client = Client()
    session = client.session
    session[BROWSER] = {"issuer": "https://id.example.com", "sub": "left before the second factor", "sid": "s"}
    session.save()

    client.post("/accounts/login/", {"login": breaker.email, "password": make.PASSWORD})
    client.post("/accounts/second-factor/", {"code": code_of(APP_SECRET)})

    assert client.get("/settings/profile").status_code == 200
    assert Event.objects.filter(action="user.break_glass_used").count() == 1


def broken_glass(person: User) -> Client:
    """Return the browser of a break-glass owner who signed in with password and code."""
    client = typed(person.email)[0]
    type_code(client)
    assert is_in(client)
    return client


def type_code(client: Client) -> None:
    """Enter the second factor's code, even if the code was just used elsewhere."""
    cache.clear()
    client.post("/accounts/second-factor/", {"code": code_of(APP_SECRET)})


def is_in(client: Client) -> bool:
    return bool(client.get("/settings/profile").status_code == 200)


@pytest.mark.full
def test_ending_break_glass_ends_sessions_that_began_with_the_password_and_no_others(
    breaker: User, organisation: Organisation, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    other, mia = owner("other@example.com"), make.user(email="mia@partner.example.org")
    other.set_break_glass(True, by=breaker)
    by_password, hers, his = broken_glass(other), typed(mia.email)[0], broken_glass(breaker)
    organisation.knows("other")
    sign_in("other", by_password, "/settings/organisation/link/")
    there = sign_in("other").client
    type_code(there)
    clients = (by_password, there, hers, his)
    ways: dict[str, Callable[[User], Any]] = {
        "flag": lambda person: person.set_break_glass(False, by=breaker),
        "role": lambda person: person.give_role(Role.objects.get(name="Member"), by=breaker),
    }

    for way, end in ways.items():
        with subtests.test(way), undone():
            end(User.objects.get(pk=other.pk))
            assert [is_in(twin(client)) for client in clients] == [False, True, True, True]
            ended = Event.objects.get(action="user.session_ended")
            assert (ended.target_id, ended.actor_email) == (str(other.pk), breaker.email)
            assert ended.changes["reason"] == "enforced"
    with subtests.test("but not while nothing is enforced"), undone():
        Provider.edit(by=None, mode="offered")
        User.objects.get(pk=other.pk).set_break_glass(False, by=breaker)
        assert all(is_in(twin(client)) for client in clients)


@pytest.mark.full
def test_ending_ones_own_break_glass_signs_out_without_an_error(breaker: User, subtests: pytest.Subtests) -> None:
    """The request that ends the session would also update the session's time of last use."""
    other = owner("other@example.com")
    other.set_break_glass(True, by=breaker)
    client = broken_glass(other)
    session = client.session
    session["seen_at"] -= 3600
    session.save()

    for way, status in (("page", 302), ("rest", 200)):
        with subtests.test(way), undone():
            here = twin(client)
            if way == "page":
                response = here.post(f"/people/{other.pk}/break-glass/off/")
            else:
                response = Rest(here).patch(f"/users/{other.pk}", {"break_glass": False})
            assert response.status_code == status, response.content
            assert not User.objects.get(pk=other.pk).break_glass
            assert not is_in(here)
