"""The People pages: the list, one person, inviting, roles, resets."""

import re
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import time_machine
from allauth.mfa.models import Authenticator
from django.conf import settings
from django.core import mail
from django.core.cache import cache
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from accounts import password_links
from accounts.models import Role, Team, User
from accounts.password_links import invitation_link, password_link
from auditlog.models import Event
from capabilities import Capability
from gatewayadmin.config.outbound import mailers
from gateways.models import Reach
from hosts.models import Host
from tests import make
from tests.accounts.again import confirm, confirmed, onward
from tests.conftest import SignIn, wire_size
from tests.smtp_server import mail_server

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}


@pytest.fixture(autouse=True)
def fresh_limits(db: None) -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def chief() -> User:
    """A person with every capability."""
    return make.user(*Capability, email="chief@example.com", display_name="Chief")


@pytest.fixture
def clerk() -> User:
    """A person who may only manage people."""
    return make.user(Capability.PEOPLE_MANAGE, email="clerk@example.com")


def text(response: Any) -> str:
    return str(response.content.decode())


def test_looking_changes_nothing(chief: User, sign_in: SignIn) -> None:
    person, client = make.user(), sign_in(chief)
    before = User.objects.filter(pk=person.pk).values().get()

    for act in ("edit", "role", "invite", "reset", "sign-out", "second-factor", "deactivate"):
        assert client.get(f"/people/{person.pk}/{act}/").status_code == 200

    assert User.objects.filter(pk=person.pk).values().get() == before
    assert not mail.outbox


@pytest.mark.full
def test_grave_acts_wait_for_the_password_and_are_done_then(
    chief: User, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    role = str(make.role().pk)
    for path, form, events in (
        ("/people/invite/", {"emails": "Bo <bo@example.com>", "role": role}, 1),
        ("/people/{pk}/edit/", {"email": "new@example.com", "display_name": "New"}, 1),
        ("/people/{pk}/role/", {"role": role}, 1),
        ("/people/{pk}/second-factor/", {}, 0),
    ):
        with subtests.test(path):
            person, client = make.user(), sign_in(chief)
            before = Event.objects.count()

            asked = client.post(path.format(pk=person.pk), form)
            wrong = client.post("/accounts/reauthenticate/", {"password": "wrong", "next": onward(asked)})
            assert (wrong.status_code, Event.objects.count()) == (200, before)
            right = confirm(client, asked)

            assert right.status_code in (200, 302)
            assert right.headers.get("Location", "") in ("", f"/people/{person.pk}/")
            assert Event.objects.count() - before == events


@pytest.mark.full
def test_a_dialog_that_waited_for_the_password_ends_on_a_page(chief: User, sign_in: SignIn) -> None:
    person, role, client = make.user(), make.role(), sign_in(chief)
    path = f"/people/{person.pk}/role/"

    asked = client.post(path, {"role": str(role.pk)}, headers=HTMX | {"HX-Current-URL": "http://testserver/people/"})
    done = confirm(client, asked)

    assert (done.status_code, done.get("Location")) == (302, f"/people/{person.pk}/")
    person.refresh_from_db()
    assert person.role == role


# --- The list -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_list_says_who_is_who(chief: User, sign_in: SignIn) -> None:
    bo = User.objects.invite(email="bo@example.com", display_name="Bo Berg", role=make.role(name="Helper"), by=chief)
    Team.objects.add(name="Support", users=[bo], by=chief)
    make.user(email="gone@example.com", is_active=False)

    page = text(sign_in(chief).get("/people/"))

    row = page.split("Bo Berg")[1].split("</tr>")[0]
    for words in ("bo@example.com", "Helper", "Support", "invited", "expires in ", "Send again", "Revoke"):
        assert words in row
    assert "deactivated" in page
    assert "3 people" in page


def test_the_query_string_narrows_the_list(chief: User, sign_in: SignIn) -> None:
    role, client = make.role(), sign_in(chief)
    User.objects.invite(email="bo@example.com", display_name="Bo Berg", role=role, by=chief)
    gone = make.user(email="gone@example.com", is_active=False)
    Authenticator.objects.create(user=chief, type="webauthn", data={})
    Authenticator.objects.create(user=chief, type="totp", data={})
    Authenticator.objects.create(user=gone, type="recovery_codes", data={})

    for query, names in (
        ("", {"chief", "bo", "gone"}),
        ("?q=BERG", {"bo"}),
        ("?q=bo@", {"bo"}),
        ("?status=active", {"chief"}),
        ("?status=invited&status=deactivated", {"bo", "gone"}),
        (f"?role={role.pk}", {"bo"}),
        (f"?role={role.pk}&status=active", set()),
        ("?second_factor=with", {"chief"}),
        ("?second_factor=without", {"bo", "gone"}),
        ("?role=nonsense&status=nonsense&second_factor=nonsense&page=nonsense", {"chief", "bo", "gone"}),
        ("?q=%00", {"chief", "bo", "gone"}),
    ):
        page = client.get(f"/people/{query}").context["page"]
        assert {person.email.partition("@")[0] for person in page} == names, query


@pytest.mark.full
def test_the_list_of_many_takes_few_queries_and_stays_light(
    chief: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    role = make.role(name="A role with quite a long name")
    for number in range(50):
        User.objects.create_user(f"person-with-a-long-name-{number}@example.com", display_name="x" * 40, role=role)
    Team.objects.add(name="All", users=[*User.objects.filter(role=role)], by=chief)
    client = sign_in(chief)

    with django_assert_num_queries(8):  # session, user, permissions, count, rows, teams, roles, rail
        response = client.get("/people/")

    assert len(response.context["page"]) == 50
    assert wire_size(response) <= 30 * 1024


# --- One person ---------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_page_of_a_person_tells_what_they_have_in_few_queries(
    chief: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    bo = make.user(email="bo@example.com", display_name="Bo <b>Berg</b>")
    for _ in range(3):
        make.token(make.connection(make.agent(by=bo), make.gateway(), bo))
        Team.objects.add(name=make.unique("team"), users=[bo], by=chief)
    client = sign_in(chief)

    # Session, user, person, teams, second factor, sessions, two permissions, requests, roll-up state, menu; the others
    # are of Access. More rows take no more.
    with django_assert_num_queries(22):
        page = text(client.get(f"/people/{bo.pk}/"))

    for words in ("Bo &lt;b&gt;Berg&lt;/b&gt;", "bo@example.com", "3 live", "0 open", "Cut this person off"):
        assert words in page
    assert "<b>Berg" not in page


# --- Inviting -----------------------------------------------------------------------------------------------------


def invite(client: Client, role: Role, fields: dict[str, str] | None = None) -> Any:
    form = {"emails": "Bo Berg <bo@example.com>", "role": str(role.pk)} | (fields or {})
    return client.post("/people/invite/", form)


def link_in(response: Any) -> str:
    found = re.search(r'id="invitation-link-1"[^>]*value="([^"]+)"', text(response))
    assert found
    return found[1]


def choose_password(link: str, password: str = "another horse battery") -> Any:
    client = Client()
    opened = client.get(link.removeprefix(settings.PUBLIC_URL), follow=True)
    if not opened.redirect_chain:
        return opened
    form = {"display_name": "Bo Berg", "password1": password, "password2": password}
    return client.post(opened.redirect_chain[-1][0], form, follow=True)


@pytest.fixture
def no_mail(settings: Any) -> None:
    """Configure a mail server that cannot be reached."""
    options = {"host": "127.0.0.1", "port": 1, "timeout": 1}
    settings.MAILERS = {"default": {"BACKEND": "django.core.mail.backends.smtp.EmailBackend", "OPTIONS": options}}


@pytest.mark.full
def test_a_mail_that_cannot_be_sent_is_said_and_the_link_of_an_invitation_still_shown(
    chief: User, sign_in: SignIn, no_mail: None
) -> None:
    client = confirmed(sign_in(chief))
    response = invite(client, make.role())
    reset = client.post(f"/people/{make.user().pk}/reset/", follow=True)

    assert "The mail could not be sent." in text(response)
    assert "The mail could not be sent." in text(reset)
    assert not Event.objects.filter(action="user.password_reset_sent").exists()
    assert "Gateways you can use" in text(choose_password(link_in(response)))


def test_a_reset_tells_nobody_whether_the_account_exists_while_mail_cannot_be_sent(no_mail: None) -> None:
    emails = (make.user().email, "nobody@example.com")
    answers = [Client().post("/accounts/password/reset/", {"email": email}) for email in emails]

    assert [answer["Location"] for answer in answers] == ["/accounts/password/reset/done/"] * 2


def test_a_reset_is_looked_up_and_mailed_in_the_background_so_that_its_time_tells_nothing(
    monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    later: list[tuple[Callable[..., object], User]] = []
    monkeypatch.setattr(password_links, "_mailers", SimpleNamespace(submit=lambda *work: later.append(work)))
    person = make.user()

    for email in ("nobody@example.com", person.email):
        with django_assert_num_queries(4):
            Client().post("/accounts/password/reset/", {"email": email})
    assert (mail.outbox, len(later)) == ([], 1)
    (work, whose), *_ = later
    work(whose)

    assert mail.outbox[0].to == [person.email]


def test_an_address_that_no_mail_can_have_hides_no_link_and_keeps_no_mail_from_others(
    chief: User, sign_in: SignIn, settings: Any
) -> None:
    with mail_server(ssl.create_default_context(), offers_tls=False) as server:
        settings.MAILERS = mailers(f"smtp://127.0.0.1:{server.port}")
        emails = "al\u0131@example.com, bo@example.com"  # With a dotless i, easily typed on a Turkish keyboard.
        page = text(invite(confirmed(sign_in(chief)), make.role(), {"emails": emails}))

    assert "The mail could not be sent to al\u0131@example.com." in page
    assert page.count("/accounts/join/") == 2
    assert ["To: bo@example.com" in message for message in server.mails] == [True]


@pytest.mark.full
def test_the_link_of_an_invitation_is_in_one_answer_and_in_the_mail_and_nowhere_else(
    chief: User, sign_in: SignIn
) -> None:
    client = confirmed(sign_in(chief))
    response = invite(client, make.role())
    link = link_in(response)
    token = link.rstrip("/").rpartition("-")[2]

    bo = User.objects.get(email="bo@example.com")
    again = invite(client, make.role())

    (message,) = mail.outbox
    assert message.to == ["bo@example.com"]
    for words in (link, "Chief (chief@example.com) invited you", "72 hours"):
        assert words in message.body
    assert link.startswith(f"{settings.PUBLIC_URL}/accounts/join/")
    assert "no-store" in response["Cache-Control"]
    assert token not in str(dict(client.session))
    assert token not in text(client.get(f"/people/{bo.pk}/"))
    assert "This person is invited already." in text(again)
    assert token not in str(list(Event.objects.values()))


@pytest.mark.full
def test_the_link_works_once_for_72_hours_and_an_expired_one_is_shown_as_such_and_sent_again(
    chief: User, sign_in: SignIn
) -> None:
    link = link_in(invite(confirmed(sign_in(chief)), make.role()))
    with time_machine.travel(datetime.now(UTC) + timedelta(hours=71, minutes=59)):
        page = Client().get(link.removeprefix(settings.PUBLIC_URL), follow=True)
        assert "Join Gateway Admin" in text(page)

    with time_machine.travel(datetime.now(UTC) + timedelta(hours=72, seconds=2)):
        client = confirmed(sign_in(chief))
        assert "invitation expired" in text(client.get("/people/"))
        assert "This invitation no longer works" in text(choose_password(link))
        again = link_in(invite_again(client, User.objects.get(email="bo@example.com")))
        assert "Gateways you can use" in text(choose_password(again))
        assert "This invitation no longer works" in text(choose_password(again))
    assert Event.objects.filter(action="user.invitation_renewed").count() == 1


@pytest.mark.full
def test_a_bad_invitation_is_refused_in_words(chief: User, sign_in: SignIn, subtests: pytest.Subtests) -> None:
    client, role = confirmed(sign_in(chief)), make.role()
    for name, value, words in (
        ("emails", " ,\n", "This field is required."),
        ("emails", "bo@example.com, ann@", "ann@: this is not an e-mail address."),
        ("emails", "bo@example.com\nann bo@example.com", "ann bo@example.com: this is not an e-mail address."),
        ("emails", f"{'x.' * 30}y@{'x.' * 120}com", "it has more than 254 characters."),
        ("emails", f"{'x' * 121} <bo@example.com>", "the name has more than 120 characters."),
        ("emails", "a\x00b@example.com", "Null characters are not allowed."),
        ("emails", "\n".join(f"p{n}@example.com" for n in range(51)), "Enter at most 50 addresses at once"),
        ("role", "", "This field is required."),
        ("role", "00000000-0000-4000-8000-000000000000", "Select a valid choice."),
    ):
        with subtests.test(f"{name}: {value[:30]}"):
            response = invite(client, role, {name: value})
            assert response.status_code == 422
            assert words in text(response)
    assert User.objects.count() == 1
    assert not mail.outbox


@pytest.mark.full
def test_a_role_that_holds_more_than_ones_own_cannot_be_given(clerk: User, sign_in: SignIn) -> None:
    strong, client = make.role(Capability.LOGS_READ, name="Strong"), confirmed(sign_in(clerk))

    form = text(client.get("/people/invite/"))
    response = invite(client, strong)

    choice = form.split(f'value="{strong.pk}"')[1].split(">")[0]
    assert " checked" not in form.split("<legend>Role")[1].split("</fieldset>")[0]
    assert "disabled" in choice
    assert "You lack: View and export logs." in form
    assert "You can grant only capabilities that you have. You lack: View and export logs." in text(response)
    assert not User.objects.filter(email="bo@example.com").exists()


SEVERAL = "Bo Berg <bo@example.com>, cy@example.com\ndi@example.com"


@pytest.mark.full
def test_several_people_are_invited_at_once_with_role_and_teams(chief: User, sign_in: SignIn) -> None:
    role, team = make.role(name="Helper"), Team.objects.add(name="Support", users=[], by=chief)
    fields = {"emails": SEVERAL, "teams": str(team.pk)}

    page = text(invite(confirmed(sign_in(chief)), role, fields))

    links = re.findall(r'id="invitation-link-\d"[^>]*value="([^"]+)"', page)
    assert "3 people are invited" in page
    assert [message.to for message in mail.outbox] == [["bo@example.com"], ["cy@example.com"], ["di@example.com"]]
    assert len({*links}) == 3
    assert team.emails() == ["bo@example.com", "cy@example.com", "di@example.com"]
    assert {person.role for person in team.users.all()} == {role}
    event = Event.objects.get(action="user.invited", target_label="bo@example.com")
    assert event.changes == {"role": [None, "Helper"], "teams": [[], ["Support"]]}
    told = Event.objects.filter(action="team.updated", target_id=str(team.pk)).order_by("pk")
    assert [event.changes["users"] for event in told] == [[[], [email]] for email in team.emails()]
    assert "Gateways you can use" in text(choose_password(links[1]))
    assert User.objects.get(email="cy@example.com").status == "active"


def test_each_refused_address_is_named_nobody_is_invited_and_input_stays(chief: User, sign_in: SignIn) -> None:
    make.user(email="here@example.com")
    client, role = confirmed(sign_in(chief)), make.role()

    taken = invite(client, role, {"emails": f"{SEVERAL}\nHERE@example.com, chief@example.com"})
    wrong = invite(client, role, {"emails": f"{SEVERAL}\nnonsense, no@where, fine@example.com"})

    for words in (
        "here@example.com: Somebody with this e-mail address exists already.",
        "chief@example.com: Somebody with this e-mail address exists already.",
    ):
        assert words in text(taken)
    for words in ("nonsense: this is not an e-mail address.", "no@where: this is not an e-mail address."):
        assert words in text(wrong)
    for response in (taken, wrong):
        assert response.status_code == 422
        assert "Bo Berg &lt;bo@example.com&gt;, cy@example.com" in text(response)
        assert f'value="{role.pk}"' in text(response)
        assert " checked" in text(response).split("<legend>Role")[1].split("</fieldset>")[0]
    assert not User.objects.filter(email__in=["bo@example.com", "fine@example.com"]).exists()
    assert not mail.outbox


@pytest.mark.full
def test_joining_is_told_in_words_and_events_of_its_own(chief: User, sign_in: SignIn) -> None:
    link = link_in(invite(confirmed(sign_in(chief)), make.role()))
    client = Client()
    path = link.removeprefix(settings.PUBLIC_URL)

    opened = client.get(path)
    page = text(client.get(opened["Location"]))
    mismatch = client.post("/accounts/join/", {"display_name": "Bo", "password1": "another horse", "password2": "x"})
    form = {"display_name": "Bo B.", "password1": "another horse battery", "password2": "another horse battery"}
    done = client.post("/accounts/join/", form, follow=True)

    key = path.rstrip("/").rpartition("/")[2]
    assert "Open the whole link that you were sent" in text(Client().get("/accounts/join/"))
    (focused,) = re.findall(r"<input[^>]* autofocus[^>]*>", text(mismatch))
    assert 'name="password2"' in focused, "the field with the error"
    assert opened["Location"] == "/accounts/join/"
    assert key not in page
    assert mismatch.status_code == 422
    assert done.redirect_chain == [("/", 302)]
    bo = User.objects.get(email="bo@example.com")
    assert (bo.display_name, bo.status, bo.last_login is not None) == ("Bo B.", "active", True)
    events = Event.objects.filter(target_id=str(bo.pk)).order_by("pk")
    assert list(events.values_list("action", "actor_email")) == [
        ("user.invited", chief.email),
        ("user.joined", bo.email),
    ]
    for words in ("revoked", "reset", "Your earlier API tokens and app connections"):
        assert words not in page + text(mismatch)


@pytest.mark.full
def test_an_invitation_opens_no_page_of_a_reset_and_a_reset_none_of_an_invitation(chief: User) -> None:
    bo = User.objects.invite(email="bo@example.com", role=make.role(), by=chief)
    joined = make.user(email="joined@example.com")
    key = invitation_link(bo).rstrip("/").rpartition("/")[2]
    reset = password_link(joined).rstrip("/").rpartition("/")[2]

    assert "This link no longer works" in text(Client().get(f"/accounts/password/reset/key/{key}/", follow=True))
    assert Client().get(f"/accounts/join/{reset}/").status_code == 410


def test_an_invited_person_who_asks_for_a_reset_gets_the_invitation_again(chief: User) -> None:
    bo = User.objects.invite(email="bo@example.com", role=make.role(), by=chief)

    Client().post("/accounts/password/reset/", {"email": bo.email})
    (message,) = mail.outbox
    found = re.search(r"http\S+/accounts/join/\S+", str(message.body))

    assert found
    assert "reset" not in f"{message.subject} {message.body}".lower()
    with time_machine.travel(datetime.now(UTC) + timedelta(hours=73)):
        Client().post("/accounts/password/reset/", {"email": bo.email})
        assert bo.status == "expired"
    assert len(mail.outbox) == 1


@pytest.mark.full
def test_an_invitation_is_revoked_and_sent_again_from_the_list(chief: User, sign_in: SignIn) -> None:
    client = confirmed(sign_in(chief))
    link = link_in(invite(client, make.role()))
    bo = User.objects.get(email="bo@example.com")
    revoke, again = f"/people/{bo.pk}/invitation/revoke/", f"/people/{bo.pk}/invite/"

    bo.deactivate(by=chief)
    bo.reactivate(by=chief)
    assert "This invitation no longer works" in text(choose_password(link))
    link = link_in(invite_again(client, User.objects.get(pk=bo.pk)))
    listed = text(client.get("/people/"))
    done = client.post(revoke, follow=True)

    assert f'action="{revoke}"' in listed
    assert f'action="{again}"' in listed
    assert done.redirect_chain == [("/people/", 302)]
    assert "invitation revoked" in text(done)
    assert "This invitation no longer works" in text(choose_password(link))
    assert Event.objects.get(action="user.invitation_revoked").actor_email == chief.email
    bo.refresh_from_db()
    assert "Gateways you can use" in text(choose_password(link_in(invite_again(client, bo))))
    assert "This person has joined already" in text(client.post(revoke, follow=True))


@pytest.mark.full
def test_the_first_page_of_a_member_names_their_gateways_and_how_to_connect_each(chief: User) -> None:
    team = Team.objects.add(name="Support", users=[], by=chief)
    theirs = make.gateway(make.server(name="Handbook"), name="Theirs", reach=Reach.TEAMS)
    theirs.teams.add(team)
    make.gateway(name="Other", reach=Reach.TEAMS)
    make.gateway(name="Off", enabled=False)
    Host.objects.add_agent(name="Night bot", allow_enrolment=True, by=chief)
    Host.objects.add_agent(name="Closed bot", by=chief)
    bo = User.objects.invite(email="bo@example.com", role=make.role(), teams=[team], by=chief)

    page = text(choose_password(invitation_link(bo)))

    card = page.split("Gateways you can use")[1].split("</section>")[0]
    for words in ("Theirs", theirs.url, "Handbook", "How to Connect", f'value="{theirs.slug}"', "Night bot"):
        assert words in card
    for words in ("Other", ">Off<", "Closed bot"):
        assert words not in card


# --- Inviting again -----------------------------------------------------------------------------------------------


def invite_again(client: Client, person: User) -> Any:
    return client.post(f"/people/{person.pk}/invite/", {"epoch": str(person.session_epoch)})


@pytest.mark.full
def test_the_same_form_makes_no_second_link(chief: User, sign_in: SignIn) -> None:
    client = confirmed(sign_in(chief))
    invite(client, make.role())
    bo = User.objects.get(email="bo@example.com")
    link = link_in(invite_again(client, bo))

    repeated = client.post(f"/people/{bo.pk}/invite/", {"epoch": str(bo.session_epoch)}, follow=True)

    assert "This form was already used, or is out of date." in text(repeated)
    assert "Gateways you can use" in text(choose_password(link))


@pytest.mark.full
def test_a_bad_form_makes_no_link_nor_does_a_person_who_has_joined(chief: User, sign_in: SignIn) -> None:
    bo = User.objects.invite(email="bo@example.com", display_name="Bo", role=make.role(), by=chief)
    client, joined = confirmed(sign_in(chief)), make.user()

    for form in ({}, {"epoch": "nonsense"}, {"epoch": "-1"}):
        refused = client.post(f"/people/{bo.pk}/invite/", form, follow=True)
        assert "This form was already used, or is out of date." in text(refused)
    refused = client.post(f"/people/{joined.pk}/invite/", {"epoch": "0"}, follow=True)

    assert "This person has joined already, so there is no invitation to change." in text(refused)
    assert not mail.outbox


def test_nobody_sees_the_link_of_who_may_do_more_than_they(chief: User, clerk: User, sign_in: SignIn) -> None:
    bo = User.objects.invite(email="bo@example.com", display_name="Bo", role=make.role(Capability.LOGS_READ), by=chief)

    response = confirmed(sign_in(clerk)).post(f"/people/{bo.pk}/invite/", {"epoch": "0"}, follow=True)

    assert "You need all capabilities of the person, role, team or API key that you change." in text(response)
    assert "invitation-link" not in text(response)
    assert not mail.outbox


# --- Changing -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_role_is_changed_and_acts_at_once(chief: User, sign_in: SignIn) -> None:
    bo, role = make.user(), make.role(Capability.LOGS_READ, name="Watcher")
    browser = sign_in(bo)
    assert browser.get("/logs/").status_code == 403

    response = confirmed(sign_in(chief)).post(f"/people/{bo.pk}/role/", {"role": str(role.pk)}, follow=True)

    assert "Role changed" in text(response)
    assert browser.get("/logs/").status_code == 200
    assert Event.objects.get(action="user.role_changed").changes["role"][1] == "Watcher"


def test_nobody_lifts_another_above_themselves_nor_edits_who_may_do_more(
    chief: User, clerk: User, sign_in: SignIn
) -> None:
    bo, strong, client = make.user(), make.role(Capability.LOGS_READ), confirmed(sign_in(clerk))

    lifted = client.post(f"/people/{bo.pk}/role/", {"role": str(strong.pk)})
    edited = client.post(f"/people/{chief.pk}/edit/", {"email": "clerk2@example.com", "display_name": "Chief"})

    assert lifted.status_code == 422
    assert "You lack: View and export logs." in text(lifted)
    assert User.objects.get(pk=bo.pk).role == bo.role
    assert "You need all capabilities of the person, role, team or API key that you change." in text(edited)
    assert User.objects.get(pk=chief.pk).email == "chief@example.com"


@pytest.mark.full
def test_name_and_e_mail_are_edited_and_bad_input_changes_nothing(chief: User, sign_in: SignIn) -> None:
    bo, client = make.user(email="bo@example.com"), confirmed(sign_in(chief))
    for page, form, words in (
        ("edit", {"email": "chief@example.com"}, "Somebody with this e-mail address exists already."),
        ("edit", {"email": "nonsense"}, "Enter a valid email address."),
        ("edit", {"email": "ok@example.com", "display_name": "x" * 121}, "at most 120 characters"),
        ("edit", {}, "This field is required."),
        ("role", {"role": ""}, 'class="error"'),
        ("role", {"role": "00000000-0000-4000-8000-000000000000"}, 'class="error"'),
    ):
        response = client.post(f"/people/{bo.pk}/{page}/", form)
        assert (response.status_code, words in text(response)) == (422, True), (page, form)
    before = User.objects.get(pk=bo.pk)
    assert (before.email, before.role) == ("bo@example.com", bo.role)

    client.post(f"/people/{bo.pk}/edit/", {"email": "Bo.Berg@example.com", "display_name": "Bo"})

    bo.refresh_from_db()
    assert (bo.email, bo.display_name) == ("bo.berg@example.com", "Bo")


# --- Resets, sessions, the account --------------------------------------------------------------------------------


@pytest.mark.full
def test_a_reset_is_mailed_and_shown_to_nobody_and_only_for_active_people_who_joined(
    chief: User, sign_in: SignIn
) -> None:
    bo, client = make.user(email="bo@example.com"), sign_in(chief)
    for person in (make.user(is_active=False), make.invited()):
        refused = client.post(f"/people/{person.pk}/reset/", follow=True)
        assert "Only an active person who has a password can get a link to reset it." in text(refused)

    response = client.post(f"/people/{bo.pk}/reset/", follow=True)

    (message,) = mail.outbox
    assert message.to == ["bo@example.com"]
    link = re.search(r"/accounts/password/reset/key/\S+", str(message.body))
    assert link
    assert link[0] not in text(response)
    assert "A link was sent to bo@example.com" in text(response)
    assert Event.objects.get(action="user.password_reset_sent").actor_email == chief.email
    assert "Your password is set" in text(choose_password(link[0]))


def test_a_person_is_signed_out_everywhere_and_a_deactivated_one_let_in_again(chief: User, sign_in: SignIn) -> None:
    bo, gone, client = make.user(), make.user(is_active=False), sign_in(chief)
    browser = sign_in(bo)

    asked = text(client.get(f"/people/{bo.pk}/sign-out/"))
    client.post(f"/people/{bo.pk}/sign-out/")
    done = client.post(f"/people/{gone.pk}/reactivate/", follow=True)

    assert f"Sign {bo.email} out of every browser?" in asked
    assert browser.get("/").status_code == 302
    assert f"{gone.email} can sign in again" in text(done)
    assert User.objects.get(pk=gone.pk).is_active
