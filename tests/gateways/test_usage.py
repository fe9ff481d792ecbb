"""The use of tools, limiting a server to the used tools, and undoing the limit."""

import html
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from accounts.models import User
from auditlog.models import Event
from auditlog.rollups import keeping
from capabilities import Capability
from gateways.models import Assignment, Feature, ToolPolicy
from gateways.usage import used_tools
from tests import make
from tests.conftest import SignIn
from tests.rest import Rest

pytestmark = pytest.mark.django_db

TOOLS = [{"name": name, "inputSchema": {"type": "object"}} for name in ("find", "open", "shut", "burn")]


@pytest.fixture
def docs() -> Assignment:
    """A server with four tools, behind a gateway."""
    gateway = make.gateway(make.server(slug="docs"), slug="work")
    assignment = Assignment.objects.get(gateway=gateway)
    Feature.objects.learn(assignment, TOOLS)
    return assignment


def called(assignment: Assignment, name: str, *, days: float = 1, **more: Any) -> None:
    at = datetime.now(UTC) - timedelta(days=days)
    where = {"gateway_id": assignment.gateway_id, "server_id": assignment.server_id, "feature_type": "tool"}
    make.call(at=at, feature_name=name, **where, **more)


def on(assignment: Assignment) -> set[str]:
    return set(Feature.objects.filter(assignment=assignment, enabled=True).values_list("name", flat=True))


def test_tools_called_recently_and_not_denied_count_as_used_by_roll_ups_as_without_them(
    docs: Assignment, ana: User, sign_in: SignIn
) -> None:
    other = make.gateway(docs.server, slug="other")
    called(docs, "docs__find")
    called(docs, "docs__open", days=29)
    called(docs, "docs__shut", days=30.001)  # Mostly on the day that the roll-ups count whole.
    called(docs, "docs__burn", outcome="denied", deny_reason="tool_disabled")
    called(Assignment.objects.get(gateway=other), "docs__burn")
    client = sign_in(ana)

    def told() -> list[Any]:
        return [one.tools for one in client.get("/gateways/work/usage/").context["servers"]]

    of_log = told()
    keeping.keep_up(5)

    assert told() == of_log
    make.gateway(slug="empty")
    assert client.get("/gateways/empty/usage/").context["servers"] == []
    assert [tool.name for tool in of_log[0] if tool.last_at] == used_tools(docs) == ["docs__find", "docs__open"]


@pytest.mark.full
def test_narrowing_leaves_on_what_was_used_and_undo_restores_what_was(docs: Assignment, ana: User) -> None:
    Feature.objects.get(assignment=docs, name="burn").disable(by=ana)

    assert docs.narrow(["docs__find"], by=ana) == ["docs__open", "docs__shut"]
    assert on(docs) == {"find"}
    assert docs.tool_policy == ToolPolicy.SELECTED
    event = Event.objects.get(action="assignment.narrowed")
    assert event.changes == {"policy": ["allow_all", "selected"], "switched_off": [None, ["docs__open", "docs__shut"]]}
    assert Event.objects.filter(action="feature.disabled", actor_email=ana.email).count() == 3

    assert docs.widen(by=ana) == ["docs__open", "docs__shut"]
    assert on(docs) == {"find", "open", "shut"}  # Undo does not enable tools that were disabled before.
    docs.refresh_from_db()
    assert docs.tool_policy == ToolPolicy.ALLOW_ALL
    assert docs.widen(by=ana) == []
    assert docs.last_narrowed() is None


def test_undo_leaves_what_was_switched_since_the_narrowing(docs: Assignment, ana: User) -> None:
    docs.narrow(["docs__find"], by=ana)
    reopened = Feature.objects.get(assignment=docs, name="burn")
    reopened.enable(by=ana)
    reopened.disable(by=ana)
    docs.refresh_from_db()
    docs.edit(tool_policy=ToolPolicy.BLOCK_ALL, by=ana)

    docs.edit(alias="manual", by=ana)

    assert docs.widen(by=ana) == ["manual__open", "manual__shut"]
    docs.refresh_from_db()
    assert docs.tool_policy == ToolPolicy.BLOCK_ALL


@pytest.mark.full
def test_the_page_tells_what_was_used_and_asks_before_it_narrows(docs: Assignment, ana: User, sign_in: SignIn) -> None:
    make.connection(make.agent(by=ana), docs.gateway, ana)
    called(docs, "docs__find", host_name="CI pipeline", user_email="ben@example.com")
    client = sign_in(ana)

    page = client.get("/gateways/work/usage/").content.decode()
    assert "used 1 of 4 tools in 30 d" in page
    assert "CI pipeline" in page
    question = client.get(f"/assignments/{docs.pk}/narrow/").content.decode()
    assert "This disables 3 tools for 1 connection to work." in question.replace("\n", " ")
    client.post(f"/assignments/{docs.pk}/narrow/")
    assert on(docs) == {"find"}
    page = client.get("/gateways/work/usage/").content.decode()
    assert "Undo" in page
    assert "</svg>Narrow" not in page
    client.post(f"/assignments/{docs.pk}/widen/")
    assert on(docs) == {"find", "open", "shut", "burn"}


def test_use_is_told_to_readers_of_the_log_and_narrowing_takes_managing_gateways(
    docs: Assignment, sign_in: SignIn
) -> None:
    reader, manager = make.user(Capability.LOGS_READ), make.user(Capability.GATEWAYS_MANAGE)

    assert sign_in(manager).get("/gateways/work/usage/").status_code == 403
    assert "</svg>Narrow" not in sign_in(reader).get("/gateways/work/usage/").content.decode()
    for who in (reader, manager):
        assert sign_in(who).post(f"/assignments/{docs.pk}/narrow/").status_code == 403
    assert on(docs) == {"find", "open", "shut", "burn"}


@pytest.mark.full
def test_rest_narrows_and_widens(docs: Assignment, ana: User, sign_in: SignIn) -> None:
    called(docs, "docs__open")
    rest = Rest(sign_in(ana))

    narrowed = rest.send("post", "/gateways/work/servers/docs/narrow").json()
    assert (narrowed["tool_policy"], narrowed["tools_allowed"]) == ("selected", 1)
    widened = rest.send("post", "/gateways/work/servers/docs/widen").json()
    assert (widened["tool_policy"], widened["tools_allowed"]) == ("allow_all", 4)


@pytest.mark.full
def test_a_token_tells_its_owner_and_readers_of_the_log_what_it_used(docs: Assignment, sign_in: SignIn) -> None:
    owner = make.user()
    token = make.token(make.connection(make.agent(by=owner), docs.gateway, owner)).token
    where: dict[str, Any] = {"connection_id": token.connection_id, "token_id": token.pk}
    for name in ("docs__find", "docs__find", "docs__open"):
        called(docs, name, **where)
    called(docs, "docs__burn", outcome="denied", deny_reason="tool_disabled", **where)
    called(docs, "docs__burn")

    def page(viewer: User) -> str:
        return str(sign_in(viewer).get(f"/tokens/{token.pk}/edit/").content.decode())

    assert "Used 2 of 4 in 30 d" in page(owner)
    assert "Used 2 of 4 in 30 d" in page(make.user(Capability.API_TOKENS_MANAGE, Capability.LOGS_READ))
    assert "Used 2 of 4" not in page(make.user(Capability.API_TOKENS_MANAGE))


def test_hiding_the_dearest_unused_tools_shortens_the_list_by_what_was_said_and_undo_restores_it(
    docs: Assignment, ana: User, sign_in: SignIn
) -> None:
    long = [{"name": f"long{n}", "description": "x" * (1000 + n), "inputSchema": {"type": "object"}} for n in range(7)]
    Feature.objects.learn(docs, [*TOOLS, *long])
    called(docs, "docs__long6")
    client = sign_in(ana)

    def tokens() -> int:
        return int(client.get("/gateways/work/usage/").context["tokens"])

    before, names = tokens(), on(docs)
    definitions = Feature.objects.filter(assignment=docs).values_list("shown", "approved")
    assert before == sum(-(-len((shown or approved).encode()) // 4) for shown, approved in definitions)
    asked = html.unescape(client.get(f"/assignments/{docs.pk}/narrow/?dearest=1").content.decode())
    saved = int(re.findall(r"about ([\d,]+) LLM tokens shorter", asked)[0].replace(",", ""))
    assert "Hide 5 tools" in asked

    client.post(f"/assignments/{docs.pk}/narrow/", {"dearest": "1"})

    assert names - on(docs) == {f"long{n}" for n in range(1, 6)}
    assert tokens() == before - saved
    client.post(f"/assignments/{docs.pk}/widen/")
    assert on(docs) == names
