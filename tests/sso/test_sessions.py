"""Sessions of people who sign in at their organisation: second factor, logout, limits, and provider outages."""

from typing import Any, NoReturn
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.utils import encrypt
from allauth.usersessions.models import UserSession
from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.core.cache import cache
from django.test import Client

from accounts.models import User
from accounts.models.attempts import MINUTE
from accounts.sign_in_limits import MOST
from auditlog.models import Event
from capabilities import Capability
from servers.oauth_client.discovery import Http
from sso import oidc
from sso.browser_sessions import BROWSER
from sso.models import Provider
from sso.oidc import fetch_provider_json
from sso.provider_test import test_provider as try_provider
from tests import make
from tests.accounts.test_second_factor import code_of
from tests.clients.issuers import NoWayBack, Page
from tests.eventually import eventually
from tests.issuers import destination
from tests.oauth.apps import browser
from tests.sso.conftest import BACK, Organisation, SignIn, sign_out_at, twin
from tests.sso.test_enforced import APP_SECRET
from tests.sso.test_signed_tokens import CLIENT, ISSUER, KEYS, ending, signed
from tests.undone import undone
from wire.outbound import NoAnswer

pytestmark = pytest.mark.django_db

LOGOUT = "/accounts/organisation/logout/"


@pytest.mark.full
def test_a_second_factor_here_is_required_after_the_organisation(organisation: Organisation, sign_in: SignIn) -> None:
    organisation.knows("mia")
    sign_in("mia")
    mia = User.objects.get(email="mia@example.com")
    Authenticator.objects.create(user=mia, type="totp", data={"secret": encrypt(APP_SECRET)})

    visit = sign_in("mia")

    assert visit.response["Location"] == "/accounts/second-factor/"
    assert visit.person is None
    visit.client.post("/accounts/second-factor/", {"code": code_of(APP_SECRET)})
    assert visit.person == mia


def test_signing_out_at_the_organisation_ends_that_session_here_and_no_other(
    organisation: Organisation, sign_in: SignIn
) -> None:
    organisation.knows("mia")
    ended, stays = sign_in("mia"), sign_in("mia")
    organisation.logout_tokens.clear()

    sign_out_at(ended.visitor, organisation)
    eventually(lambda: bool(organisation.logout_tokens))
    [token] = organisation.logout_tokens
    answered = Client().post(LOGOUT, {"logout_token": token})

    assert answered.status_code == 200
    assert "no-store" in answered["Cache-Control"]
    assert ended.person is None
    assert stays.person is not None
    assert Event.objects.filter(action="user.session_ended").count() == 1
    # Invalid: the same token again, a malformed token, and no token. The session begun with a password stays.
    assert Client().post(LOGOUT, {"logout_token": token}).status_code == 400
    assert Client().post(LOGOUT, {"logout_token": "x.y.z"}).status_code == 400
    assert Client().post(LOGOUT).status_code == 400
    assert stays.person is not None


def test_a_logout_token_with_the_longest_id_ends_the_session_and_works_once() -> None:
    there = {"mode": "offered", "name": "Example", "issuer": ISSUER, "client_id": CLIENT}
    provider, _ = Provider.objects.update_or_create(pk=1, defaults=there)
    cache.set(f"{oidc._cache_name(provider)}:keys", KEYS)
    client = Client()
    client.post("/accounts/login/", {"login": make.user().email, "password": make.PASSWORD})
    UserSession.objects.update(data={BROWSER: {"issuer": ISSUER, "sub": "mia"}})
    token = signed(ending(jti="x" * 255))

    answers = [client.post(LOGOUT, {"logout_token": token}).status_code for _ in range(2)]

    assert answers == [200, 400]
    assert client.get("/settings/profile").status_code == 302


@pytest.mark.full
def test_an_answer_belongs_to_the_browser_that_asked_and_is_used_once(
    organisation: Organisation, sign_in: SignIn
) -> None:
    organisation.knows("mia")
    visit = sign_in("mia")
    back = visit.response.wsgi_request.get_full_path()  # type: ignore[attr-defined]  # Django's client sets it.

    for somebody in (visit.client, Client()):
        assert somebody.get(back).status_code == 400
    assert Client().get(f"{BACK}?code=x&state=y").status_code == 400
    assert visit.person is not None


@pytest.mark.full
def test_while_it_is_off_nobody_signs_in_there_and_the_button_is_not_shown(provider: Provider) -> None:
    assert "Sign in with Example" in Client().get("/accounts/login/").content.decode()

    Provider.edit(by=None, mode="off")

    assert "Sign in with Example" not in Client().get("/accounts/login/").content.decode()
    assert Client().post("/accounts/organisation/").status_code == 404
    assert Client().get(BACK).status_code == 404
    assert Client().post(LOGOUT, {"logout_token": "x"}).status_code == 400


@pytest.mark.full
def test_a_provider_that_is_down_or_refuses_the_client_is_no_way_in_and_no_error_of_ours(
    provider: Provider, organisation: Organisation, sign_in: SignIn
) -> None:
    organisation.knows("mia")
    Provider.edit(by=None, secret="another secret than the provider knows")
    assert sign_in("mia").response.status_code == 400
    Provider.edit(by=None, client_id="nobody")
    with pytest.raises(NoWayBack):
        sign_in("mia")
    Provider.objects.update(issuer="http://127.0.0.1:9")

    assert Client().post("/accounts/organisation/").status_code == 502


@pytest.mark.full
def test_a_person_of_the_organisation_has_no_password_to_change(organisation: Organisation, sign_in: SignIn) -> None:
    organisation.knows("mia")
    client = sign_in("mia").client

    page = client.get("/accounts/password/change/", follow=True)

    assert "You have no password here" in page.content.decode()
    assert client.post("/settings/organisation/unlink/", follow=True).status_code == 200
    mia = User.objects.get(email="mia@example.com")
    page = browser(make.user(*Capability)).get(f"/people/{mia.pk}/")
    assert "signs in at the organisation" in page.content.decode()
    assert "Invitation" not in page.content.decode()
    assert User.objects.get(email="mia@example.com").by_organisation


@pytest.mark.full
def test_changing_ones_password_leaves_the_session_the_organisations_to_end(
    organisation: Organisation, sign_in: SignIn
) -> None:
    organisation.knows("mia")
    visit = sign_in("mia")
    User.objects.filter(email="mia@example.com").update(password=make_password(make.PASSWORD))
    visit = sign_in("mia")
    new = "another horse battery staple"
    changed = visit.client.post(
        "/accounts/password/change/", {"oldpassword": make.PASSWORD, "password1": new, "password2": new}
    )
    assert changed.status_code == 302
    assert visit.person is not None
    organisation.logout_tokens.clear()

    sign_out_at(visit.visitor, organisation)
    eventually(lambda: bool(organisation.logout_tokens))
    Client().post(LOGOUT, {"logout_token": organisation.logout_tokens[0]})

    assert visit.person is None
    assert Event.objects.filter(action="user.session_ended").count() == 1


# --- Signing out here, and there too --------------------------------------------------------------------------------


@pytest.mark.full
def test_signing_out_leads_on_to_the_provider_which_sends_people_back(
    provider: Provider, organisation: Organisation, sign_in: SignIn
) -> None:
    Provider.edit(by=None, signs_out_there=True)
    organisation.knows("mia")
    visit = sign_in("mia")

    left = visit.client.post("/accounts/logout/")

    assert visit.person is None
    away = destination(left)
    assert away.startswith(f"{organisation.origin}/session/end?")
    assert parse_qs(urlsplit(away).query) == {
        "client_id": ["gateway"],
        "post_logout_redirect_uri": [f"{settings.PUBLIC_URL}/accounts/login/"],
    }
    page = visit.visitor.http.get(away)
    form = Page(page.text)
    assert form.form is not None, page.text
    back = visit.visitor.http.post(
        urljoin(str(page.url), form.form.get("action") or ""), data=form.fields | {"logout": "yes"}
    )
    assert back.headers["Location"] == f"{settings.PUBLIC_URL}/accounts/login/"
    # The session at the provider has ended too, so the next sign-in asks for a name.
    asked = visit.visitor.http.get(destination(Client().post("/accounts/organisation/")), follow_redirects=True)
    assert 'name="login"' in asked.text


@pytest.mark.full
def test_signing_out_leads_nowhere_else_unless_it_is_switched_on_and_one_signed_in_there(
    provider: Provider, organisation: Organisation, sign_in: SignIn
) -> None:
    organisation.knows("mia")
    assert sign_in("mia").client.post("/accounts/logout/")["Location"] == "/accounts/login/"
    Provider.edit(by=None, signs_out_there=True)

    own = Client()
    own.post("/accounts/login/", {"login": make.user(email="bo@example.com").email, "password": make.PASSWORD})
    assert UserSession.objects.get(session_key=own.session.session_key).data == {}  # Not the organisation's to end.

    assert own.post("/accounts/logout/")["Location"] == "/accounts/login/"
    switching = sign_in("mia")
    assert switching.client.post("/accounts/logout/", {"next": "/settings/"})["Location"] == "/settings/"
    elsewhere = sign_in("mia").client.post("/accounts/logout/", {"next": "https://evil.example/"})
    assert elsewhere["Location"] == "/accounts/login/"


@pytest.mark.full
def test_signing_out_works_without_a_usable_place_at_the_provider_and_while_it_is_down(
    provider: Provider,
    organisation: Organisation,
    sign_in: SignIn,
    monkeypatch: pytest.MonkeyPatch,
    subtests: pytest.Subtests,
) -> None:
    Provider.edit(by=None, signs_out_there=True)
    organisation.knows("mia")
    visit = sign_in("mia")
    document = fetch_provider_json(provider, f"{provider.issuer}/.well-known/openid-configuration")

    def leaves() -> None:
        oidc.forget_metadata(provider)
        here = twin(visit.client)
        assert here.get("/settings/profile").status_code == 200
        assert here.post("/accounts/logout/")["Location"] == "/accounts/login/"
        assert here.get("/settings/profile").status_code == 302

    for place in (None, "javascript:alert(1)", "https://user@evil.example/", 7):
        answered = document | {"end_session_endpoint": place, "keys": [{}]}
        with subtests.test(str(place)), undone(), monkeypatch.context() as patched:
            patched.setattr(oidc, "fetch_provider_json", lambda *_, answered=answered: answered)
            leaves()
            assert "no sign-out endpoint" in try_provider(Provider.load(), by=None).detail

    def down(*_: object) -> NoReturn:
        raise NoAnswer("cannot be reached")

    monkeypatch.setattr(Http, "get", down)
    leaves()


@pytest.mark.full
def test_people_still_sign_in_and_out_at_a_provider_with_unreadable_keys(
    provider: Provider, organisation: Organisation, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    Provider.edit(by=None, signs_out_there=True)
    organisation.knows("mia")
    visit = sign_in("mia")
    keys = fetch_provider_json(provider, f"{provider.issuer}/.well-known/openid-configuration")["jwks_uri"]
    oidc.forget_metadata(provider)
    get = Http.get

    def get_other(http: Http, url: str, *headers: Any) -> Any:
        if url == keys:
            raise NoAnswer("cannot be reached")
        return get(http, url, *headers)

    monkeypatch.setattr(Http, "get", get_other)

    assert destination(visit.client.post("/accounts/logout/")).startswith(f"{organisation.origin}/session/end?")
    assert visit.person is None
    back = sign_in("mia", visit.client)
    assert (back.response.status_code, back.person) == (502, None)
    assert f"{keys} cannot be reached." in try_provider(provider, by=None).detail


@pytest.mark.full
@pytest.mark.usefixtures("within_one_minute")
def test_sign_ins_that_succeed_use_up_nothing_of_an_address(
    organisation: Organisation, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Successful sign-ins do not count, because an office may share an address; abandoned sign-ins count."""
    monkeypatch.setitem(MOST, "organisation, from one address", (2, MINUTE))
    organisation.knows("mia")
    for _ in range(4):
        assert sign_in("mia").person is not None

    assert [Client().post("/accounts/organisation/").status_code for _ in range(3)] == [200, 200, 429]


@pytest.fixture
def asked(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs requested from a provider that is down."""
    asked: list[str] = []

    def down(self: Http, url: str, headers: object = None) -> NoReturn:
        asked.append(url)
        raise NoAnswer("cannot be reached")

    monkeypatch.setattr(Http, "get", down)
    return asked


@pytest.mark.full
def test_malformed_tokens_cause_no_query(asked: list[str]) -> None:
    unsigned = "eyJhbGciOiJub25lIn0.e30.x"
    for token in ("", "x.y.z", "garbage", '{"payload": "e30", "signatures": []}', unsigned):
        assert Client().post(LOGOUT, {"logout_token": token}).status_code == 400
    assert asked == []


@pytest.mark.full
def test_a_provider_that_is_down_is_asked_once_in_a_while_whoever_sends_tokens(
    provider: Provider, asked: list[str]
) -> None:
    """While the provider is down, the gateway rarely asks it, however many requests come; *Test* asks at once."""
    token = "eyJhbGciOiJFUzI1NiJ9.e30.eA"
    for _ in range(5):
        assert Client().post(LOGOUT, {"logout_token": token}).status_code == 503
        assert Client().post("/accounts/organisation/").status_code == 502

    assert len(asked) == 1
    oidc.forget_metadata(provider)
    assert Client().post(LOGOUT, {"logout_token": token}).status_code == 503
    assert len(asked) == 2


@pytest.mark.full
@pytest.mark.usefixtures("within_one_minute")
def test_logout_tokens_of_one_address_are_limited(
    provider: Provider, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MOST, "organisation logout, from one address", (2, MINUTE))

    answers = [Client().post(LOGOUT, {"logout_token": "x"}).status_code for _ in range(3)]

    assert answers == [400, 400, 429]
