"""Form widgets that Django does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms


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
