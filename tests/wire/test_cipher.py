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


def test_a_sealed_secret_shows_nothing_of_itself() -> None:
    assert b"hunter2" not in Cipher([NEW]).seal("hunter2")


def test_sealing_twice_gives_two_texts() -> None:
    assert Cipher([NEW]).seal("same") != Cipher([NEW]).seal("same")


def test_an_older_key_still_opens() -> None:
    assert Cipher([NEW, OLD]).open(Cipher([OLD]).seal("kept")) == "kept"


def test_a_lost_key_is_said_plainly() -> None:
    with pytest.raises(Undecryptable):
        Cipher([NEW]).open(Cipher([OLD]).seal("lost"))


def test_resealing_moves_a_secret_to_the_newest_key() -> None:
    resealed = Cipher([NEW, OLD]).reseal(Cipher([OLD]).seal("moved"))

    assert Cipher([NEW]).open(resealed) == "moved"


def test_a_changed_ciphertext_is_refused() -> None:
    sealed = bytearray(Cipher([NEW]).seal("whole"))
    sealed[20] ^= 1

    with pytest.raises(Undecryptable):
        Cipher([NEW]).open(bytes(sealed))


def test_no_key_is_no_cipher() -> None:
    with pytest.raises(ValueError, match="At least one"):
        Cipher([])
