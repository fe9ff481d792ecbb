"""Setting up the sign-in by the organisation: page, REST, and refused settings."""

from ipaddress import ip_network
from typing import Any

import pytest
from django.test import Client
from pytest_django import Settings

from accounts.models import Role, Team, User
from auditlog.models import Event
from capabilities import Capability
from sso.models import GroupRule, Provider
from tests import make
from tests.accounts.again import confirmed
from tests.oauth.apps import browser
from tests.rest import Rest
from tests.sso.conftest import SECRET, Organisation, must_move_to_the_newest_key
from tests.undone import undone

pytestmark = pytest.mark.django_db

PAGE = "/settings/organisation/"
FORM = {"mode": "off", "scopes": "openid profile email", "groups_claim": "groups"}


@pytest.fixture
def boss(db: None) -> Client:
    return confirmed(browser(make.user(*Capability)))


@pytest.mark.full
def test_the_page_saves_rules_and_shows_the_addresses_but_never_the_secret(boss: Client) -> None:
    lead, team = make.role(name="Lead"), Team.objects.add(name="Platform", users=[], by=None)
    rules = {"rule-0-group": "leads", "rule-0-role": str(lead.pk), "rule-0-team": str(team.pk), "rule-1-group": ""}

    saved = boss.post(PAGE, FORM | rules | {"name": "Example", "secret": SECRET})

    assert saved.status_code == 302
    assert Provider.load().rules == [GroupRule("leads", lead, team)]
    page = boss.get(PAGE).content.decode()
    assert SECRET not in page
    assert "<fieldset>" in page
    assert "/accounts/organisation/back/" in page
    assert 'value="leads"' in page
    event = Event.objects.get(action="organisation.updated")
    assert event.changes["rules"] == [[], [["leads", "Lead", "Platform"]]]
    assert event.changes["secret_replaced"] is True
    assert SECRET not in str(event.changes)


@pytest.mark.full
def test_a_save_that_is_based_on_an_older_page_is_refused_with_what_changed(boss: Client) -> None:
    version = boss.get(PAGE).context["version"]
    Provider.edit(by=None, name="Other")

    clash = boss.post(PAGE, FORM | {"name": "Mine", "version": version})

    assert clash.status_code == 422
    assert Provider.load().name == "Other"


@pytest.mark.full
def test_invalid_settings_are_refused_in_words_and_not_saved(boss: Client, settings: Settings) -> None:
    for name, value, words in (
        ("mode", "offered", "enter the provider&#x27;s name, issuer and client ID"),
        ("issuer", "http://93.184.216.34", "GATEWAY_PRIVATE_UPSTREAMS"),
        ("issuer", "https://10.0.0.1", "GATEWAY_PRIVATE_UPSTREAMS does not allow it"),
        ("issuer", "https://93.184.216.34/?x=1", "must not have a query"),
        ("scopes", "profile", "`openid` must be one of them"),
        ("domains", "not a domain", "such as example.com"),
        ("rule-0-group", "leads", "a role or a team"),
    ):
        refused = boss.post(PAGE, FORM | {name: value})
        assert (refused.status_code, words in refused.content.decode()) == (422, True), words
    assert not Event.objects.filter(action="organisation.updated").exists()

    settings.PRIVATE_UPSTREAMS = [ip_network("10.0.0.0/8")]
    assert boss.post(PAGE, FORM | {"issuer": "http://10.0.0.1:8080"}).status_code == 302
    assert Provider.load().private


@pytest.fixture
def all_but_one(db: None) -> User:
    return make.user(*(each for each in Capability if each != Capability.LOGS_READ))


@pytest.mark.full
def test_admission_terms_can_be_changed_only_with_every_capability(
    all_but_one: User, subtests: pytest.Subtests
) -> None:
    """Every capability is required, even for settings that name no role but decide who gets one."""
    strong, weak = make.role(*Capability), make.role()
    lacking, boss = Rest.of(all_but_one), Rest.of(make.user(*Capability))
    known: dict[str, Any] = {"name": "Ours", "issuer": "https://93.184.216.34", "client_id": "ours"}
    Provider.edit(by=None, rules=[GroupRule("owners", strong)], default_role=weak, **known)
    before = Provider.load().editable()
    terms: list[dict[str, Any]] = [
        {"issuer": "https://93.184.216.34/other"},
        {"client_id": "other"},
        {"groups_claim": "other"},
        {"rules": []},
        {"rules": [{"group": "mine", "role_id": str(strong.pk)}]},
        {"default_role_id": str(strong.pk)},
        {"default_role_id": None},
        {"links_by_email": True},
        {"mode": "offered"},
        {"domains": ["example.com"]},
    ]
    for chosen in terms:
        with subtests.test(str(chosen)), undone():
            refused = lacking.patch("/organisation", chosen)

            assert (refused.status_code, refused.json()["code"]) == (403, "beyond_yours")
            assert refused.json()["detail"].endswith("You lack: View and export logs.")
            assert Provider.load().editable() == before
            allowed = boss.patch("/organisation", chosen)
            assert allowed.status_code == 200, allowed.text


@pytest.mark.full
def test_the_page_says_what_somebody_lacks_to_set_it_up_and_saves_nothing_of_theirs(all_but_one: User) -> None:
    client = confirmed(browser(all_but_one))
    words = "needs every capability. You lack: View and export logs."

    page = client.get(PAGE).content.decode()
    refused = client.post(PAGE, FORM | {"groups_claim": "other"})

    assert words in page
    assert "<fieldset disabled>" in page
    assert ">Save<" not in page
    assert refused.status_code == 422
    assert "You lack: View and export logs." in refused.content.decode()
    assert Provider.load().groups_claim == "groups"


@pytest.mark.full
def test_another_issuer_is_never_told_the_secret_of_the_one_before() -> None:
    there: dict[str, Any] = {"name": "Ours", "issuer": "https://93.184.216.34", "client_id": "ours"}
    Provider.edit(by=None, secret=SECRET, **there)

    Provider.edit(by=None, name="Still ours", issuer=there["issuer"])
    assert Provider.load().secret == SECRET
    Provider.edit(by=None, issuer="https://93.184.216.34/other")

    assert (Provider.load().secret, Provider.load().key_id) == ("", "")
    event = Event.objects.filter(action="organisation.updated").latest("pk")
    assert event.changes["secret_removed"] is True
    Provider.edit(by=None, issuer="https://93.184.216.34/third", secret="another-secret")
    assert Provider.load().secret == "another-secret"


@pytest.mark.full
def test_djangos_admin_saves_it_only_after_the_password_was_confirmed() -> None:
    Provider.load()
    boss = make.user(*Capability, is_staff=True)
    client, path = browser(boss), "/admin/sso/provider/1/change/"
    page = confirmed(browser(boss)).get(path)
    form = page.context["adminform"].form.initial | {"name": "Theirs", "domains": "[]", "default_role": ""}
    sent = {name: value for name, value in form.items() if value is not False}

    asked = client.post(path, sent)

    assert asked.status_code == 302
    assert "reauthenticate" in asked["Location"]
    assert Provider.load().name == ""
    assert confirmed(client).post(path, sent).status_code == 302
    assert Provider.load().name == "Theirs"
    assert client.post(path, sent | {"domains": "5"}).status_code < 500
    assert Provider.load().domains == []


def test_rest_sets_it_up_and_says_what_has_to_be_entered_at_the_provider() -> None:
    boss, role = make.user(*Capability), make.role(name="Lead")
    rest = Rest.of(boss)

    changed = rest.patch("/organisation", {"name": "Example", "secret": SECRET, "rules": [
        {"group": "leads", "role_id": str(role.pk)}
    ]})  # fmt: skip

    assert changed.status_code == 200
    said = changed.json()
    assert (said["name"], said["has_secret"], said["rules"][0]["role"]["name"]) == ("Example", True, "Lead")
    assert said["redirect_uri"].endswith("/accounts/organisation/back/")
    assert SECRET not in changed.text
    assert rest.patch("/organisation", {"issuer": "https://10.0.0.1"}).json()["code"] == "invalid"


@pytest.mark.full
def test_a_role_that_a_group_gives_cannot_be_removed() -> None:
    boss, role = make.user(*Capability), make.role(name="Lead")
    Provider.edit(by=None, rules=[GroupRule("leads", role)])

    refused = Rest.of(boss).delete(f"/roles/{role.pk}")

    assert (refused.status_code, refused.json()["code"]) == (409, "role_in_use")
    assert Role.objects.filter(pk=role.pk).exists()


@pytest.mark.full
def test_test_says_in_words_what_is_wrong_and_what_was_found(
    boss: Client, provider: Provider, organisation: Organisation
) -> None:
    good = boss.post(f"{PAGE}test/").content.decode()
    Provider.edit(by=None, issuer=f"{organisation.origin}/")
    renamed = boss.post(f"{PAGE}test/").content.decode()
    Provider.edit(by=None, issuer="http://127.0.0.1:9")
    down = boss.post(f"{PAGE}test/").content.decode()

    assert "has valid metadata" in good
    assert f"names another issuer: {organisation.origin}" in renamed
    assert "cannot be reached" in down
    told = Event.objects.filter(action="organisation.tested").order_by("pk")
    assert [event.changes["works"] for event in told] == [True, False, False]


@pytest.mark.full
def test_the_clients_secret_moves_to_the_newest_key_and_is_counted(provider: Provider, settings: Settings) -> None:
    must_move_to_the_newest_key(settings, SECRET)
