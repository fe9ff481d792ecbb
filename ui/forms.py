"""Parts of forms: widgets, limits of texts, and matching of words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms
from django.db.models import Q
from django.db.models.functions import Collate, Upper
from django.db.models.lookups import Contains
from rest_framework import serializers

# Form widgets that Django does not have.


class ExplainedChoice(forms.RadioSelect):
    """Radio buttons with an explanation each."""

    def __init__(self, sentences: Mapping[Any, str]) -> None:
        super().__init__()
        self.sentences = {str(value): sentence for value, sentence in sentences.items()}

    def create_option(self, name: str, value: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """One button; the sentence is in its attributes as `title`, which ui/field.html shows beside it."""
        option = super().create_option(name, value, *args, **options)
        option["attrs"] |= {"title": self.sentences[str(value)], "data-explained": True}
        return option


# The form field and serializer field of a rate limit: empty means no limit.

MOST_CALLS = 1_000_000


class LimitField(forms.IntegerField):
    """On a page."""

    def __init__(self, label: str = "Calls a minute", help_text: str = "Empty: no limit.") -> None:
        super().__init__(label=label, required=False, min_value=1, max_value=MOST_CALLS, help_text=help_text)


class Limit(serializers.IntegerField):
    """In the API."""

    def __init__(self, **options: object) -> None:
        told = {"help_text": "Maximum calls per minute; null means no limit."} | options
        super().__init__(min_value=1, max_value=MOST_CALLS, allow_null=True, **told)  # type: ignore[arg-type]


# Case-insensitive text search.


def holds(field: str, words: str) -> Q:
    """Match rows whose field contains these words, ignoring case.

    For ASCII words the collation "C" is used: case rules of the C library take most of the time otherwise.
    """
    if words.isascii():
        return Q(Contains(Upper(Collate(field, "C")), words.upper()))
    return Q(**{f"{field}__icontains": words})
