"""The searchable fields of a call, one row per field, and the columns of exports.

The search language, the Logs page and the REST API read this table. A field with a `label` is a filter of the page, and
a field with a `parameter` is a parameter of the API.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from django.db.models import CharField, Q

from auditlog.models import Call, Outcome


class Comparison(Enum):
    """Type of comparison between a value and the field's column."""

    ENUM = auto()  # The value is one of a fixed set.
    TEXT = auto()  # Compared without regard to case, unless an index is used.
    LIST = auto()  # The column has several texts, joined by ", ". One of them is compared without regard to case.
    NAME = auto()  # An object: by id, by its present name, or else by its name at the time of the call.
    ID = auto()
    ADDRESS = auto()  # An IP address.
    NUMBER = auto()


class Unit(NamedTuple):
    """The units that may follow a number, with their factors, and an example."""

    factors: Mapping[str, float]
    example: str


NO_UNIT = Unit({"": 1.0}, "403")
MILLISECONDS = Unit({"": 1.0, "ms": 1.0, "s": 1000.0}, "500, 500 ms or 2 s")
BYTES = Unit({"": 1.0, "b": 1.0, "kb": 1000.0, "mb": 1_000_000.0}, "2 kB")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter of `GET /api/logs`. If `condition` is set, only calls that meet it match the parameter."""

    name: str
    max_length: int | None = None
    bounds: tuple[int, int] | None = None
    condition: Q | None = None


@dataclass(frozen=True, slots=True)
class LogField:
    """One searchable field of a call."""

    name: str  # The word in the search language, and the URL parameter on the Logs page.
    comparison: Comparison
    column: str  # The compared column. For NAME, it has the object's name at the time of the call.
    id_column: str = ""  # For NAME, the column with the object's id.
    also: str = ""  # A second column to compare with the value.
    is_free_text: bool = False  # Included in searches for free text, on the Logs page and by the API's `q`.
    label: str = ""  # Label of the filter on the Logs page; if empty, there is no filter.
    choices: Sequence[tuple[str, str]] = ()  # The only values of the filter.
    unit: Unit = NO_UNIT
    parameter: Parameter | None = None

    @property
    def name_columns(self) -> tuple[str, ...]:
        return (self.column, self.also) if self.also else (self.column,)

    @property
    def group_column(self) -> str:
        """Return the column by which calls are grouped to count the field's values."""
        return self.id_column or self.column

    @property
    def max_length(self) -> int | None:
        """Return the maximum length of a text column, or None for other columns."""
        column = Call._meta.get_field(self.column)
        return column.max_length if isinstance(column, CharField) else None

    def label_of(self, value: str) -> str:
        """Return a value's display text."""
        if self.name == "reason":
            return value.replace("_", " ")
        return str(dict(self.choices).get(value, value))


def _thing(name: str, label: str, column: str, *, is_free_text: bool = False) -> LogField:
    """Return a field for a kind of object that calls refer to by id and name, such as the host."""
    return LogField(
        name,
        Comparison.NAME,
        column,
        f"{name}_id",
        is_free_text=is_free_text,
        label=label,
        parameter=Parameter(name),
    )


# All fields, in the order of the filters on the Logs page.
_ROWS = (
    LogField(
        "method",
        Comparison.TEXT,
        "method",
        label="Method",
        parameter=Parameter("method", max_length=64),
    ),
    LogField(
        "outcome",
        Comparison.ENUM,
        "outcome",
        label="Outcome",
        choices=Outcome.choices,
        parameter=Parameter("outcome"),
    ),
    _thing("host", "Host", "host_name", is_free_text=True),
    _thing("gateway", "Gateway", "gateway_name", is_free_text=True),
    _thing("server", "Server", "server_name", is_free_text=True),
    LogField(
        "tool",
        Comparison.TEXT,
        "feature_name",
        is_free_text=True,
        label="Tool",
        parameter=Parameter("tool", condition=Q(feature_type="tool")),
    ),
    _thing("user", "User", "user_email", is_free_text=True),
    LogField(
        "token",
        Comparison.NAME,
        "token_prefix",
        "token_id",
        also="token_name",
        is_free_text=True,
        parameter=Parameter("token"),
    ),
    LogField("identity", Comparison.TEXT, "identity_label", is_free_text=True, label="Identity"),
    LogField("client", Comparison.TEXT, "client_name", is_free_text=True),
    LogField(
        "reason",
        Comparison.TEXT,
        "deny_reason",
        label="Reason",
        parameter=Parameter("deny_reason", max_length=40),
    ),
    LogField("message", Comparison.TEXT, "error_text"),
    LogField("ip", Comparison.ADDRESS, "client_ip", parameter=Parameter("ip")),
    LogField(
        "connection",
        Comparison.ID,
        "connection_id",
        label="Connection",
        parameter=Parameter("connection"),
    ),
    LogField(
        "session",
        Comparison.ID,
        "session_id",
        label="Session",
        parameter=Parameter("session"),
    ),
    LogField(
        "correlation",
        Comparison.ID,
        "correlation_id",
        label="Correlation id",
        parameter=Parameter("correlation_id"),
    ),
    LogField(
        "trace",
        Comparison.TEXT,
        "trace_id",
        label="Trace id",
        parameter=Parameter("trace_id", max_length=32),
    ),
    LogField("label", Comparison.LIST, "labels", is_free_text=True, parameter=Parameter("label", max_length=200)),
    LogField("rule", Comparison.ID, "rule_id", label="Rule", parameter=Parameter("rule")),
    LogField("hold", Comparison.ID, "hold_id", label="Held call", parameter=Parameter("hold")),
    LogField("duration", Comparison.NUMBER, "duration_ms", unit=MILLISECONDS),
    LogField("upstream", Comparison.NUMBER, "upstream_ms", unit=MILLISECONDS),
    LogField("status", Comparison.NUMBER, "http_status", parameter=Parameter("http_status", bounds=(100, 599))),
    LogField("code", Comparison.NUMBER, "rpc_error_code"),
    LogField("request", Comparison.NUMBER, "request_bytes", unit=BYTES),
    LogField("response", Comparison.NUMBER, "response_bytes", unit=BYTES),
)

# All fields by their word in the search language.
FIELDS = {field.name: field for field in _ROWS}
# The filters of the Logs page.
FILTERS = {name: field for name, field in FIELDS.items() if field.label}
# Fields with an API parameter, by parameter name.
PARAMETERS = {field.parameter.name: field for field in _ROWS if field.parameter}
FREE_TEXT = tuple(field for field in _ROWS if field.is_free_text)

# The payloads, which may be large and require a separate capability.
PAYLOADS = ("request_payload", "response_payload")
# Columns left out of lists and files: the payloads, and the time when the row was inserted.
UNLISTED = ("recorded_at", *PAYLOADS)
# The column of each field of an export. The fields have the same names as in the API.
EXPORT_COLUMNS = {"id": "uid"} | {
    field.attname: field.attname for field in Call._meta.concrete_fields if field.name not in ("id", "uid", *UNLISTED)
}
# The column of each field of an export of admin events.
EVENT_EXPORT_COLUMNS = {
    "id": "uid",
    "time": "created_at",
    "actor": "actor_email",
    "via": "via",
    "address": "ip",
    "action": "action",
    "target_type": "target_type",
    "target_id": "target_id",
    "target": "target_label",
    "changes": "changes",
    "correlation_id": "correlation_id",
}
