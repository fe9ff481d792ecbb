"""Before a change is saved, the page shows whose calls of the last seven days it would have refused, and how many."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from accounts.models import Team, User
from auditlog import over_time
from auditlog.rollups import keeping
from capabilities import Capability
from connections.models import Connection
from gateways.models import Assignment, Feature
from tests import make
from tests.conftest import SignIn
from tests.connections.rows import HTMX, text
from tokens.models import Token

pytestmark = pytest.mark.django_db

NONE = "No call of the last 7 days would have been refused."
LATELY = "last 7 days"


@dataclass
class Used:
    """A tool of a gateway, and its callers: Ada and Ben with an app, and an agent on Ada's behalf."""

    ada: Connection
    ben: Connection
    bot: Connection
    token: Token
    tool: Feature

    @property
    def assignment(self) -> Assignment:
        return self.tool.assignment

    def calls(self, by: Connection, number: int, **fields: Any) -> None:
        place = self.assignment
        of: dict[str, Any] = {
            "host_id": by.host_id,
            "user_id": by.user_id,
            "gateway_id": by.gateway_id,
            "connection_id": by.pk,
        }
        to = {"server_id": place.server_id, "feature_type": "tool", "feature_name": self.tool.exposed_name}
        for _ in range(number):
            make.call(**of | to | fields)

    def switches(self) -> dict[str, str]:
        """Return, for each kind of change that stops calls, the URL that makes the change."""
        place = self.assignment
        return {
            "host": f"/hosts/{self.ada.host_id}/disable/",
            "gateway": f"/gateways/{place.gateway.slug}/disable/",
            "server": f"/servers/{place.server.slug}/disable/",
            "assignment": f"/assignments/{place.pk}/disable/",
            "removal": f"/assignments/{place.pk}/remove/",
            "tool": f"/tools/{self.tool.pk}/disable/",
            "quarantine": f"/features/{self.tool.pk}/quarantine/",
            "connection": f"/connections/{self.ada.pk}/disable/",
            "revocation": f"/connections/{self.bot.pk}/revoke/",
            "token": f"/tokens/{self.token.pk}/revoke/",
            "person": f"/people/{self.ada.user_id}/deactivate/",
            "incident": f"/incident/hosts/{self.bot.host_id}/stop/",
        }


@pytest.fixture
def used() -> Used:
    server, gateway = make.server(), make.gateway()
    assignment = make.assignment(gateway, server)
    tool = Feature.objects.create(assignment=assignment, name="search", exposed_name=make.unique("docs__search"))
    ada, ben, app = make.user(display_name="Ada"), make.user(display_name="Ben"), make.app()
    bot = make.connection(make.agent(by=ada, name=make.unique("build-bot")), gateway, ada)
    token: Any = make.token(bot)
    return Used(
        make.connection(app, gateway, ada),
        make.connection(app, gateway, ben),
        bot,
        token.token,
        tool,
    )


@pytest.mark.full
def test_each_switch_says_whose_calls_it_would_have_refused(used: Used, sign_in: SignIn) -> None:
    used.calls(used.ada, 3)
    used.calls(used.ben, 1)
    used.calls(used.bot, 2, token_id=used.token.pk)
    used.calls(used.ben, 5, outcome="denied", deny_reason="tool_disabled")
    used.calls(used.ben, 5, at=timezone.now() - timedelta(days=9))
    bot, client = used.bot.host.name, sign_in(make.user(*Capability))

    told = {name: _lately(text(client.get(path, headers=HTMX))) for name, path in used.switches().items()}

    through = f"6 calls of 2 people and 1 agent went through it: Ada (3), {bot} (2), Ben (1). They"
    assert told == {
        "host": "4 calls of 2 people went through it: Ada (3), Ben (1). They",
        **dict.fromkeys(("gateway", "server", "assignment", "removal", "tool", "quarantine"), through),
        "connection": "3 calls of 1 person went through it: Ada (3). They",
        "revocation": f"2 calls of 1 agent went through it: {bot} (2). They",
        "token": f"2 calls of 1 agent used it: {bot} (2). They",
        "person": f"5 calls of 1 agent and 1 app were made as this person: Claude Desktop (3), {bot} (2). They",
        "incident": "2 calls of 1 person went through this agent: Ada (2). They",
    }


def _lately(page: str) -> str:
    """Return the text that the page has between “In the last 7 days” and “would have been refused.”."""
    return page.partition("In the last 7 days ")[2].partition(" would have been refused.")[0]


@pytest.mark.full
def test_without_calls_it_says_so_and_only_readers_of_the_log_and_owners_see_calls(used: Used, sign_in: SignIn) -> None:
    client = sign_in(make.user(*Capability))
    assert all(NONE in text(client.get(path)) for path in used.switches().values())

    used.calls(used.bot, 1)
    blind: Any = sign_in(make.user(*set(Capability) - {Capability.LOGS_READ}))
    for path in used.switches().values():
        asked = text(blind.get(path))
        assert "dialog" in asked
        assert LATELY not in asked
    used.calls(used.bot, 1, token_id=used.token.pk)
    own = text(sign_in(used.bot.user).get(f"/tokens/{used.token.pk}/revoke/"))
    assert "In the last 7 days 1 call of 1 agent used it" in own


@pytest.mark.full
def test_several_are_counted_together(used: Used, ana: User, sign_in: SignIn) -> None:
    used.calls(used.ada, 1)
    used.calls(used.bot, 2)
    picked = {"act": "disable", "pick": [str(used.ada.host_id), str(used.bot.host_id)]}

    asked = text(sign_in(ana).post("/switch/hosts/", picked, headers=HTMX))

    assert "In the last 7 days 3 calls of 1 person went through them: Ada (3). They would have been refused." in asked


@pytest.mark.full
def test_reach_by_team_says_who_would_have_been_left_out(used: Used, ana: User, sign_in: SignIn) -> None:
    team = Team.objects.create(name="Docs")
    team.users.add(used.ada.user)
    used.calls(used.ada, 4)
    used.calls(used.bot, 1)
    used.calls(used.ben, 2)
    chief = make.connection(used.ada.host, used.ada.gateway, make.user(Capability.GATEWAYS_USE))
    used.calls(chief, 1)
    form = f"/gateways/{used.ada.gateway.slug}/reach/"
    chosen, change = {"reach": "teams", "teams": str(team.pk)}, HTMX | {"HX-Target": "would-refuse"}

    def told(viewer: User, **choice: str) -> str:
        return text(sign_in(viewer).get(form, choice, headers=change))

    assert "In the last 7 days 2 calls of 1 person came from outside these teams: Ben (2). They would" in told(
        ana, **chosen
    )
    assert LATELY not in told(ana, reach="everyone")
    assert LATELY not in told(ana, reach="teams")
    assert LATELY not in told(make.user(Capability.GATEWAYS_MANAGE), **chosen)
    team.users.add(used.ben.user)
    assert NONE in told(ana, **chosen)
    assert used.ada.gateway.reach == "everyone"


@pytest.mark.full
def test_five_callers_are_named(used: Used) -> None:
    for number in range(7):
        person = make.user(display_name=f"Person {number}")
        used.calls(make.connection(used.ada.host, used.ada.gateway, person), number + 1)

    told = over_time.refused({"gateway_id": [used.ada.gateway_id]}).sentence()

    assert "28 calls of 7 people" in told
    assert ": Person 6 (7), Person 5 (6), Person 4 (5), Person 3 (4), Person 2 (3) and 2 more. They" in told


def test_more_calls_than_are_read_are_counted_in_rollups(used: Used, monkeypatch: pytest.MonkeyPatch) -> None:
    used.calls(used.ada, 5)
    keeping.keep_up(30)
    monkeypatch.setattr(over_time, "MOST_READ", 3)
    whole, of_token = {"gateway_id": [used.ada.gateway_id]}, {"connection_id": [used.ada.pk]}
    rest = "calls went through it. Among some 3 of them: Ada (4). They would have been refused."

    assert over_time.refused(whole).sentence() == f"In the last 7 days about 5 {rest}"
    assert over_time.refused(of_token).sentence() == f"In the last 7 days more than 3 {rest}"


@pytest.mark.full
def test_a_statement_that_takes_too_long_is_given_up(used: Used, monkeypatch: pytest.MonkeyPatch) -> None:
    used.calls(used.ada, 1)
    slow = "SELECT c.user_id, c.host_id, count(*) FROM ({calls}) c, pg_sleep(9) GROUP BY 1, 2"
    monkeypatch.setattr(over_time, "_BY_CALLER", slow)
    monkeypatch.setattr(over_time, "LOG_MS", 50)

    told = over_time.refused({"connection_id": [used.ada.pk]}).sentence()

    assert told == "The calls of the last 7 days could not be counted in time."
    with connection.cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() != ("50ms",)
