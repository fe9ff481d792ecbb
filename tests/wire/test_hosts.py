"""One host is the same host however it is spelled, wherever hosts are compared."""

import pytest

from ui import addresses
from wire import hosts
from wire.credential import place_of
from wire.guard import OwnEndpoints

SPELLINGS = [
    "https://legit.example/x",
    "https://LEGIT.example/x",
    "https://legit.example./x",
    "https://legit.example:443/x",
    "https://legit%2eexample/x",
    "https://%6cegit.example/x",
    "https://legit.example\\.evil.com/x",
    "https://legit.example\\@evil.com/x",
    "https://user@legit.example/x",
]
OTHERS = ["http://legit.example/", "https://legit.example:8443/", "https://legit.example.evil.com/", "https://legit/"]


@pytest.mark.parametrize("url", SPELLINGS)
def test_spellings_of_one_origin_are_one_place(url: str) -> None:
    assert hosts.origin_of(url) == place_of(url) == ("https", "legit.example", 443)


@pytest.mark.parametrize("url", OTHERS)
def test_other_origins_are_other_places(url: str) -> None:
    assert place_of(url) != place_of(SPELLINGS[0])


@pytest.mark.parametrize(
    ("host", "canonical"),
    [
        ("B\u00fccher.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("b\u00fccher\u3002example.", "xn--bcher-kva.example"),
        ("[0:0::1]", "[::1]"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_names_and_addresses_have_one_spelling(host: str, canonical: str) -> None:
    assert hosts.canonical(host) == canonical


@pytest.mark.parametrize("spelling", ["https://app.example./cb", "https://APP.example/cb"])
def test_a_page_shows_a_host_once(spelling: str) -> None:
    shown = addresses.parts(spelling)

    assert shown.before + shown.domain + shown.after == "https://app.example"


@pytest.mark.parametrize("host", ["gateway.example.com", "GATEWAY.example.com.", "gateway%2eexample.com"])
def test_our_own_gateways_are_known_however_they_are_spelled(host: str) -> None:
    own = OwnEndpoints.of("https://gateway.example.com", "", hosts=["gateway.example.com"])

    assert own.has(f"https://{host}/mcp/work")
