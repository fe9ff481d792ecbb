"""How a list of calls looks: its columns, the zone of its times, the chart above it."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

# The columns that can be chosen, in their order. The time and the tool always stand there.
COLUMNS = (
    *("host", "user", "gateway", "server", "method", "outcome", "status", "duration"),
    *("identity", "token", "client", "ip", "error", "size"),
)
DEFAULT_COLUMNS = COLUMNS[:8]
CALLS, LATENCY, TABLE, NONE = "calls", "latency", "table", "none"
CHARTS = ((CALLS, "Calls"), (LATENCY, "Latency"), (TABLE, "Table"), (NONE, "None"))


class Look(NamedTuple):
    """How the list looks."""

    columns: tuple[str, ...] = DEFAULT_COLUMNS
    zone: str = "UTC"
    chart: str = CALLS

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Self:
        """What was kept; of what is unknown by now, the usual."""
        columns = tuple(name for name in COLUMNS if name in kept.get("columns", ()))
        chart = kept.get("chart", "")
        return cls(
            columns or DEFAULT_COLUMNS, str(kept.get("zone", "")) or "UTC", chart if chart in dict(CHARTS) else CALLS
        )

    def as_query(self) -> dict[str, Any]:
        """The same as values of a query string."""
        return {"columns": list(self.columns), "zone": self.zone, "chart": self.chart}


USUAL = Look()
