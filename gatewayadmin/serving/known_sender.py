"""Whether the head of a request names somebody we know: asked before more is read of them than of strangers."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.http import parse_cookie
from starlette.datastructures import Headers

from scim.models import ProvisioningKey
from tokens import api_keys, authentication
from ui import databases
from wire import token_text

# Whoever invents keys by the hundred makes a queue here, of heads alone. A thread each would cost more than what they
# send: a connection to the database and memory of its own, which the process keeps.
LOOKUPS_AT_ONCE = 2
_lookups = ThreadPoolExecutor(LOOKUPS_AT_ONCE, thread_name_prefix="known-sender")


async def is_known(headers: Headers) -> bool:
    """Whether the API key, the token or the session in these headers is good at this moment.

    At most LOOKUPS_AT_ONCE are looked up at a time in this process; the others wait for their turn.
    """
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":  # It decides wherever it may be used; a session is ignored then.
        secret = secret.strip()
        return token_text.well_formed(secret) and await _look_up(secret, "")
    session = parse_cookie("; ".join(headers.getlist("cookie"))).get(settings.SESSION_COOKIE_NAME, "")
    return session != "" and await _look_up("", session)


async def _look_up(secret: str, session: str) -> bool:
    return await asyncio.get_running_loop().run_in_executor(_lookups, _is_known, secret, session)


def _is_known(secret: str, session: str) -> bool:
    try:
        if secret:
            found = api_keys.find(secret) or authentication.find(secret) or ProvisioningKey.objects.find(secret)
            return found is not None
        return SESSION_KEY in import_module(settings.SESSION_ENGINE).SessionStore(session)
    finally:
        databases.give_back()  # This thread serves somebody else next.
