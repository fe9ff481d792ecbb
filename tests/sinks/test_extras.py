"""Kinds of sinks that need an optional package, while the package is not installed."""

import re

import pytest
from django.test import Client

from accounts.models import User
from capabilities import Capability
from tests import make
from tests.accounts.again import confirmed

pytestmark = [pytest.mark.django_db, pytest.mark.full]

ADD = "/settings/sinks/add/"


@pytest.fixture
def browser() -> Client:
    keeper: User = make.user(Capability.SINKS_MANAGE, Capability.LOGS_READ, Capability.AUDIT_READ)
    client = Client()
    client.force_login(keeper)
    return confirmed(client)


@pytest.mark.parametrize(("kind", "extra", "label"), [("s3_parquet", "archive", "S3, Parquet")])
def test_a_kind_that_is_not_installed_says_so_where_it_is_chosen_and_how_to_install_it(
    kind: str, extra: str, label: str, browser: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = browser.get(f"{ADD}?kind={kind}").content.decode()
    assert f'href="?kind={kind}"' in installed
    assert 'name="address"' in installed
    monkeypatch.setattr("sinks.receivers.find_spec", lambda name: None)

    page = browser.get(ADD).content.decode()
    followed = browser.get(f"{ADD}?kind={kind}").content.decode()

    assert re.search(rf'<a href="\?kind={kind}">{label}</a>', page)
    assert f"gateway-admin[{extra}]" not in page, "a webhook's page is not about Parquet"
    assert f"gateway-admin[{extra}]" in followed
    assert f"requirements-{extra}.lock" in followed
    assert 'name="address"' in page, "the other kinds are offered"
    assert 'name="address"' not in followed, "nobody fills in what cannot be saved"
