"""SAML sign-in: the same people, roles, teams and refusals as with OpenID Connect."""

import base64
import re
import time
import zlib
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.test import Client

from accounts import sign_in_limits
from accounts.models import Role, Team, User
from accounts.password_links import invitation_link
from accounts.sign_in import SIGNED_IN_AT
from auditlog.models import Event
from sso.models import Account, GroupRule, Provider, ReceivedAssertion
from tests import make
from tests.issuers import query
from tests.scim.conftest import Directory, key_for
from tests.sso.conftest import signed_in_long_ago
from tests.sso.saml_provider import (
    ACS,
    ANSWERED,
    Answer,
    Pair,
    SamlOrganisation,
    SamlVisit,
    agrees,
    asks,
    begins_at,
    brings,
    form_of,
    metadata_of,
    signs_in_at,
)
from tests.sso.test_enforced import owner
from tests.undone import undone
from ui.sealing import cipher

pytestmark = pytest.mark.django_db


def sign_in(name: str, client: Client | None = None, **fields: Any) -> SamlVisit:
    """Press the sign-in button, sign in at the provider under a name, and return the outcome."""
    client = client or Client()
    return brings(client, signs_in_at(asks(client, **fields), name))


def actions(person: User) -> list[str]:
    return list(Event.objects.filter(target_id=str(person.pk)).order_by("pk").values_list("action", flat=True))


@pytest.mark.full
def test_the_first_sign_in_makes_the_person_and_the_second_finds_them(
    saml: Provider, saml_organisation: SamlOrganisation
) -> None:
    lead, team = make.role(name="Lead"), Team.objects.add(name="Platform", users=[], by=None)
    Provider.edit(by=None, rules=[GroupRule("leads", lead), GroupRule("platform", None, team)])
    saml_organisation.knows("mia")

    first = sign_in("mia", next="/settings/sessions")

    assert (first.response.status_code, first.response["Location"]) == (302, "/settings/sessions")
    mia = User.objects.get(email="mia@example.com")
    assert first.person == mia
    assert (mia.display_name, mia.role and mia.role.name, mia.has_usable_password()) == ("Mia", "Member", False)
    assert mia.status == "active"  # Not "invited", although there is no password.
    (saml_organisation.folder / "signs-responses").touch()  # As a whole, too.
    assert sign_in("mia").person == mia
    assert actions(mia) == ["user.created"]
    assert (Account.objects.get().issuer, Account.objects.get().subject) == (f"saml:{saml.issuer}", "mia")
    saml_organisation.knows("mia", groups=["leads", "platform"])
    assert sign_in("mia").person == User.objects.get(role=lead, teams=team)


def test_the_email_of_an_existing_person_is_never_taken_over_without_proof(
    saml: Provider, saml_organisation: SamlOrganisation, subtests: pytest.Subtests
) -> None:
    """SAML has no standard attribute for a verified address, so only a configured attribute counts as proof."""
    owner = make.user(email="owner@example.com")
    for verified, links in (("true", False), ("false", True), ("", True)):
        with subtests.test(f"verified: {verified}, links by e-mail: {links}"), undone():
            Provider.edit(by=None, links_by_email=links)
            saml_organisation.knows("owner", email_verified=verified)

            visit = sign_in("owner")

            assert (visit.response.status_code, visit.person) == (403, None)
            assert not Account.objects.exists()
            assert not Event.objects.filter(action="user.linked", target_id=str(owner.pk)).exists()


@pytest.mark.full
def test_no_claim_is_kept_once_somebody_is_in(saml: Provider, saml_organisation: SamlOrganisation) -> None:
    saml_organisation.knows("mia", groups=["secret-group"])
    client = Client()
    fields = signs_in_at(asks(client), "mia")
    answer = Client().post(ACS, fields)

    waiting = ReceivedAssertion.objects.get()
    assert b"mia@example.com" not in bytes(waiting.sealed or b"")
    assert "mia@example.com" in cipher().open(bytes(waiting.sealed or b""))
    client.get(answer["Location"])

    assert ReceivedAssertion.objects.get().sealed is None
    assert "secret-group" not in str(client.session.items())


def test_the_answer_comes_from_another_site_and_needs_no_cookie_but_the_browser_that_began_it(
    saml: Provider, saml_organisation: SamlOrganisation
) -> None:
    """Otherwise an attacker could sign a victim in to the attacker's account, and watch what the victim does."""
    saml_organisation.knows("eve")
    eve, victim = Client(), Client()
    fields = signs_in_at(asks(eve), "eve")

    visit = brings(victim, fields)

    assert (visit.response.status_code, visit.person) == (400, None)
    assert "started in another browser" in visit.words
    event = Event.objects.get(action="user.sign_in_refused")
    assert event.changes["reason"] == "not_begun_here"


@pytest.mark.full
def test_a_ticket_is_used_once_and_an_assertion_too(saml: Provider, saml_organisation: SamlOrganisation) -> None:
    saml_organisation.knows("mia")
    client = Client()
    fields = signs_in_at(asks(client), "mia")
    ticket = Client().post(ACS, fields)["Location"]
    assert client.get(ticket).status_code == 302

    assert client.get(ticket).status_code == 400
    again = brings(client, fields)

    assert again.response.status_code == 400
    assert "already used" in again.words


@pytest.mark.full
def test_a_person_who_did_not_start_here_is_sent_to_the_button(
    saml: Provider, saml_organisation: SamlOrganisation
) -> None:
    saml_organisation.knows("mia")

    visit = brings(Client(), begins_at(saml_organisation, "mia"))

    assert (visit.response.status_code, visit.person) == (400, None)
    assert "Start signing in here" in visit.words
    assert Event.objects.get(action="user.sign_in_refused").changes["reason"] == "not_asked_for"


@pytest.mark.full
def test_where_it_is_allowed_people_begin_there_once_and_are_led_to_own_addresses_only(
    saml: Provider, saml_organisation: SamlOrganisation, subtests: pytest.Subtests
) -> None:
    Provider.edit(by=None, takes_unsolicited=True)
    saml_organisation.knows("mia")
    for to, leads in (("/logs/", "/logs/"), ("https://evil.example.com/", "/"), ("//evil.example.com", "/")):
        with subtests.test(to), undone():
            fields = begins_at(saml_organisation, "mia", to)
            visit = agrees(brings(Client(), fields))
            again = brings(Client(), fields)

            assert (visit.response.status_code, visit.response["Location"]) == (302, leads)
            assert visit.person == User.objects.get(email="mia@example.com")
            assert (again.response.status_code, again.person) == (400, None)


@pytest.mark.full
def test_a_person_who_did_not_start_here_is_asked_before_their_session_ends(
    saml: Provider, saml_organisation: SamlOrganisation
) -> None:
    """Without the question, a link would be enough to move somebody into another account."""
    Provider.edit(by=None, takes_unsolicited=True)
    saml_organisation.knows("eve")
    victim = Client(enforce_csrf_checks=True)
    owner = make.user(email="owner@example.com")
    victim.force_login(owner)

    asked = brings(victim, begins_at(saml_organisation, "eve"))

    assert (asked.response.status_code, asked.person) == (200, owner)
    assert "Sign in as eve@example.com?" in asked.words
    assert "Signing in ends your session as owner@example.com." in asked.words
    ticket = form_of(asked.words)["ticket"]
    forged: Any = victim.post(ANSWERED, {"ticket": ticket})
    assert (forged.status_code, asked.person) == (403, owner)
    assert agrees(asked).person == User.objects.get(email="eve@example.com")


@pytest.mark.full
def test_an_answer_that_nobody_asked_for_takes_no_invitation_that_was_opened_here(
    saml: Provider, saml_organisation: SamlOrganisation
) -> None:
    """Otherwise an attacker's response with the invited e-mail would link the invited account to the attacker."""
    breaker = owner()
    breaker.set_break_glass(True, by=None)
    Provider.edit(by=None, takes_unsolicited=True, mode="enforced", domains=["example.com"])
    invited = User.objects.invite(email="mia@example.com", role=make.role(), by=breaker)
    saml_organisation.knows("mia", email_verified="")
    client = Client()
    client.get(urlsplit(invitation_link(invited)).path, follow=True)

    visit = agrees(brings(client, begins_at(saml_organisation, "mia")))

    assert (visit.response.status_code, visit.person) == (403, None)
    assert Event.objects.get(action="user.sign_in_refused").changes["reason"] == "email_taken"
    assert not Account.objects.exists()


@pytest.mark.full
def test_a_certificate_that_was_withdrawn_is_not_believed_where_people_begin_at_the_provider(
    saml: Provider, saml_organisation: SamlOrganisation
) -> None:
    Provider.edit(by=None, takes_unsolicited=True)
    old = saml_organisation.pair
    Provider.objects.update(metadata_read_at="2026-01-01T00:00:00Z")
    saml_organisation.signs_with(Pair.make("new"))

    refused = brings(Client(), Answer(saml.issuer, old).fields())

    assert (refused.response.status_code, refused.person) == (400, None)
    assert Event.objects.filter(action="user.sign_in_refused").latest("pk").changes["reason"] == "wrong_signature"
    assert brings(Client(), Answer(saml.issuer, saml_organisation.pair).fields()).response.status_code == 200


@pytest.mark.full
def test_an_answer_that_was_taken_on_other_terms_signs_nobody_in(
    saml: Provider, saml_organisation: SamlOrganisation, subtests: pytest.Subtests
) -> None:
    pasted = metadata_of(saml.issuer, f"{saml_organisation.origin}/sso", Pair.make("other"))
    several: list[dict[str, Any]] = [{"groups_claim": "other"}, {"metadata_url": "", "metadata_xml": pasted}]
    for changed in several:
        with subtests.test(next(iter(changed))), undone():
            client = Client()
            fields = Answer(saml.issuer, saml_organisation.pair, query_id(asks(client))).fields()
            ticket = Client().post(ACS, fields)["Location"]
            Provider.edit(by=None, **changed)

            assert client.get(ticket).status_code == 400
            assert Event.objects.get(action="user.sign_in_refused").changes["reason"] == "provider_changed"
            assert not Account.objects.exists()


@pytest.mark.full
@pytest.mark.usefixtures("within_one_minute")
def test_tickets_that_are_guessed_are_counted(saml: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = sign_in_limits.MOST["organisation answer, from one address"]
    monkeypatch.setitem(sign_in_limits.MOST, "organisation answer, from one address", (2, limit[1]))

    codes = [Client().get(ANSWERED, {"ticket": str(number)}).status_code for number in range(3)]

    assert codes == [400, 400, 429]


def test_a_person_refused_by_the_provider_learns_where_to_ask(
    saml: Provider, saml_organisation: SamlOrganisation
) -> None:
    visit = sign_in("nobody")

    assert visit.response.status_code == 400
    assert "did not sign you in" in visit.words
    event = Event.objects.get(action="user.sign_in_refused")
    assert event.changes == {"reason": "refused_there", "detail": "The provider refused the sign-in: AuthnFailed."}


@pytest.mark.full
def test_requests_are_signed_for_a_provider_that_insists(saml: Provider, saml_organisation: SamlOrganisation) -> None:
    saml_organisation.knows("mia")
    signed = Provider.edit(by=None, signs_requests=True)
    lines = re.findall("." * 64 + "|.+", signed.own_certificate)
    pem = "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])
    assert signed.own_certificate in Client().get("/accounts/organisation/saml/metadata/").content.decode()

    (saml_organisation.folder / "client.pem").write_text(pem)
    assert sign_in("mia").person == User.objects.get(email="mia@example.com")

    (saml_organisation.folder / "client.pem").write_text(Pair.make().certificate)
    with pytest.raises(AssertionError, match="Signature check errors"):
        sign_in("mia")


@pytest.mark.full
def test_a_new_certificate_of_the_provider_is_found_where_its_metadata_are(
    saml: Provider, saml_organisation: SamlOrganisation
) -> None:
    saml_organisation.knows("mia")
    old = saml_organisation.pair
    Provider.objects.update(metadata_read_at="2026-01-01T00:00:00Z")
    saml_organisation.signs_with(Pair.make("new"))
    client = Client()
    away = asks(client)

    assert brings(client, signs_in_at(away, "mia")).person == User.objects.get(email="mia@example.com")

    event = Event.objects.filter(action="organisation.updated").latest("pk")
    assert len(event.changes["certificates"][1]) == 1
    assert event.actor_email in ("", "system")
    request_id = query_id(asks(client))
    refused = brings(client, Answer(saml.issuer, old, request_id).fields())
    assert refused.response.status_code == 400  # The gateway no longer trusts the old certificate.


def query_id(away: str) -> str:
    request = zlib.decompress(base64.b64decode(query(away)["SAMLRequest"]), -15).decode()
    found = re.search(r' ID="([^"]+)"', request)
    assert found
    return found[1]


@pytest.mark.full
def test_signing_out_here_ends_the_session_here_and_asks_nobody(
    saml: Provider, saml_organisation: SamlOrganisation
) -> None:
    saml_organisation.knows("mia")
    visit = sign_in("mia")

    left: Any = visit.client.post("/accounts/logout/")

    assert left.status_code == 302
    assert visit.person is None
    assert visit.client.post("/accounts/organisation/logout/", {"logout_token": "x"}).status_code == 400
    assert visit.client.get("/accounts/organisation/back/?state=x&code=y").status_code == 404


# --- Before a sensitive change ----------------------------------------------------------------------------------------


@pytest.fixture
def visit(saml: Provider, saml_organisation: SamlOrganisation) -> SamlVisit:
    """An administrator of the organisation who signed in some time ago."""
    Provider.edit(by=None, default_role=Role.objects.get(name="Administrator"), signs_requests=True)
    saml_organisation.knows("mia")
    visit = sign_in("mia")
    signed_in_long_ago(visit.client)
    return visit


def confirmation(visit: SamlVisit) -> str:
    asked: Any = visit.client.get("/settings/second-factor/activate/")
    assert asked["Location"].startswith("/accounts/organisation/confirm/")
    return asks(visit.client, "/accounts/organisation/confirm/", next="/settings/second-factor/activate/")


@pytest.mark.full
def test_the_organisation_is_asked_anew_and_that_confirms(visit: SamlVisit) -> None:
    away = confirmation(visit)

    done = brings(visit.client, signs_in_at(away, "mia"))

    assert done.response.status_code == 302
    assert visit.client.get("/settings/second-factor/activate/").status_code == 200


@pytest.mark.full
def test_without_signed_requests_nothing_is_confirmed_there_and_the_page_says_what_is(
    visit: SamlVisit, saml: Provider, saml_organisation: SamlOrganisation
) -> None:
    """Anybody at the browser can remove ForceAuthn from an unsigned request, so its answer confirms nothing."""
    away = confirmation(visit)
    Provider.edit(by=None, signs_requests=False)

    page: Any = visit.client.get("/accounts/organisation/confirm/")
    pressed: Any = visit.client.post("/accounts/organisation/confirm/")
    brought = brings(visit.client, signs_in_at(away, "mia"))

    assert "you have neither a password nor a second factor here" in page.content.decode()
    assert (page.status_code, pressed.status_code) == (200, 200)
    assert "SAMLRequest" not in pressed.content.decode()
    assert "Sign in with Example</button>" not in page.content.decode()
    assert brought.response.status_code == 400
    Provider.edit(by=None, signs_requests=True)
    answer = Answer(saml.issuer, saml_organisation.pair, query_id(confirmation(visit)))
    Provider.objects.update(signs_requests=False)
    assert brings(visit.client, answer.fields()).response.status_code == 400
    assert visit.client.get("/settings/second-factor/activate/").status_code == 302
    assert visit.client.patch("/api/workspace", {"name": "x"}, content_type="application/json").status_code == 403


@pytest.mark.full
def test_an_open_session_there_or_somebody_else_confirms_nothing(
    visit: SamlVisit, saml: Provider, saml_organisation: SamlOrganisation
) -> None:
    answer = Answer(saml.issuer, saml_organisation.pair, query_id(confirmation(visit)), signed_in=-30)
    assert brings(visit.client, answer.fields()).response.status_code == 400
    saml_organisation.knows("eve")
    assert brings(visit.client, signs_in_at(confirmation(visit), "eve")).response.status_code == 400

    assert visit.client.get("/settings/second-factor/activate/").status_code == 302


@pytest.mark.full
def test_an_ordinary_sign_in_is_no_confirmation(saml: Provider, saml_organisation: SamlOrganisation) -> None:
    """A provider reports the current time even if it only continued an open session."""
    saml_organisation.knows("mia")
    visit = sign_in("mia")

    assert visit.client.session[SIGNED_IN_AT] < time.time() - 1000
    assert visit.client.get("/settings/second-factor/activate/").status_code == 302


# --- A directory ------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_person_deprovisioned_by_a_directory_is_out_at_once_and_stays_out(
    saml: Provider, saml_organisation: SamlOrganisation
) -> None:
    saml_organisation.knows("mia")
    visit = sign_in("mia")
    mia = visit.person
    assert mia is not None
    directory = Directory(key_for(Role.objects.get(name="Member")).secret)

    assert directory.deactivate(mia.pk).status_code in (200, 204)

    assert visit.person is None
    again = sign_in("mia")
    assert (again.response.status_code, again.person) == (403, None)
    assert Event.objects.filter(action="user.sign_in_refused").latest("pk").changes["reason"] == "deactivated"


def test_addresses_of_saml_are_nowhere_while_it_is_not_chosen(db: None) -> None:
    assert Client().post(ACS, {"SAMLResponse": "x"}).status_code == 404
    assert Client().get(ANSWERED).status_code == 404
    assert Client().get("/accounts/organisation/saml/metadata/").status_code == 404
