"""The page of a session: who may read it, the order and pages of its calls, and the bars."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from accounts.models import User
from auditlog.models import Call
from auditlog.waterfall import WIDTH, Period, Timeline, waterfall
from capabilities import Capability
from connections.models import Connection
from proxy.store.call_log import new_uid
from tests import make
from tests.conftest import SignIn
from tests.rest import Rest
from ui.pages import PAGE_SIZE

pytestmark = pytest.mark.django_db

AT = datetime.now(UTC) - timedelta(minutes=5)


def text(response: Any) -> str:
    return str(response.content.decode())


class Talk:
    """A session of `connection` in the log. At first, it has only the call that opened it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.pk = make.opening_call(at=AT, connection_id=connection.pk, user_id=connection.user_id).uid
        self.address = f"/logs/sessions/{self.pk}/"

    def call(self, seconds: float, **fields: Any) -> Call:
        told = {"session_id": self.pk, "connection_id": self.connection.pk, "user_id": self.connection.user_id}
        return make.call(at=AT + timedelta(seconds=seconds), **told | fields)


@pytest.fixture
def talk(max: User) -> Talk:
    return Talk(make.connection(make.agent(by=max), make.gateway(), max))


def test_a_session_is_read_by_its_person_and_by_readers_of_the_log_only(
    talk: Talk, max: User, ann: User, sign_in: SignIn
) -> None:
    talk.call(1, feature_name="mine", feature_type="tool")
    reader = make.user(Capability.LOGS_READ)

    assert "mine" in text(sign_in(max).get(talk.address))
    assert "mine" in text(sign_in(reader).get(talk.address))
    assert sign_in(ann).get(talk.address).status_code == 404
    assert sign_in(reader).get(f"/logs/sessions/{uuid4()}/").status_code == 404
    assert sign_in(reader).get(f"/logs/sessions/{new_uid(AT.timestamp())}/").status_code == 404


@pytest.mark.full
def test_calls_are_oldest_first_and_pages_lead_to_each_other(talk: Talk, sign_in: SignIn) -> None:
    for number in range(PAGE_SIZE):
        talk.call(1 + number, feature_name=f"tool-{number:02}")
    client = sign_in(make.user(Capability.LOGS_READ))

    first = text(client.get(talk.address))
    [later] = re.findall(r'rel="next" href="([^"]+)"', first)
    last = text(client.get(talk.address + later))
    [earlier] = re.findall(r'rel="prev" href="([^"]+)"', last)

    assert re.findall(r">(tool-\d\d|initialize)<", first) == [
        "initialize", *(f"tool-{number:02}" for number in range(PAGE_SIZE - 1))
    ]  # fmt: skip
    assert re.findall(r">(tool-\d\d)<", last) == [f"tool-{PAGE_SIZE - 1:02}"]
    assert text(client.get(talk.address + earlier)).count("<tr data-of") == PAGE_SIZE
    assert "No call of this session on this page" in text(client.get(f"{talk.address}?cursor=n9999999999999999-1"))


def test_the_wait_for_the_client_lies_within_the_bar_of_its_call(talk: Talk) -> None:
    call = talk.call(10, duration_ms=8000.0, authorise_ms=1.0, upstream_ms=7990.0)
    asked = talk.call(12, method="elicitation/create", duration_ms=4000.0, correlation_id=call.uid)

    rows, _ = waterfall([*Call.objects.filter(session_id=talk.pk).order_by("created_at")])

    _, row, child = rows
    parts = {part.name: part for part in row.parts}
    assert (row.call, child.call) == (call, asked)
    assert (child.is_asked, row.waited_ms) == (True, 4000.0)
    assert [(part.name, part.ms) for part in child.parts] == [("client", 4000.0)]
    assert parts["client"].start == child.parts[0].start
    assert parts["upstream"].start < parts["client"].start
    assert parts["client"].start + parts["client"].width < parts["upstream"].start + parts["upstream"].width <= WIDTH


def test_a_long_pause_leaves_half_of_the_axis_to_the_calls() -> None:
    line = Timeline([Period(0, 100), Period(3_600_000, 3_600_100)])

    assert line.is_shortened
    assert [round(line.x(at)) for at in (0, 100, 3_600_000, 3_600_100)] == [0, 250, 750, 1000]
    assert not Timeline([Period(0, 100), Period(120, 200)]).is_shortened


def test_a_stream_is_drawn_from_its_start_to_its_end(talk: Talk) -> None:
    began = talk.call(1, method="GET", duration_ms=2.0)
    talk.call(5, duration_ms=1000.0)
    talk.call(9, method="GET", duration_ms=8000.0, correlation_id=began.uid)

    rows, _ = waterfall([*Call.objects.filter(session_id=talk.pk).order_by("created_at")])

    assert rows[-1].is_stream
    assert rows[-1].parts[0].start <= rows[1].parts[0].start + rows[1].parts[0].width
    assert rows[-1].parts[0].start + rows[-1].parts[0].width == WIDTH


@pytest.mark.full
def test_the_log_is_filtered_by_session_on_the_page_in_words_and_over_rest(
    talk: Talk, max: User, sign_in: SignIn
) -> None:
    talk.call(1, feature_name="inside", feature_type="tool")
    other = Talk(talk.connection)
    other.call(2, feature_name="outside", feature_type="tool")
    talk.call(3, feature_name="elsewhere", session_id=None)
    reader = make.user(Capability.LOGS_READ)
    pages = [
        text(sign_in(reader).get("/logs/", query))
        for query in ({"session": str(talk.pk)}, {"q": f"session is {talk.pk}"})
    ]

    found = [
        Rest.of(who).get(address, session=talk.pk).json()["results"]
        for who, address in ((reader, "/logs"), (max, "/me/calls"))
    ]

    for page in pages:
        assert [name in page for name in ("inside", "outside", "elsewhere")] == [True, False, False]
    assert [[row["session_id"] for row in rows] for rows in found] == [[str(talk.pk)] * 2] * 2
