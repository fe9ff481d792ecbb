"""Different spellings of a host are equal wherever hosts are compared."""

import pytest

from oauth.client_metadata import same_resource
from proxy.request import Origins
from ui import addresses
from wire import hosts
from wire.forward_proxy import spelled
from wire.guard import OwnEndpoints
from wire.oauth_client import place_of

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
        ("127.1", "127.0.0.1"),
        ("0x7f.0.0.01.", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("4294967296", "4294967296"),
    ],
)
def test_names_and_addresses_have_one_spelling(host: str, canonical: str) -> None:
    assert hosts.canonical_host(host) == canonical


@pytest.mark.full
@pytest.mark.parametrize("spelling", ["https://app.example./cb", "https://APP.example/cb"])
def test_a_page_shows_a_host_once(spelling: str) -> None:
    shown = addresses.parts(spelling)

    assert shown.before + shown.domain + shown.after == "https://app.example"


@pytest.mark.parametrize("host", ["gateway.example.com", "GATEWAY.example.com.", "gateway%2eexample.com"])
def test_our_own_gateways_are_known_however_they_are_spelled(host: str) -> None:
    own = OwnEndpoints.of("https://gateway.example.com", "", hosts=["gateway.example.com"])

    assert own.has(f"https://{host}/mcp/work")


@pytest.mark.parametrize("origin", ["https://gateway.example.com", "https://GATEWAY.example.com:443"])
def test_a_browser_may_call_from_our_own_origin_however_it_is_configured(origin: str) -> None:
    for public_url in ("https://gateway.example.com", "https://Gateway.Example.com:443"):
        assert Origins(public_url, []).allows(origin)
    assert not Origins("https://gateway.example.com:8443", []).allows(origin)
    assert not Origins("https://gateway.example.com", []).allows("https://gateway.example.com.evil.com")
    assert not Origins("https://gateway.example.com", []).allows("https://[")


@pytest.mark.parametrize("spelling", ["https://GW.example:443/mcp/work/", "https://gw.example./mcp/work"])
def test_a_resource_is_found_however_its_host_is_spelled(spelling: str) -> None:
    assert same_resource(spelling, "https://gw.example/mcp/work")
    assert not same_resource(spelling, "https://gw.example/mcp/Work")
    assert not same_resource("https://gw.example\\x/mcp/work", "https://gw.example/mcp/work")


@pytest.mark.parametrize("host", ["stra\u00dfe.example", "xn--strae-oqa.example", "STRA\u00dfE.example."])
def test_an_outbound_proxy_is_asked_for_the_host_that_is_compared(host: str) -> None:
    assert spelled(host) == hosts.canonical_host(host) == "xn--strae-oqa.example"


@pytest.mark.parametrize("resource", ["http://[", "https://gw.example:x/mcp/work", "https://me@gw.example/mcp/work"])
def test_addresses_of_no_gateway_name_none(resource: str) -> None:
    assert not same_resource(resource, "https://gw.example/mcp/work")
