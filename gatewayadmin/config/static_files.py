"""How long browsers keep a static file without asking for it again."""

import re
from wsgiref.headers import Headers

IS_FONT = re.compile(r"\.[0-9a-f]{12}\.woff2$")  # Named by its bytes.
FOREVER = "public, max-age=31536000, immutable"


def keep_fonts(headers: Headers, path: str, url: str) -> None:
    """Let a font be kept for a year.

    A page does not wait for its font, so that nothing moves once it is there: who had to ask again would see another.
    """
    if IS_FONT.search(path):
        headers["Cache-Control"] = FOREVER
