"""Pages and documents use one word for each thing: agent, credential, person, disabled."""

import re
from pathlib import Path

from tests.docs.pages import PAGES, ROOT, prose

OLD = re.compile(
    r"\b(?:identit(?:y|ies)|hosts?|users?|whoever|(?:switch|turn)(?:ed|es|s|ing)?(?: it| them)? (?:on|off))\b|"
    r"\b(?:is|are|was|were|stays?) off\b|\(off\)"
)
# Labels of pages that people, tutorials and screenshots refer to.
LABELS = (
    *("My identities", "Shared identity", "Per-user identity", "bring your own identity", "Bring your identity"),
    *("Add a new identity", "Add a shared identity", "Identity scheme", "Identity management", "Identities"),
    *("Disable this host", "Disable and enable hosts", "oken-based host", "acting as this user"),
    *("host is CI bot", "Payload recording is off"),
)
# The same words for other things: the machine of an address, an account of a machine, the person at an organisation.
OTHER_THINGS = (
    *(r"[Ii]dentity providers?", "host names?", "(?:bare|exact|internal|server's) host", "bound to (?:its|that) host"),
    *("host and port", r"as user \d+", "[Uu]sers and groups"),
    *("identity schemes", r"\| (?:host; an agent is a|identity \|)", r"call a stored credential an \*identity\*"),
)
FIXED = re.compile("|".join((*map(re.escape, LABELS), *OTHER_THINGS)))
COMMENT, TAG = re.compile(r"{#.*?#}", re.DOTALL), re.compile(r"{%(.*?)%}", re.DOTALL)
MARKUP = re.compile(r'{{.*?}}|<[^>]*>|\b[\w-]+="[^"]*"', re.DOTALL)
SPOKEN = re.compile(r'\b(?:aria-label|title|placeholder|alt)="([^"{]*)"')
LITERAL = re.compile(r'"([^"]*)"')
CODE = re.compile(r"`[^`]*`|\]\([^)]*\)|<[^>]+>|https?://\S+")

TEMPLATES = [path for path in (ROOT / "templates").rglob("*.*") if path.suffix in {".html", ".txt"}]
# These pages name parts of the code.
OF_THE_CODE = {"CONTRIBUTING.md", "architecture.md", "private-interfaces.md"}
DOCUMENTS = [page for page in PAGES if "decisions" not in page.parts and page.name not in OF_THE_CODE]


def shown(template: Path) -> str:
    """Return the texts of a template that people see or hear."""
    source = COMMENT.sub("", template.read_text())
    literals = [text for tag in TAG.findall(source) for text in LITERAL.findall(tag) if re.search("[A-Z ]", text)]
    return " | ".join([MARKUP.sub(" ", TAG.sub(" ", source)), *SPOKEN.findall(source), *literals])


def old_words(text: str) -> list[str]:
    return OLD.findall(FIXED.sub(" ", " ".join(text.split())))


def test_templates_use_the_words_of_today() -> None:
    found = {str(template.relative_to(ROOT)): old_words(shown(template)) for template in TEMPLATES}

    assert {name: words for name, words in found.items() if words} == {}


def test_documents_use_the_words_of_today() -> None:
    found = {str(page.relative_to(ROOT)): old_words(CODE.sub(" ", prose(page))) for page in DOCUMENTS}

    assert {name: words for name, words in found.items() if words} == {}
