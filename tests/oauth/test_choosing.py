"""Choosing a gateway and adding identities in the authorize flow."""

import pytest

from accounts.models import User
from capabilities import Capability
from connections.models import Connection
from oauth.models import AuthorizeRequest
from servers.models import AuthType, Identity
from tests import make
from tests.conftest import SignIn
from tests.meanwhile import meanwhile
from tests.oauth.steps import begin, per_user, text
from ui.sealing import cipher

pytestmark = pytest.mark.django_db


@pytest.mark.full
def test_only_gateways_within_reach_and_switched_on_are_offered_and_taken(sign_in: SignIn) -> None:
    person = make.user(Capability.API_TOKENS_MANAGE)
    client = sign_in(person)
    first = begin(client, make.agent(by=person))
    assert "Request access</a>, or ask a workspace administrator." in text(client.get(first))
    make.gateway(name="Open")
    make.gateway(name="Closed", slug="closed").disable(by=person)
    make.gateway(name="Others", slug="others", reach="teams")

    page = text(client.get(first))

    assert "Open" in page
    assert "Closed" not in page
    assert "Others" not in page
    for slug in ("", "nothing", "others", "closed"):
        response = client.post(first, {"gateway": slug})

        assert response.status_code == 422
        assert "Choose a gateway." in text(response)


def test_a_host_nobody_made_starts_no_flow(ana: User, sign_in: SignIn) -> None:
    for host in ("", "nonsense", "00000000-0000-4000-8000-000000000000"):
        assert sign_in(ana).get("/connect/", {"host": host}).status_code == 404
    assert not AuthorizeRequest.objects.exists()


SECRET = "ghp_a_secret_of_ana"


@pytest.mark.full
def test_each_person_brings_an_identity_per_server_and_the_connection_carries_it(ana: User, sign_in: SignIn) -> None:
    gateway = make.gateway(make.server(name="Docs"))
    github = per_user(gateway)
    client = sign_in(ana)
    first = begin(client, make.agent(by=ana))

    asked = client.post(first, {"gateway": gateway.slug}, follow=True)
    page = asked.redirect_chain[-1][0]
    options = client.post(page, {"identity": "new", "label": "ana-ci", "secret": f" Bearer {SECRET} "}, follow=True)
    client.post(options.redirect_chain[-1][0], {"name": "x", "scope": "all"})

    assert f"Server 1 of 1: <b>{github.name}</b>" in text(asked)
    assert "Ready, nothing to do" in text(asked)
    assert ">Allow</button>" in text(asked)
    identity = Identity.objects.get()
    assert (identity.owner, identity.server, identity.label) == (ana, github, "ana-ci")
    assert identity.secret_ciphertext is not None
    assert cipher().open(bytes(identity.secret_ciphertext)) == SECRET
    assert Connection.objects.get().identities.get().identity == identity
    assert SECRET not in text(options) + text(asked)


@pytest.mark.full
def test_an_own_identity_is_offered_and_another_persons_is_not(ana: User, sign_in: SignIn) -> None:
    gateway = make.gateway()
    github = per_user(gateway)
    own = make.identity(github, ana, label="ana-work")
    others = make.identity(github, make.user(), label="bo-work")
    client = sign_in(ana)
    first = begin(client, make.agent(by=ana), gateway=gateway.slug)
    page = client.post(first, {"gateway": gateway.slug})["Location"]

    seen = text(client.get(page))
    stolen = client.post(page, {"identity": str(others.pk)})
    taken = client.post(page, {"identity": str(own.pk)})

    assert "ana-work" in seen
    assert "bo-work" not in seen
    assert stolen.status_code == 422
    assert taken.status_code == 302
    assert AuthorizeRequest.objects.get().identities == {str(gateway.assignments.get().pk): str(own.pk)}


@pytest.mark.full
def test_an_identity_taken_away_meanwhile_is_not_carried_and_every_server_may_be_skipped(
    ana: User, sign_in: SignIn
) -> None:
    gateway, client = make.gateway(), sign_in(ana)
    github = per_user(gateway)
    identity = make.identity(github, ana)
    first = begin(client, make.agent(by=ana))
    page = client.post(first, {"gateway": gateway.slug})["Location"]
    seen = text(client.get(page))
    client.post(page, {"identity": str(identity.pk)})
    identity.revoke(by=ana)

    client.post(f"{first}token/", {"name": "x", "scope": "all"})

    assert f"You can skip {github.name}." in seen
    assert not Connection.objects.get().identities.exists()
    first = begin(client, make.agent(by=ana))
    page = client.post(first, {"gateway": gateway.slug})["Location"]
    client.post(client.post(page, {"skip": "1"})["Location"], {"name": "x", "scope": "all"})
    assert [one.identities.exists() for one in Connection.objects.all()] == [False, False]


@pytest.mark.full
def test_identities_the_connection_already_uses_are_not_asked_again(ana: User, sign_in: SignIn) -> None:
    host, gateway = make.agent(by=ana), make.gateway()
    make.connection(host, gateway, ana, [make.identity(per_user(gateway), ana)])
    client = sign_in(ana)

    answer = client.post(begin(client, host), {"gateway": gateway.slug})

    assert answer["Location"].endswith("/token/")


@pytest.mark.full
def test_back_from_the_second_server_leads_to_the_first(ana: User, sign_in: SignIn) -> None:
    gateway = make.gateway()
    per_user(gateway, "A")
    per_user(gateway, "B")
    client = sign_in(ana)
    first = begin(client, make.agent(by=ana))
    page = client.post(first, {"gateway": gateway.slug})["Location"]
    second = client.post(page, {"skip": "1"})["Location"]

    assert ">Next</button>" in text(client.get(page))
    assert f'href="{page}">Back' in text(client.get(second))
    assert f'href="{second}">Back' in text(client.get(f"{first}token/"))
    assert ">Allow</button>" in text(client.get(second))


@pytest.mark.full
def test_a_bad_identity_is_refused_in_words(ana: User, sign_in: SignIn, subtests: pytest.Subtests) -> None:
    gateway = make.gateway()
    make.identity(per_user(gateway), ana, label="taken")
    client = sign_in(ana)
    page = client.post(begin(client, make.agent(by=ana)), {"gateway": gateway.slug})["Location"]
    new = {"identity": "new", "secret": "ok"}

    wrong: list[tuple[dict[str, str], str]] = [
        (new | {"secret": ""}, "or skip this server."),
        (new | {"secret": "Bearer  "}, "or skip this server."),
        (new | {"secret": "two\r\nlines"}, "cannot be sent in a header"),
        (new | {"secret": "\u043a\u043b\u044e\u0447"}, "cannot be sent in a header"),
        (new | {"secret": "x" * 4001}, "at most 4000 characters"),
        (new | {"label": "x" * 81}, "at most 80 characters"),
        (new | {"label": "taken"}, "You already have a credential with this label."),
        ({"identity": "nonsense"}, "Select a valid choice"),
        ({}, "Choose a credential, or skip this server."),
    ]
    for data, words in wrong:
        with subtests.test(words):
            response = client.post(page, data)

            assert response.status_code == 422
            assert words in text(response)
            assert not data.get("secret", "").strip() or f'value="{data["secret"]}"' not in text(response)
    assert Identity.objects.count() == 1


@pytest.mark.full
def test_a_page_opened_before_a_gateway_was_chosen_leads_to_the_choice(ana: User, sign_in: SignIn) -> None:
    gateway, other = make.gateway(), make.gateway()
    per_user(gateway)
    per_user(other)
    client = sign_in(ana)
    first = begin(client, make.agent(by=ana))

    for page in (f"{first}identity/{gateway.assignments.get().pk}/", f"{first}token/"):
        for answer in (client.get(page), client.post(page, {"name": "x", "scope": "all"})):
            assert (answer.status_code, answer["Location"]) == (302, first)
    client.post(first, {"gateway": gateway.slug})
    assert client.get(f"{first}identity/{other.assignments.get().pk}/").status_code == 404
    assert not Connection.objects.exists()


@pytest.mark.full
def test_a_secret_for_the_servers_own_header_is_sent_as_pasted(ana: User, sign_in: SignIn) -> None:
    """A pasted "Bearer" is removed only for servers to which the gateway sends "Authorization: Bearer"."""
    gateway = make.gateway()
    crm = per_user(gateway, "CRM", auth_type=AuthType.HEADER, header_name="X-Api-Key")
    client = sign_in(ana)
    page = client.post(begin(client, make.agent(by=ana)), {"gateway": gateway.slug})["Location"]

    asked = text(client.get(page))
    client.post(page, {"identity": "new", "secret": "Bearer of news"})

    assert f"{crm.name} X-Api-Key" in asked
    assert cipher().open(bytes(Identity.objects.get().secret_ciphertext or b"")) == "Bearer of news"


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_a_secret_is_not_kept_for_a_server_that_was_moved_while_it_was_sent(ana: User, sign_in: SignIn) -> None:
    """A person who may change addresses must not receive secrets that others entered for the old address."""
    gateway = make.gateway()
    github = per_user(gateway)
    client = sign_in(ana)
    page = client.post(begin(client, make.agent(by=ana)), {"gateway": gateway.slug})["Location"]

    answer = meanwhile(
        lambda: client.post(page, {"identity": "new", "secret": SECRET}),
        lambda: github.edit(url="https://new.example/mcp", by=ana),
    )

    assert answer.status_code == 422
    assert "This server was moved to https://new.example just now. Reload the page." in text(answer)
    assert SECRET not in text(answer)
    assert not Identity.objects.exists()
