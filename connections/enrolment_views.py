"""The people who use an agent: the tokens of each, and the identities their connections use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from uuid import UUID

from django.db.models import QuerySet
from django.http import HttpResponse
from django.views.decorators.http import require_GET

from capabilities import requires
from capabilities.catalogue import SEES_HOSTS
from connections.carried_identities import with_carried
from connections.models import Connection
from connections.rows import ConnectionRow, visible
from hosts.views import host_or_404
from ui.pages import AppRequest, page_of, show


class Carried(NamedTuple):
    """A server that needs a person's own identity, and its state."""

    server: str
    state: str


@dataclass(frozen=True)
class EnrolmentRow(ConnectionRow):
    """A person's connection; needs `_detailed`."""

    @cached_property
    def carried(self) -> list[Carried]:
        """The status of the identity for each server, or `missing`."""
        statuses = {row.assignment_id: row.identity.status for row in self.connection.identities.all()}
        assigned: Any = self.connection.gateway
        return [
            Carried(assignment.server.name, statuses.get(assignment.pk, "missing")) for assignment in assigned.asking
        ]


def _detailed(rows: QuerySet[Connection]) -> QuerySet[Connection]:
    return with_carried(rows.select_related("host", "gateway", "user").prefetch_related("tokens"))


@require_GET
@requires(*SEES_HOSTS)
def enrolments(request: AppRequest, pk: UUID) -> HttpResponse:
    host = host_or_404(request.user, pk)
    live = visible(request.user).live().filter(host=host).order_by("user__email", "gateway__name", "pk")
    page = page_of(request, live, detail=_detailed)
    context = {
        "host": host,
        "tab": "overview",
        "page": page,
        "rows": [EnrolmentRow(connection, request.user) for connection in page],
    }
    return show(request, "connections/enrolled.html#enrolled", context)
