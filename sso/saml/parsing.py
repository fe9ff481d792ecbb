"""Parse XML from untrusted sources: no document types, entities, comments or processing instructions. Needs lxml."""

from __future__ import annotations

import re
from typing import Any

from lxml import etree

type Element = Any  # lxml publishes no types.

ASSERTION = "urn:oasis:names:tc:SAML:2.0:assertion"
PROTOCOL = "urn:oasis:names:tc:SAML:2.0:protocol"
METADATA = "urn:oasis:names:tc:SAML:2.0:metadata"
SIGNATURE = "http://www.w3.org/2000/09/xmldsig#"
# Far more than a provider's document has. Verifying a signature canonicalises what it covers, which costs elements
# times namespaces in scope, and the square of the attributes of an element.
DEEPEST = 60
MOST_ELEMENTS = 5000
MOST_ATTRIBUTES = 20  # Per element, without namespace declarations.
MOST_NAMESPACES = 60  # In scope of an element; redeclarations count again.

_declaration = re.compile(r"\s*<\?xml\s[^<>]*\?>")


class MalformedXml(Exception):
    """The document cannot be parsed safely; the message says why."""


def parse_xml(document: bytes, *, comments: bool = False) -> Element:
    """Return the root element of `document`. Raises MalformedXml.

    Whatever a document type could do (entities, files, defaults) is refused before parsing. `comments` removes
    comments, which edited metadata contain. Responses with comments are refused, because a comment inside a name has
    been parsed as its end by some implementations.
    """
    try:
        text = document.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise MalformedXml("It is not written in UTF-8.") from None
    if "\0" in text:  # UTF-16 or UTF-32 that decodes as UTF-8.
        raise MalformedXml("It is not written in UTF-8.")
    text = _declaration.sub("", text, count=1) if _declaration.match(text) else text
    forbidden = ("<!DOCTYPE", "<![", "<?") if comments else ("<!", "<?")
    if any(each in text for each in forbidden):
        raise MalformedXml("It has a document type, a comment or an instruction in it.")
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=comments,
        encoding="utf-8",  # Do not detect the encoding.
    )
    try:
        root = etree.fromstring(text.encode(), parser)
    except (etree.LxmlError, ValueError):
        raise MalformedXml("It is no XML.") from None
    _must_be_small(root)
    return root


def _must_be_small(root: Element) -> None:
    """Raise MalformedXml unless the tree consists of elements only and has the size of a provider's document."""
    if root.getroottree().docinfo.doctype:
        raise MalformedXml("It has a document type.")
    for count, node in enumerate(root.iter(), 1):
        if not isinstance(node.tag, str):
            raise MalformedXml("It has more in it than elements.")
        if count > MOST_ELEMENTS or len(node.attrib) > MOST_ATTRIBUTES:
            raise MalformedXml(f"It has over {MOST_ELEMENTS} elements, or one with over {MOST_ATTRIBUTES} attributes.")
    _must_be_shallow(root)


def _must_be_shallow(root: Element) -> None:
    depth = declared = 0
    for event, _ in etree.iterwalk(root, events=("start", "end", "start-ns", "end-ns")):
        depth += {"start": 1, "end": -1}.get(event, 0)
        declared += {"start-ns": 1, "end-ns": -1}.get(event, 0)
        if depth > DEEPEST or declared > MOST_NAMESPACES:
            raise MalformedXml(
                f"It is nested too deep, or over {MOST_NAMESPACES} namespaces are declared around a part."
            )


def tag(namespace: str, name: str) -> str:
    """Return a qualified name as lxml writes it."""
    return f"{{{namespace}}}{name}"


def element_text(element: Element | None) -> str:
    """Return the stripped text of `element` and its descendants; empty for None."""
    return "".join(element.itertext()).strip() if element is not None else ""
