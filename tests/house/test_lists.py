"""Every list asks as many statements before thousands of rows as before fifty.

How long they take is measured by `python -m bench.lists`, before twenty times as many.
"""

import pytest

from accounts.models import Role
from bench.lists import asked
from bench.log_pages import signed_in
from bench.many import FEW, MANY, grow

THOUSANDS = MANY.divided(20)


@pytest.mark.django_db
def test_lists_take_as_many_statements_with_many_rows() -> None:
    Role.objects.make_built_in()
    grow(None, FEW)
    few = asked(signed_in(), 1)
    grow(FEW, THOUSANDS)
    many = asked(signed_in(), 1)

    assert {path: one.statements for path, one in many.items()} == {path: one.statements for path, one in few.items()}
