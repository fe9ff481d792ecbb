"""Roll-ups give the same numbers as counting the log, in whatever order rows arrive."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import partial
from threading import Thread
from typing import Any
from uuid import UUID

import psycopg
import pytest
import time_machine
from django.db import connection
from django.utils import timezone

from auditlog import search as criteria
from auditlog.charts import BARS, histogram
from auditlog.facets import facet_values
from auditlog.fields import FILTERS
from auditlog.models import Call, Outcome, Rollup, RollupState
from auditlog.query_language import parse_search
from auditlog.rollups import keeping, reading
from auditlog.rollups.reading import A_MOMENT, Bars, book
from auditlog.rollups.schema import BEGINNING, DAYS, MINUTES, RATIO, quantile
from auditlog.search import RowCount, Search
from gatewayadmin.config import database
from tests.calls import call, uid_at

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NAMES = ("host_id", "user_id", "gateway_id", "server_id")
IDS = {name: [UUID(int=10 * n + number) for number in (1, 2, 3)] for n, name in enumerate(NAMES, 1)}
REASONS = {Outcome.DENIED: ("host_disabled", "tool_disabled")}
INSERT = """
INSERT INTO auditlog_call (uid, created_at, correlation_id, method, feature_type, feature_name, outcome, deny_reason,
    http_status, host_id, gateway_id, user_id, server_id, host_name, gateway_name, server_name, user_email,
    identity_label, token_name, token_prefix, duration_ms, request_bytes, response_bytes, user_agent, client_name,
    client_version, protocol_version)
VALUES (%(uid)s, %(created_at)s, %(uid)s, %(method)s, '', %(feature_name)s, %(outcome)s, %(deny_reason)s, 200,
    %(host_id)s, %(gateway_id)s, %(user_id)s, %(server_id)s, '', '', '', '', '', '', '', %(duration_ms)s, 0, 0, '', '',
    '', '')
"""


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.node.name)


@pytest.fixture
def writers(transactional_db: None) -> Iterator[list[psycopg.Connection[Any]]]:
    opened = [psycopg.connect(database.conninfo()) for _ in range(4)]
    yield opened
    for one in opened:
        one.close()


def row(chance: random.Random, at: datetime) -> dict[str, Any]:
    outcome = chance.choice([Outcome.OK] * 6 + [Outcome.TOOL_ERROR, Outcome.DENIED, Outcome.TIMEOUT, Outcome.CANCELLED])
    return {
        "uid": uid_at(at),
        "created_at": at,
        "method": chance.choice(["tools/call", "tools/call", "tools/list"]),
        "feature_name": chance.choice(["", "echo", "add"]),
        "outcome": outcome.value,
        "deny_reason": chance.choice(REASONS.get(outcome, ("",))),
        "duration_ms": round(chance.lognormvariate(4, 2), 3),
        **{name: chance.choice([*ids, None]) for name, ids in IDS.items()},
    }


def write(writer: Any, rows: list[dict[str, Any]]) -> None:
    with writer.cursor() as cursor:
        cursor.executemany(INSERT, rows)


def partitions(days: int) -> None:
    today = datetime.now(UTC).date()
    for n in range(-2, days + 1):
        Call.partitions.make_for(today - n * DAY)


def moments(chance: random.Random, now: datetime, days: float) -> datetime:
    """Return a random time of the last days, mostly of the last hours."""
    span = chance.choice([0.01, 0.1, 1.0, days])
    return now - timedelta(days=span * chance.random(), seconds=2)  # Never now: other tests cover that.


def check(chance: random.Random, now: datetime, days: float) -> None:
    """Check that a random query gets the same numbers from the roll-ups as from the log."""
    since, until = sorted(moments(chance, now, days + 2) + timedelta(minutes=5) for _ in range(2))
    if until > timezone.now() - 2 * A_MOMENT:  # Means "until now", including rows written since.
        until = timezone.now() + HOUR
    columns = [*IDS, "method", "feature_name", "outcome", "deny_reason"]
    by = chance.sample(columns, chance.randrange(3))
    where: dict[str, list[Any]] = {}
    for name in chance.sample(columns, chance.randrange(3)):
        where[name] = chance.sample(IDS[name], chance.randint(1, 2)) if name in IDS else [chance.choice(rare(name))]
    bars = None
    if chance.random() < 0.5:
        width = chance.choice([MINUTES.length, timedelta(minutes=48), HOUR, DAY])
        begins = since.replace(second=0, microsecond=0)
        bars = Bars(chance.choice([begins, begins.replace(minute=0), DAYS.begin(since)]), width)
    with book() as opened:
        found = opened.read(where, since, until, by=by, bars=bars)
    assert found is not None
    expected: Counter[Any] = Counter()
    rows = Call.objects.filter(created_at__gte=since, created_at__lt=until)
    for each in rows.filter(**{f"{name}__in": values for name, values in where.items()}).order_by():
        number = () if bars is None else ((each.created_at - bars.since) // bars.width,)
        expected[*(getattr(each, name) for name in by), *number] += 1
    assert {key: numbers.calls for key, numbers in found.items() if numbers.calls} == dict(expected)
    assert all(sum(numbers.classes) == numbers.calls for numbers in found.values())
    if len(by) == 1 and bars is None:
        with book() as opened:
            busiest = opened.busiest(where, since, until, by[0], 2)
        filled = [key for key in expected if key[0] not in ("", None)]
        assert [*(busiest or ())] == [
            key for (key,) in sorted(filled, key=lambda key: (-expected[key], str(key[0])))[:2]
        ]
        assert all(numbers.calls == expected[key,] for key, numbers in (busiest or {}).items())


def drop(writers: list[psycopg.Connection[Any]], limit: date, between: Callable[[], None]) -> None:
    """Commit the writers' transactions, which would block; drop roll-ups, call `between`, and drop calls."""
    for each in writers:
        each.commit()
    keeping.drop_before(limit)
    between()
    assert Call.partitions.drop_before(limit)


def rare(name: str) -> list[str]:
    return {
        "method": ["tools/call", "tools/list", "ping"],
        "feature_name": ["echo", "add", ""],
        "outcome": ["ok", "denied"],
        "deny_reason": ["host_disabled", ""],
    }[name]


@pytest.mark.full
def test_roll_ups_equal_a_count_of_the_log_in_any_order_of_rows(
    writers: list[psycopg.Connection[Any]], chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several writers commit rows in any order of time, while roll-ups are counted and old days are dropped."""
    monkeypatch.setattr(keeping, "WRITERS_S", 0)
    monkeypatch.setattr(keeping, "STEP", 25)
    monkeypatch.setattr(keeping, "OLD_STEP", 25)
    monkeypatch.setattr(reading, "LONGEST_FROM_LOG", 100 * DAY)
    partitions(44)
    now = timezone.now()
    write(writers[0], [row(chance, moments(chance, now, 44)) for _ in range(150)])
    writers[0].commit()
    keeping.keep_up(0)
    for n in range(60):
        one = chance.choice(writers)
        acts: list[Callable[[], object]] = [
            partial(write, one, [row(chance, timezone.now()) for _ in range(chance.randint(1, 9))]),
            partial(write, one, [row(chance, timezone.now() - chance.random() * 0.8 * HOUR)]),  # A long call.
            one.commit,
            one.commit,
            one.rollback,
            partial(keeping.keep_up, 0),
            partial(keeping.keep_up, 5),
        ]
        chance.choice(acts)()
        if n % 20 == 19:
            drop(writers, (now - (43 - n // 10) * DAY).date(), partial(check, chance, now, 44))
        check(chance, now, 44)
    for each in writers:
        each.commit()
    assert keeping.keep_up(30) >= 0
    assert RollupState.objects.get().counted_from == BEGINNING
    for _ in range(40):
        check(chance, now, 44)


def test_row_that_commits_after_later_ones_is_counted_once(
    writers: list[psycopg.Connection[Any]], chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "WRITERS_S", 0)
    partitions(1)
    keeping.keep_up(5)
    slow, quick, *_ = writers
    at = timezone.now()
    write(slow, [row(chance, at)])
    write(quick, [row(chance, at)])
    quick.commit()

    assert keeping.keep_up(5) == 0  # A row with a lower id may still be committed.
    slow.commit()
    assert keeping.keep_up(5) == 2
    assert keeping.keep_up(5) == 0


@pytest.mark.full
def test_several_count_while_several_write(
    transactional_db: None, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LONGEST_FROM_LOG", 100 * DAY)
    partitions(1)
    seeds = [chance.random() for _ in range(3)]
    counted: list[int] = []

    def writing(seed: float) -> None:
        own = random.Random(seed)
        with psycopg.connect(database.conninfo()) as writer:
            for _ in range(30):
                write(writer, [row(own, timezone.now() - own.random() * HOUR / 2) for _ in range(own.randint(1, 5))])
                writer.commit()

    def counting() -> None:
        try:
            counted.extend([keeping.keep_up(5) for _ in range(20)])
        finally:
            connection.close()

    threads = [*(Thread(target=writing, args=(seed,)) for seed in seeds), Thread(target=counting)]
    for each in threads:
        each.start()
    while any(each.is_alive() for each in threads):
        counted.append(keeping.keep_up(5))
    counted.append(keeping.keep_up(5))

    assert sum(counted) == Call.objects.count()
    assert Rollup.objects.filter(cube=0, seconds=60).count() > 0
    for _ in range(10):
        check(chance, timezone.now(), 1)


def test_row_older_than_an_hour_is_counted_with_the_next_stretch(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call recorded more than an hour after it began is counted by the next `keep_up`, and only once."""
    now = timezone.now()
    keeping.keep_up(5)
    monkeypatch.setattr(keeping, "NEAR", -keeping.LATE_EVERY)  # Late calls are always due for counting.
    RollupState.objects.update(near_from=now - HOUR)
    call(now - 5 * HOUR)

    assert keeping.keep_up(5) == 1
    assert keeping.keep_up(5) == 0
    with book() as opened:
        total = opened.total({}, now - DAY, now)
    assert total is not None
    assert total.calls == 1


def test_roll_ups_are_kept_by_the_databases_clock(db: None) -> None:
    call(timezone.now())
    keeping.keep_up(5)

    with time_machine.travel(timezone.now() + 100 * DAY):
        keeping.keep_up(5)

    assert RollupState.objects.get().hours_from < timezone.now()


@pytest.mark.full
def test_call_that_came_late_is_in_count_filters_and_bars_at_once(db: None) -> None:
    now = timezone.now()
    call(now)
    keeping.keep_up(5)
    for ago in (3 * HOUR, 5 * DAY):
        call(now - ago, outcome="denied", deny_reason="host_disabled")
    search = Search([], now - 7 * DAY)

    found = facet_values(search, [FILTERS["outcome"]])["outcome"]

    assert search.count() == RowCount(3, is_all=True)
    assert {one.value: one.calls for one in found.values} == {"ok": 1, "denied": 2}
    assert histogram(search).totals["denied"] == 2


@pytest.mark.full
@pytest.mark.parametrize("span", [HOUR / 2, 40 * DAY, 900 * DAY], ids=["minutes", "weeks", "years"])
def test_many_calls_are_counted_and_drawn_exactly_and_each_bar_holds_what_it_leads_to(
    db: None, chance: random.Random, monkeypatch: pytest.MonkeyPatch, span: timedelta
) -> None:
    monkeypatch.setattr(criteria, "SEARCH_LIMIT", 5)
    now = timezone.now()
    for n in range(40):
        call(now - span * chance.random() * 0.99, outcome=chance.choice(["ok", "ok", "denied", "timeout"]))
        call(now - span - n * MINUTES.length - DAY)
    while keeping.keep_up(5) or keeping.days_left():
        pass
    search = Search([], now - span)

    drawn = histogram(search)

    assert search.count() == RowCount(40, is_all=True)
    assert not drawn.is_partial
    assert 1 < len(drawn.bars) <= BARS + 1
    assert sum(drawn.totals.values()) == 40
    for bar in drawn.bars:
        found = Search([], bar.since, bar.until).rows().values_list("outcome", flat=True)
        assert +Counter(bar.counts) == Counter("error" if one == "timeout" else one for one in found)


def test_the_tools_of_one_person_are_counted_by_an_index_or_not_at_all(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = timezone.now()
    where = {"user_id": IDS["user_id"][:1], "gateway_id": IDS["gateway_id"][:1]}
    for n in range(3):
        call(now - n * 10 * DAY, user_id=IDS["user_id"][0], gateway_id=IDS["gateway_id"][n % 2], feature_name="echo")
    keeping.keep_up(30)

    def echoed() -> int | None:
        with book() as opened:
            found = opened.read(where, now - 60 * DAY, datetime.max.replace(tzinfo=UTC), by=("feature_name",))
        return None if found is None else found["echo",].calls

    assert echoed() == 2
    monkeypatch.setattr(reading, "MOST_FROM_LOG", 2)
    assert echoed() == 2, "Two calls of the gateway are few enough,"
    monkeypatch.setattr(reading, "MOST_FROM_LOG", 1)
    assert echoed() is None, "and of neither are all looked at to find that few are of both."


def test_calls_missing_in_roll_ups_are_counted_within_the_pages_limit(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(criteria, "SEARCH_LIMIT", 5)
    now = timezone.now()
    for n in range(9):
        call(now - n * HOUR, duration_ms=100)
    keeping.keep_up(5)

    assert Search(parse_search("duration > 50"), now - DAY).count() == RowCount(5, is_all=False)


def test_question_that_would_read_much_of_the_log_is_not_answered(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    now = timezone.now()
    for _ in range(3):
        call(now - HOUR)
    monkeypatch.setattr("auditlog.rollups.reading.MOST_FROM_LOG", 2)
    with book() as opened:
        assert opened.total({}, now - DAY, now) is None  # Nothing has been counted yet.
    keeping.keep_up(0)
    RollupState.objects.update(counted_from=now)
    with book() as opened:
        assert opened.total({}, now - DAY, now) is None  # Too many calls to count without roll-ups,
        assert opened.total({}, now - 30 * DAY, now - 2 * DAY) is None  # and too long a range.
    RollupState.objects.update(counted_from=BEGINNING)
    with book() as opened:
        assert opened.total({}, now - DAY, now) is not None


def test_names_that_clients_make_up_are_not_all_read(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    now = timezone.now()
    for number in range(4):
        call(now - 2 * HOUR, feature_name=f"made up {number}")
    keeping.keep_up(5)
    monkeypatch.setattr("auditlog.rollups.reading.MOST_ROWS", 3)
    with book() as opened:
        assert opened.read({}, now - DAY, now, by=("feature_name",)) is None
        assert opened.total({}, now - DAY, now) is not None


@pytest.mark.full
def test_percentiles_are_right_to_within_a_tenth(db: None, chance: random.Random) -> None:
    now = timezone.now()
    durations = sorted(chance.lognormvariate(4, 1) + 2 for _ in range(400))
    for each in durations:
        call(now - HOUR, duration_ms=each)
    keeping.keep_up(5)
    with book() as opened:
        total = opened.total({}, now - DAY, now)
    assert total is not None

    for part in (0.5, 0.95, 0.99):
        found, exact = total.quantile(part), durations[round(400 * part) - 1]
        assert found is not None
        assert exact / RATIO <= found <= exact * RATIO
    assert quantile([0] * 128, 0.5) is None


def test_roll_ups_know_what_asks_for_equal_values(db: None, subtests: pytest.Subtests) -> None:
    asked: dict[str, dict[str, list[Any]] | None] = {
        "": {},
        "error": {"outcome": ["tool_error", "rpc_error", "upstream_error", "timeout", "bad_request"]},
        "error and timeout": {"outcome": ["timeout"]},
        f"host is {IDS['host_id'][0]}": {"host_id": IDS["host_id"][:1]},
        "tool is echo and ok": {"feature_name": ["echo"], "outcome": ["ok", "not_offered"]},
        "duration > 500": None,
        "outcome is not ok": None,
        "error or denied": None,
        "somebody": None,
    }
    for text, where in asked.items():
        with subtests.test(text):
            assert Search(parse_search(text)).equalities() == where
