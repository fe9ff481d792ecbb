"""Classify links: which lead to pages, and which pages are of the same kind."""

import re
from urllib.parse import urlsplit

LINK = re.compile(r'<a\b[^>]*?\shref="([^"]*)"')
IDENTIFIER = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|(?<=/api/docs/)[a-z-]+|(?<=/help/)[\w/-]+")
NOT_PAGES = ("/static/", "/admin/", "/accounts/logout/", "/api/schema/", "/help/files/", "/llms.txt")


def kind_of(url: str) -> str:
    """Return the kind of a page: its path without identifiers, and the name of its query parameter or `several`."""
    parts = urlsplit(url)
    # Bars of a chart differ only in their times, and filters can be combined, so neither counts as a new kind of page.
    named = {pair.partition("=")[0] for pair in parts.query.split("&")} - {"from", "to", ""}
    query = next(iter(named)) if len(named) == 1 else "several" if named else ""
    return f"{path_of(url)}?{query}"


def path_of(url: str) -> str:
    """Return the path of a page, without identifiers."""
    return IDENTIFIER.sub("*", urlsplit(url).path)


def is_page(url: str) -> bool:
    """Return True if the URL is a page; False for files, the Django admin and downloads, which other tests check."""
    path = urlsplit(url).path
    return not path.startswith(NOT_PAGES) and not path.endswith("/export/") and "format=" not in urlsplit(url).query
