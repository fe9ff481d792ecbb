"""Reasons to refuse an answer of the provider: a code for admin events, and advice for the person."""

from __future__ import annotations

from typing import NamedTuple


class Advice(NamedTuple):
    """Advice for a person whose sign-in failed. It depends on the answer only, and reveals nothing about accounts."""

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
    """The answer is refused: `reason` is a key of ADVICE, the message is for administrators.

    Neither contains personal data of the answer.
    """

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason = reason

    @property
    def advice(self) -> Advice:
        return ADVICE[self.reason]
