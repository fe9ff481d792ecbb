"""Texts that hold some words, whatever their case."""

from __future__ import annotations

from django.db.models import Q
from django.db.models.functions import Collate, Upper
from django.db.models.lookups import Contains


def holds(field: str, words: str) -> Q:
    """Rows whose field holds these words.

    Most words are of ASCII letters. To look for those PostgreSQL need not know the case of all others, which takes
    it most of the time where the rules of the machine's C library say so.
    """
    if words.isascii():
        return Q(Contains(Upper(Collate(field, "C")), words.upper()))
    return Q(**{f"{field}__icontains": words})
