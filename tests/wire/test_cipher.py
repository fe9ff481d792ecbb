"""Stored credentials are encrypted with keys that can be rotated."""

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from wire.cipher import Cipher, Undecryptable

OLD, NEW = Fernet.generate_key(), Fernet.generate_key()


@pytest.mark.full
@given(st.text(max_size=4000))
def test_encrypted_values_can_be_decrypted(secret: str) -> None:
    assert Cipher([NEW]).open(Cipher([NEW]).seal(secret)) == secret


def test_a_sealed_secret_shows_nothing_of_itself_and_is_sealed_differently_each_time() -> None:
    one, other = (Cipher([NEW]).seal("hunter2") for _ in range(2))

    assert b"hunter2" not in one
    assert one != other


def test_an_older_key_still_opens_and_resealing_moves_a_secret_to_the_newest_key() -> None:
    sealed = Cipher([OLD]).seal("kept")

    assert Cipher([NEW, OLD]).open(sealed) == "kept"
    assert Cipher([NEW]).open(Cipher([NEW, OLD]).reseal(sealed)) == "kept"


def test_a_lost_key_and_a_changed_ciphertext_are_refused() -> None:
    changed = bytearray(Cipher([NEW]).seal("whole"))
    changed[20] ^= 1

    for sealed in (Cipher([OLD]).seal("lost"), bytes(changed)):
        with pytest.raises(Undecryptable):
            Cipher([NEW]).open(sealed)
    with pytest.raises(ValueError, match="At least one"):
        Cipher([])
