"""A person's browser without JavaScript, which finds fields by their labels and forms by their buttons."""

import random
import ssl
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urljoin

import httpx
from lxml import html

TLS = ssl.create_default_context()  # Created once: each client would read every certificate of the machine.
LOGIN, PROFILE = "/accounts/login/", "/settings/profile"

CLIENTS = ExitStack()  # Closed with the workspace.


def new_client(**settings: Any) -> httpx.Client:
    return CLIENTS.enter_context(httpx.Client(timeout=60, trust_env=False, verify=TLS, **settings))


def some_address() -> str:
    """Return a random IP address for a new client, because the product counts attempts per address."""
    return f"10.{random.randrange(256)}.{random.randrange(256)}.{random.randrange(1, 255)}"


@dataclass
class Browser:
    """A browser with cookies, and a REST client that uses the browser's session."""

    http: httpx.Client
    address: str = field(default_factory=some_address)

    @classmethod
    def at(cls, url: str, address: str | None = None) -> Self:
        address = address or some_address()
        headers = {"X-Forwarded-For": address, "Origin": url, "Referer": f"{url}/"}
        return cls(new_client(base_url=url, headers=headers, follow_redirects=True), address)

    def sign_in(self, email: str, password: str) -> httpx.Response:
        return self.submit(self.http.get(LOGIN), "Sign in", {"E-mail": email, "Password": password})

    def is_signed_in(self) -> bool:
        """Return True if the profile page opens; later requests then send its CSRF token, as REST requires."""
        page = self.http.get(PROFILE)
        if page.url.path != PROFILE:
            return False
        tokens = html.fromstring(page.text).xpath("//input[@name='csrfmiddlewaretoken']/@value")
        self.http.headers["X-CSRFToken"] = tokens[0]
        return True

    def submit(self, page: httpx.Response, button: str, fields: dict[str, str] | None = None) -> httpx.Response:
        """Fill in the fields with these labels, and press the button with this text."""
        form = form_of(page, button)
        values = {name: value for name, value in form.form_values() if value is not None}
        pressed = next(one for one in form.xpath(".//button") if text_of(one) == button)
        if pressed.get("name"):
            values[pressed.get("name")] = pressed.get("value", "")
        for label, value in (fields or {}).items():
            values[field_of(form, label)] = value
        return self.http.post(urljoin(str(page.url), form.get("action") or ""), data=values)

    # REST

    def rest(self, method: str, path: str, body: Any = None, **query: Any) -> httpx.Response:
        return self.http.request(method, f"/api{path}", json=body, params=query or None)

    def get(self, path: str, **query: Any) -> Any:
        """Return the body of a GET; fails on a refusal."""
        return must(self.rest("GET", path, **query))

    def post(self, path: str, **body: Any) -> Any:
        """Return the body of a POST; fails on a refusal."""
        return must(self.rest("POST", path, body or None))

    def patch(self, path: str, **body: Any) -> Any:
        return must(self.rest("PATCH", path, body))

    def put(self, path: str, **body: Any) -> Any:
        return must(self.rest("PUT", path, body))


def must(answer: httpx.Response) -> Any:
    assert answer.is_success, f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text[:2000]}"
    return answer.json() if answer.content else None


def form_of(page: httpx.Response, button: str) -> Any:
    """Return the form of a page that this button submits."""
    for form in html.fromstring(page.text).forms:
        if any(text_of(one) == button for one in form.xpath(".//button")):
            return form
    raise AssertionError(f"no button {button!r} on {page.url} ({page.status_code}): {words(page)[:1000]}")


def field_of(form: Any, label: str) -> str:
    """Return the name of the field with this label."""
    for one in form.xpath(".//label"):
        if text_of(one) == label:
            (name,) = form.xpath(".//*[@id=$id]/@name", id=one.get("for")) or one.xpath(".//input/@name")
            return str(name)
    raise AssertionError(f"no field {label!r} among {[text_of(one) for one in form.xpath('.//label')]}")


def link_of(page: httpx.Response, label: str) -> str | None:
    """Return the target of the link with this text; None if there is none."""
    found = [one for one in html.fromstring(page.text).xpath("//a[@href]") if text_of(one) == label]
    return urljoin(str(page.url), found[0].get("href")) if found else None


def words(page: httpx.Response) -> str:
    """Return the text of a page's main part."""
    (main,) = html.fromstring(page.text).xpath("//main") or [html.fromstring(page.text)]
    return text_of(main)


def text_of(element: Any) -> str:
    return " ".join(element.text_content().split())
