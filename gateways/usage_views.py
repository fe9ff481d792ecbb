"""Usage of a gateway: who called which of its tools how often, and what nobody calls."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django.http import HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_GET

from auditlog.groups import BY, names_of
from auditlog.rollups.reading import book
from capabilities import Capability, requires
from gateways.models import Feature, Gateway
from gateways.views import find
from ui.pages import AppRequest, show

PEOPLE, TOOLS = 12, 12  # More would make the page too heavy; those with the most calls.
RANGES = {"24h": ("24 h", 1), "7d": ("7 d", 7), "30d": ("30 d", 30)}
DEFAULT = "30d"
LEVELS = 4


class Cell(NamedTuple):
    """How often a person called a tool; `level` from 0 to LEVELS is how dark that is drawn."""

    of: str
    calls: int
    level: int
    link: str


class Row(NamedTuple):
    """A person, what they called, and the sum of all of theirs."""

    pk: UUID
    name: str
    cells: list[Cell]
    used: int
    calls: int
    link: str


@require_GET
@requires(Capability.LOGS_READ)
def usage(request: AppRequest, slug: str) -> HttpResponse:
    """People by tools, as the roll-ups know it."""
    gateway = find(request.user, slug)
    chosen = request.GET.get("range", "")
    chosen = chosen if chosen in RANGES else DEFAULT
    context: dict[str, Any] = {
        "gateway": gateway,
        "tab": "usage",
        "ranges": [(name, label) for name, (label, _) in RANGES.items()],
        "chosen": chosen,
        "label": RANGES[chosen][0],
        **_matrix(gateway, chosen),
    }
    return show(request, "gateways/usage.html", context)


def _matrix(gateway: Gateway, chosen: str) -> dict[str, Any]:
    until = timezone.now()
    since = until - timedelta(days=RANGES[chosen][1])
    where: dict[str, list[Any]] = {"gateway_id": [gateway.pk], "method": ["tools/call"]}
    with book() as opened:
        found = opened.read(where, since, until, by=("user_id", "feature_name"), timed=False)
    if found is None:
        return {"rows": None}
    calls = {key: numbers.calls for key, numbers in found.items() if all(key) and numbers.calls}
    people, tools = Counter[UUID](), Counter[str]()
    for (person, tool), number in calls.items():
        people[person] += number
        tools[tool] += number
    shown = [tool for tool, _ in tools.most_common(TOOLS)]
    names = names_of(BY["user"], [person for person, _ in people.most_common(PEOPLE)], since, until)
    highest = max(calls.values(), default=1)
    narrowed = {"gateway": str(gateway.pk), "range": chosen, "method": "tools/call"}

    def cell(person: UUID, tool: str) -> Cell:
        number = calls.get((person, tool), 0)
        level = -(-LEVELS * number // highest)
        link = urlencode({**narrowed, "user": str(person), "tool": tool})
        return Cell(f"{person}:{tool}", number, level, link)

    rows = [
        Row(
            person,
            names.get(person) or str(person),
            [cell(person, tool) for tool in shown],
            sum(one == person for one, _ in calls),
            number,
            urlencode({**narrowed, "user": str(person)}),
        )
        for person, number in people.most_common(PEOPLE)
    ]
    offered = Feature.objects.tools().callable().filter(assignment__gateway=gateway)
    exposed = set(offered.order_by().values_list("exposed_name", flat=True))
    return {
        "rows": rows,
        "tools": [(tool, urlencode({**narrowed, "tool": tool})) for tool in shown],
        "people_count": len(people),
        "tool_count": len(exposed),
        "unused_count": len(exposed - {tool for _, tool in calls}),
    }
