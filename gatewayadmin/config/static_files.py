"""Cache headers of static files."""

import re
from wsgiref.headers import Headers

IS_FONT = re.compile(r"\.[0-9a-f]{12}\.woff2$")  # The name contains a hash of the content.
FOREVER = "public, max-age=31536000, immutable"


def keep_fonts(headers: Headers, path: str, url: str) -> None:
    """Let browsers cache fonts for a year.

    Pages do not wait for fonts, so a browser that had to revalidate one would show the fallback font.
    """
    if IS_FONT.search(path):
        headers["Cache-Control"] = FOREVER
