"""Live lists of calls: each poll returns the calls recorded since the last answer, and misses none."""

import html
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts.models import User
from tests import make
from tests.conftest import SignIn

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}


def ago(**span: float) -> datetime:
    return datetime.now(UTC) - timedelta(**span)


class OpenPage:
    """A page with a live list. Like the page's script, it asks for new rows at the address in the last answer."""

    def __init__(self, client: Client, path: str = "/logs/?live=1") -> None:
        self.client = client
        self.rows: list[tuple[str, str]] = []
        self.read(client.get(path))

    def read(self, response: Any) -> None:
        self.text = html.unescape(response.content.decode())
        self.tail = re.search(r'id="tail".*?</div>', self.text, re.DOTALL)[0]  # type: ignore[index]
        self.url = re.search(r'hx-get="([^"]+)"', self.tail)[1]  # type: ignore[index]
        if "<tbody" in self.text:
            self.rows = re.findall(r"<tr([^>]*)><th scope=row>.*?<b>(\w+)</b>", self.text)

    def ask(self, *, reads: bool = False) -> int:
        response = self.client.get(self.url + ("&paused=1" if reads else ""), headers=HTMX)
        if response.status_code == 200:
            self.read(response)
        return response.status_code

    @property
    def tools(self) -> list[str]:
        return [tool for _, tool in self.rows]

    @property
    def new(self) -> list[str]:
        return [tool for attributes, tool in self.rows if "data-new" in attributes]


@pytest.mark.full
def test_calls_recorded_since_the_last_answer_are_first_and_marked(ana: User, sign_in: SignIn) -> None:
    make.call(feature_name="before")
    page = OpenPage(sign_in(ana))
    assert (page.tools, page.new) == (["before"], [])
    assert page.ask() == 204

    make.call(feature_name="short")
    make.call(at=ago(minutes=2), feature_name="long")  # Recorded last, because the call took two minutes.
    page.ask()

    assert page.tools == ["long", "short", "before"]
    assert page.new == ["long", "short"]
    page.ask()
    assert page.ask() == 204
    make.call(feature_name="after")
    page.ask()
    assert page.tools == ["after", "long", "short", "before"]
    assert page.new == ["after"]


@pytest.mark.full
def test_counts_facets_and_bars_move_with_the_rows(ana: User, sign_in: SignIn) -> None:
    make.call()
    page = OpenPage(sign_in(ana), "/logs/?live=1&range=1h&outcome=ok")
    make.call(outcome="denied")
    assert page.ask() == 204
    make.call()
    page.ask()

    for part in (
        '<span data-count="calls.listed" class="count" id="call-count" hx-swap-oob="true">2 in last hour</span>',
        '<span data-count="calls.exported" class="count">2 rows</span>',
        'aria-label="Calls over time: 2 ok, 0 errors, 0 refused"',
        "checked><span>ok</span></label><span class=count>2</span>",
        "<span>denied</span></label><span class=count>1</span>",
    ):
        assert part in page.text
    assert 'id="range-fields"' not in page.text  # No field that somebody may be typing in is replaced.


@pytest.mark.full
def test_while_somebody_reads_calls_are_counted_and_then_shown_all_at_once(ana: User, sign_in: SignIn) -> None:
    page = OpenPage(sign_in(ana))
    page.ask(reads=True)
    assert "Paused while you read." in page.tail
    assert page.ask(reads=True) == 204
    for number in range(12):
        make.call(feature_name=f"tool{number}")
        page.ask(reads=True)
    assert "12 new</span>" in page.tail
    assert page.tools == []

    page.ask()
    assert page.new == [f"tool{number}" for number in reversed(range(12))]
    assert "Paused" not in page.tail


@pytest.mark.full
def test_of_too_many_calls_the_newest_are_shown_and_the_others_are_on_the_next_page(ana: User, sign_in: SignIn) -> None:
    page = OpenPage(sign_in(ana))
    for number in range(52):
        make.call(feature_name=f"tool{number}")
    make.call(at=ago(minutes=1), feature_name="long")
    page.ask()

    assert page.tools == ["long", *(f"tool{number}" for number in reversed(range(3, 52)))]
    assert "53</span> new calls arrived together: the newest 50 are shown." in page.tail
    older = re.search(r'href="([^"]+)">Older', page.text)[1]  # type: ignore[index]
    shown = page.client.get(older).context["rows"]
    assert [row.call.feature_name for row in shown] == ["tool2", "tool1", "tool0", "long"]


def test_the_dashboard_follows_too(ana: User, sign_in: SignIn) -> None:
    make.call(feature_name="before")
    page = OpenPage(sign_in(ana), "/?range=1h")
    assert page.ask() == 204
    make.call(feature_name="asked", outcome="denied", deny_reason="host_disabled")
    page.ask(reads=True)
    assert "1 new</span>" in page.tail
    page.ask()

    assert re.findall(r'<li data-of="call:[^"]+" data-new>.*?<small>(.*?)</small>', page.text) == [
        "asked",
        "host disabled",
    ]
    assert re.search('id="plots"[^>]* hx-swap-oob="true"', page.text)
    assert page.ask() == 200  # The notice of new calls is empty again.
    assert page.ask() == 204
    stranger = sign_in(make.user()).get("/?seen=0", headers=HTMX)
    assert "data-tail" not in stranger.content.decode()


def test_an_invalid_state_of_the_page_gets_the_whole_list(ana: User, sign_in: SignIn) -> None:
    make.call(feature_name="echo")
    client = sign_in(ana)
    for seen in ("", "-1", "²", "9" * 50):
        response = client.get("/logs/", {"live": "1", "seen": seen}, headers=HTMX)
        assert [row.call.feature_name for row in response.context["rows"]] == ["echo"], seen


@pytest.mark.full
def test_an_answer_takes_no_more_statements_for_more_calls(ana: User, sign_in: SignIn) -> None:
    page = OpenPage(sign_in(ana))
    statements = []
    for number in (1, 20):
        for _ in range(number):
            make.call()
        with CaptureQueriesContext(connection) as asked:
            assert page.ask() == 200
        statements.append(len(asked))
    assert statements[0] == statements[1]
