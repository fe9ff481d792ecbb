"""All checks of the package scim2-tester against this service."""

from __future__ import annotations

from collections import Counter

import httpx2
import pytest
from scim2_client.engines.httpx2 import SyncSCIMClient
from scim2_tester import Status, check_server

from scim.models import IssuedProvisioningKey
from tests.scim.conftest import ROOT, InProcess

pytestmark = [pytest.mark.django_db, pytest.mark.full]


def test_every_check_of_the_tester_succeeds(issued: IssuedProvisioningKey) -> None:
    http = httpx2.Client(
        transport=InProcess(),
        base_url=f"http://testserver{ROOT}",
        headers={"Authorization": f"Bearer {issued.secret}"},
    )

    # One kind at a time, because before each check the tester again deletes everything that its earlier checks created.
    kinds = (["User"], ["Group"])
    results = [one for kind in kinds for one in check_server(SyncSCIMClient(http), resource_types=kind)]

    good = {Status.SUCCESS, Status.COMPLIANT, Status.ACCEPTABLE}
    assert [f"{one.title} {one.status} {one.reason}" for one in results if one.status not in good] == []
    assert Counter(one.resource_type for one in results)["Group"] > 10
    assert Counter(one.resource_type for one in results)["User"] > 10
