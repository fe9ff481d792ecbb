"""Display options of a list of calls: columns, time zone, chart."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

# The selectable columns, in order. Time and tool are always shown.
COLUMNS = (
    *("host", "user", "gateway", "server", "method", "outcome", "status", "duration"),
    *("identity", "token", "client", "ip", "error", "size"),
)
DEFAULT_COLUMNS = COLUMNS[:8]
CALLS, LATENCY, TABLE, NONE = "calls", "latency", "table", "none"
CHARTS = ((CALLS, "Calls"), (LATENCY, "Latency"), (TABLE, "Table"), (NONE, "None"))


class LogView(NamedTuple):
    """Display options of the list."""

    columns: tuple[str, ...] = DEFAULT_COLUMNS
    zone: str = "UTC"
    chart: str = CALLS

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Self:
        """Return the stored options; unknown values are replaced by defaults."""
        columns = tuple(name for name in COLUMNS if name in kept.get("columns", ()))
        chart = kept.get("chart", "")
        return cls(
            columns or DEFAULT_COLUMNS, str(kept.get("zone", "")) or "UTC", chart if chart in dict(CHARTS) else CALLS
        )

    def as_query(self) -> dict[str, Any]:
        """Return the options as values of a query string."""
        return {"columns": list(self.columns), "zone": self.zone, "chart": self.chart}


USUAL = LogView()
