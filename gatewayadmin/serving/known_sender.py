"""Checks the credential in the headers of a request, before a large body is read."""

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

# Requests with made-up keys queue up here with their headers only. A thread for each would be expensive: a database
# connection and memory that the process does not return.
LOOKUPS_AT_ONCE = 2
_lookups = ThreadPoolExecutor(LOOKUPS_AT_ONCE, thread_name_prefix="known-sender")


async def is_known(headers: Headers) -> bool:
    """Return whether the API key, token or session in these headers is currently valid.

    At most LOOKUPS_AT_ONCE look-ups run at a time in this process; others wait.
    """
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":  # A bearer token takes precedence over a session.
        secret = secret.strip()
        return token_text.well_formed(secret) and await _look_up(secret, "")
    session = parse_cookie("; ".join(headers.getlist("cookie"))).get(settings.SESSION_COOKIE_NAME, "")
    return session != "" and await _look_up("", session)


async def _look_up(secret: str, session: str) -> bool:
    return await asyncio.get_running_loop().run_in_executor(_lookups, _is_known, secret, session)


def _is_known(secret: str, session: str) -> bool:
    try:
        if secret:
            found = (
                api_keys.find_api_key(secret)
                or authentication.find_token(secret)
                or ProvisioningKey.objects.find(secret)
            )
            return found is not None
        return SESSION_KEY in import_module(settings.SESSION_ENGINE).SessionStore(session)
    finally:
        databases.give_back()  # Return the connection: the thread is reused.
