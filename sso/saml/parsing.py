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
# What a provider's document stays far under. Whoever verifies a signature writes what it covers out anew, at a cost of
# its elements times the namespaces declared around each of them, and of the square of the attributes of one element.
DEEPEST = 60
MOST_ELEMENTS = 5000
MOST_ATTRIBUTES = 20  # Of one element, without declarations of namespaces.
MOST_NAMESPACES = 60  # Declared around one element; one that is declared anew further inside counts again.

_declaration = re.compile(r"\s*<\?xml\s[^<>]*\?>")


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
    if "\0" in text:  # Every second letter of it, or three of four, where another encoding passes for UTF-8.
        raise Malformed("It is not written in UTF-8.")
    text = _declaration.sub("", text, count=1) if _declaration.match(text) else text
    forbidden = ("<!DOCTYPE", "<![", "<?") if comments else ("<!", "<?")
    if any(each in text for each in forbidden):
        raise Malformed("It has a document type, a comment or an instruction in it.")
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=comments,
        encoding="utf-8",  # Whatever its first bytes look like.
    )
    try:
        root = etree.fromstring(text.encode(), parser)
    except (etree.LxmlError, ValueError):
        raise Malformed("It is no XML.") from None
    _must_be_small(root)
    return root


def _must_be_small(root: Element) -> None:
    """Raise Malformed unless that is a tree of elements and of nothing else, in the size of a provider's."""
    if root.getroottree().docinfo.doctype:
        raise Malformed("It has a document type.")
    for count, node in enumerate(root.iter(), 1):
        if not isinstance(node.tag, str):
            raise Malformed("It has more in it than elements.")
        if count > MOST_ELEMENTS or len(node.attrib) > MOST_ATTRIBUTES:
            raise Malformed(f"It has over {MOST_ELEMENTS} elements, or one with over {MOST_ATTRIBUTES} attributes.")
    _must_be_shallow(root)


def _must_be_shallow(root: Element) -> None:
    depth = declared = 0
    for event, _ in etree.iterwalk(root, events=("start", "end", "start-ns", "end-ns")):
        depth += {"start": 1, "end": -1}.get(event, 0)
        declared += {"start-ns": 1, "end-ns": -1}.get(event, 0)
        if depth > DEEPEST or declared > MOST_NAMESPACES:
            raise Malformed(f"It is nested too deep, or over {MOST_NAMESPACES} namespaces are declared around a part.")


def tag(namespace: str, name: str) -> str:
    """The name of an element, as lxml has it."""
    return f"{{{namespace}}}{name}"


def text_of(element: Element | None) -> str:
    """The text in it, all of it, without blanks around; empty without an element."""
    return "".join(element.itertext()).strip() if element is not None else ""
