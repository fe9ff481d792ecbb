"""Programs of a runner: *Add a server* lists them, and their pages and REST show their state and standard error."""

from typing import Any

import pytest
from pytest_django import Settings

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from servers.models import Server
from tests import make, runners, upstreams
from tests.asgi_server import Upstream, answer
from tests.conftest import Run, SignIn
from tests.connections.rows import HTMX, text
from tests.rest import Rest
from tests.runners import SECRET, program
from tests.workspace import free_port
from wire.runner import Runner

pytestmark = pytest.mark.django_db

ADD = "/servers/add/"
FAILED = program(
    "crash",
    state="failing",
    error="It ended 5 times in a minute.",
    running=0,
    restarts=5,
    last_exit={"at": "2026-11-20T10:00:00Z", "code": 1, "signal": None, "reason": "No module named mcp"},
    memory_bytes=None,
)
LINES = [{"at": "2026-11-20T09:59:59Z", "pid": 4127, "text": f"line {number} <b>"} for number in range(250)]


@pytest.fixture
def runner(run: Run, settings: Settings) -> Upstream:
    """A runner with two programs, named in the settings; no other private address is allowed."""
    served = run(runners.Runner([program("notes"), FAILED], upstreams.docs(), {"crash": LINES}).app)
    settings.RUNNER = Runner(f"http://127.0.0.1:{served.port}", SECRET)
    settings.PRIVATE_UPSTREAMS = []
    return served


def added(runner: Upstream, name: str) -> Server:
    return make.server(slug=name, name=name.title(), url=f"http://127.0.0.1:{runner.port}/{name}/mcp", private=True)


def test_a_program_is_added_with_one_click_and_is_on_no_gateway(runner: Upstream, ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    before = text(client.get(ADD))
    form = client.post(ADD, {"try": f"http://127.0.0.1:{runner.port}/notes/mcp"}, headers=HTMX).context["form"]
    assert form["name"].value() == "Notes"

    done = client.post(ADD, {"program": "notes"}, follow=True)

    assert 'name="program" value="notes"' in before
    assert 'name="program" value="crash"' in before
    server = Server.objects.get()
    assert (server.name, server.slug, server.private, server.health) == ("Notes", "notes", True, "ok")
    assert Event.objects.get(action="server.created").actor_email == ana.email
    assert "Notes added with 6 tools. Assign it to a gateway." in text(done)
    assert not server.assignments.exists()
    assert 'name="program" value="notes"' not in text(client.get(ADD)), "it is listed as added"


@pytest.mark.full
def test_a_taken_name_an_unknown_program_and_a_credential_for_a_program_are_refused(
    runner: Upstream, ana: User, sign_in: SignIn
) -> None:
    make.server(slug="notes", name="Notes")
    client, url = sign_in(ana), f"http://127.0.0.1:{runner.port}/notes/mcp"

    taken = client.post(ADD, {"program": "notes"}, headers=HTMX)
    unknown = client.post(ADD, {"program": "passwords"}, headers=HTMX)
    with_key = Rest.of(ana).post("/servers", {"name": "Other", "url": url, "auth_type": "bearer"})
    elsewhere = Rest.of(ana).post("/servers", {"name": "Programs", "url": f"http://127.0.0.1:{runner.port}/programs"})

    assert (taken.status_code, unknown.status_code) == (422, 422)
    assert "A server with this name already exists." in text(taken)
    assert url in text(taken), "the form opens with it"
    assert "The runner has no program “passwords”." in text(unknown)
    assert (with_key.status_code, elsewhere.status_code) == (400, 400)
    assert Server.objects.count() == 1


def test_the_page_says_what_to_do_without_a_runner_one_that_is_down_and_one_that_refuses_the_secret(
    runner: Upstream, ana: User, sign_in: SignIn, settings: Settings
) -> None:
    client, server = sign_in(ana), added(runner, "notes")
    said = {}
    for name, one in {
        "down": Runner(f"http://127.0.0.1:{free_port()}", SECRET),
        "refused": Runner(f"http://127.0.0.1:{runner.port}", "another secret of 32 characters!!"),
        "none": None,
    }.items():
        settings.RUNNER = one
        said[name] = text(client.get(ADD))

    assert "Start it, or correct GATEWAY_RUNNER_URL." in said["down"]
    assert "refused the secret. Give the gateway and the runner the same GATEWAY_RUNNER_SECRET" in said["refused"]
    assert "need a runner, which is not set up here" in said["none"]
    settings.RUNNER = Runner(f"http://127.0.0.1:{runner.port}", "another secret of 32 characters!!")
    page = text(client.get(f"/servers/{server.slug}/"))
    assert "refused the secret" in page
    assert "Calls fail until this is corrected." in page
    told = Rest.of(ana).get(f"/servers/{server.slug}/program").json()
    assert told["program"] is None
    assert "refused the secret" in told["problem"]


def test_the_page_and_rest_show_state_last_exit_and_standard_error(
    runner: Upstream, ana: User, sign_in: SignIn
) -> None:
    server = added(runner, "crash")

    page = text(sign_in(ana).get(f"/servers/{server.slug}/"))
    told = Rest.of(ana).get(f"/servers/{server.slug}/program").json()
    lines = Rest.of(ana).get(f"/servers/{server.slug}/program/stderr").json()

    assert "It ended 5 times in a minute." in page
    assert "No module named mcp" in page
    assert "its programs: they can read each other" in page
    assert "last 200 lines" in page
    assert "line 249 &lt;b&gt;" in page
    assert "line 49 " not in page
    assert (told["problem"], told["program"]["state"], told["program"]["restarts"]) == (None, "failing", 5)
    assert told["program"]["last_exit"] == {
        "at": "2026-11-20T10:00:00.000Z", "code": 1, "signal": "", "reason": "No module named mcp",
    }  # fmt: skip
    assert [line["text"] for line in lines["lines"]] == [f"line {number} <b>" for number in range(50, 250)]
    assert len(Rest.of(ana).get("/programs").json()["programs"]) == 2
    assert SECRET not in page


@pytest.mark.full
def test_standard_error_takes_the_permission_for_payloads(runner: Upstream, ana: User, sign_in: SignIn) -> None:
    server = added(runner, "crash")
    viewer = make.user(Capability.SERVERS_READ, Capability.LOGS_READ)
    client = sign_in(viewer)

    page = text(client.get(f"/servers/{server.slug}/"))

    assert "It ended 5 times in a minute." in page
    assert "Standard error" not in page
    assert client.get(f"/servers/{server.slug}/program/").status_code == 200
    assert client.get(f"/servers/{server.slug}/program/stderr/").status_code == 403
    assert Rest.of(viewer).get(f"/servers/{server.slug}/program/stderr").status_code == 403
    assert "line 249" in text(sign_in(ana).get(f"/servers/{server.slug}/program/stderr/"))
    other = make.server(slug="docs", name="Docs")
    assert "Standard error" not in text(sign_in(ana).get(f"/servers/{other.slug}/"))
    assert Rest.of(ana).get(f"/servers/{other.slug}/program").status_code == 404


ODD = (
    b"[]",
    b'{"programs": 7}',
    b'{"programs": [7, {}, {"name": "a", "path": "/b/mcp"}, {"name": "x", "path": "//evil.example.com/x/mcp"}]}',
    b'{"programs": [{"name": "a", "path": "/a/mcp", "started_at": "soon", "last_exit": 3, "running": "many"}]}',
)


@pytest.mark.full
def test_an_odd_answer_of_the_runner_breaks_no_page(run: Run, ana: User, sign_in: SignIn, settings: Settings) -> None:
    answers = list(ODD)

    async def odd(receive: Any, send: Any) -> None:
        await answer(send, 200, answers[0])

    served = run(upstreams.bare(odd))
    settings.RUNNER = Runner(f"http://127.0.0.1:{served.port}", SECRET)
    while answers:
        page = sign_in(ana).get(ADD)
        assert page.status_code == 200, answers[0]
        assert "evil.example.com" not in text(page)
        del answers[0]
