"""Pages of servers: the list, a server's page, the form to add or edit a server, and *Test connection*."""

from typing import Any

import pytest
from pytest_django import DjangoAssertNumQueries, Settings

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from servers.forms import suggest
from servers.models import AuthType, Health, Server
from tests import make, upstreams
from tests.conftest import Run, SignIn, wire_size
from tests.workspace import free_port

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("loopback_is_allowed")]

HTMX = {"HX-Request": "true"}


def text(response: Any) -> str:
    return str(response.content.decode())


def filled(**values: Any) -> dict[str, Any]:
    """Return a valid form of a server."""
    return {"name": "Docs", "url": "http://127.0.0.1:9/mcp", "auth_type": "none", "timeout_seconds": 30} | values


# --- Who may do what ----------------------------------------------------------------------------------------------


@pytest.mark.full
def test_controls_the_role_lacks_are_not_in_the_page(sign_in: SignIn) -> None:
    server = make.server()
    client = sign_in(make.user(Capability.IDENTITIES_MANAGE))

    pages = text(client.get("/servers/")) + text(client.get(f"/servers/{server.slug}/"))

    for words in ("/servers/add/", 'role="switch"', "Test connection", "/edit/", "/logs/"):
        assert words not in pages


# --- The list -----------------------------------------------------------------------------------------------------


def test_the_list_is_narrowed_by_the_query_string(ana: User, sign_in: SignIn) -> None:
    make.server(name="Docs", health=Health.OK)
    make.server(name="Jira", url="https://jira.example.com/", health=Health.DOWN, auth_type=AuthType.BEARER)
    client = sign_in(ana)

    for query, names in (
        ("?q=doc", {"Docs"}),
        ("?q=JIRA.example", {"Jira"}),
        ("?health=down", {"Jira"}),
        ("?health=ok&health=down", {"Docs", "Jira"}),
        ("?auth=bearer", {"Jira"}),
        ("?health=nonsense", {"Docs", "Jira"}),
        ("?page=99", {"Docs", "Jira"}),
    ):
        assert {server.name for server in client.get(f"/servers/{query}").context["page"]} == names, query


@pytest.mark.full
def test_a_full_list_takes_few_statements_and_stays_light(
    ana: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(50):
        name = f"Team server {number}"
        make.server(name=name, url=f"https://mcp-{number}.example.com/mcp", health=Health.DOWN, health_error="x" * 100)
    client = sign_in(ana)

    with django_assert_num_queries(7):  # session, user, permissions, Gateway Admin, count, rows, rail
        page = client.get("/servers/")
    assert wire_size(page) <= 30 * 1024


def test_names_and_errors_of_others_are_escaped(ana: User, sign_in: SignIn) -> None:
    hostile = "<script>alert(1)</script>"
    server = make.server(name=hostile, health=Health.DOWN, health_error=hostile)
    make.gateway(server, name=f"{hostile} 2")
    client = sign_in(ana)

    for path in ("/servers/", f"/servers/{server.slug}/", f"/servers/{server.slug}/gateways/"):
        page = text(client.get(path))
        assert hostile not in page
        assert "&lt;script&gt;" in page


# --- Adding and editing -------------------------------------------------------------------------------------------


def test_a_slug_is_made_of_whole_words_where_the_name_is_too_long() -> None:
    make.server(slug="docs")
    for name, slug in (("Weather of the world", "weather-of-the"), ("a" * 20, "a" * 16), ("Docs", "docs-2")):
        assert suggest(name, Server.objects.all(), 16) == slug


@pytest.mark.full
def test_a_server_is_added_with_a_slug_made_from_its_name(ana: User, sign_in: SignIn) -> None:
    response = sign_in(ana).post(
        "/servers/add/", filled(name="Postgres (analytics)", lists_live="on", health="ok", protocol_era="modern")
    )

    server = Server.objects.get()
    assert (server.lists_live, server.health, server.protocol_era) == (True, "unknown", "")
    assert response["Location"] == f"/servers/{server.slug}/"
    assert (server.slug, server.created_by, server.timeout_seconds) == ("postgres", ana, 30)
    assert Event.objects.get(action="server.created").actor_id == ana.pk


BAD = (
    ({"name": ""}, "name", "This field is required."),
    ({"name": "x" * 81}, "name", "at most 80 characters"),
    ({"name": "tAkEn"}, "name", "A server with this name already exists."),
    ({"name": "日本"}, "slug", "No slug can be made from this name."),
    ({"slug": "Not A Slug"}, "slug", "Use lower-case letters"),
    ({"slug": "x" * 17}, "slug", "at most 16 characters"),
    ({"slug": "gone"}, "slug", "This slug was used before."),
    ({"slug": "add"}, "slug", "is reserved for this site"),
    ({"url": ""}, "url", "This field is required."),
    ({"url": "builtin:quickstart"}, "url", "must start with https://"),
    ({"url": "http://169.254.169.254/"}, "url", "169.254.169.254"),
    ({"url": "https://10.0.0.5/mcp"}, "url", "10.0.0.5"),
    ({"url": "https://0x7f.1/mcp"}, "url", "0x7f.1"),
    ({"url": "http://8.8.8.8/mcp"}, "url", "8.8.8.8"),
    ({"url": "https://nowhere.invalid/mcp"}, "url", "cannot be found"),
    ({"url": "https://localhost/mcp"}, "url", "localhost leads to an address that is private or reserved"),
    ({"url": "https://user:pass@127.0.0.1/"}, "url", "Leave credentials out"),
    ({"url": "http://127.0.0.1:99999/"}, "url", "This is not a URL."),
    ({"url": "http://127.0.0.1/mcp#top"}, "url", "Remove the #"),
    ({"url": "https://" + "x" * 500}, "url", "at most 500 characters"),
    ({"url": "http://localhost:8000/mcp/work"}, "url", "This is an address of this gateway itself, so calls"),
    ({"auth_type": "magic"}, "auth_type", "Select a valid choice"),
    ({"auth_type": "header"}, "header_name", "Enter the name of the header"),
    ({"auth_type": "header", "header_name": "X-Key\r\nEvil"}, "header_name", "Enter the name of the header"),
    ({"auth_type": "header", "header_name": "Mcp-Session-Id"}, "header_name", "The gateway sets this header"),
    ({"timeout_seconds": "121"}, "timeout_seconds", "less than or equal to 120"),
    ({"timeout_seconds": "soon"}, "timeout_seconds", "Enter a whole number."),
)


@pytest.mark.full
def test_every_bad_input_is_explained_in_its_place(
    ana: User, sign_in: SignIn, settings: Settings, subtests: pytest.Subtests
) -> None:
    make.server(name="Taken", slug="taken")
    gone = make.server(slug="gone")
    Server.objects.filter(pk=gone.pk).update(archived_at=gone.created_at)
    client, allowed = sign_in(ana), settings.PRIVATE_UPSTREAMS

    for values, field, words in BAD:
        with subtests.test(str(values)):
            settings.PRIVATE_UPSTREAMS = [] if values.get("url") == "https://localhost/mcp" else allowed
            response = client.post("/servers/add/", filled(**values))
            assert response.status_code == 422
            assert words in text(response).split(f'id="id_{field}_error"')[1].split("</span>")[0]
            assert 'aria-invalid="true"' in text(response)
            assert Server.objects.count() == 2


@pytest.mark.full
def test_how_many_calls_a_server_takes_at_once_is_said_on_its_form_and_stays_when_left_out(
    ana: User, sign_in: SignIn
) -> None:
    sign_in(ana).post("/servers/add/", filled(name="Docs", slug="docs", max_concurrent="8"))
    assert Server.objects.get().max_concurrent == 8

    sign_in(ana).post("/servers/docs/edit/", filled(name="Papers"))
    assert Server.objects.get().max_concurrent == 8

    refused = sign_in(ana).post("/servers/docs/edit/", filled(name="Papers", max_concurrent="1001"))
    assert refused.status_code == 422
    assert Server.objects.get().max_concurrent == 8


def test_a_server_is_edited_but_for_its_slug(ana: User, sign_in: SignIn) -> None:
    server = make.server(slug="docs", name="Docs", health=Health.OK, url="http://127.0.0.1:9/mcp")

    response = sign_in(ana).post("/servers/docs/edit/", filled(name="Papers", slug="other", url="http://127.0.0.1:8/"))

    assert response["Location"] == "/servers/docs/"
    server.refresh_from_db()
    assert (server.name, server.slug, server.url, server.health) == ("Papers", "docs", "http://127.0.0.1:8/", "unknown")
    assert Event.objects.get(action="server.updated").changes["name"] == ["Docs", "Papers"]


def test_saving_without_a_change_keeps_an_address_that_would_be_refused_now(
    ana: User, sign_in: SignIn, settings: Settings
) -> None:
    make.server(slug="docs", name="Docs", url="http://127.0.0.1:9/mcp")
    settings.PRIVATE_UPSTREAMS = []

    assert sign_in(ana).post("/servers/docs/edit/", filled(timeout_seconds=5)).status_code == 302
    assert Server.objects.get().timeout_seconds == 5


# --- Test connection ----------------------------------------------------------------------------------------------


def test_a_connection_is_tested_on_the_server_s_page(run: Run, ana: User, sign_in: SignIn) -> None:
    server = make.server(url=run(upstreams.docs()).url)

    response = sign_in(ana).post(f"/servers/{server.slug}/test/", headers=HTMX)

    page = text(response)
    assert page.lstrip().startswith('<section class="card" id="contact"')
    assert 'data-kind="good"' in page
    assert "with 6 tools" in page
    server.refresh_from_db()
    assert server.health == Health.OK


@pytest.mark.full
def test_a_failed_test_says_why_and_a_wanted_credential_is_no_failure(run: Run, ana: User, sign_in: SignIn) -> None:
    dead = make.server(url=f"http://127.0.0.1:{free_port()}/mcp")
    github = make.server(url=run(upstreams.github()).url, auth_type=AuthType.BEARER)
    client, reason = sign_in(ana), "The server refused the connection: nothing listens at the port;"

    fragment = text(client.post(f"/servers/{dead.slug}/test/", headers=HTMX))
    page = text(client.post(f"/servers/{dead.slug}/test/", follow=True))
    wanted = text(client.post(f"/servers/{github.slug}/test/", headers=HTMX))

    assert f"{reason} check the port, and that the server runs." in fragment
    assert page.count(reason) == 2  # In the toast, and in the stored result.
    assert 'data-kind="warn"' in wanted
    assert "The server answered 401: it wants a credential." in wanted


@pytest.mark.full
def test_a_stored_secret_is_not_sent_to_a_place_that_was_merely_typed(run: Run, ana: User, sign_in: SignIn) -> None:
    for number, (was, owner, sent) in enumerate(
        (
            ("http://127.0.0.1:{port}/old", ana, True),
            ("http://127.0.0.1:1/mcp", ana, False),
            ("http://localhost:{port}/mcp", ana, False),
            ("https://127.0.0.1:{port}/mcp", ana, False),
            ("http://127.0.0.1:{port}/mcp", None, True),
            ("http://127.0.0.1:{port}/old", None, False),  # Saving it needs a password and a confirmation.
        )
    ):
        upstream, slug = run(upstreams.github()), f"github-{number}"
        server = make.server(slug=slug, url=was.format(port=upstream.port), auth_type=AuthType.BEARER)
        make.identity(server, owner, secret="ana-secret")

        values = filled(name=slug, url=upstream.url, auth_type="bearer", test="1")
        page = text(sign_in(ana).post(f"/servers/{slug}/edit/", values))

        assert {seen.headers.get("authorization") for seen in upstream.seen} == {"Bearer ana-secret" if sent else None}
        assert ("Tested without the stored credential" in page) is not sent, (was, owner)
        assert Server.objects.get(slug=slug).url == server.url, "it is tested and not saved"


# --- Its gateways -------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_gateways_tab_lists_where_it_stands_and_how(ana: User, sign_in: SignIn) -> None:
    server = make.server(name="Docs")
    make.gateway(server, name="Engineering")
    make.gateway(server, name="Support").disable(by=ana)
    make.gateway(server, name="Removed").assignments.get().remove(by=ana)

    page = text(sign_in(ana).get(f"/servers/{server.slug}/gateways/"))

    assert "Engineering" in page
    assert "gateway disabled" in page
    assert "Removed" not in page
    assert sign_in(ana).get(f"/servers/find/{server.pk}/")["Location"] == f"/servers/{server.slug}/"
