"""Display texts of states on pages and in the Django admin. States without a text are shown as codes, as in REST."""

WORDS = {
    "host": {"pending": "Waiting for approval"},
    "identity": {"unconfirmed": "to be confirmed", "sign_in_needed": "sign in again"},
    "sink": {"current": "up to date", "waiting": "not begun"},
    "token": {"waiting": "to be collected"},
    "user": {"expired": "invitation expired", "revoked": "invitation revoked"},
}


def status_text(status: str, blocked: str) -> str:
    """Return a status for exports; `blocked` is the reason why the object cannot be used, if any."""
    return f"blocked: {blocked}" if blocked else status


def state_label(state: str, kind: str) -> str:
    """Return the display text of a state; `kind` is `host`, `identity`, `sink`, `token` or `user`."""
    return WORDS[kind].get(state, state)
