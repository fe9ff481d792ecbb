"""*Add servers from a file*: published files of clients, secrets, hostile files."""

import time
from base64 import b64encode
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client

from accounts.models import User
from capabilities import Capability
from gateways.models import Gateway, ToolPolicy
from servers.bring_views import FileDraft
from servers.client_files import MOST_BYTES, ClientEntry, Unreadable, read_entries
from servers.models import Identity, Server
from tests import make, upstreams
from tests.conftest import Run, SignIn, person
from tests.connections.rows import text
from tests.rest import Rest, errors, problem
from tests.servers import published
from tests.undone import undone
from ui.sealing import MOST_OPENED, cipher, seal_value

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("loopback_is_allowed")]

PATH = "/servers/add/file/"


@pytest.fixture
def urls(run: Run) -> dict[str, str]:
    """URLs of running servers: without credential, with a bearer token, and with X-API-Key."""
    return {"open": run(upstreams.docs()).url, "key": run(upstreams.github()).url, "crm": run(upstreams.crm()).url}


def review(client: Client, file: str) -> Any:
    return client.post(PATH, {"text": file})


def form_of(page: Any, **changes: Any) -> dict[str, Any]:
    """Return the data a browser sends from the review, with all boxes as they are."""
    data: dict[str, Any] = {"sealed": page.context["sealed"], "add": "1", "who": "own", "pick": []}
    for offer, name, picked, uses, _ in page.context["rows"]:
        data |= {f"name-{offer.number}": name} | ({f"use-{offer.number}": "on"} if uses else {})
        data["pick"] += [str(offer.number)] if picked else []
    return data | changes


def everything_stored() -> str:
    """Return all rows of all tables as text, and all sessions decoded."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT relid::regclass::text FROM pg_stat_user_tables")
        tables = [name for (name,) in cursor.fetchall()]
        rows = []
        for table in tables:
            cursor.execute(f"SELECT t::text FROM {table} t")
            rows += [row for (row,) in cursor.fetchall()]
    sessions = [str(session.get_decoded()) for session in Session.objects.all()]
    return "\n".join(rows + sessions)


@pytest.mark.full
def test_a_published_file_becomes_what_the_page_says_and_its_secrets_are_nowhere(
    urls: dict[str, str], ana: User, sign_in: SignIn, caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
) -> None:
    for name in published.FILES:
        with subtests.test(name), undone():
            check_published_file(name, urls, ana, sign_in(ana), caplog)


def check_published_file(
    name: str, urls: dict[str, str], ana: User, client: Client, caplog: pytest.LogCaptureFixture
) -> None:

    page = review(client, published.filled(name, **urls))
    shown = page.content.decode()
    done = client.post(PATH, form_of(page, gateway="+", new_gateway="From the file", tools="read_only"))

    offers = {one.number: one.becomes for kind in ("program", "here", "unusable") for one in page.context[kind]}
    offers |= {row[0].number: "server" for row in page.context["rows"]}
    assert [offers[number] for number in sorted(offers)] == published.BECOMES[name]
    assert all(one.server for one in done.context["outcomes"]), text(done)
    gateway = Gateway.objects.get(name="From the file")
    assert gateway.assignments.count() == Server.objects.count() == published.BECOMES[name].count("server")
    assert {one.tool_policy for one in gateway.assignments.all()} == {ToolPolicy.SELECTED}
    for secret in published.SECRETS:
        assert secret not in shown + done.content.decode() + everything_stored() + caplog.text
    for identity in Identity.objects.all():
        assert cipher().open(bytes(identity.secret_ciphertext or b"")) in published.SECRETS
        assert (identity.owner, identity.last_error) == (ana, "")
    assert set(Identity.objects.values_list("server__name", flat=True)) == STORED[name]


STORED = {
    "claude-desktop": {"with-header"},
    "cursor": {"remote-server"},
    "vs-code": set(),
    "litellm": {"inventory"},
    "metamcp": {"Tracker"},
}


def test_programs_become_entries_for_the_runner_without_values_of_their_environment() -> None:
    file = """{"mcpServers": {
      "Git Hub": {"command": "npx", "args": ["-y", "@org/github@2025.4.8", "--api-key", "hunter2!", "--verbose"],
                  "env": {"GITHUB_TOKEN": "s3cret"}},
      "time": {"command": "cmd", "args": ["/c", "uvx", "--from", "mcp-time>=1", "mcp-server-time", "--tz=UTC"]},
      "mine": {"command": "node", "args": ["/Users/ana/build/index.js"]},
      "off": {"command": "npx", "args": ["a"], "disabled": true}, "odd": {"foo": 1}, "text": "npx"}}"""

    github, timer, *others = read_entries(file)

    assert github.block == (
        "  - name: git-hub\n    title: Git Hub\n    package: npm:@org/github@2025.4.8\n    command:\n      - github\n"
        "      - --api-key\n      - '[redacted]'\n      - --verbose\n    environment:\n"
        "      GITHUB_TOKEN: env:GITHUB_TOKEN\n"
    )
    assert "package: pypi:mcp-time==VERSION\n    command:\n      - mcp-server-time\n" in timer.block
    assert any("replace VERSION" in note for note in timer.notes)
    assert [one.name for one in others if one.why] == ["mine", "off", "odd", "text"]
    assert "hunter2" not in str(github)
    assert "s3cret" not in str(github)


REMOTE = (
    ('"url": "https://a.example/mcp", "headers": {"X-Toolsets": "repos"}', ("none", "", "")),
    ('"url": "https://a.example/mcp", "headers": {"authorization": "bearer abc"}', ("bearer", "", "abc")),
    (
        '"url": "https://a.example/mcp", "headers": {"Authorization": "Basic YTpi"}',
        ("header", "Authorization", "Basic YTpi"),
    ),
    ('"url": "https://a.example/mcp", "headers": {"X-API-Key": "<your key>"}', ("header", "X-API-Key", "")),
    ('"serverUrl": "https://a.example/mcp", "bearerToken": "pa$Word"', ("bearer", "", "pa$Word")),
    ('"command": "npx -y mcp-remote https://a.example/mcp"', ("none", "", "")),
    (
        '"command": "uvx", "args": ["mcp-proxy", "--transport", "streamablehttp", "https://a.example/mcp"], '
        '"env": {"API_ACCESS_TOKEN": "abc"}',
        ("bearer", "", "abc"),
    ),
    (
        '"command": "npx", "args": ["-y", "supergateway", "--streamableHttp", "https://a.example/mcp", '
        '"--oauth2Bearer", "abc"]',
        ("bearer", "", "abc"),
    ),
    ('"url": "${BASE:-https://a.example}/mcp"', ("none", "", "")),
    ('"url": "https://a.example/mcp", "auth_type": ["basic"], "auth_value": "YTpi"', ("none", "", "")),
)


def test_a_remote_server_is_read_with_its_credential(subtests: pytest.Subtests) -> None:
    for values, expected in REMOTE:
        with subtests.test(values):
            (entry,) = read_entries(f'{{"mcpServers": {{"one": {{{values}}}}}}}')
            assert (entry.url, entry.why) == ("https://a.example/mcp", "")
            assert (entry.auth_type, entry.header_name, entry.secret) == expected


def test_a_url_with_a_credential_or_a_variable_is_not_usable_and_not_repeated() -> None:
    for url in (
        "https://ana:hunter2@a.example/mcp",
        "https://a.example/mcp?api_key=hunter2",
        "https://a.example/sk-hunter2hunter2hunter2/mcp",
        "https://${HOST}/mcp",
        "https://[fd00::1/mcp",
    ):
        (entry,) = read_entries(f'{{"mcpServers": {{"one": {{"url": "{url}"}}}}}}')
        assert entry.why, url
        assert "hunter2" not in repr(entry)
    assert "hunter2" not in repr(ClientEntry("a", secret="hunter2"))


BAD = {
    "empty": ("", "neither JSON nor YAML"),
    "missing comma": ('{"mcpServers": {"a": {"url": "x"}\n  "b": 1}}', "Line 2, column 3: Write a comma"),
    "backslash": ('{"mcpServers": {"a": {"command": "C:\\dir"}}}', "Line 1, column 37: Write each backslash twice"),
    "twice": ('{"mcpServers": {"a": {},\n "a": {}}}', "Line 2, column 2: This name is in the object twice"),
    "comment": ("{/*" * 20_000, "double quotes"),
    "deep": ('{"mcpServers": ' + "[" * 100_000, "nested too deeply"),
    "list": ("[]", "The file is not an object"),
    "no servers": ('{"theme": "dark"}', "The file needs"),
    "half a character": ('{"mcpServers": {"\\ud800": {}}}', "half of a surrogate pair"),
    "large": ('{"mcpServers": {}}' + " " * MOST_BYTES, "larger than 256 KB"),
    "many": ('{"mcpServers": {' + ",".join(f'"{n}": {{}}' for n in range(201)) + "}}", "201 servers"),
    "yaml alias": ("mcp_servers:\n  a: &a {url: x}\n  b: *a\n", "Line 3, column 6: Aliases"),
    "yaml bomb": ("a: &a [x]\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(50)) + "servers: {}\n", "Aliases"),
    "yaml object": ("servers: !!python/object/apply:os.system [id]\n", "tag"),
    "yaml deep": ("servers: " + "[" * 5_000, "nested too deeply"),
}


def test_a_bad_file_gets_its_place_and_advice_soon(subtests: pytest.Subtests) -> None:
    for case, (file, expected) in BAD.items():
        with subtests.test(case):
            started = time.process_time()
            with pytest.raises(Unreadable) as refused:
                read_entries(file)
            assert expected in str(refused.value)
            assert time.process_time() - started < 30


def test_the_text_stays_in_the_field_and_a_draft_is_for_its_person(ana: User, max: User, sign_in: SignIn) -> None:
    client = sign_in(ana)

    refused = review(client, '{"mcpServers": {"a": <b>}}')
    sealed = FileDraft('{"mcpServers": {"a": {"url": "https://a.example/mcp"}}}', {}).sealed(max)

    assert refused.status_code == 422
    assert "&lt;b&gt;}}</textarea>" in refused.content.decode()
    assert "Line 1, column 22" in text(refused)
    other = seal_value("another kind", [str(ana.pk), "", {}])
    foreign = cipher().seal(b64encode(b"no compressed text").decode()).decode()
    bomb = FileDraft("x" * (MOST_OPENED + 1), {}).sealed(ana)
    for bad in (sealed, other, foreign, bomb, "x", "", "\0"):
        assert "Paste it again" in text(client.post(PATH, {"sealed": bad, "add": "1"}))
    own = FileDraft("kept", {}).sealed(ana)
    assert ">kept</textarea>" in client.post(PATH, {"sealed": own, "back": "1"}).content.decode()


@pytest.mark.full
def test_what_is_here_is_linked_a_taken_name_gets_another_and_private_addresses_are_refused(
    ana: User, sign_in: SignIn, settings: Any
) -> None:
    settings.PRIVATE_UPSTREAMS = []
    here = make.server(name="Here", url="https://93.184.216.34/mcp")
    file = """{"mcpServers": {
      "other name": {"url": "HTTPS://93.184.216.34:443/mcp/"}, "here": {"url": "https://93.184.216.34/two"},
      "twice": {"url": "https://93.184.216.34/two"}, "inside": {"url": "https://10.0.0.5/mcp"},
      "plain": {"url": "http://a.example/mcp"}, "odd": {"url": "gopher://x"}}}"""

    page = review(sign_in(ana), file)

    assert [(one.entry.name, one.here) for one in page.context["here"]] == [("other name", here)]
    ((offer, name, *_),) = page.context["rows"]
    assert (offer.entry.name, offer.namesake, name) == ("here", here, "here 2")
    assert {one.entry.name: one.why.partition(".")[0] for one in page.context["unusable"]} == {
        "twice": "The file has another entry with this URL",
        "inside": "The address 10",
        "plain": "The URL must start with https://",
        "odd": "The URL must start with https://",
    }
    assert "GATEWAY_PRIVATE_UPSTREAMS" in text(page)


def test_one_that_fails_does_not_lose_the_others_and_what_was_entered_stays(
    urls: dict[str, str], run: Run, ana: User, sign_in: SignIn
) -> None:
    client, html, old = sign_in(ana), run(upstreams.garbage()).url, run(upstreams.http_sse()).url
    file = f"""{{"mcpServers": {{"a": {{"url": "{html}"}}, "b": {{"url": "{old}"}}, "c": {{"url": "{urls["open"]}"}},
      "d": {{"url": "{urls["key"]}", "headers": {{"Authorization": "Bearer ${{T}}"}}}},
      "e": {{"url": "{urls["crm"]}", "headers": {{"X-Other-Key": "wrong"}}}}, "": {{"url": "http://127.0.0.1:1/mcp"}},
      "日本": {{"url": "http://127.0.0.1:2/mcp"}}}}}}"""
    page = review(client, file)

    again = client.post(PATH, form_of(page, **{"secret-3": "typed-in-0nce", "gateway": "+", "new_gateway": "  "}))
    assert again.status_code == 422
    assert "typed-in" not in again.content.decode()
    long = client.post(PATH, form_of(again, **{"secret-3": "x" * 4_001, "gateway": "+", "new_gateway": "Tools"}))
    assert (long.status_code, "at most 4,000 characters" in text(long)) == (422, True)
    done = client.post(PATH, form_of(again, gateway="+", new_gateway="Tools", **{"name-2": "Handbook"}))

    said = {one.name: (one.kind, one.text) for one in done.context["outcomes"]}
    assert [kind for kind, _ in said.values()] == ["bad", "bad", "good", "good", "warn", "warn", "warn"]
    assert said["Handbook"][1] == "Added, with 6 tools."
    assert "Added without the credential" in said["e"][1]
    assert cipher().open(bytes(Identity.objects.get().secret_ciphertext or b"")) == "typed-in-0nce"
    assert {one.server.name for one in Gateway.objects.get(name="Tools").assignments.all()} == {*said} - {"a", "b"}
    assert {server.slug for server in Server.objects.all()} >= {"handbook", "d", "e"}
    more = client.post(PATH, {"sealed": done.context["sealed"]})
    assert [row[0].entry.name for row in more.context["rows"]] == ["a", "b"]


@pytest.mark.full
def test_without_permission_for_gateways_no_gateway_is_offered_or_made(urls: dict[str, str], sign_in: SignIn) -> None:
    client = sign_in(person("una", "Adder", Capability.SERVERS_READ, Capability.SERVERS_MANAGE))
    page = review(client, f'{{"mcpServers": {{"a": {{"url": "{urls["open"]}"}}}}}}')

    client.post(PATH, form_of(page, gateway="+", new_gateway="Mine"))

    assert "gateway" not in page.context["form"].fields
    assert Server.objects.get().assignments.count() == 0
    assert not Gateway.objects.filter(name="Mine").exists()
    assert sign_in(person("vera", "Seer", Capability.SERVERS_READ)).get(PATH).status_code == 403


def test_rest_says_what_entries_become_and_makes_the_named_ones(urls: dict[str, str], ana: User) -> None:
    rest, file = Rest.of(ana), published.filled("cursor", **urls)

    dry = rest.post("/servers/bring", {"text": file})
    made = rest.post(
        "/servers/bring", {"text": file, "make": ["remote-server"], "use_credentials": True, "new_gateway": "By REST"}
    )

    assert dry.status_code == made.status_code == 200
    assert [one["becomes"] for one in dry.json()["entries"]] == published.BECOMES["cursor"]
    assert [one["has_credential"] for one in dry.json()["entries"]] == [False, True, False]
    assert all(secret not in dry.text + made.text for secret in published.SECRETS)
    assert {one["name"]: (one["server"] or {}).get("slug") for one in made.json()["entries"]} == {
        "server-name": None,
        "remote-server": "remote-server",
        "from-environment": None,
    }
    assert Gateway.objects.get(name="By REST").assignments.get().server.slug == "remote-server"
    assert Identity.objects.get().owner == ana
    assert "text" in errors(rest.post("/servers/bring", {"text": "{"}))
    assert "make" in errors(rest.post("/servers/bring", {"text": file, "make": ["nobody"]}))
    seer = Rest.of(person("vera", "Seer", Capability.SERVERS_READ))
    assert problem(seer.post("/servers/bring", {"text": file}))[0] == 403
