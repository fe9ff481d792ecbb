"""The authorize flow in which a person gets a token to copy."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection as database
from django.test import Client

from accounts.models import User, WorkspaceSettings
from auditlog.models import Event
from connections.models import Connection
from gateways.models import Feature
from oauth.models import AuthorizeRequest
from tests import make
from tests.conftest import SignIn
from tests.oauth.steps import begin, minted, options, text
from tokens.models import Token
from tokens.snippets import example_call
from wire import token_text

pytestmark = pytest.mark.django_db


@pytest.mark.full
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
    assert token_text.well_formed(token, {token_text.ACCESS})
    assert text(issued).count(token) >= 4  # In the field and in three snippets.
    assert 'value="http://localhost:8000/mcp/quickstart"' in text(issued)
    row = Token.objects.get()
    assert (row.prefix, row.connection.host, row.connection.user) == (token[:12], host, ana)
    assert row.scope_all
    assert row.expires_at is not None
    assert row.expires_at - datetime.now(UTC) > timedelta(days=89)


@pytest.mark.full
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


@pytest.mark.full
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


@pytest.mark.full
def test_snippets_call_a_tool_the_gateway_really_has_with_arguments_of_its_schema(ana: User, sign_in: SignIn) -> None:
    gateway, client = make.gateway(make.server()), sign_in(ana)
    asked = {
        "unit": {"type": "string", "enum": ["celsius", "kelvin"]},
        "days": {"type": "integer", "default": 3},
        "kind": {"const": "brief"},
        "city": {"type": ["string", "null"]},
        "more": True,
    }
    schema = {"type": "object", "properties": asked, "required": [*asked]}
    Feature.objects.create(
        assignment=gateway.assignments.get(), name="echo", exposed_name="docs__echo", input_schema=schema
    )

    issued = client.post(options(client, make.agent(by=ana), gateway), {"name": "x", "scope": "all"})

    told = '"arguments":{"unit": "celsius", "days": 3, "kind": "brief", "city": "hello", "more": "hello"}'
    assert f'"name":"docs__echo",{told}' in text(issued).replace("&quot;", '"')
    unknown = client.post(options(client, make.agent(by=ana), make.gateway()), {"name": "x", "scope": "all"})
    assert "&lt;tool-name&gt;" in text(unknown)


@pytest.mark.full
def test_a_snippet_reads_rather_than_writes_and_never_destroys() -> None:
    gateway = make.gateway(make.server())
    features = gateway.assignments.get().features
    of_each: dict[str, dict[str, Any]] = {
        "a_wipe": {"destructiveHint": True},
        "b_write": {"readOnlyHint": False},
        "c_said": {"readOnlyHint": "false"},
        "d_read": {"readOnlyHint": True},
    }
    for name, annotations in of_each.items():
        features.create(name=name, exposed_name=f"docs__{name}", annotations=annotations)

    offered = []
    for name in ("d_read", "b_write", "c_said"):
        call = example_call(gateway, make.user())
        offered.append(call and call.name)
        features.filter(name=name).delete()

    assert offered == ["docs__d_read", "docs__b_write", "docs__c_said"]
    assert example_call(gateway, make.user()) is None
    for name in ("delete_note", "order_status"):
        features.create(name=name, exposed_name=f"docs__{name}")
    call = example_call(gateway, make.user())
    assert call is not None
    assert call.name == "docs__order_status"


def test_the_options_narrow_the_token_of_the_person_signed_in(ana: User, ann: User, sign_in: SignIn) -> None:
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
            "calls_per_minute": "60",
            "user": str(ann.pk),
        },
    )

    minted(issued)
    token = Token.objects.get()
    assert not token.scope_all
    assert [scope.assignment for scope in token.scopes.all()] == [wanted]
    assert token.allowed_ips == ["198.51.100.7/32", "2001:db8::/32"]
    assert token.calls_per_minute == 60
    assert token.connection.user == ana
    assert token.expires_at is not None
    assert token.expires_at - datetime.now(UTC) < timedelta(days=7)


@pytest.mark.full
def test_bad_options_are_refused_in_words(ana: User, sign_in: SignIn, subtests: pytest.Subtests) -> None:
    host, gateway = make.agent(by=ana), make.gateway(make.server())
    connection = make.connection(host, gateway, ana)
    make.token(connection, name="taken")
    client = sign_in(ana)
    page = options(client, host, gateway)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"name": ""}, "This field is required."),
        ({"name": "x" * 101}, "at most 100 characters"),
        ({"name": "TAKEN"}, "This connection already has an unrevoked token of that name."),
        ({"scope": "nonsense"}, "Select a valid choice"),
        ({"scope": "some", "servers": []}, "Choose at least one server."),
        ({"scope": "some", "servers": ["nonsense"]}, "is not a valid"),
        ({"scope": "some", "servers": ["00000000-0000-4000-8000-000000000000"]}, "Select a valid choice"),
        ({"expires_in_days": "365"}, "Select a valid choice"),
        ({"expires_in_days": "never"}, "Select a valid choice"),
        ({"allowed_ips": "10.0.0.1\n300.1.1.1"}, "\u201c300.1.1.1\u201d is neither an IP address nor a CIDR range."),
        ({"allowed_ips": "\n".join(f"10.0.0.{n}" for n in range(51))}, "At most 50 addresses or ranges are possible."),
    ]
    for change, words in wrong:
        with subtests.test(words):
            response = client.post(page, {"name": "x", "scope": "all"} | change)

            assert response.status_code == 422
            assert words in text(response)
    for _ in range(19):
        make.token(connection)
    refused = client.post(page, {"name": "x", "scope": "all"})
    assert refused.status_code == 422
    assert "A connection can have at most 20 unrevoked, unexpired tokens. Revoke one first." in text(refused)
    assert Token.objects.count() == 20


@pytest.mark.full
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

    assert "The new token belongs to the same connection." in seen
    assert 'value="CI bot-quickstart-2"' in seen
    assert connection.tokens.count() == 2
    assert Connection.objects.count() == 1
