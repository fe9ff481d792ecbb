"""Sign-in at the organisation: the account here, and roles and teams from groups at each sign-in."""

import hashlib
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.core.cache import cache
from django.test import Client

from accounts.models import Role, Team, User
from auditlog.models import Event
from capabilities import Capability
from sso import oidc
from sso.errors import NoEntry, SignInFailed
from sso.models import Account, Claims, GroupRule, Provider
from sso.oidc import _must_be_granted, extract_claims
from tests import make
from tests.clients.issuers import Visitor
from tests.issuers import destination
from tests.sso.conftest import BACK, Organisation, SignIn, Visit
from tests.undone import undone

pytestmark = pytest.mark.django_db


def without_token(visit: Visit) -> str:
    """Return the text of the resulting page without the CSRF token."""
    return re.sub(r'"X-CSRFToken": "\w+"', "", visit.response.content.decode())


def actions(person: User) -> list[str]:
    return list(Event.objects.filter(target_id=str(person.pk)).order_by("pk").values_list("action", flat=True))


@pytest.mark.full
def test_the_first_sign_in_makes_the_person_and_the_second_finds_them(
    organisation: Organisation, sign_in: SignIn
) -> None:
    organisation.knows("mia")

    first = sign_in("mia", next="/settings/sessions")

    assert (first.response.status_code, first.response["Location"]) == (302, "/settings/sessions")
    mia = User.objects.get(email="mia@example.com")
    assert first.person == mia
    assert (mia.display_name, mia.role and mia.role.name, mia.has_usable_password()) == ("Mia", "Member", False)
    assert (actions(mia), mia.status) == (["user.created"], "active")
    assert sign_in("mia").person == mia
    assert actions(mia) == ["user.created"]
    assert Account.objects.get().subject == "mia"


@pytest.mark.full
def test_provider_data_cached_by_another_release_is_not_read(
    organisation: Organisation, provider: Provider, sign_in: SignIn
) -> None:
    """Two releases share a cache during an upgrade."""
    fields = "issuer authorization_endpoint token_endpoint userinfo_endpoint end_session_endpoint auth_methods says_iss"
    document = oidc.fetch_provider_json(provider, f"{provider.issuer}/.well-known/openid-configuration")
    said = document | {"auth_methods": ("client_secret_basic",), "says_iss": True}
    issuer = hashlib.sha256(provider.issuer.encode()).hexdigest()[:32]
    for name, more in (("organisation-metadata", document["jwks_uri"]), ("organisation-provider", [{}])):
        cache.set(f"{name}:{issuer}", (*(said[field] for field in fields.split()), more), 600)
    organisation.knows("mia")

    visit = sign_in("mia")

    assert visit.person is not None
    assert visit.person.email == "mia@example.com"


@pytest.mark.full
def test_groups_give_role_and_teams_at_every_sign_in_with_events(
    organisation: Organisation, provider: Provider, sign_in: SignIn
) -> None:
    lead, team = make.role(name="Lead"), Team.objects.add(name="Platform", users=[], by=None)
    other = Team.objects.add(name="Other", users=[], by=None)
    Provider.edit(by=None, rules=[GroupRule("leads", lead), GroupRule("platform", None, team)])
    organisation.knows("mia", groups=["leads", "platform"])
    sign_in("mia")
    mia = User.objects.get(email="mia@example.com")
    other.edit(name="Other", users=[mia], by=None)
    assert (mia.role, set(mia.teams.all())) == (lead, {team, other})

    organisation.knows("mia", groups=[])
    sign_in("mia")

    mia.refresh_from_db()
    assert mia.role == Role.objects.get(name="Member")
    assert set(mia.teams.all()) == {other}  # No rule is about the team `other`.
    assert actions(mia) == ["user.created", "user.role_changed"]
    assert Event.objects.filter(target_id=str(team.pk), action="team.updated").count() == 2


@pytest.mark.full
def test_without_a_role_there_is_no_entry(organisation: Organisation, provider: Provider, sign_in: SignIn) -> None:
    Provider.edit(by=None, default_role=None, rules=[GroupRule("staff", Role.objects.get(name="Member"))])
    organisation.knows("mia", groups=["guests"])

    visit = sign_in("mia")

    assert (visit.response.status_code, visit.person) == (403, None)
    assert not User.objects.filter(email="mia@example.com").exists()
    assert "none of your groups there has a role in this workspace" in visit.response.content.decode()
    refused = Event.objects.get(action="user.sign_in_refused")
    assert refused.changes == {"reason": "no_role", "email": "mia@example.com", "groups": ["guests"]}


@pytest.mark.full
def test_the_email_of_an_existing_person_is_never_taken_over_without_proof_and_consent(
    organisation: Organisation, provider: Provider, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    owner = make.user(email="owner@example.com")
    for verified, links in ((True, False), (False, True), (None, True)):
        with subtests.test(f"verified: {verified}, links by e-mail: {links}"), undone():
            Provider.edit(by=None, links_by_email=links)
            organisation.knows("owner", email_verified=verified)

            visit = sign_in("owner")

            assert (visit.response.status_code, visit.person) == (403, None)
            assert not Account.objects.exists()
            assert actions(owner) in ([], ["user.sign_in_refused"])
            assert Event.objects.filter(action="user.sign_in_refused").count() == 1
    Provider.edit(by=None, links_by_email=True)
    organisation.knows("owner", email_verified=True)

    assert sign_in("owner").person == owner
    assert "user.linked" in actions(owner)


@pytest.mark.full
def test_signed_in_people_link_and_unlink_their_own_account(organisation: Organisation, sign_in: SignIn) -> None:
    mia = make.user(email="mia@example.com")
    organisation.knows("somebody", email="other@example.com")
    own = Client()
    own.post("/accounts/login/", {"login": mia.email, "password": make.PASSWORD})
    sign_in("somebody", own, "/settings/organisation/link/")
    assert sign_in("somebody").person == mia

    own.post("/settings/organisation/unlink/")

    assert not Account.objects.exists()
    assert actions(mia) == ["user.linked", "user.unlinked"]


@pytest.mark.full
def test_a_disabled_person_reads_so_and_whom_to_ask(
    organisation: Organisation, provider: Provider, sign_in: SignIn
) -> None:
    organisation.knows("mia")
    sign_in("mia")
    User.objects.get(email="mia@example.com").deactivate(by=None)

    visit = sign_in("mia")

    assert (visit.response.status_code, visit.person) == (403, None)
    assert "Your account in this workspace is disabled. Ask an administrator" in visit.response.content.decode()


@pytest.mark.full
def test_nobody_finds_out_by_an_address_that_they_cannot_prove_whether_it_has_an_account(
    organisation: Organisation, provider: Provider, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    make.user(email="owner@example.org")
    organisation.knows("owner", email="owner@example.org", email_verified=None)
    organisation.knows("nobody", email="nobody@example.org", email_verified=None)

    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({}, {"email_taken", "email_not_verified"}),
        ({"default_role": None, "domains": ["example.org"]}, {"no_role"}),
    ]
    for changed, reasons in cases:
        with subtests.test(str(reasons)), undone():
            Provider.objects.update(mode="offered", **changed)

            taken, free = sign_in("owner"), sign_in("nobody")

            assert (taken.response.status_code, free.response.status_code) == (403, 403)
            refusals = Event.objects.filter(action="user.sign_in_refused")
            assert {event.changes["reason"] for event in refusals} == reasons
            assert without_token(taken) == without_token(free)


def test_a_person_whom_the_organisation_refuses_reads_whom_to_ask(
    organisation: Organisation, provider: Provider
) -> None:
    for error, words in (
        ("access_denied", "Your organisation did not sign you in"),
        ("temporarily_unavailable", "Try again"),
    ):
        client = Client()
        away = parse_qs(urlsplit(destination(client.post("/accounts/organisation/"))).query)
        answer = {"state": away["state"][0], "error": error, "iss": organisation.origin}
        page = client.get("/accounts/organisation/back/", answer)
        assert (page.status_code, words in page.content.decode()) == (400, True), error


@pytest.mark.full
def test_the_last_owner_stays_one_whatever_the_groups_say(
    organisation: Organisation, provider: Provider, sign_in: SignIn
) -> None:
    Provider.edit(by=None, links_by_email=True, rules=[GroupRule("all", Role.objects.get(name="Member"))])
    owner = User.objects.create_user("owner@example.com", make.PASSWORD, role=Role.objects.get(name="Super admin"))
    organisation.knows("owner", groups=["all"])

    assert sign_in("owner").person == owner

    owner.refresh_from_db()
    assert owner.role == Role.objects.get(name="Super admin")


@pytest.mark.full
def test_removing_the_groups_scope_from_the_request_is_refused(organisation: Organisation, provider: Provider) -> None:
    Provider.edit(by=None, rules=[GroupRule("guests", make.role(name="Guest"))])
    organisation.knows("mia", groups=["guests"])
    client, visitor = Client(), Visitor("mia")
    away = destination(client.post("/accounts/organisation/"))
    without = re.sub(r"(\+|%20)groups", "", away)
    assert without != away

    refused = client.get(visitor.comes_back(without, to=BACK))
    visitor.http.close()

    assert refused.status_code == 400
    assert not User.objects.filter(email="mia@example.com").exists()


def test_scopes_under_googles_names_and_one_that_gives_no_claims_are_granted() -> None:
    google = "https://www.googleapis.com/auth/userinfo."
    _must_be_granted("openid email profile offline_access", f"openid {google}email {google}profile")
    with pytest.raises(SignInFailed, match="groups"):
        _must_be_granted("openid groups", "openid email")


def claims_of_mia(provider: Provider, *groups: str, says_groups: bool = True) -> Claims:
    said = frozenset(groups)
    return Claims(provider.issuer, "mia", "mia@example.com", True, "Mia", groups=said, says_groups=says_groups)


def test_each_account_that_is_linked_is_an_event(provider: Provider) -> None:
    mia = provider.admit(claims_of_mia(provider))
    Provider.objects.update(links_by_email=True)

    moved = claims_of_mia(provider)._replace(issuer="https://other.example.com")
    assert Provider.load().admit(moved) == mia

    assert actions(mia) == ["user.created", "user.linked"]


@pytest.mark.full
def test_nobody_gets_more_by_groups_that_are_left_out(provider: Provider, subtests: pytest.Subtests) -> None:
    """Missing groups remove roles and teams given earlier; if the groups claim is missing, the loss is recorded."""
    roles = {
        "Wide": make.role(Capability.LOGS_READ, Capability.HOSTS_READ, name="Wide"),
        "Guest": make.role(Capability.LOGS_READ, name="Guest"),
        "Least": make.role(name="Least"),
    }
    team = Team.objects.add(name="Platform", users=[], by=None)
    rules = [GroupRule("guests", roles["Guest"], team)]

    def left_out(default: str, *, says_groups: bool) -> User:
        changed = Provider.edit(by=None, default_role=roles[default], rules=rules)
        changed.admit(claims_of_mia(provider, "guests"))
        return changed.admit(claims_of_mia(provider, says_groups=says_groups))

    for says_groups, default, expected in (
        (False, "Wide", "Guest"),
        (False, "Least", "Least"),
        (True, "Wide", "Wide"),
        (True, "Least", "Least"),
    ):
        with subtests.test(f"{default}, says groups: {says_groups}"), undone():
            person = left_out(default, says_groups=says_groups)
            assert (person.role, list(person.teams.all())) == (roles[expected], [])
            noted = Event.objects.filter(action="user.groups_unsaid", target_id=str(person.pk))
            assert [event.changes for event in noted] == ([] if says_groups else [{"claim": "groups"}])
    with subtests.test("nor entry without a default role"), undone():
        changed = Provider.edit(by=None, default_role=None, rules=rules)
        changed.admit(claims_of_mia(provider, "guests"))
        with pytest.raises(NoEntry):
            changed.admit(claims_of_mia(provider, says_groups=False))
    with subtests.test("nor a role that uses gateways"), undone():
        Role.objects.filter(pk=roles["Guest"].pk).update(uses_gateways=False)
        assert left_out("Least", says_groups=False).role == roles["Guest"]
    with subtests.test("nor an event for people without a role by rule"), undone():
        for _ in range(2):
            assert provider.admit(claims_of_mia(provider, says_groups=False)).role == provider.default_role
        assert not Event.objects.filter(action="user.groups_unsaid").exists()


@pytest.mark.full
def test_a_new_person_is_made_with_an_address_that_is_verified_or_of_the_organisation(
    organisation: Organisation, provider: Provider, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    """Otherwise people who choose their own address at the provider could take the account of a future member."""
    domains: list[str]
    for verified, domains in ((None, []), (True, []), (None, ["example.com"])):
        with subtests.test(f"verified: {verified}, domains: {domains}"), undone():
            Provider.edit(by=None, domains=domains)
            organisation.knows("eve", email="ceo@example.com", email_verified=verified)

            visit = sign_in("eve")

            is_let_in = bool(verified or domains)
            assert (visit.person is not None) is is_let_in
            assert User.objects.filter(email="ceo@example.com").exists() is is_let_in
            refusals = Event.objects.filter(action="user.sign_in_refused")
            assert [event.changes["reason"] for event in refusals] == ([] if is_let_in else ["email_not_verified"])


@pytest.mark.full
def test_claims_are_taken_as_they_are_or_not_at_all(provider: Provider) -> None:
    def said(**claims: object) -> Claims:
        return extract_claims({"sub": "mia", "email": "mia@example.com"} | claims, provider)

    assert said(sub=" mia").subject == " mia"
    assert said(email="\u212amia@example.com").email == ""  # The KELVIN SIGN becomes k in lower case.
    assert said(email="mia\x00@example.com").email == ""
    assert said(name=" Mi\u202ea\x00 ").name == "Mia"
    assert not said().says_groups
    assert said(groups=[]).says_groups
    assert said(groups=["own\u200bers", "a\x00", "staff"]).groups == frozenset({"staff"})


def test_a_verified_address_is_the_one_that_is_said_beside_it(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Userinfo cannot verify the ID token's address: people may be able to edit the address in only one of the two."""
    userinfo = {"sub": "mia", "email": "eve@example.com", "email_verified": True}
    monkeypatch.setattr(oidc, "fetch_provider_json", lambda *_: userinfo)

    for email in ("mia@example.com", "eve@example.com"):
        who = extract_claims(oidc._with_userinfo({"sub": "mia", "email": email}, provider, "", ""), provider)
        assert (who.email, who.email_verified) == (email, None)
