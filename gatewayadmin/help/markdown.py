"""Renders a page of the documentation as HTML without script or style, with its relative links leading to /help/."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from django.utils.html import escape, format_html
from django.utils.safestring import SafeString
from markdown_it import MarkdownIt
from markdown_it.token import Token

from proxy.reasons import REASONS

# The only HTML that pages may use; everything else is shown as text.
_ALLOWED = re.compile(r'</?(?:b|br|details|i|kbd|summary)>|<a id="[\w-]+">|</a>')
_TAG = re.compile(r"<!--.*?-->|<[^>]*>", re.DOTALL)
_LEFT_OUT = re.compile(rf"<!--.*?-->|{_ALLOWED.pattern}", re.DOTALL)
_ANCHOR = re.compile(r"[^\w\- ]")
_COPY = (
    '<figure class="code"><figcaption><span>{}</span><button class="button" type="button" data-kind="quiet"'
    ' data-size="small" data-copy=""><span>Copy</span></button></figcaption>'
    '<pre tabindex="0"><code>{}</code></pre></figure>'
)
_DIAGRAM = "mermaid"  # Diagrams are left out: drawing them needs a script of another origin.

# Returns the URL of a file in the folder of docs/, or None if nothing is served for it.
type UrlOf = Callable[[str], str | None]

_parser = MarkdownIt("commonmark").enable("table")


class Section(NamedTuple):
    """A heading and the text below it; `prose` is the text without code blocks.

    The title of the page is a heading without an anchor.
    """

    anchor: str
    title: str
    text: str
    prose: str


def anchor_of(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return _ANCHOR.sub("", heading.lower()).replace(" ", "-")


def render(source: str, path: str, url_of: UrlOf) -> SafeString:
    """Render Markdown without its title.

    `path` is the file's path, relative to the folder that contains docs/. Relative links are resolved from `path`.
    """
    tokens = _parser.parse(source)
    body = tokens[3:] if tokens and tokens[0].tag == "h1" else tokens
    for index, token in enumerate(body):
        _change(token, body[index + 1 : index + 3], path, url_of)
    html = str(_parser.renderer.render(body, _parser.options, {}))
    return SafeString(html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>"))


def _change(token: Token, following: Sequence[Token], path: str, url_of: UrlOf) -> None:
    if token.type == "heading_open":
        token.attrSet("id", anchor_of(following[0].content))
    elif token.type == "tr_open":
        _anchor_reasons(following[-1].children or ())
    elif token.type == "fence":
        is_diagram = token.info == _DIAGRAM
        content = "" if is_diagram else format_html(_COPY, token.info, token.content.rstrip("\n"))
        token.type, token.content = "html_block", content
    elif token.type == "html_block":
        token.content = _allowed_html(token.content)
    for child in token.children or ():
        _change_inline(child, path, url_of)


def _anchor_reasons(cell: Sequence[Token]) -> None:
    """Give each reason for refusal in this table cell an id, the reason itself, so that links can point to it."""
    for child in cell:
        if child.type == "code_inline" and child.content in REASONS:
            child.attrSet("id", child.content)


def _change_inline(token: Token, path: str, url_of: UrlOf) -> None:
    if token.type == "html_inline":
        token.content = _allowed_html(token.content)
    for name in ("href", "src"):
        if name not in token.attrs:
            continue
        url = _absolute(str(token.attrs[name]), path, url_of)
        if url is None:
            del token.attrs[name]  # The link leads to a file that is not served.
        else:
            token.attrSet(name, url)
            if urlsplit(url).netloc:
                token.attrSet("rel", "noreferrer")


def _absolute(link: str, path: str, url_of: UrlOf) -> str | None:
    """Return the URL of a link on a page; None if nothing is served there."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or not parts.path:
        return link
    url = url_of(posixpath.normpath(posixpath.join(posixpath.dirname(path), parts.path)))
    return url and (f"{url}#{parts.fragment}" if parts.fragment else url)


def _allowed_html(html: str) -> str:
    """Escape all tags except the allowed ones, and remove comments."""

    def tag(found: re.Match[str]) -> str:
        if found[0].startswith("<!--"):
            return ""
        return found[0] if _ALLOWED.fullmatch(found[0]) else escape(found[0])

    return _TAG.sub(tag, html)


_HEADING = re.compile(r"^(#{1,3}) (.+)$", re.MULTILINE)
_FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_RULE = re.compile(r"^ *\|[ :|-]+\|$", re.MULTILINE)
_ROW = re.compile(r"^ *\|(.*)\|$", re.MULTILINE)
_CELL = re.compile(r"(?<!\\)\|")
_EMPHASIS = re.compile(r"\*(\w[^*]*)\*")


def plain(markdown: str) -> str:
    """Return the text of Markdown without allowed HTML tags, comments, link targets and formatting characters.

    The cells of a table row become a sentence.
    """
    rows = _ROW.sub(_sentence, _RULE.sub("", _LINK.sub(r"\1", _LEFT_OUT.sub("", markdown))))
    text = rows.replace("\\|", "|").replace("**", "").replace("`", "")
    return " ".join(_EMPHASIS.sub(r"\1", text).split())


def _sentence(row: re.Match[str]) -> str:
    """Return the cells of a table row as one sentence: `first: second.`"""
    cells = [cell.strip() for cell in _CELL.split(row[1])]
    return f"{': '.join(filter(None, cells)).removesuffix('.')}."


def sections_of(source: str) -> list[Section]:
    """Return the sections of a page. `source`, the text of the page, must begin with the page's title."""
    # Code is blanked out first: a comment in code looks like a heading.
    masked = _FENCED.sub(lambda found: " " * len(found[0]), source)
    heads = list(_HEADING.finditer(masked))
    ends = [head.start() for head in heads[1:]] + [len(source)]
    return [
        Section(
            "" if head[1] == "#" else anchor_of(head[2]),
            plain(head[2]),
            plain(source[head.end() : end]),
            plain(masked[head.end() : end]),
        )
        for head, end in zip(heads, ends, strict=True)
    ]
