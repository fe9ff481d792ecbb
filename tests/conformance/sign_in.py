"""Client for the suite's authorization scenarios: signs in through the pages of a running gateway.

The suite runs this program with the address of a server. The client adds the server to the workspace at GATEWAY_URL,
assigns it to the scenario's gateway, and signs in at the server's issuer. Then it calls the server's first tool through
the gateway, and signs in again if a refusal requires it. Exits with an error if the tool could not be called.

SLOTS has the gateway and the token of each scenario. WHO has the cookies and the CSRF token of a signed-in person.
"""

import json
import os
import re
import sys
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx

from tests import curl

ROUNDS = 3  # Maximum number of sign-ins per run; the gateway never starts a sign-in by itself.
SIGN_IN = ("identity_missing", "identity_sign_in", "identity_scope")


class Gateway:
    """The running gateway, with a person signed in."""

    def __init__(self) -> None:
        who = json.loads(os.environ["WHO"])
        self.url = os.environ["GATEWAY_URL"]
        self.slot = json.loads(os.environ["SLOTS"])[os.environ["MCP_CONFORMANCE_SCENARIO"]]
        headers = {"X-CSRFToken": who["csrf"], "Referer": self.url}
        self.http = httpx.Client(
            base_url=self.url, cookies=who["cookies"], headers=headers, trust_env=False, timeout=60
        )

    def register(self, url: str) -> str:
        """Register the server at `url`, assign it to the scenario's gateway, and return the server's slug."""
        name = f"c{uuid4().hex[:10]}"
        server = self._made("/api/servers", name=name, slug=name, url=url, auth_type="oauth")
        place = {"server_id": server["id"], "identity_scheme": "per_user"}
        self._made(f"/api/gateways/{self.slot['slug']}/servers", **place)
        return name

    def enter(self, slug: str, context: dict[str, Any]) -> None:
        """Enter the id and secret of the OAuth client that the suite has registered beforehand."""
        client = {"client_id": context["client_id"], "secret": context["client_secret"], "issuer": context["issuer"]}
        answer = self.http.post(f"/servers/{slug}/client/", data=client)
        assert answer.status_code == httpx.codes.FOUND, answer.text

    def sign_in(self, slug: str) -> None:
        """Sign in at the server's issuer through the pages. The issuer redirects back without a login page."""
        begun = self.http.post(self._place(slug), data={"connection": self.slot["connection"]})
        assert begun.status_code == httpx.codes.OK, words(begun)
        back = httpx.get(begun.headers["Refresh"].removeprefix("0; url="), trust_env=False, timeout=60)
        assert back.is_redirect, back.text
        parts = urlsplit(back.headers["Location"])
        done = self.http.get(f"{parts.path}?{parts.query}")
        assert done.status_code == httpx.codes.FOUND, words(done)

    def _place(self, slug: str) -> str:
        """Return the path of the sign-in page of the person's identity, or of the server if there is no identity."""
        identities = self.http.get("/api/identities", params={"page_size": 200}).json()["results"]
        own = [one["id"] for one in identities if one["server"]["slug"] == slug]
        return f"/identities/{own[0]}/authenticate/" if own else f"/servers/{slug}/authenticate/"

    def refusal(self) -> str | None:
        """Return why the first tool cannot be called; None if the call succeeded."""
        url = f"{self.url}/mcp/{self.slot['slug']}"
        listed = curl.list_tools(url, self.slot["token"]).json
        tools = listed["result"]["tools"] if "result" in listed else []
        if not tools:
            return SIGN_IN[0]
        answer = curl.call_tool(url, self.slot["token"], tools[0]["name"]).json
        return str(answer["error"].get("data", {}).get("reason", answer["error"])) if "error" in answer else None

    def _made(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self.http.post(path, json=body)
        assert answer.status_code == httpx.codes.CREATED, answer.text
        return dict(answer.json())


def words(page: httpx.Response) -> str:
    """Return the text of a page."""
    found = re.search(r"<main.*?</main>", page.text, re.DOTALL)
    return re.sub(r"\s*<[^>]+>\s*", " ", found[0] if found else page.text)


def main(url: str) -> None:
    gateway = Gateway()
    slug = gateway.register(url)
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
    if "client_secret" in context:
        gateway.enter(slug, context)
    refused: str | None = "identity_missing"
    for _ in range(ROUNDS):
        if refused in SIGN_IN:
            gateway.sign_in(slug)
        refused = gateway.refusal()
        if refused is None:
            return
    sys.exit(f"No tool was called: {refused}")


if __name__ == "__main__":
    main(sys.argv[1])
