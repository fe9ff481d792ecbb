"""Every list answers before thousands of rows as it does before fifty, in as many statements.

A tenth of what `python -m bench.lists` measures, so that it takes seconds.
"""

import pytest

from accounts.models import Role
from bench.lists import ALLOWED, asked
from bench.log_pages import signed_in
from bench.many import FEW, MANY, grow

TENTH = MANY.divided(10)
UNSEEN_MS = 20  # Shorter than this nobody tells them apart, and the clock of a busy machine does not either.


@pytest.mark.django_db
def test_lists_stay_as_quick_with_many_rows() -> None:
    Role.objects.make_built_in()
    grow(None, FEW)
    few = asked(signed_in(), 3)
    grow(FEW, TENTH)
    many = asked(signed_in(), 3)

    slow = {
        path: (few[path].milliseconds, many[path].milliseconds)
        for path in few
        if many[path].milliseconds > ALLOWED * max(few[path].milliseconds, UNSEEN_MS)
    }
    assert slow == {}
    assert {path: one.statements for path, one in many.items()} == {path: one.statements for path, one in few.items()}
