"""Search the data, logs and pages of a running workspace for every secret that its tests used.

Tests call `note` for secrets without a recognisable format. Tokens of every kind are recognised by their format and
checksum, whichever code created them.
"""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg
from psycopg import sql

from tests.workspace import PASSWORD, Serve
from wire import token_text

TOKEN = re.compile(r"gw[a-z]_[0-9A-Za-z]{44}")

# These tables store session keys in plain text: Django's, and allauth's list of a person's browsers.
HOLD_SESSIONS = {"django_session", "usersessions_usersession"}

# Runs in a separate process on the server's database: signing in to the running server is rate-limited.
PAGES = """
import re
from django.test import Client
from django.urls import resolve
from accounts.models import User

client = Client(headers={"Host": "localhost"})
client.force_login(User.objects.get(email="ana@example.com"))
todo = ["/", "/hosts/", "/gateways/", "/servers/", "/logs/", "/people/", "/settings/api-tokens?owner=all&status=all",
    "/settings/mcp-connections?type=all", "/settings/admin-events/", "/settings/identities", "/settings/profile",
    "/settings/workspace", "/api/tokens?scope=all&status=all&page_size=200", "/api/connections?page_size=200",
    "/api/admin-events", "/api/identities?scope=all&page_size=200", "/api/logs", "/api/servers", "/api/users"]
seen, followed = {resolve(path.partition("?")[0]).view_name for path in todo}, set()

def text_of(answer):
    parts = []
    for part in answer:
        parts.append(part)
        if answer.streaming and sum(map(len, parts)) > 2_000_000:
            break  # An export of very many rows, each with the columns of the others.
    answer.close()
    return b"".join(parts).decode()

for path in todo:
    answer = client.get(path, follow=True)
    page = text_of(answer)
    print("PAGE", answer.status_code, path, page)
    for link in re.findall(r'href="(/[^"#]*)"', page):
        if link not in followed and not link.startswith(("/static", "/accounts", "/admin", "/api/")):
            followed.add(link)
            kind = resolve(link.partition("?")[0]).view_name
            if kind not in seen:
                seen.add(kind)
                todo.append(link)
"""

_noted: set[str] = {PASSWORD}


def note(text: str) -> str:
    """Remember this secret and return it."""
    _noted.add(text)
    return text


def leaks(live: Serve, *, on_pages: bool = True) -> list[str]:
    """Return the tables, logs and pages that contain a secret in plain text, with the beginning of the secret.

    With `on_pages=False`, no pages are searched.
    """
    secrets = _noted | {key for name, key in live.settings.items() if name.startswith("GATEWAY_") and "KEY" in name}
    places = {"log": live.log(), **(pages(live) if on_pages else {}), **dict(tables(live))}
    return [f"{place}: {found[:8]}..." for place, text in places.items() for found in clear(text, secrets)]


def clear(text: str, secrets: set[str]) -> set[str]:
    """Return all tokens in `text`, and each of the `secrets` that occurs in it."""
    tokens = {found for found in TOKEN.findall(text) if token_text.well_formed(found, token_text.PREFIXES)}
    return tokens | {one for one in secrets if one in text}


def tables(live: Serve) -> Iterator[tuple[str, str]]:
    """Yield name and rows of every table except HOLD_SESSIONS, as text; bytes keep their printable characters."""
    with closing(psycopg.connect(live.database_url, options="-c bytea_output=escape")) as connection:
        query = "SELECT schemaname, relname FROM pg_stat_user_tables"
        for schema, table in connection.execute(query).fetchall():
            if table not in HOLD_SESSIONS:
                rows = connection.execute(sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(schema, table)))
                yield f"table {table}", "\n".join(row for (row,) in rows)


def pages(live: Serve) -> dict[str, str]:
    """Return the text of one page of each kind that the workspace's owner can open."""
    shown = live.manage("shell", "--verbosity", "0", "-c", PAGES)
    statuses = re.findall(r"^PAGE (\d+) (\S+)", shown, re.MULTILINE)
    assert len(statuses) > 20
    refused = [(status, path) for status, path in statuses if status != "200"]
    assert not refused, refused
    return {"page": shown}


@contextmanager
def keeping_secrets(served: Serve, *, on_pages: bool = True) -> Iterator[Serve]:
    """Run a workspace until the block ends; then it must not contain a secret in plain text (see `leaks`)."""
    try:
        yield served.start()
        leaked = leaks(served, on_pages=on_pages)
    finally:
        served.stop()
    assert not leaked
