"""Templates without their indentation, which was up to a sixth of a page."""

import re

from django.template import Origin
from django.template.loaders import app_directories, filesystem

_INDENTED = re.compile(r"\n[ \t]+")
_AS_IT_IS = re.compile(r"<(?:pre|textarea)\b")


def without_indentation(name: str, source: str) -> str:
    """The text of a template whose lines begin with what they say, unless it is no HTML or shows text as it is."""
    return source if not name.endswith(".html") or _AS_IT_IS.search(source) else _INDENTED.sub("\n", source)


class OwnLoader(filesystem.Loader):
    """Our templates."""

    def get_contents(self, origin: Origin) -> str:
        """What stands in the file."""
        return without_indentation(str(origin.template_name), super().get_contents(origin))


class AppLoader(app_directories.Loader):
    """Those of Django and its apps."""

    def get_contents(self, origin: Origin) -> str:
        """What stands in the file."""
        return without_indentation(str(origin.template_name), super().get_contents(origin))
