"""The credential a call carries to a server: the connection's own, the shared one, or none."""

from proxy.access.grant import AssignedServer
from wire import credential
from wire.cipher import Cipher, Unreadable
from wire.errors import UpstreamError
from wire.rpc_messages import Target
from wire.trace_context import NONE, Trace


class IdentityUnreadable(UpstreamError):
    """No configured key opens it: the operator lost a key."""

    reason = "identity_unreadable"
    sentence = 'The identity stored for server "{server}" can no longer be read.'


def target(assigned: AssignedServer, connection_id: str, cipher: Cipher, trace: Trace = NONE) -> Target:
    """Where and as whom to call this server, for the request of this trace. Raises IdentityUnreadable.

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
        trace=trace,
    )


def _credential(assigned: AssignedServer, cipher: Cipher) -> tuple[str, str] | None:
    if assigned.ciphertext is None or assigned.auth_type == "none" or assigned.scheme == "none":
        return None
    try:
        secret = cipher.open(assigned.ciphertext.encode())
        return credential.header_of(assigned.auth_type, assigned.header_name, secret)
    except Unreadable:
        raise IdentityUnreadable(assigned.server_name) from None
    except credential.Unsendable as reason:
        raise IdentityUnreadable(assigned.server_name, str(reason)) from None
