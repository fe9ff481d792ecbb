"""*Add a server* tests a server, then adds it to gateways with its credential; the page keeps all input."""

import json
from pathlib import Path
from typing import Any

import pytest
from mcp.server import MCPServer
from pytest_django import Settings

from accounts.models import Team, User
from auditlog.models import Event
from capabilities import Capability
from gateways.models import Assignment, Gateway
from servers import well_known
from servers.models import BUILT_IN_URL, Identity, Server
from tests import issuers, make, upstreams
from tests.asgi_server import App, answer, live
from tests.conftest import Run, SignIn
from tests.connections.rows import HTMX, text
from tests.meanwhile import just_before
from tests.workspace import free_port

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("loopback_is_allowed")]

PATH = "/servers/add/"


@pytest.fixture
def work() -> Gateway:
    return make.gateway(name="Work")


def filled(url: str, **values: Any) -> dict[str, Any]:
    return {"name": "Docs", "url": url, "auth_type": "none", "timeout_seconds": 30} | values


def posted_tiles(settings: Settings, path: Path, *tiles: dict[str, Any]) -> None:
    path.write_text(json.dumps(tiles))
    settings.WELL_KNOWN_SERVERS = path


@pytest.mark.full
def test_an_open_server_says_what_it_is_and_nothing_is_stored(run: Run, ana: User, sign_in: SignIn) -> None:
    url = run(upstreams.docs()).url

    page = text(sign_in(ana).post(PATH, {"check": "1", "url": url}, headers=HTMX))

    assert "It answers without a credential." in page
    assert "with 6 tools. It speaks MCP" in page
    assert 'value="docs"' in page  # The name that the server reports.
    assert "Find pages of the handbook." in page
    first_button = page.split('id="add-form"')[1].split('type="submit"')[1].split("</button>")[0]
    assert "Add a server" in first_button  # Enter presses it.
    assert not Server.objects.exists()


@pytest.mark.full
def test_one_that_wants_a_key_and_one_where_people_sign_in_are_told_apart(run: Run, ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    key, oauth = run(upstreams.github()), run(issuers.Issuer().app())

    wants_key = client.post(PATH, {"check": "1", "url": key.url})
    signs_in = client.post(PATH, {"check": "1", "url": oauth.url})

    assert "The server answered 401: it wants a credential. Choose its auth type." in text(wants_key)
    assert wants_key.context["form"]["auth_type"].value() == "bearer"
    assert signs_in.context["form"]["auth_type"].value() == "oauth"
    assert "People sign in at" in text(signs_in)
    assert "Automatic: nothing to fill in" in text(signs_in)
    assert "/upstream-oauth/callback/" in text(signs_in)


def test_an_address_the_guard_refuses_is_not_asked_and_nothing_typed_is_lost(
    ana: User, work: Gateway, sign_in: SignIn, settings: Settings
) -> None:
    settings.PRIVATE_UPSTREAMS = []
    client = sign_in(ana)

    for url in ("http://169.254.169.254/", "https://10.0.0.5/mcp", "npx some-server"):
        refused = client.post(PATH, {"check": "1", "url": url}, headers=HTMX)
        assert refused.status_code == 422
        assert f'value="{url}"' in text(refused)
        assert 'id="url-error"' in text(refused)
    typed = filled("ftp://docs.example.com/", name="Handbook", timeout_seconds=12, gateways=[work.slug], tools="none")
    refused = client.post(PATH, typed | {"test": "1"}, headers=HTMX)
    assert refused.status_code == 422
    assert "The URL must start with https://." in text(refused)
    form = refused.context["form"]
    kept = {name: form[name].value() for name in ("name", "url", "gateways", "tools")}
    assert kept == {name: typed[name] for name in kept}
    link = text(client.get(PATH, {"url": "https://notes.example.com/mcp"}))
    assert 'value="https://notes.example.com/mcp"' in link
    assert "add-form" not in link, "a link asks nobody"


@pytest.mark.full
def test_each_tool_is_listed_with_what_it_says_it_does(run: Run, ana: User, sign_in: SignIn) -> None:
    hints = {
        "look": {"readOnlyHint": True, "destructiveHint": True},
        "remove": {"readOnlyHint": False, "destructiveHint": True},
        "change": {"readOnlyHint": False, "destructiveHint": False},
        "unsure": {"title": "Unsure"},
        "silent": None,
    }
    server = MCPServer("notes", version="1.0", log_level="WARNING")
    for name, said in hints.items():
        server.add_tool(upstreams.echo, name=name, annotations=said)  # type: ignore[arg-type]

    page = text(sign_in(ana).post(PATH, {"check": "1", "url": run(server.streamable_http_app()).url}))

    rows = {name: page.split(f"<code>{name}</code>")[1].split("</li>")[0] for name in hints}
    assert {name: row.rpartition("<small>")[2].partition("<")[0] for name, row in rows.items()} == {
        "look": "Read only",
        "remove": "Destructive",
        "change": "Writes",
        "unsure": "",
        "silent": "",
    }


@pytest.mark.full
def test_asking_again_with_a_credential_lists_the_tools_and_keeps_what_was_typed(
    run: Run, ana: User, work: Gateway, sign_in: SignIn
) -> None:
    values = filled(run(upstreams.github()).url, name="Code", auth_type="bearer", secret="ghp_mine", who="shared")

    page = sign_in(ana).post(PATH, values | {"test": "1", "gateways": [work.slug], "tools": "read_only"})

    assert "It accepts this credential." in text(page)
    assert "create_issue" in text(page)
    assert "ghp_mine" not in text(page)
    form = page.context["form"]
    kept = {name: form[name].value() for name in ("name", "auth_type", "gateways", "who", "tools")}
    expected = {"name": "Code", "auth_type": "bearer", "gateways": [work.slug], "who": "shared", "tools": "read_only"}
    assert kept == expected

    wrong = sign_in(ana).post(PATH, values | {"test": "1", "secret": "Bearer ghp_mine"})
    assert "Leave out the word Bearer" in text(wrong)
    assert "asked" not in wrong.context, "nothing is tested without the credential"


def test_a_server_takes_its_own_name_with_its_first_answer_unless_somebody_typed_one(
    run: Run, ana: User, sign_in: SignIn
) -> None:
    """The server was added without its required credential, so the gateway did not know the server's name yet."""
    client = sign_in(ana)
    for typed, names in (("", ("Server", "github")), ("Ours", ("Ours", "Ours"))):
        url = run(upstreams.github()).url
        checked = client.post(PATH, {"check": "1", "url": url}).context
        name = typed or checked["form"]["name"].value()
        client.post(PATH, filled(url, name=name, auth_type="bearer", suggested=checked["suggested"]))
        before = Server.objects.get(url=url)
        Identity.objects.bring(server=before, owner=ana, label="mine", secret="ghp_mine", by=ana)

        for _ in range(2):
            client.post(f"/servers/{before.slug}/test/")

        after = Server.objects.get(url=url)
        assert (before.name, after.name) == names
        assert after.slug == before.slug
    assert Event.objects.filter(action="server.updated").count() == 1


@pytest.mark.full
def test_a_bare_address_leads_to_the_usual_path_where_the_server_is(run: Run, ana: User, sign_in: SignIn) -> None:
    for path in ("/mcp", "/sse"):
        inside = MCPServer("notes").streamable_http_app(streamable_http_path=path)
        bare = run(inside).url.removesuffix("/mcp")

        page = sign_in(ana).post(PATH, {"check": "1", "url": bare})

        assert page.context["asked"].found
        assert page.context["form"]["url"].value() == f"{bare}{path}"
        assert f"There is no server at <code>{bare}</code>," in text(page)


@pytest.mark.full
def test_the_first_real_server_gets_a_gateway_of_its_own_beside_the_demo(run: Run, ana: User, sign_in: SignIn) -> None:
    demo = make.gateway(make.server(url=BUILT_IN_URL, name="Quickstart"), name="Quickstart")
    client, url = sign_in(ana), run(upstreams.docs()).url

    page = client.post(PATH, {"check": "1", "url": url})
    client.post(PATH, filled(url, own_gateway="on"))

    assert page.context["form"]["own_gateway"].value() is True
    assert page.context["form"].chosen_gateways == []
    assert {one.gateway.name for one in Server.objects.get(name="Docs").assignments.all()} == {"Docs"}
    assert not demo.assignments.filter(server__name="Docs").exists()
    again = client.post(PATH, {"check": "1", "url": url})
    assert again.context["form"]["own_gateway"].value() is False
    assert again.context["form"].chosen_gateways == ["docs"]


@pytest.mark.full
def test_a_servers_own_gateway_is_open_to_the_teams_of_who_adds_it_and_the_page_says_so(
    run: Run, ana: User, ann: User, ben: User, sign_in: SignIn
) -> None:
    client, url = sign_in(ana), run(upstreams.docs()).url
    alone = text(client.post(PATH, {"check": "1", "url": url}))
    Team.objects.add(name="Platform", users=[ana, ann], by=ana)

    page = text(client.post(PATH, {"check": "1", "url": url}))
    client.post(PATH, filled(url, own_gateway="on"))

    own = Gateway.objects.get(name="Docs")
    assert "open to everyone, because you are in no team" in alone
    assert "open to your teams (Platform)" in page
    assert [own.is_reachable_by(person) for person in (ann, ben)] == [True, False]


@pytest.mark.full
def test_a_server_goes_behind_gateways_with_ones_own_identity_and_its_tools_at_once(
    run: Run, ana: User, ann: User, work: Gateway, sign_in: SignIn
) -> None:
    mine, hers = (make.connection(make.agent(by=ana), work, who) for who in (ana, ann))
    values = filled(run(upstreams.github()).url, name="Code", auth_type="bearer", secret="ghp_mine", who="own")

    done = sign_in(ana).post(PATH, values | {"gateways": [work.slug], "tools": "all"})

    assert done["Location"] == "/servers/code/"
    assignment = Assignment.objects.get()
    assert (assignment.alias, assignment.identity_scheme, assignment.tool_policy) == ("code", "per_user", "allow_all")
    assert sorted(assignment.features.values_list("exposed_name", flat=True)) == ["code__create_issue", "code__whoami"]
    assert mine.identities.get().identity.owner == ana
    assert not hers.identities.exists()


def test_a_shared_identity_is_stored_and_allowed_on_the_chosen_gateways(
    run: Run, ana: User, work: Gateway, sign_in: SignIn
) -> None:
    values = filled(run(upstreams.crm()).url, auth_type="header", header_name="X-Api-Key", secret="key", who="shared")

    sign_in(ana).post(PATH, values | {"gateways": [work.slug]})

    identity = Identity.objects.get()
    assert identity.is_shared
    assert list(identity.gateways.all()) == [work]
    assert Assignment.objects.get().shared_identity == identity


@pytest.mark.full
def test_placing_a_server_takes_the_capability_for_gateways_a_free_alias_and_for_sharing_one_for_identities(
    work: Gateway, sign_in: SignIn, ana: User
) -> None:
    on_work = filled("http://127.0.0.1:9/mcp", gateways=[work.slug])
    shared = on_work | {"auth_type": "bearer", "who": "shared"}
    keeper, builder = (
        sign_in(make.user(Capability.SERVERS_MANAGE, *more)) for more in ((), (Capability.GATEWAYS_MANAGE,))
    )
    make.assignment(work, make.server(), alias="docs")

    without_gateways = keeper.post(PATH, on_work)
    without_secret = sign_in(ana).post(PATH, shared)
    without_identities = builder.post(PATH, shared | {"secret": "key"})
    taken = sign_in(ana).post(PATH, on_work)

    assert 'name="gateways"' not in text(keeper.post(PATH, {"check": "1", "url": on_work["url"]}))
    assert "Paste the credential shared by everybody on these gateways." in text(without_secret)
    assert "Only a person with Identity management can choose the gateways of a shared credential" in text(
        without_identities
    )
    assert "Another server on Work has the alias “docs”." in text(taken)
    for refused in (without_gateways, without_secret, without_identities, taken):
        assert refused.status_code == 422
    assert Server.objects.count() == Assignment.objects.count() == 1


@pytest.mark.full
def test_a_server_where_everybody_shares_a_sign_in_is_added_before_it_goes_behind_gateways(
    run: Run, ana: User, work: Gateway, sign_in: SignIn
) -> None:
    values = filled(run(issuers.Issuer().app()).url, auth_type="oauth", who="shared")
    client = sign_in(ana)

    refused = client.post(PATH, values | {"gateways": [work.slug]})
    added = client.post(PATH, values)

    told = (
        "Add the server without a gateway. Open the page of the server, and sign in as the shared account. "
        "Then assign the server."
    )
    assert (refused.status_code, told in text(refused)) == (422, True)
    assert (added.status_code, Server.objects.get().name) == (302, "Docs")
    assert not Assignment.objects.exists()


@pytest.mark.full
def test_only_the_tools_that_were_chosen_are_on(run: Run, ana: User, work: Gateway, sign_in: SignIn) -> None:
    server = MCPServer("notes", version="1.0", log_level="WARNING")
    server.add_tool(upstreams.echo, annotations={"readOnlyHint": True})  # type: ignore[arg-type]
    server.add_tool(upstreams.add)
    url = run(server.streamable_http_app()).url

    for tools, on in (("all", 2), ("read_only", 1), ("none", 0)):
        sign_in(ana).post(PATH, filled(url, name=tools, gateways=[work.slug], tools=tools))
        assert Assignment.objects.get(server__name=tools).features.tools().callable().count() == on
    values = filled(run(upstreams.github()).url, auth_type="bearer", gateways=[work.slug], tools="read_only")
    assert "enable them by hand" in text(sign_in(ana).post(PATH, values, follow=True))


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_a_slug_that_somebody_else_takes_meanwhile_is_said_and_nothing_is_stored(
    ana: User, work: Gateway, sign_in: SignIn
) -> None:
    values = filled("http://127.0.0.1:9/mcp", slug="docs", auth_type="bearer", secret="key", who="own")
    client = sign_in(ana)

    with just_before(lambda: make.server(slug="docs", name="Other")):
        refused = client.post(PATH, values | {"gateways": [work.slug]})

    assert (refused.status_code, Server.objects.get().name) == (422, "Other")
    assert "This name or slug has just been taken. Choose another." in text(refused)
    assert not Identity.objects.exists()
    assert not Assignment.objects.exists()


@pytest.mark.full
def test_a_tile_fills_in_what_is_known_and_when_it_was_looked_up(
    run: Run, ana: User, sign_in: SignIn, settings: Settings, tmp_path: Path
) -> None:
    url = run(upstreams.crm()).url
    crm = {
        "key": "crm",
        "name": "Customers",
        "about": "Who buys",
        "url": url,
        "auth": ["header"],
        "header": "X-Api-Key",
    }
    posted_tiles(settings, tmp_path / "tiles.json", crm | {"note": "A key of your own.", "seen": "2026-11-20"})
    client = sign_in(ana)

    choice = text(client.get(PATH))
    picked = client.post(PATH, {"tile": "crm"})

    assert "Customers" in choice
    assert "GitHub" not in choice
    form = picked.context["form"]
    told = [form[name].value() for name in ("name", "url", "auth_type", "header_name")]
    assert told == ["Customers", url, "header", "X-Api-Key"]
    assert "A key of your own. <small>Looked up 2026-11-20.</small>" in text(picked)


def test_the_tiles_that_come_along_are_facts_with_a_date_and_an_address(ana: User, sign_in: SignIn) -> None:
    tiles = well_known.tiles()
    searched = sign_in(ana).get(PATH, {"q": "pull requests"}).context["tiles"]

    assert [tile.name for tile in searched] == ["GitHub"]

    assert len({tile.key for tile in tiles}) == len(tiles) >= 20
    assert all((tile.url.startswith("https://") or tile.program) and tile.seen and tile.about for tile in tiles)
    assert {tile.kind for tile in tiles} == set(well_known.KINDS)
    assert {kind for tile in tiles for kind in tile.auth} <= {"none", "bearer", "header", "oauth"}


@pytest.mark.full
def test_a_file_of_tiles_that_cannot_be_used_says_why_and_leaves_the_address_field(
    ana: User, sign_in: SignIn, settings: Settings, tmp_path: Path
) -> None:
    path = settings.WELL_KNOWN_SERVERS = tmp_path / "tiles.json"
    missing = text(sign_in(ana).get(PATH))
    path.write_text('[{"nonsense": 1}]')
    nonsense = text(sign_in(ana).get(PATH))

    assert f"{path} cannot be read: No such file or directory" in missing
    assert f"{path} is not a valid file of well-known servers" in nonsense
    for page in (missing, nonsense):
        assert 'name="url"' in page
    assert "is not a valid file" in text(sign_in(ana).post(PATH, {"tile": "github"}))
    assert "url_error" in sign_in(ana).post(PATH, {"check": "1", "url": "https://"}).context


# --- A registry


def registry(*entries: Any, status: int = 200) -> App:
    """Return a registry that lists these servers through the official registry's API."""
    asked: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
            return
        asked.append(scope["path"].encode() + b"?" + scope["query_string"])
        body = json.dumps({"servers": entries, "metadata": {"count": len(entries)}}).encode()
        await answer(send, status, body, headers=[(b"content-type", b"application/json")])

    app.asked = asked  # type: ignore[attr-defined]
    return app


def listed(name: str, *remotes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"server": {"name": f"com.example/{name}", "description": "About it", "remotes": remotes}, **fields}


HTTP = {"type": "streamable-http", "url": "https://notes.example.com/mcp"}


def test_a_registry_is_searched_where_one_is_set_and_nowhere_else(
    run: Run, ana: User, sign_in: SignIn, settings: Settings
) -> None:
    official = "io.modelcontextprotocol.registry/official"
    app = registry(
        listed("notes", {"type": "sse", "url": "https://old.example.com"}, HTTP),
        listed("local-only"),
        listed("gone", HTTP, _meta={official: {"status": "deleted"}}),
        "nonsense",
    )
    client, base = sign_in(ana), run(app).url.rpartition("/")[0]

    without = client.get(PATH, {"q": "notes"})
    settings.SERVER_REGISTRY = base
    page = client.get(PATH, {"q": "notes"})
    quiet = client.get(PATH)

    assert not without.context.get("registered")
    assert [(tile.name, tile.url) for tile in page.context["registered"]] == [("notes", HTTP["url"])]
    assert "The registry does not verify who owns an address." in text(page)
    assert "?url=https%3A%2F%2Fnotes.example.com%2Fmcp" in text(page)
    assert "registered" not in quiet.context
    assert app.asked == [b"/v0.1/servers?search=notes&version=latest&limit=24"]  # type: ignore[attr-defined]


@pytest.mark.full
def test_a_registry_that_fails_is_said_and_stops_nothing(
    run: Run, ana: User, sign_in: SignIn, settings: Settings
) -> None:
    client = sign_in(ana)
    down = run(registry(status=503)).url.rpartition("/")[0]
    for address, words in {
        f"http://127.0.0.1:{free_port()}": "cannot be reached",
        down: "answered 503",
        run(upstreams.garbage()).url.rpartition("/")[0]: "not with a list of servers",
        "http://169.254.169.254": "may not be called",
    }.items():
        settings.SERVER_REGISTRY = address
        page = text(client.get(PATH, {"q": "git"}))
        assert words in page
        assert "GitHub" in page


@pytest.mark.full
def test_a_server_that_fails_is_shown_with_three_causes_of_which_an_address_is_tried(
    run: Run, ana: User, sign_in: SignIn
) -> None:
    inside = MCPServer("notes").streamable_http_app(streamable_http_path="/mcp")
    url = run(inside).url
    client = sign_in(ana)

    failed = client.post(PATH, {"check": "1", "url": f"{url}/wrong"})
    causes = failed.context["asked"].causes
    tried = client.post(PATH, {"name": "Notes", "url": f"{url}/wrong", "try": url})

    assert len(causes) == 3
    assert {"text": "The MCP endpoint is at another path.", "try": url} in causes
    assert f'name="try" value="{url}"' in text(failed)
    assert tried.context["asked"].found
    assert tried.context["form"]["url"].value() == url
