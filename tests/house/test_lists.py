"""Every list page runs the same number of database statements for thousands of rows as for fifty.

`python -m bench.lists` measures the duration of the statements with twenty times as many rows.
"""

import pytest

from accounts.models import Role
from bench.lists import asked
from bench.log_pages import signed_in
from bench.many import FEW, MANY, grow

pytestmark = pytest.mark.full


@pytest.mark.django_db
def test_lists_take_as_many_statements_with_many_rows() -> None:
    Role.objects.make_built_in()
    grow(None, FEW)
    few = asked(signed_in(), 0)
    grow(FEW, MANY.divided(20))
    after = asked(signed_in(), 0)

    assert {path: one.statements for path, one in after.items()} == {path: one.statements for path, one in few.items()}
