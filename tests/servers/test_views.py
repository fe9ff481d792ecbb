"""Servers: the list, the page of one server, its switch, and *Test connection*."""

from typing import Any

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries, Settings

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from capabilities.catalogue import including
from servers.forms import suggest
from servers.models import BUILT_IN_URL, AuthType, Health, Server
from tests import make, upstreams
from tests.conftest import Run, SignIn, wire_size
from tests.meanwhile import just_before
from tests.workspace import free_port

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("loopback_is_allowed")]

HTMX = {"HX-Request": "true"}
SEES = sorted(including([Capability.SERVERS_READ]))


def text(response: Any) -> str:
    return str(response.content.decode())


def filled(**values: Any) -> dict[str, Any]:
    """Return a valid form of a server."""
    return {"name": "Docs", "url": "http://127.0.0.1:9/mcp", "auth_type": "none", "timeout_seconds": 30} | values


# --- Who may do what ----------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize(
    ("method", "path", "capabilities"),
    [
        ("get", "/servers/", SEES),
        ("get", "/servers/{slug}/", SEES),
        ("get", "/servers/{slug}/gateways/", SEES),
        ("get", "/servers/{slug}/identities/", SEES),
        ("get", "/servers/find/{pk}/", SEES),
        ("get", "/servers/add/", (Capability.SERVERS_MANAGE,)),
        ("post", "/servers/add/", (Capability.SERVERS_MANAGE,)),
        ("get", "/servers/slug/", (Capability.SERVERS_MANAGE,)),
        ("get", "/servers/{slug}/edit/", (Capability.SERVERS_MANAGE,)),
        ("post", "/servers/{slug}/edit/", (Capability.SERVERS_MANAGE,)),
        ("post", "/servers/{slug}/test/", (Capability.SERVERS_MANAGE,)),
        ("get", "/servers/{slug}/identities/add/", (Capability.SERVERS_MANAGE,)),
        ("post", "/servers/{slug}/identities/add/", (Capability.SERVERS_MANAGE,)),
        ("get", "/servers/{slug}/disable/", (Capability.SERVERS_TOGGLE,)),
        ("post", "/servers/{slug}/disable/", (Capability.SERVERS_TOGGLE,)),
        ("post", "/servers/{slug}/enable/", (Capability.SERVERS_TOGGLE,)),
    ],
)
def test_each_page_opens_with_any_of_its_capabilities_alone(
    method: str, path: str, capabilities: tuple[Capability, ...], sign_in: SignIn
) -> None:
    server = make.server(url=f"http://127.0.0.1:{free_port()}/mcp")
    path = path.format(slug=server.slug, pk=server.pk)

    assert getattr(Client(), method)(path).status_code == 302
    assert getattr(sign_in(make.user(*(set(Capability) - set(capabilities)))), method)(path).status_code == 403
    for capability in capabilities:
        holder = getattr(sign_in(make.user(capability)), method)(path)
        assert holder.status_code in (200, 302, 422)


@pytest.mark.full
def test_controls_the_role_lacks_are_not_in_the_page(sign_in: SignIn) -> None:
    server = make.server()
    client = sign_in(make.user(Capability.IDENTITIES_MANAGE))

    pages = text(client.get("/servers/")) + text(client.get(f"/servers/{server.slug}/"))

    for words in ("/servers/add/", 'role="switch"', "Test connection", "/edit/", "/logs/"):
        assert words not in pages


# --- The list -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_list_names_address_authentication_health_and_gateways(ana: User, sign_in: SignIn) -> None:
    docs = make.server(name="Docs", url="https://docs.example.com/mcp")
    make.server(name="Jira", health=Health.DOWN, health_error="did not answer within 5 s", auth_type=AuthType.BEARER)
    make.gateway(docs)
    make.gateway(docs)
    make.gateway(docs).assignments.get().remove(by=ana)

    page = text(sign_in(ana).get("/servers/"))

    row = page.split(f'id="server-{docs.slug}"')[1].split("</tr>")[0]
    assert "https://docs.example.com/mcp" in row
    assert "No credential" in row
    assert 'class="number">2</td>' in row
    for words in ("Bearer token", "down", "did not answer within 5 s"):
        assert words in page
    assert page.index("Docs") < page.index("Jira")


def test_an_empty_list_says_what_adding_one_does(ana: User, sign_in: SignIn) -> None:
    page = text(sign_in(ana).get("/servers/"))

    assert "No servers yet. Adding a server does not expose it to anyone until you assign it to a gateway." in page


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("?q=doc", {"Docs"}),
        ("?q=JIRA.example", {"Jira"}),
        ("?health=down", {"Jira"}),
        ("?health=ok&health=down", {"Docs", "Jira"}),
        ("?auth=bearer", {"Jira"}),
        ("?health=nonsense", {"Docs", "Jira"}),
        ("?page=99", {"Docs", "Jira"}),
    ],
)
def test_the_list_is_narrowed_by_the_query_string(query: str, names: set[str], ana: User, sign_in: SignIn) -> None:
    make.server(name="Docs", health=Health.OK)
    make.server(name="Jira", url="https://jira.example.com/", health=Health.DOWN, auth_type=AuthType.BEARER)

    response = sign_in(ana).get(f"/servers/{query}")

    assert {server.name for server in response.context["page"]} == names


@pytest.mark.full
def test_the_page_of_a_server_leads_to_its_tools_once_it_is_on_a_gateway(ana: User, sign_in: SignIn) -> None:
    server = make.server(slug="docs")
    assert "Show tools" not in text(sign_in(ana).get("/servers/docs/"))

    make.assignment(make.gateway(), server)

    assert '<a href="/tools/?server=docs">Show tools</a>' in text(sign_in(ana).get("/servers/docs/"))


def test_archived_servers_are_gone_from_list_and_page(ana: User, sign_in: SignIn) -> None:
    server = make.server(name="Old server")
    Server.objects.filter(pk=server.pk).update(archived_at=server.created_at)

    assert "Old server" not in text(sign_in(ana).get("/servers/"))
    assert sign_in(ana).get(f"/servers/{server.slug}/").status_code == 404


@pytest.mark.full
def test_a_list_costs_the_same_for_one_row_and_for_many(
    ana: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(12):
        make.gateway(make.server())
    client = sign_in(ana)

    with django_assert_num_queries(7):  # session, user, permissions, Gateway Admin, count, rows, rail
        client.get("/servers/")


@pytest.mark.full
def test_a_full_list_stays_light(ana: User, sign_in: SignIn) -> None:
    for number in range(50):
        name = f"Team server {number}"
        make.server(name=name, url=f"https://mcp-{number}.example.com/mcp", health=Health.DOWN, health_error="x" * 100)

    assert wire_size(sign_in(ana).get("/servers/")) <= 30 * 1024


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


@pytest.mark.parametrize(
    ("name", "slug"),
    [("Weather of the world", "weather-of-the"), ("Weather of them all", "weather-of-them"), ("a" * 20, "a" * 16)],
)
def test_a_slug_is_made_of_whole_words_where_the_name_is_too_long(name: str, slug: str) -> None:
    assert suggest(name, Server.objects.all(), 16) == slug


@pytest.mark.full
def test_a_server_is_added_with_a_slug_made_from_its_name(ana: User, sign_in: SignIn) -> None:
    response = sign_in(ana).post("/servers/add/", filled(name="Postgres (analytics)"))

    server = Server.objects.get()
    assert response["Location"] == f"/servers/{server.slug}/"
    assert (server.slug, server.created_by, server.timeout_seconds) == ("postgres", ana, 30)
    assert Event.objects.get(action="server.created").actor_id == ana.pk


def test_a_taken_slug_gets_a_number(ana: User, sign_in: SignIn) -> None:
    make.server(slug="docs", name="Other")

    sign_in(ana).post("/servers/add/", filled(name="Docs"))

    assert Server.objects.get(name="Docs").slug == "docs-2"


@pytest.mark.full
@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"name": ""}, "name", "This field is required."),
        ({"name": "x" * 81}, "name", "at most 80 characters"),
        ({"name": "tAkEn"}, "name", "A server with this name already exists."),
        ({"name": "日本"}, "slug", "No slug can be made from this name."),
        ({"slug": "Not A Slug"}, "slug", "Use lower-case letters"),
        ({"slug": "two--hyphens"}, "slug", "Use lower-case letters"),
        ({"slug": "x" * 17}, "slug", "at most 16 characters"),
        ({"slug": "taken"}, "slug", "This slug was used before."),
        ({"slug": "gone"}, "slug", "This slug was used before."),
        ({"slug": "add"}, "slug", "is reserved for this site"),
        ({"url": ""}, "url", "This field is required."),
        ({"url": "nonsense"}, "url", "must start with https://"),
        ({"url": "ftp://example.com/"}, "url", "must start with https://"),
        ({"url": "builtin:quickstart"}, "url", "must start with https://"),
        ({"url": "http://169.254.169.254/"}, "url", "169.254.169.254"),
        ({"url": "https://10.0.0.5/mcp"}, "url", "10.0.0.5"),
        ({"url": "https://[::1]/mcp"}, "url", "::1"),
        ({"url": "https://0x7f.1/mcp"}, "url", "0x7f.1"),
        ({"url": "http://8.8.8.8/mcp"}, "url", "8.8.8.8"),
        ({"url": "https://nowhere.invalid/mcp"}, "url", "cannot be found"),
        ({"url": "https://user:pass@127.0.0.1/"}, "url", "Leave credentials out"),
        ({"url": "http://127.0.0.1/a b"}, "url", "This is not a URL."),
        ({"url": "http://127.0.0.1:99999/"}, "url", "This is not a URL."),
        ({"url": "http://127.0.0.1/mcp#top"}, "url", "Remove the #"),
        ({"url": "https://" + "x" * 500}, "url", "at most 500 characters"),
        ({"auth_type": "magic"}, "auth_type", "Select a valid choice"),
        ({"auth_type": "header"}, "header_name", "Enter the name of the header"),
        ({"auth_type": "header", "header_name": "X Key"}, "header_name", "Enter the name of the header"),
        ({"auth_type": "header", "header_name": "X-Key\r\nEvil"}, "header_name", "Enter the name of the header"),
        ({"auth_type": "header", "header_name": "Host"}, "header_name", "The gateway sets this header"),
        ({"auth_type": "header", "header_name": "Mcp-Session-Id"}, "header_name", "The gateway sets this header"),
        ({"timeout_seconds": "0"}, "timeout_seconds", "greater than or equal to 1"),
        ({"timeout_seconds": "121"}, "timeout_seconds", "less than or equal to 120"),
        ({"timeout_seconds": "soon"}, "timeout_seconds", "Enter a whole number."),
    ],
)
def test_every_bad_input_is_explained_in_its_place(
    values: dict[str, str], field: str, words: str, ana: User, sign_in: SignIn
) -> None:
    make.server(name="Taken", slug="taken")
    gone = make.server(slug="gone")
    Server.objects.filter(pk=gone.pk).update(archived_at=gone.created_at)

    response = sign_in(ana).post("/servers/add/", filled(**values))

    assert response.status_code == 422
    page = text(response)
    place = page.split(f'id="id_{field}_error"')[1].split("</span>")[0]
    assert words in place
    assert 'aria-invalid="true"' in page
    assert Server.objects.count() == 2


def test_a_name_that_leads_to_a_private_address_is_refused(ana: User, sign_in: SignIn, settings: Settings) -> None:
    settings.PRIVATE_UPSTREAMS = []

    response = sign_in(ana).post("/servers/add/", filled(url="https://localhost/mcp"))

    assert response.status_code == 422
    assert (
        "localhost leads to an address that is private or reserved; GATEWAY_PRIVATE_UPSTREAMS does not allow it."
        in text(response)
    )


@pytest.mark.full
def test_a_header_name_is_kept_for_own_headers_only(ana: User, sign_in: SignIn) -> None:
    sign_in(ana).post("/servers/add/", filled(name="A", auth_type="header", header_name="X-Api-Key"))
    sign_in(ana).post("/servers/add/", filled(name="B", auth_type="bearer", header_name="X-Api-Key"))

    assert Server.objects.get(name="A").header_name == "X-Api-Key"
    assert Server.objects.get(name="B").header_name == ""


@pytest.mark.full
def test_unknown_fields_change_nothing(ana: User, sign_in: SignIn) -> None:
    sign_in(ana).post("/servers/add/", filled(enabled="", health="ok", protocol_era="modern"))

    server = Server.objects.get()
    assert (server.enabled, server.max_concurrent, server.health, server.protocol_era) == (True, 64, "unknown", "")


@pytest.mark.full
def test_a_server_is_asked_live_where_its_form_says_so(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)

    client.post("/servers/add/", filled(name="Docs", slug="docs", lists_live="on"))
    assert Server.objects.get().lists_live
    assert "Fetched for each request" in client.get("/servers/docs/").content.decode()

    client.post("/servers/docs/edit/", filled(name="Docs"))
    assert not Server.objects.get().lists_live


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


@pytest.mark.full
def test_an_edit_that_would_take_credentials_elsewhere_is_refused_at_the_url(ana: User, sign_in: SignIn) -> None:
    server = make.server(slug="docs", name="Docs", url="http://127.0.0.1:9/mcp", auth_type=AuthType.BEARER)
    make.identity(server, ana)
    moved = filled(name="Docs", url="http://127.0.0.1:8/mcp", auth_type="bearer")

    response = sign_in(ana).post("/servers/docs/edit/", moved)

    assert response.status_code == 422
    place = text(response).split('id="id_url_error"')[1].split("</span>")[0]
    assert "1 credential was given for http://127.0.0.1:9. Revoke it first, or add the new address" in place
    server.refresh_from_db()
    assert server.url == "http://127.0.0.1:9/mcp"


def test_saving_without_a_change_keeps_an_address_that_would_be_refused_now(
    ana: User, sign_in: SignIn, settings: Settings
) -> None:
    make.server(slug="docs", name="Docs", url="http://127.0.0.1:9/mcp")
    settings.PRIVATE_UPSTREAMS = []

    assert sign_in(ana).post("/servers/docs/edit/", filled(timeout_seconds=5)).status_code == 302
    assert Server.objects.get().timeout_seconds == 5


@pytest.mark.full
def test_the_built_in_server_keeps_its_address(ana: User, sign_in: SignIn) -> None:
    make.server(slug="quickstart", name="Quickstart", url=BUILT_IN_URL)
    client = sign_in(ana)

    listed, form = text(client.get("/servers/")), text(client.get("/servers/quickstart/edit/"))
    client.post("/servers/quickstart/edit/", filled(name="Toys", url="http://127.0.0.1:9/"))

    assert "Built in" in listed
    assert BUILT_IN_URL not in listed + form
    assert 'name="url"' not in form
    assert (Server.objects.get().name, Server.objects.get().url) == ("Toys", BUILT_IN_URL)


def test_the_slug_is_suggested_while_the_name_is_typed(ana: User, sign_in: SignIn) -> None:
    make.server(slug="github")

    suggested = text(sign_in(ana).get("/servers/slug/?name=GitHub", headers=HTMX))

    assert "github-2__" in suggested


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
def test_a_failed_test_says_why_with_and_without_script(ana: User, sign_in: SignIn) -> None:
    server = make.server(url=f"http://127.0.0.1:{free_port()}/mcp")
    client = sign_in(ana)

    fragment = text(client.post(f"/servers/{server.slug}/test/", headers=HTMX))
    page = text(client.post(f"/servers/{server.slug}/test/", follow=True))

    assert (
        "The server refused the connection: nothing listens at the port; check the port, and that the server runs."
        in fragment
    )
    assert (
        page.count("The server refused the connection: nothing listens at the port;") == 2
    )  # in the toast, and in the stored result


@pytest.mark.full
def test_a_server_that_wants_a_credential_is_no_failure(run: Run, ana: User, sign_in: SignIn) -> None:
    server = make.server(url=run(upstreams.github()).url, auth_type=AuthType.BEARER)

    page = text(sign_in(ana).post(f"/servers/{server.slug}/test/", headers=HTMX))

    assert 'data-kind="warn"' in page
    assert "The server answered 401: it wants a credential." in page


@pytest.mark.full
def test_a_server_is_tested_before_it_is_added(run: Run, ana: User, sign_in: SignIn) -> None:
    response = sign_in(ana).post("/servers/add/", filled(url=run(upstreams.docs()).url, test="1"))

    assert response.status_code == 200
    assert "with 6 tools" in text(response)
    assert 'value="Docs"' in text(response)
    assert not Server.objects.exists()


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_a_name_that_somebody_else_takes_while_one_saves_is_said_and_keeps_what_was_typed(
    ana: User, sign_in: SignIn
) -> None:
    make.server(slug="docs", name="Handbook", url="http://127.0.0.1:9/mcp")
    client = sign_in(ana)

    with just_before(lambda: make.server(slug="other", name="DOCS")):
        refused = client.post("/servers/docs/edit/", filled(timeout_seconds=12))

    assert refused.status_code == 422
    assert "This name or slug has just been taken. Choose another." in text(refused)
    assert refused.context["form"]["timeout_seconds"].value() == "12"
    server = Server.objects.get(slug="docs")
    assert (server.name, server.timeout_seconds) == ("Handbook", 30)


def test_an_edited_server_is_tested_with_the_tester_s_identity_and_not_saved(
    run: Run, ana: User, sign_in: SignIn
) -> None:
    upstream = run(upstreams.github())
    server = make.server(slug="github", url=upstream.url, auth_type=AuthType.BEARER, timeout_seconds=7)
    make.identity(server, ana, secret="ana-secret")

    values = filled(name="GitHub", url=upstream.url, auth_type="bearer", test="1")
    page = text(sign_in(ana).post("/servers/github/edit/", values))

    assert "with 2 tools" in page
    assert upstream.seen[-1].headers["authorization"] == "Bearer ana-secret"
    server.refresh_from_db()
    assert server.timeout_seconds == 7


@pytest.mark.full
@pytest.mark.parametrize(
    ("was", "typed", "sent"),
    [
        ("http://127.0.0.1:{port}/old", "http://127.0.0.1:{port}/mcp", True),
        ("http://127.0.0.1:1/mcp", "http://127.0.0.1:{port}/mcp", False),
        ("http://localhost:{port}/mcp", "http://127.0.0.1:{port}/mcp", False),
        ("https://127.0.0.1:{port}/mcp", "http://127.0.0.1:{port}/mcp", False),
    ],
    ids=["path", "port", "host", "scheme"],
)
def test_a_stored_secret_is_not_sent_to_a_place_that_was_merely_typed(
    was: str, typed: str, sent: bool, run: Run, ana: User, sign_in: SignIn
) -> None:
    upstream = run(upstreams.github())
    server = make.server(slug="github", url=was.format(port=upstream.port), auth_type=AuthType.BEARER)
    make.identity(server, ana, secret="ana-secret")

    values = filled(name="GitHub", url=typed.format(port=upstream.port), auth_type="bearer", test="1")
    page = text(sign_in(ana).post("/servers/github/edit/", values))

    assert {seen.headers.get("authorization") for seen in upstream.seen} == {"Bearer ana-secret" if sent else None}
    assert ("Tested without the stored credential" in page) is not sent


# --- The switch ---------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize(
    ("gateways", "words"), [(0, "is on no gateway."), (1, "stops on 1 gateway"), (4, "on 4 gateways")]
)
def test_the_dialog_says_what_stops(gateways: int, words: str, ana: User, sign_in: SignIn) -> None:
    server = make.server(name="Jira")
    for _ in range(gateways):
        make.gateway(server)

    dialog = text(sign_in(ana).get(f"/servers/{server.slug}/disable/", headers=HTMX))

    assert "Disable this server? Jira" in dialog
    assert words in dialog
    assert "Nothing is deleted." in dialog
    server.refresh_from_db()
    assert server.enabled


@pytest.mark.full
def test_a_switch_answers_with_the_row_or_the_head_it_stands_in(ana: User, sign_in: SignIn) -> None:
    server = make.server()
    client = sign_in(ana)

    row = client.post(f"/servers/{server.slug}/disable/", headers=HTMX | {"HX-Target": f"server-{server.slug}"})
    head = client.post(f"/servers/{server.slug}/enable/", headers=HTMX | {"HX-Target": "server-head"})
    page = client.post(f"/servers/{server.slug}/disable/")

    assert text(row).lstrip().startswith(f'<tr id="server-{server.slug}" data-state="disabled" class="changed">')
    assert text(head).lstrip().startswith('<header class="page-header" id="server-head">')
    assert page["Location"] == f"/servers/{server.slug}/"
    assert Event.objects.filter(action="server.disabled", actor_id=ana.pk).count() == 2


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


def test_an_id_of_the_log_leads_to_the_page(ana: User, sign_in: SignIn) -> None:
    server = make.server(slug="docs")

    assert sign_in(ana).get(f"/servers/find/{server.pk}/")["Location"] == "/servers/docs/"


@pytest.mark.full
@pytest.mark.parametrize("url", ["http://localhost:8000/mcp/work", "http://127.0.0.1:8000/mcp/work"])
def test_a_server_cannot_be_this_gateway_itself(ana: User, sign_in: SignIn, url: str) -> None:
    response = sign_in(ana).post("/servers/add/", filled(url=url))

    assert response.status_code == 422
    assert "This is an address of this gateway itself, so its calls would loop." in text(response)
    assert not Server.objects.exists()
