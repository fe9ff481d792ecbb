"""Long responses are compressed, but only for clients that accept compression."""

import gzip

import pytest

from accounts.models import User
from capabilities import Capability
from tests import make
from tests.conftest import SignIn

pytestmark = pytest.mark.full

PACKED = {"Accept-Encoding": "gzip, deflate, br"}


def test_a_page_and_a_list_are_compressed_for_those_who_take_that(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    make.gateway(name="Work", slug="work")
    for path in ("/gateways/", "/api/capabilities"):
        plain, packed = client.get(path), client.get(path, headers=PACKED)

        assert packed["Content-Encoding"] == "gzip"
        assert "Accept-Encoding" in packed["Vary"]
        assert len(packed.content) < len(plain.content) / 2
        assert gzip.decompress(packed.content)[:200] == plain.content[:200]
        assert "Content-Encoding" not in plain.headers


def test_an_answer_with_an_etag_stays_as_it_is_so_that_if_match_takes_it(db: None, sign_in: SignIn) -> None:
    client, gateway = sign_in(make.user(*Capability)), make.gateway(name="Work", description="words " * 60)
    path = f"/api/gateways/{gateway.slug}"

    seen = client.get(path, headers=PACKED)

    assert "Content-Encoding" not in seen.headers
    assert seen["ETag"].startswith('"')
