"""The format of bearer credentials."""

import re

from hypothesis import given
from hypothesis import strategies as st

from wire import token_text

DOCUMENTED = re.compile(r"\bgw[adkorsp]_[0-9A-Za-z]{44}\b")
prefixes = st.sampled_from(sorted(token_text.PREFIXES))
keys = st.binary(min_size=32, max_size=64)


@given(prefixes)
def test_a_minted_text_is_well_formed_and_found_in_a_line_by_the_documented_expression(prefix: str) -> None:
    minted = token_text.mint(prefix)

    assert (len(minted), minted[:4]) == (48, f"{prefix}_")
    assert token_text.well_formed(minted, {prefix})
    assert DOCUMENTED.findall(f"export TOKEN='{minted}'; curl") == [minted]


@given(prefixes, st.integers(4, 47), st.sampled_from(token_text.ALPHABET))
def test_one_wrong_character_is_noticed_without_the_database(prefix: str, at: int, character: str) -> None:
    minted = token_text.mint(prefix)
    mistyped = minted[:at] + character + minted[at + 1 :]

    assert token_text.well_formed(mistyped) == (mistyped == minted)


@given(prefixes, st.integers(4, 40))
def test_two_swapped_characters_are_noticed(prefix: str, at: int) -> None:
    minted = token_text.mint(prefix)
    swapped = minted[:at] + minted[at + 1] + minted[at] + minted[at + 2 :]

    assert token_text.well_formed(swapped) == (swapped == minted)


@given(st.text(max_size=60))
def test_noise_is_not_well_formed(noise: str) -> None:
    minted = token_text.mint("gwa")

    assert not token_text.well_formed(noise)
    for ending in ("\n", " ", "\x00", "a"):
        assert not token_text.well_formed(minted + ending)
    assert not token_text.well_formed(minted[:10] + "\u0663" + minted[11:])  # A digit of another script.


def test_a_kind_that_is_not_asked_for_is_not_well_formed() -> None:
    assert not token_text.well_formed(token_text.mint("gwk"), {"gwa", "gwo"})


@given(keys, keys)
def test_a_digest_depends_on_the_key(one: bytes, other: bytes) -> None:
    minted = token_text.mint("gwa")

    assert (token_text.digest(minted, one) == token_text.digest(minted, other)) == (one == other)
    assert len(token_text.digest(minted, one)) == 32


@given(st.lists(keys, min_size=1, max_size=4, unique=True))
def test_a_text_is_found_under_every_key_while_keys_are_rotated(rotation: list[bytes]) -> None:
    minted = token_text.mint("gwa")
    stored_under_the_oldest = token_text.digest(minted, rotation[-1])

    assert stored_under_the_oldest in token_text.candidates(minted, rotation)
    assert token_text.candidates(minted, rotation)[0] == token_text.digest(minted, rotation[0])


@given(keys)
def test_the_id_of_a_key_tells_nothing_of_the_key(key: bytes) -> None:
    name = token_text.token_key_id(key)

    assert re.fullmatch(r"[0-9a-f]{8}", name)
    assert name not in key.hex()
