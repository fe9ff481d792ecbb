"""The soak test reports growth, and does not mistake faster clients for a leak."""

from collections.abc import Callable
from itertools import accumulate

import pytest

from bench.soak import KEPT_SECONDS, SAMPLE_SECONDS, TABLES, Sample, what_grew

SAMPLES = 120  # Samples in an hour.
KEPT = int(KEPT_SECONDS / SAMPLE_SECONDS)

type Series = Callable[[int], float]


def samples(
    actions: Series, *, leaks: float = 0.0, memory: Series = lambda _: 200.0, files: Series = lambda _: 60
) -> list[Sample]:
    """Return samples of one hour in which 2 % of the actions each store a row for five minutes.

    The share `leaks` of the actions stores a row forever.
    """
    done = [int(actions(number)) for number in range(SAMPLES)]
    ever = list(accumulate(done))
    rows = [
        sum(done[max(number - KEPT + 1, 0) : number + 1]) * 0.02 + ever[number] * leaks for number in range(SAMPLES)
    ]
    return [
        Sample(
            [memory(number) / 2] * 2,
            [int(files(number)) // 2] * 2,
            dict.fromkeys(TABLES, 100) | {"pendingrequest": int(rows[number])},
            int(rows[number]),
            at=number * SAMPLE_SECONDS,
            actions=done[number],
        )
        for number in range(SAMPLES)
    ]


def alike(_: int) -> float:
    return 1000


def faster_from(start: int, times: float) -> Series:
    return lambda number: 1000 * (times if number >= start else 1)


@pytest.mark.parametrize(("start", "times"), [(0, 1), (80, 8), (90, 0.1)])
def test_rows_that_are_kept_for_a_time_do_not_grow_however_fast_clients_act(start: int, times: float) -> None:
    assert list(what_grew(samples(faster_from(start, times)))) == []


@pytest.mark.parametrize(("start", "times"), [(0, 1), (80, 8)])
def test_rows_that_are_kept_for_ever_grow_however_fast_clients_act(start: int, times: float) -> None:
    grew = what_grew(samples(faster_from(start, times), leaks=0.005))

    assert [line.split(" from ")[0] for line in grew] == [
        "GREW: rows of pendingrequest",
        "GREW: sessions at the server",
    ]


@pytest.mark.parametrize(
    "of",
    [
        lambda number: 200 + 80 * (number == 110),
        lambda number: 200 + number % 30,
        lambda number: 200 + 30 * (number >= 80),
        lambda number: 200 + 0.01 * number,
    ],
    ids=["a spike", "gateways that are replaced", "more clients at once", "too little to tell"],
)
def test_memory_and_files_that_come_back_or_stop_do_not_grow(of: Series) -> None:
    assert list(what_grew(samples(alike, memory=of, files=of))) == []


def test_memory_and_files_that_go_on_growing_do() -> None:
    said = [line.split(" from ")[0] for line in what_grew(samples(alike, memory=leaking, files=leaking))]

    assert said == ["GREW: memory of the replicas", "GREW: files of the replicas"]


def leaking(number: int) -> float:
    """Return a value that drops every quarter of an hour, but each time to a higher value than before."""
    return 200 + number + number % 30


def test_a_few_samples_are_too_short_to_tell() -> None:
    assert list(what_grew(samples(alike)[:5])) == ["Too short to tell."]
