"""What a call carried, for its row in the log: only where the workspace records it, and never its secrets."""

import asyncio
from base64 import b64decode
from collections.abc import Sequence

from proxy.access.upstream_credential import IdentityUnreadable, target
from proxy.request import McpRequest
from proxy.response import Response
from proxy.store.redaction.messages import Kept, keep
from wire.cipher import Cipher

AT_ONCE = 4096  # Bytes that are looked at between two other calls; more of them in a thread.


class Recorder:
    """Puts messages into rows, without the credentials they travelled with."""

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher

    async def note(self, request: McpRequest, response: Response, limit: int) -> None:
        """Keep `limit` bytes of what the client sent, and as many of what it gets."""
        bodies, secrets = (request.body, response.body), self._secrets(request)
        if sum(map(len, bodies)) <= AT_ONCE:
            sent, answered = _kept(bodies, limit, secrets)
        else:
            sent, answered = await asyncio.to_thread(_kept, bodies, limit, secrets)
        cut = any(kept is not None and kept.cut for kept in (sent, answered))
        request.row.carry(_json(sent), _json(answered), cut=cut)

    def _secrets(self, request: McpRequest) -> list[str]:
        """The token the client presents, and every credential this call may have been passed on with."""
        secrets = [request.header(b"authorization").partition(" ")[2].strip()]
        facts = request.facts
        for assigned in facts.assignments if facts is not None else ():
            try:
                credential = target(assigned, "", self._cipher).credential
            except IdentityUnreadable:
                continue
            if credential is not None:
                secrets += parts_of(credential[1])
        return secrets


def parts_of(sent: str) -> list[str]:
    """A credential as it is sent, without its scheme, and the password in it."""
    scheme, _, value = sent.rpartition(" ")
    parts = [value, sent] if scheme else [value]
    if scheme.lower() != "basic":
        return parts
    try:
        login = b64decode(value).decode(errors="replace")
    except ValueError:  # Whatever an operator calls so.
        return parts
    return [*parts, login, login.partition(":")[2]]


def _kept(bodies: Sequence[bytes], limit: int, secrets: list[str]) -> list[Kept | None]:
    return [keep(body, limit, secrets) for body in bodies]


def _json(kept: Kept | None) -> bytes | None:
    return None if kept is None else kept.json
