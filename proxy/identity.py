"""The credential a call carries to a server: the connection's own, the shared one, or none."""

from proxy import headers
from proxy.access import Assigned
from proxy.exchange import Target
from proxy.faults import Fault
from servers.crypto import Cipher, Unreadable

# Headers that say where a message begins and ends, and where it goes: never a credential's place.
FRAMING = frozenset(
    {"host", "connection", "content-length", "content-type", "transfer-encoding", "upgrade", "te", "trailer", "expect"}
)


class IdentityUnreadable(Fault):
    """No configured key opens it: the operator lost a key."""

    reason = "identity_unreadable"
    sentence = 'The identity stored for server "{server}" can no longer be read.'


def target(assigned: Assigned, connection_id: str, cipher: Cipher) -> Target:
    """Where and as whom to call this server. Raises IdentityUnreadable.

    The identity has been judged before; here it is only opened.
    """
    return Target(
        server_id=assigned.server_id,
        server_name=assigned.server_name,
        url=assigned.url,
        era=assigned.era,
        timeout_s=assigned.timeout_s,
        max_concurrent=assigned.max_concurrent,
        connection_id=connection_id,
        credential=_credential(assigned, cipher),
        generation=assigned.ciphertext or "",
    )


def _credential(assigned: Assigned, cipher: Cipher) -> tuple[str, str] | None:
    if assigned.ciphertext is None or assigned.auth_type == "none" or assigned.scheme == "none":
        return None
    try:
        secret = cipher.open(assigned.ciphertext.encode())
    except Unreadable:
        raise IdentityUnreadable(assigned.server_name) from None
    if not (secret.isascii() and secret.isprintable()):
        raise IdentityUnreadable(assigned.server_name, "it holds characters no header can carry")
    if assigned.auth_type == "header":
        if not headers.is_name(assigned.header_name) or assigned.header_name.lower() in FRAMING:
            raise IdentityUnreadable(assigned.server_name, f"{assigned.header_name!r} cannot carry a credential")
        return assigned.header_name, secret
    return "Authorization", f"Bearer {secret}"
