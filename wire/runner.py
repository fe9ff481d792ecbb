"""The runner of programs (gateway-admin-runner): its address and secret, and the MCP endpoints of its programs.

A request to a server carries the secret and the person's e-mail address only if the server's URL is exactly
`/NAME/mcp` at the runner's origin. Needs no Django.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, field
from urllib.parse import quote

USER_HEADER = "X-Gateway-User"
NOBODY = "gateway"  # Sent if there is no person. It is no e-mail address, so it names nobody.

_VISIBLE = string.punctuation.replace("%", "")
_endpoint = re.compile(r"/([a-z0-9](?:[a-z0-9-]*[a-z0-9])?)/mcp", re.ASCII).fullmatch


@dataclass(frozen=True, slots=True)
class Runner:
    """The origin of a runner, and the secret it requires."""

    url: str
    secret: str = field(repr=False)

    def headers(self, user: str = "") -> dict[str, str]:
        """Return the headers of a request: the secret, and the percent-encoded e-mail address `user`.

        If `user` is empty, the constant NOBODY is sent instead of the address.
        """
        return {"Authorization": f"Bearer {self.secret}", USER_HEADER: quote(user or NOBODY, safe=_VISIBLE)}

    def program_at(self, url: str) -> str | None:
        """Return the name of the program that has the MCP endpoint `url`; None if no program has it."""
        # The URL must begin with exactly the runner's URL, because another spelling may resolve to another address.
        found = _endpoint(url.removeprefix(self.url)) if url.startswith(f"{self.url}/") else None
        return found[1] if found else None
