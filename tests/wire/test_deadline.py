"""A moment after which nobody reads on."""

import httpcore
import httpx
import pytest

from wire.background import Deadline


def test_before_it_is_set_there_is_no_deadline() -> None:
    deadline = Deadline()
    deadline.check()
    assert deadline.left(7) == 7


def test_one_wait_takes_no_longer_than_what_is_left_nor_than_it_may() -> None:
    deadline = Deadline()
    deadline.set(600)
    deadline.check()
    assert deadline.left(7) == 7
    assert 500 < deadline.left(None) <= 600


@pytest.mark.parametrize("most", [None, 7])
def test_once_it_has_passed_nothing_is_waited_for_and_nothing_worked_on(most: float | None) -> None:
    deadline = Deadline()
    deadline.set(0)
    with pytest.raises(httpcore.ReadTimeout):
        deadline.left(most)
    with pytest.raises(httpx.ReadTimeout):
        deadline.check()
    deadline.set(600)
    deadline.check()
