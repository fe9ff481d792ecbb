"""Filters that name a thing: by id, slug or name, in any case; what names nothing is an error, not an empty list."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db.models import Q, QuerySet
from rest_framework import serializers

if TYPE_CHECKING:
    from ui.rest import Resource

MOST_COMPARED = 500  # Names searched for a suggestion.
MOST_NAMED = 3


class SubjectField(serializers.CharField):
    """A filter by a thing; its value is the ids of the things it means, archived ones included.

    `things` are those the person who asks may know of: nothing is told of others, not even that they exist. `names` are
    the columns that name one, compared without regard to case, and `ids` those that hold its id. `listed` are those
    whose names this person reads in lists, of which alone near ones are told; by default all `things`.
    """

    def __init__(
        self,
        noun: str,
        things: Callable[[Resource], QuerySet[Any]],
        *names: str,
        ids: tuple[str, ...] = ("pk",),
        listed: Callable[[Resource], QuerySet[Any]] | None = None,
        **options: Any,
    ) -> None:
        keys = ["id", *(name.rpartition("__")[2].replace("_", " ") for name in names)]
        described = f"{noun.capitalize()}, by {', '.join(keys[:-1])}{' or ' if names else ''}{keys[-1]}."
        super().__init__(**{"required": False, "help_text": described, **options})
        self.noun, self.things, self.names, self.ids = noun, things, names, ids
        self.listed = listed or things

    def to_internal_value(self, data: Any) -> Any:
        text = super().to_internal_value(data)
        self.run_validators(text)  # Before the database is asked, which takes no NUL.
        view = self.context["view"]
        things = self.things(view)
        if pks := list(things.filter(self._called(text)).order_by().values_list("pk", flat=True).distinct()):
            return pks
        raise serializers.ValidationError(f"There is no {self.noun} “{text}”.{self._near(self.listed(view), text)}")

    def _called(self, text: str) -> Q:
        columns = {f"{name}__iexact": text for name in self.names}
        if (pk := _uuid(text)) is not None:
            columns = dict.fromkeys(self.ids, pk)  # type: ignore[arg-type]  # Ids and names are never compared together.
        called = Q()
        for column, value in columns.items():
            called |= Q(**{column: value})
        return called if columns else Q(pk=None)

    def _near(self, things: QuerySet[Any], text: str) -> str:
        """Return suggestions as a sentence; empty if there are none."""
        rows = things.order_by().values_list(*self.names).distinct()[:MOST_COMPARED] if self.names else ()
        known = {str(name).lower(): str(name) for row in rows for name in row if name}
        word = text.lower()
        close = [name for name in sorted(known) if word in name]
        close += [name for name in get_close_matches(word, known, MOST_NAMED) if name not in close]
        near = [f"“{known[name]}”" for name in close[:MOST_NAMED]]
        return f" Did you mean {' or '.join(near)}?" if near else ""


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
