"""The words of states on pages and in the Django admin; REST has their codes, which most states are called by."""

WORDS = {
    "host": {"pending": "Waiting for approval"},
    "identity": {"unconfirmed": "to be confirmed", "sign_in_needed": "sign in again"},
    "sink": {"current": "up to date", "waiting": "not begun"},
    "token": {"waiting": "to be collected"},
    "user": {"expired": "invitation expired", "revoked": "invitation revoked"},
}


def state_label(state: str, kind: str) -> str:
    """The words for a state of a `host`, `identity`, `sink`, `token` or `user`."""
    return WORDS[kind].get(state, state)
