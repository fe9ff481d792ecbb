"""Search words match in upper or lower case, and LIKE's wildcards are literal."""

import pytest

from accounts.models import User
from tests import make
from ui.forms import holds

pytestmark = [pytest.mark.django_db, pytest.mark.full]


def test_words_are_found_whatever_their_case() -> None:
    make.user(display_name="Übersicht über 100%")
    for words, found in {"über": True, "ÜBER 100%": True, "SICHT": True, "1_0": False, "%sicht%": False}.items():
        assert User.objects.filter(holds("display_name", words)).exists() is found, words
