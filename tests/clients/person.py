"""A person who signs in once, and then answers the pages that apps open, in a browser without script."""

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qs, urlsplit

import httpx

from tests import workspace

FORM_TOKEN = re.compile(r'name="csrfmiddlewaretoken" value="([^"]+)"')
OFFERED = re.compile(r'name="gateway" value="([^"]+)"')


@dataclass(frozen=True, slots=True)
class Person:
    """A browser without script, with its cookies."""

    http: httpx.Client

    @classmethod
    def signed_in(cls, url: str, email: str = workspace.OWNER, password: str = workspace.PASSWORD) -> Self:
        person = cls(httpx.Client(base_url=url, follow_redirects=True))
        page = person.http.get("/accounts/login/")
        page = person.submit(page, login=email, password=password)
        assert page.url.path == "/", f"still at {page.url}"
        return person

    def submit(self, page: httpx.Response, **fields: str) -> httpx.Response:
        """Fill in this page's form and send it."""
        token = FORM_TOKEN.search(page.text)
        assert token, f"no form on {page.url} ({page.status_code}): {page.text[:2000]}"
        return self.http.post(page.url, data={"csrfmiddlewaretoken": token[1], **fields})

    def decide(self, question: str, decision: str = "allow") -> str:
        """Choose the first gateway and the decision on an app's pages; return the URL that leads back to the app."""
        page = self.http.get(question)
        offered = OFFERED.findall(page.text)
        assert offered, f"no gateway offered on {page.url} ({page.status_code}): {page.text[:2000]}"
        sent = self.submit(self.submit(page, gateway=offered[0]), decision=decision)
        assert sent.status_code == httpx.codes.OK, sent.text[:2000]
        return sent.headers["Refresh"].removeprefix("0; url=")

    def allow(self, question: str) -> None:
        """Allow, and follow the redirect into the app."""
        answered = httpx.get(self.decide(question))
        assert answered.status_code < httpx.codes.BAD_REQUEST, answered.text[:2000]


def answer_in(callback: str) -> dict[str, str]:
    """Return the parameters of the redirect to the app."""
    return {name: values[0] for name, values in parse_qs(urlsplit(callback).query).items()}
