"""Teams: their members and gateways."""

import re
from typing import Any

import pytest
from pytest_django import DjangoAssertNumQueries

from accounts.models import Team, User
from accounts.rules import Outranked
from auditlog.models import Event
from capabilities import Capability
from tests import make
from tests.conftest import SignIn, wire_size

pytestmark = pytest.mark.django_db


@pytest.fixture
def chief() -> User:
    return make.user(*Capability, email="chief@example.com")


@pytest.fixture
def clerk() -> User:
    """A person who may manage people, but no gateways."""
    return make.user(Capability.PEOPLE_MANAGE, email="clerk@example.com")


def team(*users: User, name: str = "Support") -> Team:
    return Team.objects.add(name=name, users=users, by=None)


def text(response: Any) -> str:
    return str(response.content.decode())


@pytest.mark.full
def test_full_pages_take_few_statements_and_stay_light(
    chief: User,
    sign_in: SignIn,
    django_assert_num_queries: DjangoAssertNumQueries,
    django_assert_max_num_queries: DjangoAssertNumQueries,
) -> None:
    role = make.role(Capability.LOGS_READ, name="A role with quite a long name")
    people = [
        User.objects.create_user(f"a-long-name-{n}@example.com", display_name="x" * 40, role=role) for n in range(60)
    ]
    support = team()
    with django_assert_max_num_queries(20):
        support.edit(name=support.name, users=people, by=chief)
    for _ in range(6):
        make.gateway(reach="teams", teams=[support])
        team(make.user(), name=make.unique("team"))
    client = sign_in(chief)

    with django_assert_num_queries(6):  # session, user, permissions, count, rows, rail
        client.get("/people/teams/")
    with django_assert_num_queries(9):  # session, user, permissions, team, gateways, count, people, rail, roles
        page = client.get(f"/people/teams/{support.pk}/")
    assert len(page.context["page"]) == 50
    assert wire_size(page) <= 30 * 1024


@pytest.mark.full
def test_a_team_is_made_renamed_and_deleted(chief: User, sign_in: SignIn) -> None:
    client = sign_in(chief)

    asked = text(client.get("/people/teams/add/"))
    made = client.post("/people/teams/add/", {"name": " Support "})
    support = Team.objects.get(name="Support")
    client.post(f"/people/teams/{support.pk}/rename/", {"name": "Help"})
    assert Team.objects.get().name == "Help"
    make.gateway(name="Work", reach="teams", teams=[support])
    told = text(client.get(f"/people/teams/{support.pk}/delete/"))
    assert "Its members can no longer use Work, unless another team, a role or a grant lets them." in told
    gone = client.post(f"/people/teams/{support.pk}/delete/", follow=True)

    assert re.search(r'<input[^>]*name="name"[^>]*autofocus', asked)
    assert made["Location"] == f"/people/teams/{support.pk}/"
    assert "Help deleted" in text(gone)
    assert not Team.objects.exists()


@pytest.mark.full
def test_a_bad_name_is_refused_in_words(chief: User, sign_in: SignIn) -> None:
    team(name="Taken")
    support, client = team(), sign_in(chief)

    for name, words in (
        ("", "This field is required."),
        ("TAKEN", "This name is in use already."),
        ("x" * 81, "at most 80 characters"),
        ("a\x00b", "Null characters are not allowed."),
    ):
        for path in ("/people/teams/add/", f"/people/teams/{support.pk}/rename/"):
            response = client.post(path, {"name": name})
            assert response.status_code == 422
            assert words in text(response)
    assert {one.name for one in Team.objects.all()} == {"Taken", "Support"}


# --- People -------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_people_are_added_by_e_mail_and_reach_at_once(chief: User, sign_in: SignIn) -> None:
    ann, ben = make.user(email="ann@example.com"), make.user(email="ben@example.com")
    support = team(make.user(email="cy@example.com"))
    gateway = make.gateway(reach="teams", teams=[support])
    assert not gateway.is_reachable_by(ann)

    sign_in(chief).post(f"/people/teams/{support.pk}/add/", {"emails": "ANN@example.com,\n ben@example.com; "})

    assert support.emails() == ["ann@example.com", "ben@example.com", "cy@example.com"]
    assert gateway.is_reachable_by(User.objects.get(pk=ann.pk))
    assert gateway.is_reachable_by(User.objects.get(pk=ben.pk))


def test_bad_e_mails_add_nobody(chief: User, sign_in: SignIn) -> None:
    make.user(email="ann@example.com")
    support, client = team(), sign_in(chief)

    for emails, words in (
        ("", "This field is required."),
        (" ,; ", "Enter at least one e-mail."),
        ("ann@example.com nobody@example.com", "There is no person with the e-mail nobody@example.com."),
        ("<b>", "There is no person with the e-mail &lt;b&gt;."),
        ("\n".join(f"p{n}@example.com" for n in range(501)), "Add at most 500 people at a time."),
    ):
        response = client.post(f"/people/teams/{support.pk}/add/", {"emails": emails})
        assert response.status_code == 422
        assert words in text(response)
    assert support.emails() == []


def test_a_person_leaves_a_team_and_its_reach(chief: User, sign_in: SignIn) -> None:
    ann, ben = make.user(email="ann@example.com"), make.user(email="ben@example.com")
    support = team(ann, ben)
    gateway = make.gateway(reach="teams", teams=[support])
    client = sign_in(chief)

    response = client.post(f"/people/teams/{support.pk}/remove/{ann.pk}/", follow=True)
    again = client.post(f"/people/teams/{support.pk}/remove/{ann.pk}/")

    assert "ann@example.com was removed from Support" in text(response)
    assert "Undo" in text(response)
    assert again.status_code == 404
    assert support.emails() == ["ben@example.com"]
    assert not gateway.is_reachable_by(User.objects.get(pk=ann.pk))

    client.post(f"/people/{ann.pk}/team/", {"team": str(support.pk), "back": f"/people/teams/{support.pk}/"})
    assert sorted(support.emails()) == ["ann@example.com", "ben@example.com"]


# --- Gateways -----------------------------------------------------------------------------------------------------


def test_gateways_are_opened_and_closed_to_a_team_and_to_no_other(chief: User, sign_in: SignIn) -> None:
    support, other = team(), team(name="Other")
    first = make.gateway(name="First", reach="teams", teams=[support, other])
    second = make.gateway(name="Second", reach="teams", teams=[other])
    untouched = make.gateway(name="Third", reach="teams", teams=[other])
    client = sign_in(chief)

    form = text(client.get(f"/people/teams/{support.pk}/gateways/"))
    for wrong in (str(make.gateway(name="Everyone's").pk), "nonsense"):
        assert client.post(f"/people/teams/{support.pk}/gateways/", {"gateways": [wrong]}).status_code == 422
    client.post(f"/people/teams/{support.pk}/gateways/", {"gateways": [str(second.pk)]})

    assert form.count(" checked") == 1
    assert {one.name for one in first.teams.all()} == {"Other"}
    assert {one.name for one in second.teams.all()} == {"Support", "Other"}
    assert {one.name for one in untouched.teams.all()} == {"Other"}
    assert set(Event.objects.filter(action="gateway.updated").values_list("target_label", flat=True)) == {
        "First",
        "Second",
    }


@pytest.mark.full
def test_opening_gateways_takes_their_capability_too(clerk: User, sign_in: SignIn) -> None:
    support = team()
    gateway = make.gateway(reach="teams", teams=[support])
    client = sign_in(clerk)

    page = text(client.get(f"/people/teams/{support.pk}/"))
    response = client.post(f"/people/teams/{support.pk}/gateways/", {"gateways": []})

    assert gateway.name in page
    assert f"/gateways/{gateway.slug}/" not in page
    assert f"/people/teams/{support.pk}/gateways/" not in page
    assert response.status_code == 403
    assert list(gateway.teams.all()) == [support]


# --- Who may change whose teams -----------------------------------------------------------------------------------


@pytest.fixture
def officer() -> User:
    """A person with more capabilities than the clerk."""
    return make.user(Capability.PEOPLE_MANAGE, Capability.LOGS_READ, email="officer@example.com")


@pytest.mark.full
def test_people_with_more_capabilities_cannot_be_added_by_those_with_less(
    clerk: User, officer: User, sign_in: SignIn
) -> None:
    support, peer = team(), make.user(email="peer@example.com")
    typed = {"emails": "peer@example.com officer@example.com"}

    refused = sign_in(clerk).post(f"/people/teams/{support.pk}/add/", typed)

    assert refused.status_code == 422
    assert "You lack: View and export logs." in text(refused)
    assert "officer@example.com" in text(refused), "what was typed is kept"
    assert support.emails() == []
    assert sign_in(clerk).post(f"/people/teams/{support.pk}/add/", {"emails": peer.email}).status_code == 302
    assert support.emails() == [peer.email]


@pytest.mark.full
def test_people_with_more_capabilities_cannot_be_removed_by_those_with_less(
    clerk: User, officer: User, sign_in: SignIn
) -> None:
    support, client = team(officer, clerk), sign_in(clerk)

    refused = client.post(f"/people/teams/{support.pk}/remove/{officer.pk}/", follow=True)
    deleted = client.post(f"/people/teams/{support.pk}/delete/", follow=True)

    assert "You lack: View and export logs." in text(refused)
    assert "You lack: View and export logs." in text(deleted)
    assert support.emails() == [clerk.email, officer.email]
    client.post(f"/people/teams/{support.pk}/remove/{clerk.pk}/")
    assert support.emails() == [officer.email], "oneself may leave"
    sign_in(officer).post(f"/people/teams/{support.pk}/remove/{officer.pk}/")
    client.post(f"/people/teams/{support.pk}/delete/")
    assert not Team.objects.exists()


def test_a_team_changes_around_members_who_hold_more(clerk: User, officer: User, sign_in: SignIn) -> None:
    support, peer, client = team(officer), make.user(email="peer@example.com"), sign_in(clerk)

    client.post(f"/people/teams/{support.pk}/rename/", {"name": "Help"})
    client.post(f"/people/teams/{support.pk}/add/", {"emails": "peer@example.com clerk@example.com"})

    support.refresh_from_db()
    assert (support.name, support.emails()) == ("Help", [clerk.email, officer.email, peer.email])


def test_the_roles_people_hold_now_decide(clerk: User) -> None:
    support, member = team(), make.user()
    as_it_was = User.objects.select_related("role").get(pk=member.pk)
    assert as_it_was.granted == frozenset()
    member.give_role(make.role(Capability.LOGS_READ), by=None)

    with pytest.raises(Outranked):
        support.edit(name=support.name, users=[as_it_was], by=clerk)
    with pytest.raises(Outranked):
        Team.objects.add(name="Another", users=[as_it_was], by=clerk)
    assert not Event.objects.filter(actor_email=clerk.email).exists()
