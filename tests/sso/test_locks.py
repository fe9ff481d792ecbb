"""Locks of the sign-in settings."""

import threading

import pytest
from django.db import connection, transaction

from accounts.rules import one_at_a_time
from sso.errors import BadProviderUrl
from sso.models import Provider
from tests.eventually import PATIENCE

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.full]


def test_the_name_of_an_issuer_is_looked_up_without_the_lock_of_people() -> None:
    """A slow name server would otherwise delay every sign-in, invitation and change of people."""
    outcome: list[str] = []

    def edit() -> None:
        try:
            Provider.edit(by=None, issuer="https://10.0.0.1")
        except BadProviderUrl:
            outcome.append("refused")
        finally:
            connection.close()

    Provider.load()
    other = threading.Thread(target=edit)
    with transaction.atomic():
        one_at_a_time()
        other.start()
        other.join(PATIENCE)
        assert outcome == ["refused"]
    other.join()
