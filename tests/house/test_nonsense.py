"""Submit every form of every page with invalid values. Each page must show a clear error and keep the input.

The tests find the fields of a page: they submit a form and record the names that the page reads. New forms are
therefore included.
tests/api/test_contract.py and tests/api/test_nonsense.py do the same for the API.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from itertools import product
from typing import Any, Self
from urllib.parse import quote, urlsplit

import pytest
from django.core.cache import cache
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django.utils.datastructures import MultiValueDict

from accounts.password_links import invitation_link, password_link
from tests import make
from tests.accounts.soft_key import added
from tests.house.doors import ALL, Door, Site, doors
from tests.house.nonsense import NONSENSE
from tests.undone import undone

pytestmark = [pytest.mark.django_db, pytest.mark.full]

DOORS = list(doors())
READ = [door for door in DOORS if door.method == "GET"]
SENT = [door for door in DOORS if door.method == "POST"]
REFUSED = {400, 403, 404, 409, 410, 413, 422, 429, 502}
FORM = "application/x-www-form-urlencoded"
ANEW = {"typed"}  # The name a person must type deliberately to end an object for good, so it is not refilled.
NOT_IN_URLS = {"arguments"}  # A URL does not keep the arguments of a tool, because they can be secret.
# The invalid values tried one name at a time on pages that read dozens of query names, such as the log.
ALONE = {"a NUL", "a lone surrogate", "a huge number", "a moment after all"}
SCRIPT = "<script>alert"


@pytest.fixture(scope="module")
def site(django_db_setup: None, django_db_blocker: Any) -> Iterator[Site]:
    """Create one world for all tests of this module; each request leaves it unchanged."""
    with django_db_blocker.unblock(), transaction.atomic():
        found = Site()
        owner = make.user(email="else@example.com")
        found.things["foreign"] = make.identity(make.server(auth_type="bearer"), owner).pk
        yield found
        transaction.set_rollback(True)


class Form(HTMLParser):
    """The fields and values of those POST forms on a page that submit to the page's own path."""

    def __init__(self, page: str, path: str) -> None:
        super().__init__()
        self.path, self.fields, self.typed = path, defaultdict[str, list[str]](list), dict[str, str]()
        self._in, self._area, self._select = False, "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        name = said.get("name", "")
        if tag == "form":
            self._in = said.get("method") == "post" and urlsplit(said.get("action", self.path)).path == self.path
        elif self._in and tag == "textarea":
            self._area = name
            self.typed[name] = ""
        elif self._in and tag == "select":
            self._select = name
        elif self._in and tag == "option" and "selected" in said:
            self.fields[self._select].append(said.get("value", ""))
        elif self._in and tag == "input" and name:
            self._of_input(said.get("type", "text"), name, said)

    def _of_input(self, kind: str, name: str, said: dict[str, str]) -> None:
        if kind in ("checkbox", "radio"):
            if "checked" in said:
                self.fields[name].append(said.get("value", "on"))
        elif kind not in ("submit", "button"):
            self.fields[name].append(said.get("value", ""))
            if kind not in ("password", "hidden"):
                self.typed[name] = said.get("value", "")

    def handle_data(self, data: str) -> None:
        if self._area:
            self.typed[self._area] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea" and self._area:
            self.typed[self._area] = self.typed[self._area].removeprefix("\n")
            self.fields[self._area].append(self.typed[self._area])
            self._area = ""
        self._in = self._in and tag != "form"


_watchers: list[dict[int, set[str]]] = []


@pytest.fixture(scope="module", autouse=True)
def noticed() -> Iterator[None]:
    """Record which names are read from forms and query strings.

    MultiValueDict is patched only once: after a thousand changes to a class, Python 3.13 calls its old methods.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("__getitem__", "getlist", "__contains__"):
            patch.setattr(MultiValueDict, name, noting(getattr(MultiValueDict, name)))
        yield


@contextmanager
def watched() -> Iterator[dict[int, set[str]]]:
    """Yield the names read from each form and each query string, by the `id()` of its MultiValueDict."""
    asked = defaultdict[int, set[str]](set)
    _watchers.append(asked)
    try:
        yield asked
    finally:
        _watchers.pop()


def noting(original: Any) -> Any:
    def note(self: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        for asked in _watchers:
            asked[id(self)].add(str(key))
        return original(self, key, *args, **kwargs)

    return note


def foreign(site: Site) -> str:
    """Return the id of another person's object."""
    return str(site.things["foreign"])


class Walk:
    """One page, and a person who may open the page."""

    def __init__(self, client: Client, method: str, path: str, foreign: str) -> None:
        self.client, self.method, self.path, self.foreign = client, method, path, foreign
        self.faults: list[str] = []

    @classmethod
    def at(cls, site: Site, door: Door) -> Self:
        """Return a walk on this page, by a person who may open it."""
        client = site.owning() if door.is_for_owners else site.holding(ALL)
        return cls(client, door.method, site.address(door), foreign(site))

    def send(self, fields: dict[str, Any], what: str) -> None:
        """Submit the fields, follow the redirect, and note faults; all changes are rolled back."""
        cache.clear()
        try:
            with undone():
                self._look(fields, what)
        except Exception as error:  # noqa: BLE001  (whatever a view raises is the fault looked for)
            self.faults.append(f"{what}: {error!r}"[:400])

    def _look(self, fields: dict[str, Any], what: str) -> None:
        answer = self.answer(fields)
        status = answer.status_code
        if status in (301, 302):
            onward = urlsplit(answer["Location"]).path
            answer = self.client.get(answer["Location"], follow=True)
            if answer.status_code not in (200, *REFUSED):
                self.faults.append(f"{what}: {status}, then {answer.status_code} at {onward}")
        elif status not in (200, 204, *REFUSED):
            self.faults.append(f"{what}: {status}")
        page = b"".join(answer).decode() if answer.streaming else answer.content.decode()
        if SCRIPT in page:
            self.faults.append(f"{what}: markup as it was sent")
        if status == 422:
            self._keeps(fields, Form(page, self.path), what)

    def _keeps(self, fields: dict[str, Any], form: Form, what: str) -> None:
        not_kept = ANEW | (NOT_IN_URLS if self.method == "GET" else set())
        for name, typed in form.typed.items():
            sent = fields.get(name)
            if name not in not_kept and isinstance(sent, str) and tidy(typed) != tidy(sent):
                self.faults.append(f"{what}: {name} came back as {typed[:40]!r}")

    def answer(self, fields: dict[str, Any]) -> Any:
        body = encoded(fields)
        if self.method == "GET":
            return self.client.get(f"{self.path}{'&' if '?' in self.path else '?'}{body}")
        return self.client.post(self.path, body, content_type=FORM)

    def names(self) -> set[str]:
        """Return the names that the page reads from a submitted form or from its query string."""
        found: set[str] = set()
        for value in ("", "1"):
            more = dict.fromkeys(found, value)
            with watched() as asked, undone():
                answer = self.answer(more)
                request = answer.wsgi_request
                found |= asked[id(request.POST if self.method == "POST" else request.GET)]
        return found - {"csrfmiddlewaretoken"}

    def filled(self) -> dict[str, Any]:
        """Return the fields of the page's form with their initial values; empty if the page has no form to submit."""
        if self.method == "GET":
            return {}
        page = self.client.get(self.path)
        if page.status_code != 200 or page.streaming:
            return {}
        return dict(Form(page.content.decode(), self.path).fields)


def encoded(fields: dict[str, Any]) -> str:
    """Encode a form as browsers do, but allow a lone surrogate, which browsers never send."""
    pairs = ((name, one) for name, value in fields.items() for one in (value if isinstance(value, list) else [value]))
    return "&".join(f"{quote(name)}={quote(str(one).encode('utf-8', 'surrogatepass'))}" for name, one in pairs)


def tidy(text: str) -> str:
    """Return a text without surrounding blanks and with normalised line endings, which a page may change."""
    return " ".join(text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").split())


def test_a_form_with_nonsense_is_refused_in_words_and_nothing_typed_is_lost(
    site: Site, subtests: pytest.Subtests
) -> None:
    for number, door in enumerate(SENT):
        with subtests.test(str(door)):
            assert faults(Walk.at(site, door), number) == []


def test_a_query_string_of_nonsense_is_no_error(site: Site, subtests: pytest.Subtests) -> None:
    for number, door in enumerate(READ):
        with subtests.test(str(door)):
            assert faults(Walk.at(site, door), number) == []


def nobody(site: Site) -> tuple[Client, str]:
    return Client(), ""


def joining(site: Site) -> tuple[Client, str]:
    """Return a browser in which an invitation link was opened."""
    client = Client()
    client.get(urlsplit(invitation_link(make.invited())).path)
    return client, ""


def resetting(site: Site) -> tuple[Client, str]:
    """Return a browser in which a reset link was opened, and the page that sets the password."""
    client = Client()
    return client, client.get(urlsplit(password_link(make.user())).path)["Location"]


def halfway(site: Site) -> tuple[Client, str]:
    """Return a browser in which the correct password was entered, but the security key was not used yet."""
    client, person = Client(), make.user()
    added(person)
    client.post("/accounts/login/", {"login": person.email, "password": make.PASSWORD})
    return client, ""


def signed_in(site: Site) -> tuple[Client, str]:
    return site.holding(ALL), ""


def with_password(site: Site) -> tuple[Client, str]:
    client = Client()
    client.force_login(make.user())
    return client, ""


# Forms of other views and of people without an account, each with a function that sends it.
SIGNING_IN = {
    "account_login": nobody,
    "account_reset_password": nobody,
    "account_reset_password_from_key": resetting,
    "accounts:join": joining,
    "sso:begin": nobody,
    "mfa_authenticate": halfway,
    "account_change_password": with_password,
    "account_reauthenticate": signed_in,
    "mfa_reauthenticate": signed_in,
    "mfa_reauthenticate_webauthn": signed_in,
}


def test_a_form_for_signing_in_with_nonsense_is_refused_in_words(site: Site, subtests: pytest.Subtests) -> None:
    for name, arriving in SIGNING_IN.items():
        with subtests.test(name), undone():
            client, path = arriving(site)
            walk = Walk(client, "POST", path or reverse(name), foreign(site))
            assert walk.names()
            assert faults(walk) == []


def test_requests_that_once_failed_succeed(site: Site, subtests: pytest.Subtests) -> None:
    for path in (
        "/logs/?from=9999-12-31T23:59:59-14:00",
        "/logs/?to=0001-01-01T00:00:00%2B14:00",
        "/settings/api-tokens/create?q=%00",
        "/connect/?host={host}&gateway=%00",
        "/gateways/{gateway_slug}/assign/?server=%00",
    ):
        with subtests.test(path), undone():
            assert site.holding(ALL).get(path.format(**site.things)).status_code in (200, 302)


def faults(walk: Walk, number: int | None = None) -> list[str]:
    """Send invalid values in one field at a time, then in all fields at once, and return the faults.

    `number` selects some kinds of values: one kind for each field, then two kinds for all fields. Without a number, all
    kinds are sent. Many fields have the same class, so every class gets every kind of value on some page.
    """
    names, filled = sorted(walk.names()), walk.filled()
    nonsense = {**NONSENSE, "somebody else's": walk.foreign}
    for (row, (what, value)), (column, name) in product(enumerate(nonsense.items()), enumerate(names)):
        in_turn = number is None or (row + column + number) % len(nonsense) == 0
        if in_turn and (walk.method == "POST" or what in ALONE):
            walk.send(filled | {name: value}, f"{what} as {name}")
    for row, (what, value) in enumerate(nonsense.items()):
        if number is None or (row + number) % 7 == 0:
            walk.send(dict.fromkeys(names, value), f"{what} everywhere")
    return walk.faults
