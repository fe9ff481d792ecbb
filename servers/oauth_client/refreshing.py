"""Refresh an identity's tokens for pages, the REST API and chores: the proxy's steps, run synchronously."""

from __future__ import annotations

import time
from typing import Any

from django.db import connection
from django.utils import timezone

from proxy.store.refresh import NotRenewed, Renewal, Statement, renewal
from servers.models import Identity
from servers.oauth_client.http import NoAnswer, for_request, send_soon
from ui.sealing import cipher
from wire.oauth_client import TokenRequest

__all__ = ["NotRenewed", "keep_fresh", "refresh_identity"]


def keep_fresh(identity: Identity) -> None:
    """Refresh the identity if its token has expired. A failure is ignored: the server's answer will show it."""
    if identity.expires_at is None or identity.expires_at > timezone.now():
        return
    try:
        refresh_identity(identity)
    except NotRenewed:
        return


def refresh_identity(identity: Identity) -> None:
    """Refresh the identity now. Raises NotRenewed.

    Do not call it in a transaction: other processes have to see the lease.
    """
    if identity.secret_ciphertext is None:
        raise NotRenewed("identity_sign_in")
    try:
        _drive(renewal(str(identity.pk), bytes(identity.secret_ciphertext).decode(), cipher()))
    except NotRenewed as error:
        if error.revocations:
            send_soon(error.revocations)
        raise
    identity.refresh_from_db()


def _drive(steps: Renewal) -> str:
    answer: Any = None
    try:
        while True:
            step = steps.send(answer)
            answer = None
            if isinstance(step, Statement):
                answer = _run(step)
            elif isinstance(step, TokenRequest):
                answer = _post_form(step)
            else:
                time.sleep(step)
    except StopIteration as end:
        return str(end.value)


def _run(statement: Statement) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement.sql, statement.parameters)
        return cursor.fetchall() if cursor.description else []


def _post_form(request: TokenRequest) -> tuple[int, bytes] | None:
    try:
        answer = for_request(request).post(request.url, request.headers, request.body)
    except NoAnswer:
        return None
    return answer.status, answer.body
