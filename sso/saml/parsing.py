"""XML that strangers send: parsed without document types, entities, comments and instructions. Needs lxml."""

from __future__ import annotations

import re
from typing import Any

from lxml import etree

type Element = Any  # lxml publishes no types.

ASSERTION = "urn:oasis:names:tc:SAML:2.0:assertion"
PROTOCOL = "urn:oasis:names:tc:SAML:2.0:protocol"
METADATA = "urn:oasis:names:tc:SAML:2.0:metadata"
SIGNATURE = "http://www.w3.org/2000/09/xmldsig#"
DEEPEST = 60
MOST_PREFIXES = 60  # Whoever canonicalises a document looks at all of them for each of its elements.

_declaration = re.compile(r"\s*<\?xml\s[^<>]*\?>")
_prefix = re.compile(r"xmlns:([^\s=]+)")
_comment = re.compile(r"<!--.*?-->", re.DOTALL)


class Malformed(Exception):
    """The document is not one to be read; the message says why."""


def parse(document: bytes, *, comments: bool = False) -> Element:
    """The root of this document. Raises Malformed.

    What a document type could do (entities, files, defaults) is refused before anything is parsed. With `comments`
    they are left out, as metadata that people edit have them; a response that has any is refused, since a comment
    inside of a name has been read as its end.
    """
    try:
        text = document.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Malformed("It is not written in UTF-8.") from None
    text = _declaration.sub("", text, count=1) if _declaration.match(text) else text
    if comments:
        text = _comment.sub("", text)
    if "<!" in text or "<?" in text:
        raise Malformed("It has a document type, a comment or an instruction in it.")
    if len({*_prefix.findall(text)}) > MOST_PREFIXES:
        raise Malformed(f"It has more than {MOST_PREFIXES} prefixes of namespaces.")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(text.encode(), parser)
    except (etree.LxmlError, ValueError):
        raise Malformed("It is no XML.") from None
    if _depth(root) > DEEPEST:
        raise Malformed("It is nested too deep.")
    return root


def _depth(root: Element) -> int:
    """How deep it is nested, as far as that matters; without recursion."""
    level, depth = [root], 0
    while level and depth <= DEEPEST:
        level, depth = [child for element in level for child in element], depth + 1
    return depth


def tag(namespace: str, name: str) -> str:
    """The name of an element, as lxml has it."""
    return f"{{{namespace}}}{name}"


def text_of(element: Element | None) -> str:
    """The text in it, all of it, without blanks around; empty without an element."""
    return "".join(element.itertext()).strip() if element is not None else ""
