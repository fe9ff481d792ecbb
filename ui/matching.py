"""Case-insensitive text search."""

from __future__ import annotations

from django.db.models import Q
from django.db.models.functions import Collate, Upper
from django.db.models.lookups import Contains


def holds(field: str, words: str) -> Q:
    """Match rows whose field contains these words, ignoring case.

    For ASCII words the collation "C" is used: case rules of the C library take most of the time otherwise.
    """
    if words.isascii():
        return Q(Contains(Upper(Collate(field, "C")), words.upper()))
    return Q(**{f"{field}__icontains": words})
