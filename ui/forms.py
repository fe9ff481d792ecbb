"""Parts of forms: radio buttons with explanations, fields for rate limits, the filters of lists, and text search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

from django import forms
from django.db.models import Q, Value
from django.db.models.functions import Collate, Lower, Upper
from django.db.models.lookups import Contains, Exact
from django.utils import timezone
from rest_framework import serializers

# Form widgets that Django does not have.


class ExplainedChoice(forms.RadioSelect):
    """Radio buttons, each with an explanation."""

    def __init__(self, sentences: Mapping[Any, str]) -> None:
        super().__init__()
        self.sentences = {str(value): sentence for value, sentence in sentences.items()}

    def create_option(self, name: str, value: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """Return one button; its attribute `title` is the sentence that ui/field.html shows next to it."""
        option = super().create_option(name, value, *args, **options)
        option["attrs"] |= {"title": self.sentences[str(value)], "data-explained": True}
        return option


# The form field and serializer field of a rate limit: empty means no limit.

MOST_CALLS = 1_000_000


class LimitField(forms.IntegerField):
    def __init__(self, label: str = "Calls a minute", help_text: str = "Empty: no limit.") -> None:
        super().__init__(label=label, required=False, min_value=1, max_value=MOST_CALLS, help_text=help_text)


class Limit(serializers.IntegerField):
    def __init__(self, **options: object) -> None:
        told = {"help_text": "Maximum calls per minute; null means no limit."} | options
        super().__init__(min_value=1, max_value=MOST_CALLS, allow_null=True, **told)  # type: ignore[arg-type]


# The filters of lists.


@dataclass(frozen=True, slots=True)
class FilterMenu:
    """A filter shown as a menu of inputs of type `kind`: "checkbox" or "radio". Options are (value, label, chosen)."""

    name: str
    kind: str
    label: str
    legend: str
    options: list[tuple[str, str, bool]]

    @property
    def is_set(self) -> bool:
        return any(chosen and value for value, _, chosen in self.options)


class ListFilter(forms.Form):
    """The filters of a list; invalid values are ignored.

    Fields with several values, and the fields named in `radios`, are shown as menus.
    """

    radios: ClassVar[tuple[str, ...]] = ()
    q = forms.CharField(required=False)

    @property
    def values(self) -> dict[str, Any]:
        self.is_valid()
        return self.cleaned_data

    @property
    def is_narrow(self) -> bool:
        return any(self.values.values())

    @property
    def takes_long(self) -> bool:
        """True if `narrow` is slow with these values.

        If so, `list_page` gets the count and the page from one query. Otherwise, it runs a query for each.
        """
        return False

    @property
    def facets(self) -> list[FilterMenu]:
        """The menus that have more than one option."""
        several = (forms.MultipleChoiceField, forms.ModelMultipleChoiceField)
        menus = (bound for bound in self if isinstance(bound.field, several) or bound.name in self.radios)
        return [facet for facet in map(self._facet, menus) if len(facet.options) > 1]

    def _facet(self, bound: forms.BoundField) -> FilterMenu:
        value, kind = self.values.get(bound.name) or "", "radio" if bound.name in self.radios else "checkbox"
        chosen = {value} if kind == "radio" else {str(getattr(one, "pk", one)) for one in value}
        choices = [("", "All")] if kind == "radio" else []
        choices += [(str(one), str(label)) for one, label in bound.field.choices]  # type: ignore[attr-defined]
        options = [(one, label, one in chosen) for one, label in choices]
        return FilterMenu(bound.name, kind, str(bound.label), f"{bound.label}{bound.help_text}", options)

    def narrow(self, rows: Any) -> Any:
        raise NotImplementedError


# Filters by the last use.

IDLE_DAYS = ("30", "60", "90")


def unused_for(days: int, used: str, created: str) -> Q:
    """Match rows that were not used for `days` days. For rows never used, count the days from their creation."""
    limit = timezone.now() - timedelta(days=days)
    return Q(**{f"{used}__lt": limit}) | Q(**{used: None, f"{created}__lt": limit})


# Case-insensitive text search.


def holds(field: str, words: str) -> Q:
    """Match rows whose `field` contains the text `words`, ignoring case.

    ASCII text is compared in the collation "C", because libc changes case slowly in other collations.
    """
    if words.isascii():
        return Q(Contains(Upper(Collate(field, "C")), words.upper()))
    return Q(**{f"{field}__icontains": words})


def named(name: str) -> Q:
    """Match rows with this name, ignoring case and the white space around `name`.

    Names are compared in lower case, as in the constraints that make names unique. `iexact` would compare in upper
    case, where the Kelvin sign and “k” differ. In lower case they are equal.
    """
    return Q(Exact(Lower("name"), Lower(Value(name.strip()))))
