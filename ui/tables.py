"""Lists as tables: columns, widths, sorting, and the user's choice of columns.

A `Table` describes a list. A `TableView` is a table as requested, by `?sort=-name` and `?columns=type&columns=users`.
Only the choice of columns is stored, in a cookie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID

from django.db.models import F, Model, QuerySet
from django.db.models.expressions import Expression, OrderBy
from django.http import HttpRequest, HttpResponse, QueryDict
from django.template.loader import render_to_string
from django.utils.text import slugify

from capabilities import Capability
from ui.pages import AppRequest, show, wants_fragment

YEAR = 365 * 86_400
WEEK = "In the last seven days"
LIVE = "Without revoked connections"
CONTROLS = ("acts", "pick", "switch")


# eq=False: hash by identity. Columns are cache keys, and hashing all fields is slow.
@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """A column of a list."""

    name: str
    label: str
    width: float | None = None  # In rem; None for the remaining width.
    priority: int = 0  # In a narrow list, columns with 4 are hidden first, then 5, 3 and 2. Columns with 0 stay.
    # "number", "moment", "acts" for the last column, "switch" for a control before it, or "pick" for checkboxes.
    kind: str = ""
    # The fields or expressions to sort by. Empty if the list cannot be sorted by this column, for example
    # because a long list has no index for it.
    sorts: tuple[str | Expression, ...] = ()
    most_first: bool = False
    on_phone: bool = False  # Shown in the second line of a row on phones. Numbers and moments also show their label.
    is_extra: bool = False  # Shown only if chosen.
    stays: bool = False  # Always shown.
    hint: str = ""
    said: bool = True  # If False, the label is for screen readers only.
    needs: str | tuple[str, ...] = ()  # The viewer needs one of these capabilities.
    # The cell in exports: the path of an attribute of the row, such as `role.name`, or a function. If empty, the
    # attribute with the column's name, or nothing for a column of controls. If None, nothing.
    value: str | Callable[[Any], Any] | None = ""

    @property
    def is_exported(self) -> bool:
        return bool(self.value) or (self.value is not None and self.kind not in CONTROLS)

    @property
    def field(self) -> str:
        """The column's name in exports, made from the label.

        For example, "Last used" becomes `last_used`. "E-mail" becomes `email`, as in REST.
        """
        return slugify(self.label.replace("E-mail", "email")).replace("-", "_")

    def value_of(self, row: Any) -> Any:
        """Return the cell of `row` for an export.

        If `value` is a path such as `role.name`, and the row has no role, the cell is None.
        """
        if callable(self.value):
            return _plain(self.value(row))
        try:
            return _plain(attrgetter(self.value or self.name)(row))
        except AttributeError:
            if "." not in (self.value or ""):
                raise
            return None

    def is_for(self, user: Any) -> bool:
        """Return whether the user has one of the capabilities in `needs`."""
        return any(map(user.has_perm, (self.needs,) if isinstance(self.needs, str) else self.needs))

    @property
    def chosen_by_nobody(self) -> bool:
        """True if users cannot show or hide the column."""
        return self.stays or self.width is None or self.kind in CONTROLS

    @property
    def width_text(self) -> str:
        """The width for the style sheet."""
        return f"{self.width:g}" if self.width else ""


# The calls of the last week, counted by `{% week %}`. Not exported: the log counts and exports calls of any period.
CALLS = Column(
    "calls",
    "Calls",
    6,
    priority=3,
    kind="number",
    hint=WEEK,
    needs=Capability.LOGS_READ,
    is_extra=True,
    value=None,
)
CREATED = Column("created", "Created", 7, sorts=("created_at",), most_first=True, is_extra=True, value="created_at")


class Head(NamedTuple):
    """The head of a column: the `sort` value of its link, and the current order (aria-sort)."""

    column: Column
    to: str
    sorted: str


class Choice(NamedTuple):
    """An option in the menu of a list."""

    value: str
    label: str
    chosen: bool


_TABLES: dict[str, Table] = {}


@dataclass(frozen=True, slots=True)
class Table:
    """A list: its caption, columns and default order, and the name that cookies and files use for it."""

    key: str
    caption: str
    columns: tuple[Column, ...]
    order: str = ""  # If empty, rows keep the order of the query.
    fit: str = "fixed"
    row_id: str = "pk"  # The attribute with the row's id in exports.

    def __post_init__(self) -> None:
        _TABLES[self.key] = self

    def seen(self, request: HttpRequest) -> TableView:
        """Return the table with the requested order and columns. Repeated calls return the same object."""
        known: dict[str, TableView] = request.__dict__.setdefault("lists", {})
        if self.key not in known:
            known[self.key] = self._seen(request)
        return known[self.key]

    def _seen(self, request: HttpRequest) -> TableView:
        user = getattr(request, "user", None)
        columns = tuple(one for one in self.columns if not one.needs or (user and one.is_for(user)))
        asked = _asked(request)
        sort = asked.get("sort", "")
        known = {column.name for column in columns if column.sorts}
        return TableView(
            self,
            columns,
            sort if sort.removeprefix("-") in known else self.order,
            self._chosen(request, asked, columns),
            "columns" in asked,
        )

    def _chosen(self, request: HttpRequest, asked: QueryDict, columns: tuple[Column, ...]) -> frozenset[str]:
        """Return the names of the chosen columns: from the query, otherwise from the cookie, otherwise the default."""
        names = [column.name for column in columns if not column.chosen_by_nobody]
        usual = frozenset(column.name for column in columns if not column.is_extra and column.name in names)
        if "columns" in asked:
            wanted = [name for name in asked.getlist("columns") if name]
            return frozenset(name for name in names if name in wanted) if wanted else usual
        kept = request.COOKIES.get(self.cookie)
        return frozenset(name for name in names if name in kept.split(".")) if kept else usual

    @property
    def cookie(self) -> str:
        return f"columns-{self.key}"


@dataclass(frozen=True)  # Without slots, for the cached property.
class TableView:
    table: Table
    columns: tuple[Column, ...]
    sort: str
    chosen: frozenset[str]
    is_asked: bool

    def shows(self, name: str) -> bool:
        """Return whether this column is shown."""
        column = self.column(name)
        return column is not None and (column.chosen_by_nobody or name in self.chosen)

    def column(self, name: str) -> Column | None:
        """Return the column with this name; None if the user may not see it."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}

    @property
    def picks(self) -> bool:
        """True if rows can be selected."""
        return any(column.kind == "pick" for column in self.columns)

    @property
    def shown(self) -> list[Column]:
        return [column for column in self.columns if self.shows(column.name)]

    @property
    def exported(self) -> list[tuple[str, Callable[[Any], Any]]]:
        """The names of the fields of an export, and the functions that return their values."""
        columns = (column for column in self.columns if column.is_exported)
        return [("id", attrgetter(self.table.row_id)), *((column.field, column.value_of) for column in columns)]

    @property
    def heads(self) -> list[Head]:
        """The heads of the shown columns. The link of the sorted column reverses the order."""
        return [self._head(column) for column in self.shown]

    def _head(self, column: Column) -> Head:
        if not column.sorts:
            return Head(column, "", "")
        first, other = (f"-{column.name}", column.name) if column.most_first else (column.name, f"-{column.name}")
        by = {column.name: "ascending", f"-{column.name}": "descending"}.get(self.sort, "")
        return Head(column, other if self.sort == first else first, by)

    @property
    def fit(self) -> str:
        """The table's layout. With extra columns, `scroll` replaces `fixed`, so that columns keep their widths."""
        more = any(column.is_extra and column.name in self.chosen for column in self.columns)
        return "scroll" if more and self.table.fit == "fixed" else self.table.fit

    @property
    def has_choice(self) -> bool:
        """True if columns or the order can be chosen."""
        return bool(self.choices) or len(self.orders) > 1

    @property
    def choices(self) -> list[Choice]:
        """An option for each column that can be shown or hidden."""
        offered = (column for column in self.columns if not column.chosen_by_nobody)
        return [Choice(column.name, column.label, column.name in self.chosen) for column in offered]

    @property
    def orders(self) -> list[Choice]:
        """The options for the order. Only a column's head can reverse the current order."""
        found = [] if self.table.order else [Choice("", "Usual order", not self.sort)]
        for head in (self._head(column) for column in self.columns if column.sorts):
            name = head.column.name
            value = self.sort if head.sorted else head.to
            found.append(Choice(value, head.column.label or name.capitalize(), bool(head.sorted)))
        return found

    @property
    def is_usual(self) -> bool:
        """True if the default columns are chosen."""
        usual = {column.name for column in self.columns if not column.is_extra and not column.chosen_by_nobody}
        return self.chosen == usual

    def ordered[M: Model](self, rows: QuerySet[M]) -> QuerySet[M]:
        """Sort the rows as requested. In descending order, NULLs in the model's fields and annotations are last."""
        column = self.column(self.sort.removeprefix("-"))
        if column is None:
            return rows
        return rows.order_by(*(order_of(rows, field, self.sort.startswith("-")) for field in column.sorts), "pk")

    def remember(self, response: HttpResponse) -> None:
        """Store requested columns in the cookie. Delete the cookie if the requested columns are the default."""
        if not self.is_asked:
            return
        if self.is_usual:
            response.delete_cookie(self.table.cookie, samesite="Lax")
        else:
            names = ".".join(column.name for column in self.columns if column.name in self.chosen)
            response.set_cookie(self.table.cookie, names, max_age=YEAR, httponly=True, samesite="Lax")


def _plain(value: Any) -> Any:
    """Return `value` as types that can be written as JSON. Objects of other types become their text."""
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, bool | int | float | datetime | UUID):
        return value
    return str(value)


def order_of(rows: QuerySet[Any], field: str | Expression, most_first: bool) -> OrderBy:
    """Return the ordering of `rows` by `field`, descending if `most_first`.

    Only fields that can be NULL get NULLS LAST, because NULLS LAST prevents the use of an index.
    """
    by: F | Expression = F(field) if isinstance(field, str) else field
    if not most_first:
        return by.asc()
    has_empty = isinstance(field, str) and "__" not in field and _may_be_empty(rows, field)
    return by.desc(nulls_last=True) if has_empty else by.desc()


def _may_be_empty(rows: QuerySet[Any], field: str) -> bool:
    return field in rows.query.annotations or bool(rows.model._meta.get_field(field).null)


def _asked(request: HttpRequest) -> QueryDict:
    """Return the query of the list. For actions on a row, return the query of the page open in the browser."""
    htmx = getattr(request, "htmx", None)
    if request.method == "GET" or not htmx:
        return request.GET
    return QueryDict((htmx.current_url_abs_path or "").partition("?")[2])


def table_view(request: HttpRequest, key: str) -> TableView:
    return _TABLES[key].seen(request)


def show_list(request: AppRequest, template: str, context: dict[str, Any]) -> HttpResponse:
    """Render the list of the `TableView` in `context["table"]`, store its columns in a cookie and shorten its URL."""
    view: TableView = context["table"]
    short = _short(request.GET, view)
    is_long = short != request.GET.urlencode()
    request.GET = QueryDict(short)
    response = show(request, template, context)
    view.remember(response)
    if not wants_fragment(request):
        return response
    if context["page"].object_list or context.get("narrowed"):
        response.write(render_to_string("ui/export_links.html", {"request": request, "fragment": True}))
    if is_long:
        response["HX-Push-Url"] = f"{request.path}?{short}" if short else request.path
    return response


def _short(query: QueryDict, view: TableView) -> str:
    """Return the query string without empty fields, the default order and the default columns."""
    kept = query.copy()
    for name, values in query.lists():
        kept.setlist(name, [value for value in values if value])
    if kept.get("sort") == view.table.order:
        del kept["sort"]
    if view.is_usual:
        kept.pop("columns", None)
    return kept.urlencode()
