"""Kinds of sinks that need an optional package, while the package is not installed."""

import pytest
from django.test import Client

from accounts.models import User
from capabilities import Capability
from sinks.models import BadSinkAddress, Sink
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


def test_a_kind_that_is_not_installed_says_so_where_it_is_chosen_and_how_to_install_it(
    browser: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = browser.get(f"{ADD}?kind=s3_parquet").content.decode()
    assert 'href="?kind=s3_parquet"' in installed
    assert 'name="address"' in installed
    monkeypatch.setattr("sinks.receivers.find_spec", lambda name: None)

    page = browser.get(ADD).content.decode()
    followed = browser.get(f"{ADD}?kind=s3_parquet").content.decode()

    assert '<a href="?kind=s3_parquet">S3, Parquet</a>' in page
    assert "gateway-admin[archive]" not in page, "a webhook's page is not about Parquet"
    assert "gateway-admin[archive]" in followed
    assert "make install EXTRAS=archive" in followed
    assert 'name="address"' in page, "the other kinds are offered"
    assert 'name="address"' not in followed, "nobody fills in what cannot be saved"
    address, keys = "https://93.184.216.34/bucket", "AKIDEXAMPLE:a secret key"
    with pytest.raises(BadSinkAddress, match=r"gateway-admin\[archive\]"):
        Sink.objects.add(name="Bucket", kind="s3_parquet", address=address, secret=keys, by=None)
