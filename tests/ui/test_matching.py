"""Search words match in any case, and LIKE's wildcards are literal."""

import pytest

from accounts.models import User
from tests import make
from ui.forms import holds

pytestmark = [pytest.mark.django_db, pytest.mark.full]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("über", True),
        ("ÜBER 100", True),
        ("100%", True),
        ("SICHT", True),
        ("1_0", False),
        ("%sicht%", False),
        ("x", False),
    ],
)
def test_words_are_found_whatever_their_case(words: str, found: bool) -> None:
    person = make.user(display_name="Übersicht über 100%")

    assert User.objects.filter(holds("display_name", words), pk=person.pk).exists() is found
