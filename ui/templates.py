"""Templates without their indentation, which was up to a sixth of a page."""

import re

from django.template import Origin
from django.template.loaders import app_directories, filesystem

_INDENTED = re.compile(r"\n[ \t]+")
_AS_IT_IS = re.compile(r"<(?:pre|textarea)\b")


def without_indentation(name: str, source: str) -> str:
    """The text of a template whose lines begin with what they say, unless it is no HTML or shows text as it is."""
    return source if not name.endswith(".html") or _AS_IT_IS.search(source) else _INDENTED.sub("\n", source)


class WithoutIndentation:
    """What both loaders do with the text of a template."""

    def get_contents(self, origin: Origin) -> str:
        """The text of the template, without its indentation."""
        source = super().get_contents(origin)  # type: ignore[misc]
        return without_indentation(str(origin.template_name), source)


class OwnLoader(WithoutIndentation, filesystem.Loader):
    """Our templates."""


class AppLoader(WithoutIndentation, app_directories.Loader):
    """Those of Django and its apps."""
