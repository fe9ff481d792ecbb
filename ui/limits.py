"""The form field and serializer field of a rate limit: empty means no limit."""

from __future__ import annotations

from django import forms
from rest_framework import serializers

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
