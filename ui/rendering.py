"""The template engine of all pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.template import TemplateDoesNotExist
from django.template.backends.django import DjangoTemplates, Template, reraise
from django.template.context import make_context

if TYPE_CHECKING:
    from django.http import HttpRequest
    from django.utils.safestring import SafeString


class Templates(DjangoTemplates):
    """Django's templates, with contexts that are freed when the page is rendered."""

    def get_template(self, template_name: str) -> Template:
        return FreedTemplate(super().get_template(template_name).template, self)


class FreedTemplate(Template):
    """A template that empties its context after rendering."""

    def render(self, context: dict[str, Any] | None = None, request: HttpRequest | None = None) -> SafeString:
        layers = make_context(context, request, autoescape=self.backend.engine.autoescape)
        try:
            return self.template.render(layers)
        except TemplateDoesNotExist as error:
            reraise(error, self.backend)
        finally:
            # A context and its layers refer to each other. So the rows of a page would stay in memory until a garbage
            # collection, which stops the calls of this worker for up to 50 ms.
            layers.dicts.clear()
