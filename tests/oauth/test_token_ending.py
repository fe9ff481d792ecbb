"""The authorize flow with its token ending (requirements 5.6, 5.7; M11, T07-T11, X04-X09)."""

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.db import connection as database
from django.test import Client

from accounts.models import User, WorkspaceSettings
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection
from gateways.models import Gateway, IdentityScheme, Tool
from hosts.models import Host
from oauth.models import AuthorizeRequest
from servers.models import AuthType, Identity, Server
from servers.vault import cipher
from tests import make
from tests.conftest import SignIn
from tokens import secret
from tokens.models import Token

pytestmark = pytest.mark.django_db

SECRET = "ghp_a_secret_of_ana"


def text(response: Any) -> str:
    return str(response.content.decode())


def begin(client: Client, host: Host, **query: str) -> str:
    """The address of a new flow's first page."""
    response = client.get("/connect/", {"host": str(host.pk), **query})
    assert response.status_code == 302, text(response)
    return str(response["Location"])


def minted(response: Any) -> str:
    """The token the show-once dialog shows."""
    found = re.search(r'id="token-value"[^>]* value="([^"]+)"', text(response))
    assert found, "no token on this page"
    return found[1]


def per_user(gateway: Gateway, name: str = "GitHub", **fields: Any) -> Server:
    """A server of `gateway` for which everybody brings an identity."""
    server = make.server(name=make.unique(name), **({"auth_type": AuthType.BEARER} | fields))
    make.assignment(gateway, server, identity_scheme=IdentityScheme.PER_USER)
    return server


# --- The bare path ------------------------------------------------------------------------------------------------


def test_the_bare_path_ends_with_a_token_shown_once(ana: User, sign_in: SignIn) -> None:
    host = make.agent(by=ana, name="CI bot")
    make.gateway(make.server(), name="Quickstart", slug="quickstart")
    client = sign_in(ana)

    first = begin(client, host)
    chosen = client.get(first)
    options = client.post(first, {"gateway": "quickstart"}, follow=True)
    issued = client.post(f"{first}token/", {"name": "CI bot-quickstart", "scope": "all"})

    assert "Connect &quot;CI bot&quot; to a gateway" in text(chosen) or 'Connect "CI bot" to a gateway' in text(chosen)
    assert 'value="CI bot-quickstart"' in text(options)
    token = minted(issued)
    assert secret.well_formed(token, {secret.ACCESS})
    assert text(issued).count(token) >= 4  # The field and three snippets.
    assert 'value="http://localhost:8000/mcp/quickstart"' in text(issued)
    row = Token.objects.get()
    assert (row.prefix, row.connection.host, row.connection.user) == (token[:12], host, ana)
    assert row.scope_all
    assert row.expires_at is not None
    assert row.expires_at - datetime.now(UTC) > timedelta(days=89)


def test_the_secret_is_in_that_one_answer_and_nowhere_else(ana: User, sign_in: SignIn) -> None:
    host, gateway = make.agent(by=ana), make.gateway()
    client = sign_in(ana)
    first = begin(client, host, gateway=gateway.slug)

    issued = client.post(f"{first}token/", {"name": "one", "scope": "all"})
    token = minted(issued)

    assert "no-store" in issued["Cache-Control"]
    assert issued["Referrer-Policy"] == "no-referrer"
    assert 'hx-history="false"' in text(issued)
    for again in (
        client.post(f"{first}token/", {"name": "one", "scope": "all"}),
        client.get(f"{first}token/"),
        client.get(first),
    ):
        assert "This token is no longer shown." in text(again)
        assert token not in text(again)
        assert token[:12] in text(again)
        assert "no-store" in again["Cache-Control"]
    assert Token.objects.count() == 1
    assert token not in str(dict(client.session))
    assert token not in str(list(AuthorizeRequest.objects.values())) + str(list(Event.objects.values()))


@pytest.mark.django_db(transaction=True)
def test_a_double_submit_issues_one_token(ana: User, sign_in: SignIn) -> None:
    host, gateway = make.agent(by=ana), make.gateway()
    client = sign_in(ana)
    first = begin(client, host, gateway=gateway.slug)

    def submit(_: int) -> str:
        try:
            other = Client()
            other.cookies = client.cookies
            return text(other.post(f"{first}token/", {"name": "one", "scope": "all"}))
        finally:
            database.close()

    with ThreadPoolExecutor(2) as both:
        pages = list(both.map(submit, range(2)))

    assert Token.objects.count() == 1
    assert sorted("token-value" in page for page in pages) == [False, True]


def test_snippets_call_a_tool_the_gateway_really_has(ana: User, sign_in: SignIn) -> None:
    server = make.server()
    gateway = make.gateway(server)
    assignment = gateway.assignments.get()
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    Tool.objects.create(assignment=assignment, name="echo", exposed_name="docs__echo", input_schema=schema)
    Tool.objects.create(assignment=assignment, name="a", exposed_name="docs__a")
    client = sign_in(ana)

    issued = client.post(
        f"{begin(client, make.agent(by=ana), gateway=gateway.slug)}token/", {"name": "x", "scope": "all"}
    )

    assert '"name":"docs__echo","arguments":{"text": "hello"}' in text(issued).replace("&quot;", '"')


def test_without_a_known_tool_the_snippet_says_where_to_take_one(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    first = begin(client, make.agent(by=ana), gateway=make.gateway().slug)

    issued = text(client.post(f"{first}token/", {"name": "x", "scope": "all"}))

    assert "&lt;tool-name&gt;" in issued


# --- Choosing a gateway -------------------------------------------------------------------------------------------


def test_only_gateways_within_reach_and_switched_on_are_offered(sign_in: SignIn) -> None:
    person = make.user(Capability.API_TOKENS_MANAGE)
    make.gateway(name="Open")
    make.gateway(name="Closed").disable(by=person)
    make.gateway(name="Others", reach="teams")
    client = sign_in(person)

    page = text(client.get(begin(client, make.agent(by=person))))

    assert "Open" in page
    assert "Closed" not in page
    assert "Others" not in page


@pytest.mark.parametrize("slug", ["", "nothing", "others", "closed"])
def test_a_gateway_that_was_not_offered_is_not_taken(slug: str, sign_in: SignIn) -> None:
    person = make.user(Capability.API_TOKENS_MANAGE)
    make.gateway()
    make.gateway(slug="others", reach="teams")
    make.gateway(slug="closed").disable(by=person)
    client = sign_in(person)
    first = begin(client, make.agent(by=person))

    response = client.post(first, {"gateway": slug})

    assert response.status_code == 422
    assert "Choose a gateway." in text(response)


def test_without_any_gateway_the_page_says_whom_to_ask(sign_in: SignIn) -> None:
    person = make.user(Capability.API_TOKENS_MANAGE)
    client = sign_in(person)

    page = text(client.get(begin(client, make.agent(by=person))))

    assert "There is no gateway you can reach. Ask a workspace administrator for one." in page


def test_the_button_reads_next_where_identities_are_asked_for_and_allow_where_not(ana: User, sign_in: SignIn) -> None:
    make.gateway(make.server(), slug="plain")
    per_user(make.gateway(slug="asking"))
    client = sign_in(ana)

    page = text(client.get(begin(client, make.agent(by=ana))))

    def radio(slug: str) -> str:
        return page.split(f'value="{slug}"')[1].split(">")[0]

    assert "data-more" in radio("asking")
    assert "data-more" not in radio("plain")
    assert ">Next</span>" in page
    assert ">Allow</span>" in page


@pytest.mark.parametrize("host", ["", "nonsense", "00000000-0000-4000-8000-000000000000"])
def test_a_host_nobody_made_starts_no_flow(host: str, ana: User, sign_in: SignIn) -> None:
    assert sign_in(ana).get("/connect/", {"host": host}).status_code == 404
    assert not AuthorizeRequest.objects.exists()


# --- Bringing identities ------------------------------------------------------------------------------------------


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


def test_an_identity_taken_away_meanwhile_is_not_carried(ana: User, sign_in: SignIn) -> None:
    gateway = make.gateway()
    identity = make.identity(per_user(gateway), ana)
    client = sign_in(ana)
    first = begin(client, make.agent(by=ana))
    page = client.post(first, {"gateway": gateway.slug})["Location"]
    client.post(page, {"identity": str(identity.pk)})
    identity.revoke(by=ana)

    client.post(f"{first}token/", {"name": "x", "scope": "all"})

    assert not Connection.objects.get().identities.exists()


def test_every_server_may_be_skipped(ana: User, sign_in: SignIn) -> None:
    gateway = make.gateway()
    github = per_user(gateway)
    client = sign_in(ana)
    first = begin(client, make.agent(by=ana))
    page = client.post(first, {"gateway": gateway.slug})["Location"]

    seen = text(client.get(page))
    options = client.post(page, {"skip": "1"})
    client.post(options["Location"], {"name": "x", "scope": "all"})

    assert f"You can skip {github.name}. Without it this server&#x27;s tools will not be available." in seen or (
        f"You can skip {github.name}. Without it this server's tools will not be available." in seen
    )
    assert not Connection.objects.get().identities.exists()


def test_what_the_connection_carries_already_is_not_asked_again(ana: User, sign_in: SignIn) -> None:
    host, gateway = make.agent(by=ana), make.gateway()
    make.connection(host, gateway, ana, [make.identity(per_user(gateway), ana)])
    client = sign_in(ana)

    answer = client.post(begin(client, host), {"gateway": gateway.slug})

    assert answer["Location"].endswith("/token/")


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


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"identity": "new", "secret": ""}, "or skip this server."),
        ({"identity": "new", "secret": "Bearer  "}, "or skip this server."),
        ({"identity": "new", "secret": "two\r\nlines"}, "cannot be sent as a header"),
        ({"identity": "new", "secret": "ключ"}, "cannot be sent as a header"),
        ({"identity": "new", "secret": "x" * 4001}, "at most 4000 characters"),
        ({"identity": "new", "secret": "ok", "label": "x" * 81}, "at most 80 characters"),
        ({"identity": "new", "secret": "ok", "label": "taken"}, "You have an identity with this label already."),
        ({"identity": "nonsense"}, "Select a valid choice"),
        ({}, "Choose an identity, or skip this server."),
    ],
)
def test_a_bad_identity_is_refused_in_words(data: dict[str, str], words: str, ana: User, sign_in: SignIn) -> None:
    gateway = make.gateway()
    make.identity(per_user(gateway), ana, label="taken")
    client = sign_in(ana)
    page = client.post(begin(client, make.agent(by=ana)), {"gateway": gateway.slug})["Location"]

    response = client.post(page, data)

    assert response.status_code == 422
    assert words in text(response)
    assert Identity.objects.count() == 1
    assert data.get("secret", "") not in ("ok", "ключ") or f'value="{data["secret"]}"' not in text(response)


def test_a_server_of_another_gateway_has_no_page(ana: User, sign_in: SignIn) -> None:
    gateway, other = make.gateway(), make.gateway()
    per_user(other)
    client = sign_in(ana)
    first = begin(client, make.agent(by=ana), gateway=gateway.slug)

    assert client.get(f"{first}identity/{other.assignments.get().pk}/").status_code == 404


# --- Token options ------------------------------------------------------------------------------------------------


def options(client: Client, host: Host, gateway: Gateway) -> str:
    """The address of the last page, the gateway chosen."""
    return f"{begin(client, host, gateway=gateway.slug)}token/"


def test_the_options_narrow_the_token(ana: User, sign_in: SignIn) -> None:
    docs, wiki = make.server(), make.server()
    gateway = make.gateway(docs, wiki)
    wanted = gateway.assignments.get(server=wiki)
    client = sign_in(ana)

    issued = client.post(
        options(client, make.agent(by=ana), gateway),
        {
            "name": "narrow",
            "scope": "some",
            "servers": [str(wanted.pk)],
            "expires_in_days": "7",
            "allowed_ips": "198.51.100.7\n2001:db8::/32",
        },
    )

    minted(issued)
    token = Token.objects.get()
    assert not token.scope_all
    assert [scope.assignment for scope in token.scopes.all()] == [wanted]
    assert token.allowed_ips == ["198.51.100.7/32", "2001:db8::/32"]
    assert token.expires_at is not None
    assert token.expires_at - datetime.now(UTC) < timedelta(days=7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": ""}, "This field is required."),
        ({"name": "x" * 101}, "at most 100 characters"),
        ({"name": "TAKEN"}, "This connection has an active token of that name already."),
        ({"scope": "nonsense"}, "Select a valid choice"),
        ({"scope": "some", "servers": []}, "Choose at least one server."),
        ({"scope": "some", "servers": ["nonsense"]}, "is not a valid"),
        ({"scope": "some", "servers": ["00000000-0000-4000-8000-000000000000"]}, "Select a valid choice"),
        ({"expires_in_days": "365"}, "Select a valid choice"),
        ({"expires_in_days": "never"}, "Select a valid choice"),
        ({"allowed_ips": "10.0.0.1\n300.1.1.1"}, "“300.1.1.1” is neither an IP address nor a CIDR range."),
        ({"allowed_ips": "\n".join(f"10.0.0.{n}" for n in range(51))}, "At most 50 addresses or ranges are possible."),
    ],
)
def test_bad_options_are_refused_in_words(change: dict[str, Any], words: str, ana: User, sign_in: SignIn) -> None:
    host, gateway = make.agent(by=ana), make.gateway(make.server())
    make.token(make.connection(host, gateway, ana), name="taken")
    client = sign_in(ana)

    response = client.post(options(client, host, gateway), {"name": "x", "scope": "all"} | change)

    assert response.status_code == 422
    assert words in text(response)
    assert Token.objects.count() == 1


def test_no_expiry_is_offered_where_the_workspace_allows_it(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    page = options(client, make.agent(by=ana), make.gateway())
    assert "No expiry" not in text(client.get(page))
    WorkspaceSettings.load()
    WorkspaceSettings.objects.update(allow_non_expiring_tokens=True)

    assert "No expiry" in text(client.get(page))
    minted(client.post(page, {"name": "x", "scope": "all", "expires_in_days": "never"}))

    assert Token.objects.get().expires_at is None


def test_a_second_token_joins_the_live_connection_under_a_free_name(ana: User, sign_in: SignIn) -> None:
    host, gateway = make.agent(by=ana, name="CI bot"), make.gateway(slug="quickstart")
    connection = make.connection(host, gateway, ana)
    make.token(connection, name="CI bot-quickstart")
    client = sign_in(ana)
    page = options(client, host, gateway)

    seen = text(client.get(page))
    minted(client.post(page, {"name": "CI bot-quickstart-2", "scope": "all"}))

    assert "The new token joins that connection." in seen
    assert 'value="CI bot-quickstart-2"' in seen
    assert connection.tokens.count() == 2
    assert Connection.objects.count() == 1


def test_the_twenty_first_token_is_refused_in_words(ana: User, sign_in: SignIn) -> None:
    host, gateway = make.agent(by=ana), make.gateway()
    connection = make.connection(host, gateway, ana)
    for _ in range(20):
        make.token(connection)
    client = sign_in(ana)

    response = client.post(options(client, host, gateway), {"name": "x", "scope": "all"})

    assert response.status_code == 422
    assert "A connection holds 20 active tokens at most. Revoke one first." in text(response)


def test_the_token_acts_as_the_person_signed_in_whatever_is_posted(ana: User, ann: User, sign_in: SignIn) -> None:
    client = sign_in(ana)

    client.post(options(client, make.agent(by=ana), make.gateway()), {"name": "x", "scope": "all", "user": str(ann.pk)})

    assert Token.objects.get().connection.user == ana


# --- Refusals -----------------------------------------------------------------------------------------------------


def test_without_the_capability_the_flow_refuses_in_words(ann: User, sign_in: SignIn) -> None:
    host = make.agent(by=ann)
    make.gateway()
    client = sign_in(ann)

    response = client.get(begin(client, host))

    assert response.status_code == 403
    assert "Your role lacks Create and manage API tokens." in text(response)


def test_an_agent_open_for_enrolment_needs_no_capability(ann: User, sign_in: SignIn) -> None:
    host, gateway = make.agent(by=make.user()), make.gateway()
    Host.objects.filter(pk=host.pk).update(allow_enrolment=True)
    client = sign_in(ann)

    minted(client.post(options(client, host, gateway), {"name": "mine", "scope": "all"}))

    assert Token.objects.get().connection.user == ann


@pytest.mark.parametrize(
    ("off", "words"),
    [
        ("host", "An administrator has disabled this app."),
        ("gateway", "An administrator has disabled this gateway."),
        ("connection", "This connection has been disabled by an administrator."),
        ("reach", "Your teams do not include this gateway."),
    ],
)
@pytest.mark.parametrize("method", ["get", "post"])
def test_what_was_switched_off_meanwhile_refuses_at_every_step(
    off: str, words: str, method: str, sign_in: SignIn
) -> None:
    person = make.user(Capability.API_TOKENS_MANAGE)
    host, gateway = make.agent(by=person), make.gateway()
    connection = make.connection(host, gateway, person)
    client = sign_in(person)
    page = options(client, host, gateway)
    match off:
        case "host":
            host.disable(by=person)
        case "gateway":
            gateway.disable(by=person)
        case "connection":
            connection.disable(by=person)
        case "reach":
            Gateway.objects.update(reach="teams")

    response = getattr(client, method)(page, {"name": "x", "scope": "all"})

    assert response.status_code == 403
    assert words in text(response)
    assert not Token.objects.exists()


# --- The flow belongs to one browser and one person ---------------------------------------------------------------


def test_a_stranger_signs_in_first_and_comes_back_to_the_flow(ana: User) -> None:
    ana.set_password(make.PASSWORD)
    ana.save()
    host = make.agent(by=ana)
    make.gateway()
    client = Client()

    asked = client.get("/connect/", {"host": str(host.pk)}, follow=True)
    arrived = client.post(
        "/accounts/login/",
        {"login": ana.email, "password": make.PASSWORD, "next": f"/connect/?host={host.pk}"},
        follow=True,
    )

    assert asked.redirect_chain[0][0] == f"/accounts/login/?next=/connect/%3Fhost%3D{host.pk}"
    assert "to a gateway" in text(arrived)


def test_another_browser_of_the_same_person_does_not_see_the_flow(ana: User, sign_in: SignIn) -> None:
    make.gateway()
    first = begin(sign_in(ana), make.agent(by=ana))

    assert sign_in(ana).get(first).status_code == 404


def test_another_person_in_the_same_browser_does_not_see_the_flow(ana: User, viv: User, sign_in: SignIn) -> None:
    make.gateway()
    client = sign_in(ana)
    first = begin(client, make.agent(by=ana))
    bound = client.session["authorize_browser"]
    client.force_login(viv)
    session = client.session
    session["authorize_browser"] = bound
    session.save()

    assert client.get(first).status_code == 404


def test_signing_in_again_keeps_the_flow(ana: User, sign_in: SignIn) -> None:
    make.gateway()
    client = sign_in(ana)
    first = begin(client, make.agent(by=ana))

    client.force_login(ana)  # Signing in gives the session another key.

    assert client.get(first).status_code == 200


def test_after_a_quarter_of_an_hour_the_flow_has_expired(ana: User, sign_in: SignIn) -> None:
    gateway = make.gateway()
    client = sign_in(ana)
    page = options(client, make.agent(by=ana), gateway)

    with time_machine.travel(datetime.now(UTC) + timedelta(minutes=15, seconds=1)):
        response = client.post(page, {"name": "x", "scope": "all"})

    assert response.status_code == 410
    assert "This request has expired. Start again from Apps &amp; Agents." in text(response)
    assert not Token.objects.exists()


def test_switching_the_account_starts_the_flow_again(ana: User, sign_in: SignIn) -> None:
    host, gateway = make.agent(by=ana), make.gateway()
    client = sign_in(ana)

    page = text(client.get(begin(client, host, gateway=gateway.slug)))

    assert "Not you? Switch account" in page
    assert f'name="next" value="/connect/?host={host.pk}&amp;gateway={gateway.slug}"' in page


# --- How to Connect -----------------------------------------------------------------------------------------------


def test_how_to_connect_has_its_three_steps_and_the_right_address(ana: User, sign_in: SignIn) -> None:
    make.gateway(name="A first one")
    gateway = make.gateway(slug="quickstart")

    page = text(sign_in(ana).get("/connect/help/", {"gateway": gateway.slug}, headers={"HX-Request": "true"}))

    for step in (
        "Open Claude Desktop settings and navigate to Developer &gt; Edit Config",
        "Add the MCP server URL as a remote MCP server entry",
        "Authorize in the browser when prompted",
    ):
        assert step in page
    assert '"url": "<mark>http://localhost:8000/mcp/quickstart</mark>"' in page
    assert "Authorization: Bearer <mark>&lt;your-api-access-token&gt;</mark>" in page


def test_how_to_connect_names_only_gateways_within_reach(ann: User, sign_in: SignIn) -> None:
    make.gateway(name="Others", slug="others", reach="teams")

    page = text(sign_in(ann).get("/connect/help/", {"gateway": "others"}))

    assert "Others" not in page
    assert "There is no gateway you can reach yet." in page
