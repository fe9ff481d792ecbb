"""Every document is linked, and every link works."""

from tests.docs.pages import PAGES, ROOT, anchors, links


def test_every_document_is_linked_to_and_every_link_leads_somewhere() -> None:
    linked, broken = set(), []
    for document in PAGES:
        for link in links(document):
            if link.startswith(("http://", "https://")):
                continue
            path, _, anchor = link.partition("#")
            target = (document.parent / path).resolve() if path else document
            linked.add(target)
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append((str(document.relative_to(ROOT)), link))

    assert broken == []
    assert [page for page in PAGES if page.name != "README.md" and page not in linked] == []
