"""Files of lists: what the filters show, all columns, in the list's order; recorded, limited, and without secrets."""

import html
import re
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from auditlog.actions import Action
from auditlog.models import Event
from tests.exported import rows_of
from tests.house.doors import ALL, Site, doors
from ui.tables import Table

NEEDED = {
    *(
        "api-keys",
        "catalogue",
        "connections",
        "gateways",
        "grants",
        "hosts",
        "hosts-of-gateway",
        "identities",
        "of-gateway",
    ),
    *("of-host", "people", "provisioning", "roles", "servers", "sinks", "teams", "tokens", "tool-sets"),
}
NOW = timezone.now()


def text_of(client: Client, path: str) -> str:
    answer = client.get(path)
    assert (answer.status_code, answer["Cache-Control"]) == (200, "no-store"), (path, answer)
    return "".join(piece.decode() for piece in answer.streaming_content)  # type: ignore[attr-defined]


def file(client: Client, path: str, kind: str = "jsonl") -> list[dict[str, Any]]:
    return rows_of(text_of(client, f"{path}{'&' if '?' in path else '?'}format={kind}"))


@pytest.mark.django_db
def test_each_list_is_a_file_with_all_its_columns_and_no_secret() -> None:
    """Walks all pages, so a new list is checked without an entry here."""
    pages = [door for door in doors() if door.method == "GET"]
    site, found = Site(pages), set()
    client = site.holding(ALL)
    for door in pages:
        page = site.knock(door, client).content.decode() if not door.path.endswith("export/") else ""
        if 'id="files"' not in page:
            continue
        links = [html.unescape(link) for link in re.findall(r'href="([^"]*format=(?:csv|jsonl)[^"]*)"', page)]
        assert len(links) == 2, door
        texts = [text_of(client, link) for link in links]
        ids = [[row["id"] for row in rows_of(text)] for text in texts]
        assert ids[0] == ids[1], door
        assert not set(re.findall(r"digest|ciphertext|sealed|password|payload", texts[0].splitlines()[0])), door
        event = Event.objects.filter(action=Action.LIST_EXPORTED).latest("pk")
        found.add(event.changes["list"][1])
    named = {table.key for table in tables() if table.caption in found}
    assert named >= NEEDED


def tables() -> list[Table]:
    from ui.tables import _TABLES

    return [*_TABLES.values()]
