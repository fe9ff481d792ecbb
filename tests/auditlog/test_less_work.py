"""Pages of the log avoid repeated statements and repeated characters."""

import re
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from accounts.models import User
from auditlog import search
from auditlog.columns import COLUMNS, LEAST, TOOL, are_usual
from auditlog.filters import DEFAULT_COLUMNS
from auditlog.models import Call
from auditlog.query_language import parse_search
from auditlog.search import Search
from tests import make
from tests.conftest import SignIn
from tests.workspace import ROOT

pytestmark = pytest.mark.django_db


@pytest.mark.full
def test_a_search_of_two_filters_reads_no_more_than_one_of_them_holds_however_few_it_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search, "SEARCH_LIMIT", 3)
    host = uuid4()
    for _ in range(5):
        make.call(host_id=host)
        make.call(outcome="denied")
    make.call(host_id=host, outcome="denied")
    both = Search(parse_search(f"host is {host} and outcome is denied"))
    one = Search(parse_search(f"correlation is {make.call().correlation_id}"))

    assert (both.count().number, one.count().number) == (1, 1)
    assert both.floor is not None
    assert one.floor is None


@pytest.mark.full
def test_a_thing_is_called_by_its_newest_call_however_long_ago_that_was(ana: User, sign_in: SignIn) -> None:
    host = uuid4()
    make.call(host_id=host, host_name="Long ago", at=datetime.now(UTC) - timedelta(days=20))

    page = sign_in(ana).get(f"/logs/?host={host}&range=24h").content.decode()

    assert "<b>Host</b> Long ago" in page


def test_the_oldest_call_is_found_where_the_first_partitions_hold_none() -> None:
    Call.partitions.make_for((datetime.now(UTC) - timedelta(days=12)).date())
    at = datetime.now(UTC) - timedelta(days=3)
    assert Call.objects.oldest() is None

    make.call(at=at)
    make.call()

    assert Call.objects.oldest() == at


# For each column priority: the list widths in rem below which such columns are hidden or moved.
BELOW = {4: (84, 61), 3: (44,), 2: (40,)}


def test_the_style_sheet_knows_which_of_the_usual_columns_step_back() -> None:
    css = (ROOT / "static" / "gateway" / "app.css").read_text()
    usual = [column for column in COLUMNS if column is TOOL or column.name in DEFAULT_COLUMNS]
    places = {
        priority: {n for n, column in enumerate(usual, 2) if column.priority == priority} for priority in (2, 3, 4)
    }

    assert are_usual(usual)
    for priority, expected in places.items():
        steps = [
            re.findall(rf"width < {rem}rem\) {{ \[data-calls=usual\] tr > ([^{{]*)\{{ display: none", css)
            for rem in BELOW[priority]
        ]
        assert [len(rules) for rules in steps] == [1] * len(steps)
        assert sorted(n for [rule] in steps for n in places_in(rule)) == sorted(expected)
        on_phones = re.findall(rf'\[data-p="{priority}"\], \[data-calls=usual\] ([^{{]*)\{{', css)
        assert [set(places_in(rule)) for rule in on_phones] == ([expected] if priority == LEAST else [])


def places_in(rule: str) -> list[int]:
    return [int(number) for number in re.findall(r"nth-child\((\d+)\)", rule)]
