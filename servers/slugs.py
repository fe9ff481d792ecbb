"""Slugs of servers and gateways: chosen once, never changed, never given out twice."""

from __future__ import annotations

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.db import models
from django.utils.text import slugify

from servers.models import slug_validator

RESERVED = frozenset({"add", "find", "slug"})  # Words of our own addresses.


def suggest(name: str, given_out: models.QuerySet[Any], longest: int) -> str:
    """A free slug made from `name`, empty when the name has no letter to make one of."""
    base = slugify(name).replace("_", "-")[:longest].strip("-")
    if not base:
        return ""
    given = set(given_out.filter(slug__startswith=base[: longest - 4]).values_list("slug", flat=True)) | RESERVED
    candidates = [base, *(f"{base[: longest - len(str(n)) - 1].rstrip('-')}-{n}" for n in range(2, 1000))]
    return next(slug for slug in candidates if slug not in given)


class SlugField(forms.CharField):
    """A slug, left empty to have one made from the name."""

    def __init__(self, given_out: models.QuerySet[Any], **options: Any) -> None:
        super().__init__(required=False, validators=[slug_validator], **options)
        self.given_out = given_out

    def clean(self, value: Any) -> Any:
        slug = super().clean(value)
        if slug in RESERVED:
            raise ValidationError(f"“{slug}” is a word of this site's own addresses. Choose another.")
        if slug and self.given_out.all().filter(slug=slug).exists():
            raise ValidationError("This slug has been given out before. Choose another.")
        return slug

    def made_from(self, name: str) -> str:
        """What an empty slug becomes. Raises ValidationError when nothing can be made of the name."""
        made = suggest(name, self.given_out.all(), self.max_length or 40)
        if not made:
            raise ValidationError("No slug can be made of this name. Give one.")
        return made
