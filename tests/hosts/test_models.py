"""Hosts: the apps and agents that administrators allow or disable."""

import pytest
from django.db import IntegrityError, transaction

from connections.models import Connection
from hosts.models import Host, NotPending
from tests import make

pytestmark = pytest.mark.django_db


def test_the_database_refuses_agents_without_a_creator_and_apps_with_enrolment() -> None:
    with pytest.raises(IntegrityError, match="agent_has_a_creator"), transaction.atomic():
        Host.objects.create(kind="token", name="nobody's")
    with pytest.raises(IntegrityError, match="only_agents_allow_enrolment"), transaction.atomic():
        Host.objects.create(kind="headed", name="Claude", allow_enrolment=True)


def test_an_app_that_was_archived_meanwhile_is_not_approved() -> None:
    ana, app = make.user(), make.app(needs_approval=True)
    Connection.objects.archive_host(Host.objects.get(pk=app.pk), by=ana)

    with pytest.raises(NotPending):
        app.approve(by=ana)
