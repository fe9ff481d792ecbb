"""What a call carried, for its row in the log: only where the workspace records it, and never its secrets."""

from auditlog.redaction import Kept, keep
from proxy.identity import IdentityUnreadable, target
from proxy.inbound import Inbound
from proxy.outbound import Response
from servers.crypto import Cipher


class Recorder:
    """Puts messages into rows, without the credentials they travelled with."""

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher

    def note(self, request: Inbound, response: Response, limit: int) -> None:
        """Keep `limit` bytes of what the client sent, and as many of what it gets."""
        secrets = self._secrets(request)
        sent, answered = keep(request.body, limit, secrets), keep(response.body, limit, secrets)
        cut = any(kept is not None and kept.cut for kept in (sent, answered))
        request.row.carry(_json(sent), _json(answered), cut=cut)

    def _secrets(self, request: Inbound) -> list[str]:
        """The token the client presents, and every credential this call may have been passed on with."""
        secrets = [request.header(b"authorization").partition(" ")[2].strip()]
        facts = request.facts
        for assigned in facts.assignments if facts is not None else ():
            try:
                credential = target(assigned, "", self._cipher).credential
            except IdentityUnreadable:
                continue
            if credential is not None:
                scheme, _, value = credential[1].rpartition(" ")
                secrets += [value, credential[1]] if scheme else [value]
        return secrets


def _json(kept: Kept | None) -> bytes | None:
    return None if kept is None else kept.json
