"""The Identities tab of a server: it adds shared identities, never shows a secret, and can revoke all identities."""

from collections.abc import Callable
from typing import Any

import pytest
from pytest_django import DjangoAssertNumQueries

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection
from gateways.models import IdentityScheme
from servers.models import AuthType, Identity, Server
from tests import make
from tests.conftest import SignIn, wire_size
from tests.meanwhile import just_before
from ui.sealing import cipher

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}
SECRET = "sk-0123456789abcdef9f3a"


@pytest.fixture
def github() -> Server:
    return make.server(slug="github", name="GitHub", auth_type=AuthType.BEARER)


def text(response: Any) -> str:
    return str(response.content.decode())


# --- Who may do what ----------------------------------------------------------------------------------------------


def test_an_owner_cannot_enable_an_identity_disabled_by_an_administrator(
    github: Server, ana: User, ben: User, sign_in: SignIn
) -> None:
    identity = make.identity(github, ben)
    for path in (f"/identities/{identity.pk}/enable/", f"/api/identities/{identity.pk}/enable"):
        identity.disable(by=ana)
        assert sign_in(ben).post(path).status_code == 403
        page = text(sign_in(ben).get("/settings/identities"))
        assert "Disabled by an administrator" in page
        assert "/enable/" not in page
        identity.refresh_from_db()
        assert not identity.enabled
        assert sign_in(ana).post(path).status_code in (200, 302)
        identity.refresh_from_db()
        assert identity.enabled


@pytest.mark.full
def test_people_enable_what_they_disabled_themselves_and_revoke_it(github: Server, ben: User, sign_in: SignIn) -> None:
    identity = make.identity(github, ben)

    for verb, status in (("disable", "disabled"), ("enable", "active"), ("revoke", "revoked")):
        assert sign_in(ben).post(f"/identities/{identity.pk}/{verb}/").status_code == 302
        identity.refresh_from_db()
        assert identity.status == status


@pytest.mark.full
def test_one_sees_one_s_own_shared_ones_and_others_by_capability(
    github: Server, ana: User, ben: User, sign_in: SignIn
) -> None:
    viewer = make.user(Capability.SERVERS_TOGGLE)
    make.identity(github, viewer, label="mine")
    make.identity(github, label="service")
    make.identity(github, ben, label="ben's own")

    def labels(user: User) -> set[str]:
        response = sign_in(user).get("/servers/github/identities/")
        return {row.identity.label for row in response.context["rows"]}

    assert labels(viewer) == {"mine"}
    assert labels(make.user(Capability.SERVERS_MANAGE)) == {"service"}
    assert labels(ana) == {"mine", "service", "ben's own"}


# --- The list -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_list_shows_a_hint_and_never_a_secret(github: Server, ana: User, ben: User, sign_in: SignIn) -> None:
    identity = make.identity(github, ben, label="ben's token", secret=SECRET)
    make.identity(github, label="short", secret="tiny-secret")

    page = text(sign_in(ana).get("/servers/github/identities/"))

    for words in ("ben&#x27;s token", "ben@example.com", "Shared", "Bearer token", "...9f3a", "Never", "active"):
        assert words in page
    assert SECRET not in page
    assert "tiny-secret" not in page
    assert "cret</code>" not in page  # A short secret has no hint.
    assert bytes(identity.secret_ciphertext or b"").decode() not in page


@pytest.mark.full
def test_a_full_tab_takes_few_statements_and_stays_light(
    github: Server, ana: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(50):
        make.identity(github, label=f"service account number {number}", secret=SECRET)
    client = sign_in(ana)

    with django_assert_num_queries(9):  # session, user, permissions, server, count, rows, their gateways twice
        page = client.get("/servers/github/identities/")
    assert wire_size(page) <= 30 * 1024


# --- Adding and replacing -----------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_shared_identity_is_stored_encrypted_and_recorded_without_its_secret(
    github: Server, ana: User, sign_in: SignIn
) -> None:
    response = sign_in(ana).post("/servers/github/identities/add/", {"label": "service", "secret": SECRET})

    assert response["Location"] == "/servers/github/identities/"
    identity = Identity.objects.get()
    assert (identity.label, identity.owner, identity.secret_hint) == ("service", None, "9f3a")
    assert cipher().open(bytes(identity.secret_ciphertext or b"")) == SECRET
    assert SECRET not in str(list(Event.objects.values_list("changes", flat=True)))


BAD = (
    ({"label": ""}, "label", "This field is required."),
    ({"label": "taken"}, "label", "A shared credential with this label already exists."),
    ({"secret": "smörgås"}, "secret", "one line of printable ASCII characters"),
    ({"secret": "Bearer abc"}, "secret", "Leave out the word Bearer"),
    ({"secret": "x" * 4001}, "secret", "at most 4000 characters"),
)


@pytest.mark.full
def test_every_bad_input_is_explained_and_no_secret_comes_back(
    github: Server, ana: User, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    make.identity(github, label="taken")
    make.server(slug="docs")
    client = sign_in(ana)

    for values, field, words in BAD:
        with subtests.test(words):
            response = client.post("/servers/github/identities/add/", {"label": "service", "secret": SECRET} | values)
            assert response.status_code == 422
            page = text(response)
            assert words in page.split(f'id="id_{field}_error"')[1].split("</span>")[0]
            assert (values.get("secret") or SECRET) not in page
    assert "This server needs no credential." in text(client.get("/servers/docs/identities/"))
    assert client.post("/servers/docs/identities/add/", {"label": "x", "secret": SECRET}).status_code == 422
    assert Identity.objects.count() == 1


def move(server: Server, by: User) -> None:
    Server.objects.get(pk=server.pk).edit(url="https://elsewhere.example.net/mcp", by=by)


def take_the_label(server: Server, by: User) -> None:
    make.identity(server, label="service")


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("act", "field", "words"),
    [
        (move, "secret", "This server was moved to https://elsewhere.example.net just now. Reload the page."),
        (take_the_label, "label", "A shared credential with this label already exists."),
    ],
)
def test_a_concurrent_change_is_reported_while_adding_an_identity_and_the_secret_is_not_kept(
    act: Callable[[Server, User], None], field: str, words: str, github: Server, ana: User, sign_in: SignIn
) -> None:
    client = sign_in(ana)

    with just_before(lambda: act(github, ana)):
        response = client.post("/servers/github/identities/add/", {"label": "service", "secret": SECRET})

    assert response.status_code == 422
    page = text(response)
    assert words in page.split(f'id="id_{field}_error"')[1].split("</span>")[0]
    assert SECRET not in page
    assert not Identity.objects.filter(secret_hint=SECRET[-4:]).exists()


# --- Switch and end -----------------------------------------------------------------------------------------------


@pytest.mark.full
def test_revoking_tells_where_it_is_used_and_wipes_the_secret(github: Server, ana: User, sign_in: SignIn) -> None:
    identity = make.identity(github, label="service")
    for gateway in (make.gateway(), make.gateway()):
        make.assignment(gateway, github, identity_scheme=IdentityScheme.SHARED, shared_identity=identity)
    gateway.disable(by=ana)
    Connection.objects.archive_gateway(gateway, by=ana)

    dialog = text(sign_in(ana).get(f"/identities/{identity.pk}/revoke/", headers=HTMX))
    row = text(sign_in(ana).post(f"/identities/{identity.pk}/revoke/", {"typed": "service"}, headers=HTMX))
    again = sign_in(ana).post(f"/identities/{identity.pk}/revoke/", {"typed": "service"}, headers=HTMX)

    assert "1 gateway uses it. Cannot be undone." in dialog
    assert "revoked" in row
    assert 'role="switch"' not in row
    assert "was already revoked" in again["HX-Trigger"]
    identity.refresh_from_db()
    assert (identity.secret_ciphertext, identity.secret_hint) == (None, "")


def test_a_confirmation_counts_for_the_server_it_was_asked_for_and_the_kind_follows_the_server(
    github: Server, ana: User, sign_in: SignIn
) -> None:
    identity, client = make.identity(github, label="service"), sign_in(ana)
    path, seen = f"/identities/{identity.pk}/confirm/", f"{github.url}/v2"
    github.edit(url=seen, auth_type=AuthType.HEADER, header_name="X-Key", by=ana)
    shown = {"url": seen, "auth_type": "header", "header_name": "X-Key"}
    page = text(client.get(path))
    assert all(f'name="{name}" value="{value}"' in page for name, value in shown.items())
    for url, header_name in ((f"{seen}/other", "X-Key"), (seen, "X-Other")):
        github.edit(url=url, header_name=header_name, by=ana)
        assert "Nothing was confirmed" in text(client.post(path, shown, follow=True))
        identity.refresh_from_db()
        assert identity.unconfirmed_since is not None
    github.edit(url=f"{seen}/other", by=ana)
    client.post(path, {"url": f"{seen}/other"})
    assert Identity.objects.get(unconfirmed_since=None).kind == "header"


def test_a_secret_replaces_a_sign_in_once_the_server_takes_secrets(
    github: Server, ana: User, ben: User, sign_in: SignIn
) -> None:
    identity = make.identity(github, ben)
    Identity.objects.update(issuer="https://issuer.example.com", kind="oauth")
    replace, sign_in_again = f"/identities/{identity.pk}/replace/", "Sign in again"

    page = text(sign_in(ben).get("/settings/identities"))
    refused = sign_in(ana).get(replace)
    assert (replace in page, sign_in_again in page) == (True, False)
    assert (refused.status_code, "another person" in text(refused)) == (403, True)
    Server.objects.update(auth_type=AuthType.OAUTH)
    page = text(sign_in(ben).get("/settings/identities"))
    assert (replace in page, sign_in_again in page) == (False, True)


@pytest.mark.full
def test_a_revoked_identity_is_neither_confirmed_nor_replaced_nor_switched_and_its_label_is_free(
    github: Server, ana: User, sign_in: SignIn
) -> None:
    identity, client = make.identity(github, label="service"), sign_in(ana)
    github.edit(url=f"{github.url}/v2", by=ana)
    Identity.objects.get().revoke(by=ana)

    confirmed = client.post(f"/identities/{identity.pk}/confirm/", follow=True)
    replaced = client.post(f"/identities/{identity.pk}/replace/", {"secret": SECRET}, follow=True)
    switched = [client.post(f"/identities/{identity.pk}/{verb}/", headers=HTMX) for verb in ("disable", "enable")]
    client.post("/servers/github/identities/add/", {"label": "service", "secret": SECRET})

    for refused in switched:
        assert "This identity is already revoked." in refused["HX-Trigger"]
    assert "This identity is already revoked." in text(confirmed)
    assert "This credential has been revoked. Add a new one." in text(replaced)
    assert not Event.objects.filter(action="identity.confirmed").exists()
    identity.refresh_from_db()
    assert identity.secret_ciphertext is None
    assert identity.unconfirmed_since is not None
    assert Identity.objects.live().count() == 1
