"""The MCP registry API of the directory: lists for clients that are not signed in, and for a person."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.conf import settings
from django.test import Client
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from accounts.models import Team, User
from capabilities import Capability
from directory import registry
from directory.models import DirectoryAddress
from gatewayadmin.serving.log_format import JsonFormatter
from gateways.models import Gateway, GatewayGrant, Reach
from oauth.limits import A_MINUTE
from tests import make
from tests.directory.schemas import check_list, check_server
from tests.directory.vs_code import AGENT, VsCode
from tests.rest import Rest, errors, problem

pytestmark = pytest.mark.django_db


@pytest.fixture
def boss() -> User:
    return make.user(*Capability)


@pytest.fixture
def sales(boss: User) -> Team:
    return Team.objects.add(name="Sales", users=[], by=boss)


@pytest.fixture
def open_to_all(boss: User) -> Gateway:
    return make.gateway(name="Docs for all", slug="docs-for-all", description="Search\n the docs.  ", by=boss)


@pytest.fixture
def open_to_sales(boss: User, sales: Team) -> Gateway:
    return make.gateway(name="CRM", slug="crm", reach=Reach.TEAMS, teams=[sales], by=boss)


@pytest.fixture
def everyone(boss: User) -> DirectoryAddress:
    return DirectoryAddress.objects.add(team=None, by=boss)


@pytest.fixture
def for_sales(boss: User, sales: Team) -> DirectoryAddress:
    return DirectoryAddress.objects.add(team=sales, by=boss)


def get(address: DirectoryAddress, path: str = "/v0.1/servers", **query: Any) -> Any:
    return Client().get(f"/directory/{address.token}{path}", query)


def slugs(answer: Any) -> list[str]:
    """Return the slugs in a list; fails if the answer does not match the schema."""
    assert answer.status_code == 200, answer.content
    check_list(answer.json())
    return [one["server"]["name"].partition("/")[2] for one in answer.json()["servers"]]


@pytest.mark.full
def test_an_address_lists_what_everybody_of_its_team_may_use(
    everyone: DirectoryAddress, for_sales: DirectoryAddress, open_to_all: Gateway, open_to_sales: Gateway, boss: User
) -> None:
    make.gateway(name="Of others", slug="of-others", reach=Reach.TEAMS, by=boss)

    assert slugs(get(everyone)) == ["docs-for-all"]
    assert slugs(get(for_sales)) == ["crm", "docs-for-all"]


def test_a_gateway_is_a_remote_server(everyone: DirectoryAddress, open_to_all: Gateway) -> None:
    name = registry.name_of(open_to_all)

    latest, numbered = (get(everyone, f"/v0.1/servers/{name}/versions/{one}").json() for one in ("latest", "1.0.0"))
    quoted = get(everyone, f"/v0.1/servers/{name.replace('/', '%2F')}/versions/latest").json()

    check_server(latest)
    assert latest == numbered == quoted == get(everyone).json()["servers"][0]
    server = latest["server"]
    assert (server["title"], server["description"]) == ("Docs for all", "Search the docs.")
    assert server["remotes"] == [{"type": "streamable-http", "url": f"{settings.PUBLIC_URL}/mcp/docs-for-all"}]
    assert slugs(get(everyone, f"/v0.1/servers/{name}/versions")) == ["docs-for-all"]
    for unknown in (f"{name}/versions/2.0.0", f"{name}x/versions/latest", "com.example/docs-for-all/versions"):
        assert get(everyone, f"/v0.1/servers/{unknown}").status_code == 404


def test_names_begin_with_the_reversed_host_and_texts_of_any_length_fit_the_schema(
    settings: Any, everyone: DirectoryAddress, open_to_all: Gateway, boss: User
) -> None:
    make.gateway(name="N" * 80, slug="long", description="word " * 200, by=boss)
    make.gateway(name="N", slug="s", description=" \n ", by=boss)
    for url, space in (
        ("https://gateway.example.com", "com.example.gateway"),
        ("http://localhost:8000", "localhost"),
        ("http://127.0.0.1:8000", "127.0.0.1"),
        ("http://[::1]:8000", "--1"),
    ):
        settings.PUBLIC_URL = url
        assert registry.name_of(open_to_all) == f"{space}/docs-for-all"
        assert slugs(get(everyone)) == ["docs-for-all", "long", "s"]


@pytest.mark.full
def test_what_is_no_longer_open_is_gone_on_the_next_request(
    for_sales: DirectoryAddress, open_to_all: Gateway, open_to_sales: Gateway, boss: User
) -> None:
    open_to_all.disable(by=boss)
    assert slugs(get(for_sales)) == ["crm"]
    open_to_sales.edit(teams=[], by=boss)
    assert slugs(get(for_sales)) == []
    assert get(for_sales, f"/v0.1/servers/{registry.name_of(open_to_sales)}/versions/latest").status_code == 404
    open_to_all.enable(by=boss)
    assert slugs(get(for_sales)) == ["docs-for-all"]


@pytest.mark.full
def test_a_disabled_regenerated_or_unknown_address_answers_404(
    for_sales: DirectoryAddress, open_to_all: Gateway, sales: Team, boss: User
) -> None:
    old = DirectoryAddress.objects.get()

    for_sales.disable(by=boss)
    assert get(for_sales).status_code == 404
    for_sales.enable(by=boss)
    assert slugs(get(for_sales)) == ["docs-for-all"]
    for_sales.regenerate(by=boss)
    assert (get(old).status_code, slugs(get(for_sales))) == (404, ["docs-for-all"])
    sales.remove(by=boss)
    assert (get(for_sales).status_code, get(for_sales).json()) == (
        404,
        {"error": "There is no directory at this address"},
    )


def test_a_person_lists_what_they_may_use(
    open_to_all: Gateway, open_to_sales: Gateway, sales: Team, boss: User, max: User
) -> None:
    of_max, path = Rest.of(max), "/me/directory/v0.1/servers"
    assert slugs(of_max.get(path)) == ["docs-for-all"]
    grant = GatewayGrant.objects.give(open_to_sales, max, by=boss)
    assert slugs(of_max.get(path)) == ["crm", "docs-for-all"]
    name = registry.name_of(open_to_sales)
    check_server(of_max.get(f"{path}/{name}/versions/latest").json())
    assert slugs(of_max.get(f"{path}/{name}/versions")) == ["crm"]

    grant.end(by=boss)

    assert slugs(of_max.get(path)) == ["docs-for-all"]
    assert problem(of_max.get(f"{path}/{name}/versions/latest")) == (404, "not_found")
    assert errors(of_max.get(path, limit="x")) == {"limit": ["Must be a whole number of at least 1."]}
    assert problem(Rest().get(path)) == (401, "not_authenticated")
    reading, other = (make.api_key(boss, one).secret for one in (Capability.GATEWAYS_READ, Capability.LOGS_READ))
    assert slugs(Rest.bearing(reading).get(path)) == ["docs-for-all"]
    assert problem(Rest.bearing(other).get(path)) == (403, "capability_required")


@pytest.mark.full
def test_vs_code_lists_pages_searches_and_finds_installed_servers(everyone: DirectoryAddress, boss: User) -> None:
    for number in range(120):
        make.gateway(name=f"Team tools {number}", slug=f"t{number:03}", description="Tools", by=boss)
    make.gateway(name="Finance & Co", slug="finance", description="Invoices", by=boss)
    code = VsCode(f"{everyone.url}/")

    assert code.version == "v0.1"
    assert [len(page) for page in code.pages()] == [50, 50, 21]
    assert [len(page) for page in code.pages("team TOOLS")] == [50, 50, 20]
    assert [one.title for page in code.pages("nance & c") for one in page] == ["Finance & Co"]
    assert [len(page) for page in code.pages("nothing")] == [0]
    (found,) = code.pages(f"{registry.namespace()}/finance")[0]
    assert code.latest(found.name) == found
    assert found.url == f"{settings.PUBLIC_URL}/mcp/finance"
    Gateway.objects.get(slug="finance").disable(by=boss)
    assert code.latest(found.name) is None
    assert DirectoryAddress.objects.get().read_by == AGENT
    everyone.disable(by=boss)
    assert VsCode(everyone.url).version == "v0.1", "it keeps its version without a directory"


def test_limit_version_and_time_narrow_the_list(everyone: DirectoryAddress, open_to_all: Gateway, boss: User) -> None:
    later = timezone.now() + timedelta(minutes=5)
    with time_machine.travel(later, tick=False):
        make.gateway(name="Newer", slug="newer", by=boss)

    assert slugs(get(everyone, limit=1)) == ["docs-for-all"]
    assert slugs(get(everyone, limit=100_000)) == ["docs-for-all", "newer"]
    assert slugs(get(everyone, version="2.0.0")) == []
    assert slugs(get(everyone, version="latest", include_deleted="true")) == ["docs-for-all", "newer"]
    assert slugs(get(everyone, updated_since=(later - timedelta(minutes=1)).isoformat())) == ["newer"]
    with time_machine.travel(later + timedelta(minutes=1), tick=False):
        open_to_all.disable(by=boss)
        open_to_all.enable(by=boss)
    assert slugs(get(everyone, updated_since=(later + timedelta(seconds=1)).isoformat())) == ["docs-for-all"]
    for name, value in (("limit", "0"), ("limit", "٣"), ("updated_since", "yesterday"), ("cursor", "!")):
        answer = get(everyone, **{name: value})
        assert (answer.status_code, answer.json()["error"].startswith(name)) == (400, True)


@given(cursor=st.text())
def test_no_cursor_fails_the_server(cursor: str) -> None:
    with contextlib.suppress(registry.BadQuery):
        registry._position(cursor)


def test_any_site_may_read_it_and_nothing_else(everyone: DirectoryAddress, open_to_all: Gateway) -> None:
    path, asked = f"/directory/{everyone.token}/v0.1/servers", {"Origin": "vscode-file://vscode-app"}

    answer, preflight = Client().get(path, headers=asked), Client().options(path, headers=asked)

    for each in (answer, preflight, get(everyone, limit="x")):
        assert {name: each[name] for name in registry.CORS} == {
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Allow-Methods": "GET, OPTIONS",
            "Access-Control-Allow-Headers": "Authorization, Content-Type",
        }
    assert (preflight.status_code, answer["Cache-Control"], answer.cookies) == (204, "no-store", {})
    assert Client().post(path).status_code == 405
    assert Client().head(path).status_code == 200


def test_the_log_of_requests_masks_addresses(everyone: DirectoryAddress) -> None:
    def logged(path: str) -> str:
        record = logging.makeLogRecord({"msg": "request", "path": path})
        return JsonFormatter().format(record)

    assert everyone.token not in logged(f"/directory/{everyone.token}/v0.1/servers")
    assert str(everyone.pk) in logged(f"/settings/directory/{everyone.pk}/")


def test_reads_are_noted_once_a_minute(everyone: DirectoryAddress) -> None:
    def read(client: str) -> tuple[Any, str]:
        Client().get(f"/directory/{everyone.token}/v0.1/servers", headers={"User-Agent": client})
        row = DirectoryAddress.objects.get()
        return row.read_at, row.read_by

    now = timezone.now()
    with time_machine.travel(now, tick=False):
        first = read("Code/1.106.2")
        assert read("Copilot/1") == first == (now, "Code/1.106.2")
    with time_machine.travel(now + timedelta(minutes=1), tick=False):
        assert read(f"\x1b\x00{'x' * 500}")[1] == "x" * 200


@pytest.fixture
def few_requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(A_MINUTE, "directory", 2)
    with time_machine.travel(timezone.now(), tick=False):
        yield


@pytest.mark.full
def test_too_many_requests_of_one_address_get_429(everyone: DirectoryAddress, few_requests: None) -> None:
    statuses = [get(everyone).status_code for _ in range(3)]

    assert statuses == [200, 200, 429]
    assert Client().get("/directory/guess/v0.1/servers").status_code == 429
    elsewhere = Client(REMOTE_ADDR="198.51.100.7").get(f"/directory/{everyone.token}/v0.1/servers")
    assert elsewhere.status_code == 200
