"""Why an answer of the provider is not accepted: a word for admin events, and what the person at the browser can do."""

from __future__ import annotations

from typing import NamedTuple


class Advice(NamedTuple):
    """What somebody reads whose sign-in went wrong. It depends on the answer alone, and on nobody who is here."""

    text: str
    is_for_administrators: bool = False


AGAIN = Advice("It took too long, or was begun in another browser, or was used before. Go back and sign in once more.")
HERE_FIRST = Advice(
    "Signing in begins here, and not on the page of your organisation: go back and press the button of the sign-in."
)
THERE = Advice(
    "Your organisation did not sign you in, or not for this workspace. Ask whoever looks after accounts there."
)
SET_UP = Advice(
    "What your organisation sent is not accepted here: its settings and those of this workspace do not fit. Tell an "
    "administrator of this workspace; the admin events say what is wrong.",
    is_for_administrators=True,
)

ADVICE = {
    "not_begun_here": AGAIN,
    "took_too_long": AGAIN,
    "used_before": AGAIN,
    "expired": AGAIN,
    "provider_changed": AGAIN,
    "not_asked_for": HERE_FIRST,
    "refused_there": THERE,
    "malformed": SET_UP,
    "too_large": SET_UP,
    "encrypted": SET_UP,
    "not_decrypted": SET_UP,
    "weak_encryption": SET_UP,
    "not_signed": SET_UP,
    "weak_signature": SET_UP,
    "wrong_signature": SET_UP,
    "wrapped": SET_UP,
    "other_issuer": SET_UP,
    "other_audience": SET_UP,
    "other_recipient": SET_UP,
    "not_yet_valid": SET_UP,
    "not_confirmed": SET_UP,
    "no_name": SET_UP,
    "not_installed": SET_UP,
}


class ResponseRefused(Exception):
    """An answer that is not accepted: `reason` is one of ADVICE, the message says it to administrators. Neither holds
    anything of what the answer says of somebody."""

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason = reason

    @property
    def advice(self) -> Advice:
        return ADVICE[self.reason]
