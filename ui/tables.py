"""Lists as tables: which columns there are, how wide they are, by which one may sort, and what the reader chose.

A `Table` describes a list once. What a request asks of it is a `View`: the order (`?sort=name`, `?sort=-name`) and the
columns (`?columns=type&columns=users`), which a cookie remembers. Templates take the head from `ui/table_head.html`,
each cell from `{% cell "name" %}`, and both choices from `ui/columns.html` inside the form of the filters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from django.db.models import F, Model, QuerySet
from django.db.models.expressions import Expression, OrderBy
from django.http import HttpRequest, HttpResponse, QueryDict

from ui.pages import AppRequest, show, wants_fragment

YEAR = 365 * 86_400
WEEK = "In the last seven days"


# Each stands for itself: cells are looked up by it, and to hash its fields takes long.
@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """A column of a list.

    `width` is in rem, None for the one that takes what the others leave. `priority` says when it steps back from a
    narrow list: 4 first, then 3 and 2; 0 never. `kind` is "number", "moment" for one that a phone says with its
    label, "acts" for what stays at the end, "switch" for a control before that, "pick" for the boxes that pick rows.
    `sorts` are the fields or expressions to sort by, none where that would take too long: they have an index, or the
    list cannot be long. `on_phone` keeps it in the second line of a row there. `is_extra` shows it to who chose it
    only; `stays` to everybody. Its label is not `said` to the eye where the controls below speak for themselves.
    `needs` are the capabilities of which it takes one to be shown.
    """

    name: str
    label: str
    width: float | None = None
    priority: int = 0
    kind: str = ""
    sorts: tuple[str | Expression, ...] = ()
    most_first: bool = False
    on_phone: bool = False
    is_extra: bool = False
    stays: bool = False
    hint: str = ""
    said: bool = True
    needs: str | tuple[str, ...] = ()

    def is_for(self, user: Any) -> bool:
        """Whether the capabilities of this person show it to them."""
        return any(map(user.has_perm, (self.needs,) if isinstance(self.needs, str) else self.needs))

    @property
    def chosen_by_nobody(self) -> bool:
        """Whether it is there, or not, without being asked."""
        return self.stays or self.width is None or self.kind in ("acts", "pick", "switch")

    @property
    def width_text(self) -> str:
        """The width as the style sheet names it."""
        return f"{self.width:g}" if self.width else ""


class Head(NamedTuple):
    """The head of a column as it is shown: by which `sort` its link asks for the other order, and how it is now."""

    column: Column
    to: str
    sorted: str


class Choice(NamedTuple):
    """Something to choose in the menu of a list."""

    value: str
    label: str
    chosen: bool


_TABLES: dict[str, Table] = {}


@dataclass(frozen=True, slots=True)
class Table:
    """A list: its name in cookies, what it lists, its columns, and the order of who has chosen none.

    Without `order` the rows stay as they are asked for.
    """

    key: str
    caption: str
    columns: tuple[Column, ...]
    order: str = ""
    fit: str = "fixed"

    def __post_init__(self) -> None:
        _TABLES[self.key] = self

    def seen(self, request: HttpRequest) -> View:
        """What the request asks for."""
        user = getattr(request, "user", None)
        columns = tuple(one for one in self.columns if not one.needs or (user and one.is_for(user)))
        asked = _asked(request)
        sort = asked.get("sort", "")
        known = {column.name for column in columns if column.sorts}
        return View(
            self,
            columns,
            sort if sort.removeprefix("-") in known else self.order,
            self._chosen(request, asked, columns),
            "columns" in asked,
        )

    def _chosen(self, request: HttpRequest, asked: QueryDict, columns: tuple[Column, ...]) -> frozenset[str]:
        """The names of the columns that are shown: asked for, else remembered, else the usual ones."""
        names = [column.name for column in columns if not column.chosen_by_nobody]
        usual = frozenset(column.name for column in columns if not column.is_extra and column.name in names)
        if "columns" in asked:
            wanted = [name for name in asked.getlist("columns") if name]
            return frozenset(name for name in names if name in wanted) if wanted else usual
        kept = request.COOKIES.get(self.cookie)
        return frozenset(name for name in names if name in kept.split(".")) if kept else usual

    @property
    def cookie(self) -> str:
        """The name of the cookie that remembers the columns."""
        return f"columns-{self.key}"


@dataclass(frozen=True, slots=True)
class View:
    """A table as one request asks for it."""

    table: Table
    columns: tuple[Column, ...]
    sort: str
    chosen: frozenset[str]
    is_asked: bool

    def shows(self, name: str) -> bool:
        """Whether this column is there."""
        column = self.column(name)
        return column is not None and (column.chosen_by_nobody or name in self.chosen)

    def column(self, name: str) -> Column | None:
        """The column of this name, if the reader may see it."""
        return next((column for column in self.columns if column.name == name), None)

    @property
    def picks(self) -> bool:
        """Whether rows can be picked."""
        return any(column.kind == "pick" for column in self.columns)

    @property
    def shown(self) -> list[Column]:
        """The columns that are there, in order."""
        return [column for column in self.columns if self.shows(column.name)]

    @property
    def heads(self) -> list[Head]:
        """The head of each column that is there; a sorted one leads to the other way round."""
        return [self._head(column) for column in self.shown]

    def _head(self, column: Column) -> Head:
        if not column.sorts:
            return Head(column, "", "")
        first, other = (f"-{column.name}", column.name) if column.most_first else (column.name, f"-{column.name}")
        by = {column.name: "ascending", f"-{column.name}": "descending"}.get(self.sort, "")
        return Head(column, other if self.sort == first else first, by)

    @property
    def fit(self) -> str:
        """`scroll` for who chose more columns than there usually are, so that each keeps its width."""
        more = any(column.is_extra and column.name in self.chosen for column in self.columns)
        return "scroll" if more and self.table.fit == "fixed" else self.table.fit

    @property
    def has_choice(self) -> bool:
        """Whether there is anything to choose: a column to leave out, or another order."""
        return bool(self.choices) or len(self.orders) > 1

    @property
    def choices(self) -> list[Choice]:
        """The columns to choose from."""
        offered = (column for column in self.columns if not column.chosen_by_nobody)
        return [Choice(column.name, column.label, column.name in self.chosen) for column in offered]

    @property
    def orders(self) -> list[Choice]:
        """The orders to choose from; of the one that is set it is the way it is set."""
        found = [] if self.table.order else [Choice("", "Usual order", not self.sort)]
        for head in (self._head(column) for column in self.columns if column.sorts):
            name = head.column.name
            value = self.sort if head.sorted else head.to
            found.append(Choice(value, head.column.label or name.capitalize(), bool(head.sorted)))
        return found

    @property
    def is_usual(self) -> bool:
        """Whether the columns are those of who has chosen none."""
        usual = {column.name for column in self.columns if not column.is_extra and not column.chosen_by_nobody}
        return self.chosen == usual

    def ordered[M: Model](self, rows: QuerySet[M]) -> QuerySet[M]:
        """The rows in the order asked for; what is empty comes last when the most is first."""
        column = self.column(self.sort.removeprefix("-"))
        if column is None:
            return rows
        return rows.order_by(*(_by(rows, field, self.sort.startswith("-")) for field in column.sorts), "pk")

    def remember(self, response: HttpResponse) -> None:
        """Keep the columns that were asked for, or forget them when they are the usual ones."""
        if not self.is_asked:
            return
        if self.is_usual:
            response.delete_cookie(self.table.cookie, samesite="Lax")
        else:
            names = ".".join(column.name for column in self.columns if column.name in self.chosen)
            response.set_cookie(self.table.cookie, names, max_age=YEAR, httponly=True, samesite="Lax")


def _by(rows: QuerySet[Any], field: str | Expression, most_first: bool) -> OrderBy:
    """How the database is asked; only of what may be empty is it told where to, or it would leave its index aside."""
    by: F | Expression = F(field) if isinstance(field, str) else field
    if not most_first:
        return by.asc()
    has_empty = isinstance(field, str) and "__" not in field and rows.model._meta.get_field(field).null
    return by.desc(nulls_last=True) if has_empty else by.desc()


def _asked(request: HttpRequest) -> QueryDict:
    """The query of the list: of the page that is open when an act on a row is answered."""
    htmx = getattr(request, "htmx", None)
    if request.method == "GET" or not htmx:
        return request.GET
    return QueryDict((htmx.current_url_abs_path or "").partition("?")[2])


def seen(request: HttpRequest, key: str) -> View:
    """The list of this name as the request asks for it, worked out once."""
    known: dict[str, View] = request.__dict__.setdefault("lists", {})
    if key not in known:
        known[key] = _TABLES[key].seen(request)
    return known[key]


def show_list(request: AppRequest, template: str, context: dict[str, Any]) -> HttpResponse:
    """As `show`, of a list whose `View` is `context["table"]`: its columns are kept, and the address stays short."""
    view: View = context["table"]
    short = _short(request.GET, view)
    is_long = short != request.GET.urlencode()
    request.GET = QueryDict(short)
    response = show(request, template, context)
    view.remember(response)
    if is_long and wants_fragment(request):
        response["HX-Push-Url"] = f"{request.path}?{short}" if short else request.path
    return response


def _short(query: QueryDict, view: View) -> str:
    """The query without what says nothing: empty fields, the usual order, the usual columns."""
    kept = query.copy()
    for name, values in query.lists():
        kept.setlist(name, [value for value in values if value])
    if kept.get("sort") == view.table.order:
        del kept["sort"]
    if view.is_usual:
        kept.pop("columns", None)
    return kept.urlencode()
